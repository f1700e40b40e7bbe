"""A wave for every row of a table that can be spoken, and a reason for every other."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gsv_core.audio.wav import read_wav
from gsv_core.synthesis.sampling import Sampling
from jobs.cli import main
from jobs.cluster import Cluster
from jobs.config import ClusterConfig
from jobs.progress import Silent
from jobs.register import register_voice
from jobs.synth import Delivery, VoiceAddress, opened, speak
from jobs.synth_table import Line, TableJob, _Speaker, read_lines, speak_line, synth_table
from jobs.tracking import Tracker
from tests.jobs.run_fixture import tone_wav, write_nano_run

BRIEF = Delivery(sampling=Sampling(longest_tokens=30))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    workspace = tmp_path_factory.mktemp("workspace")
    tracker = Tracker(f"sqlite:///{workspace}/mlflow.db", "corpus")
    for number, voice in enumerate(("alice", "ben")):
        run = write_nano_run(workspace / "corpus", voice=voice, run_id=str(number) * 20, scale=1.01 + 0.03 * number)
        register_voice(tracker, run)
    return tracker.store.uri


def write_csv(path: Path, *rows: dict[str, object]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def results_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_is_read_alike_from_every_format(tmp_path: Path) -> None:
    rows = [
        {"text": "Good morning, you.", "language": "en", "voice": "alice", "speed": 1.5, "seed": 3, "style": "calm"},
        {"text": "早上好。", "language": "zh", "voice": "", "speed": None, "seed": None, "style": None},
    ]
    write_csv(tmp_path / "a.csv", *rows)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = [
        Line(number=1, text="Good morning, you.", language="en", voice="alice", speed=1.5, seed=3, style="calm"),
        Line(number=2, text="早上好。", language="zh", voice="ben", speed=0.9, seed=7),
    ]
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert list(read_lines(tmp_path / name, voice="ben", seed=7, speed=0.9)) == expected


def test_a_row_that_cannot_be_used_is_kept_with_its_reason(tmp_path: Path) -> None:
    table = tmp_path / "a.jsonl"
    table.write_text('{"text": "a"}\n{"text": ""}\nnonsense\n[1]\n{"text": "a", "voice": "b", "speed": "fast"}\n')
    reasons = [line.error for line in read_lines(table)]
    assert reasons[0] == "no voice: name one in the row or with --voice"
    assert reasons[1] == "no text"
    assert str(reasons[2]).startswith("not JSON")
    assert reasons[3] == "expected an object, got list"
    assert reasons[4] == "speed and seed should be numbers"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"text\nHello.\n", r"expected a \.csv, \.jsonl or \.parquet file"),
        ("a.csv", b"words,language\nHello.,en\n", "a column `text` is needed, got language, words"),
        ("a.csv", b"\xff\xfe\x00", "not readable as csv"),
        ("a.parquet", b"PAR1 or not", "not readable as parquet"),
        ("a.csv", b"text\n", "there is no row in it"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    job = TableJob(tracker_uri="sqlite:///nowhere.db", out=tmp_path / "out", voice="alice")
    with pytest.raises(ValueError, match=rf"^--table .*{reason}"):
        synth_table(path, job, Cluster(ClusterConfig(), tmp_path), Silent())
    with pytest.raises(ValueError, match="No such file"):
        list(read_lines(tmp_path / "nowhere.csv"))


def test_a_row_is_spoken_as_it_would_be_alone(uri: str, tmp_path: Path) -> None:
    job = TableJob(tracker_uri=uri, out=tmp_path, delivery=BRIEF)
    (tmp_path / "own.wav").write_bytes(tone_wav(4.0))
    line = Line(number=1, text="Good morning.", language="en", voice="alice", seed=5, speed=1.25)
    with opened(VoiceAddress(tracker_uri=uri, voice="alice")) as voice:
        speak_line(line, "one", voice, job)
        speak_line(replace(line, reference=str(tmp_path / "own.wav")), "two", voice, job)
        for wrong, reason in (
            (replace(line, reference=str(tmp_path / "none.wav")), "No such file"),
            (replace(line, style="angry"), "no style 'angry'"),
            (replace(line, text="🙂"), "can be spoken"),
        ):
            with pytest.raises(ValueError, match=reason):
                speak_line(wrong, "three", voice, job)
    alone = speak(uri, "alice", "Good morning.", "en", delivery=replace(BRIEF, seed=5, speed=1.25))
    assert (tmp_path / "one.wav").read_bytes() == alone.wav
    assert (tmp_path / "two.wav").read_bytes() != alone.wav
    assert not (tmp_path / "three.wav").exists()
    told = json.loads((tmp_path / "rows" / "one.json").read_text(encoding="utf-8"))
    assert told["seconds"] == pytest.approx(len(read_wav(alone.wav)[0]) / 32_000, abs=1e-3)
    assert 0 < told["peak"] <= 1


def in_this_process(tasks: list[dict[str, Any]], voices: dict[str, Any], job: TableJob, *_: object) -> dict[int, str]:
    """What the workers do, without Ray: a block of two rows at a time."""
    speaker = _Speaker(voices, job)
    packed = [json.dumps(task).encode() for task in tasks]
    errors: dict[int, str] = {}
    for start in range(0, len(packed), 2):
        answer = speaker({"task": np.array(packed[start : start + 2], dtype=object)})
        errors |= {int(n): str(e) for n, e in zip(answer["number"], answer["error"], strict=True) if e}
    return errors


def test_on_ray_a_row_is_spoken_and_a_bad_one_reported(uri: str, tmp_path: Path, cluster: Cluster) -> None:
    rows = [{"text": "Hello.", "language": "en", "voice": "ben"}, {"text": "🙂", "language": "en", "voice": "alice"}]
    job = TableJob(tracker_uri=uri, out=tmp_path / "out", delivery=BRIEF)
    done = synth_table(write_csv(tmp_path / "table.csv", *rows), job, cluster, Silent())
    assert (done.spoken, sorted(done.errors)) == (1, [2])
    (row, _) = results_of(job.out)
    assert (job.out / row["wave"]).read_bytes() == speak(uri, "ben", "Hello.", "en", delivery=BRIEF).wav


def test_a_table_is_spoken_reported_and_gone_on_with(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.synth_table._speak_all", in_this_process)
    cluster = Cluster(ClusterConfig(), tmp_path)
    monkeypatch.setattr(cluster, "start", lambda: None)
    rows: list[dict[str, object]] = [
        {"text": "Good morning.", "language": "en", "voice": "alice", "seed": 1},
        {"text": "🙂", "language": "en", "voice": "ben"},
        {"text": "Good evening.", "language": "en", "voice": "ben"},
        {"text": "Hello.", "language": "en", "voice": "dora"},
        {"text": "早上好。", "language": "zh", "voice": "", "style": "angry"},
        {"text": "Good evening.", "language": "en", "voice": ""},
    ]
    table = write_csv(tmp_path / "table.csv", *rows)
    out = tmp_path / "out"
    job = TableJob(tracker_uri=uri, out=out, voice="alice", delivery=BRIEF)
    first = synth_table(table, job, cluster, Silent())
    assert (first.spoken, first.present, sorted(first.errors)) == (3, 0, [2, 4, 5])
    assert "can be spoken as en" in first.errors[2]
    assert "no voice 'dora'" in first.errors[4]
    assert "no style 'angry'" in first.errors[5]
    told = results_of(out)
    assert [row["row"] for row in told] == ["1", "2", "3", "4", "5", "6"]
    for number, voice, seed in ((1, "alice", 1), (3, "ben", 0), (6, "alice", 0)):
        row = told[number - 1]
        alone = speak(uri, voice, row["text"], "en", delivery=replace(BRIEF, seed=seed))
        assert (out / row["wave"]).read_bytes() == alone.wav
        assert row["error"] == ""
        assert float(row["seconds"]) > 0
    assert all(told[number - 1]["wave"] == "" and told[number - 1]["error"] for number in (2, 4, 5))
    # A second run has nothing to do for the rows that are there, wherever it was cut off.
    (out / told[2]["wave"]).unlink()
    rows[0]["seed"] = 9
    write_csv(table, *rows)
    stamp = (out / told[5]["wave"]).stat().st_mtime_ns
    second = synth_table(table, job, cluster, Silent())
    assert (second.spoken, second.present, sorted(second.errors)) == (2, 1, [2, 4, 5])
    again = results_of(out)
    assert again[2] == told[2]
    assert again[0]["wave"] != told[0]["wave"]
    assert (out / told[5]["wave"]).stat().st_mtime_ns == stamp
    assert np.isclose(second.seconds, sum(float(row["seconds"] or 0) for row in again), atol=1e-3)


def test_the_command_starts_no_ray_where_every_row_is_spoken_or_wrong(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_csv(tmp_path / "table.csv", {"text": "", "voice": "alice"}, {"text": "Hello.", "voice": "dora"})
    monkeypatch.setattr(Cluster, "start", lambda _: pytest.fail("Ray was started"))
    common = ["synth", "--workspace", str(tmp_path), "--tracking-uri", uri, "--table", str(table)]
    assert main([*common, "--out", str(tmp_path / "out")]) == 2
    assert "no voice 'dora'" in capsys.readouterr().err
    write_csv(table, {"text": "", "voice": "alice"}, {"text": "Hello.", "voice": ""})
    assert main([*common, "--out", str(tmp_path / "out"), "--json"]) == 3
    facts = json.loads(capsys.readouterr().out)
    assert (facts["spoken"], facts["present"], sorted(facts["errors"])) == (0, 0, ["1", "2"])
    assert main([*common, "--out", str(tmp_path / "out"), "--text", "Hello."]) == 2
    assert "--text does not go with --table" in capsys.readouterr().err
    assert main(common) == 2
    assert "--table needs --out DIR" in capsys.readouterr().err
