"""The whole flow on generated speech, through the real Ray, Ray Train and MLflow, as the command line runs it."""

import hashlib
import io
import json
import shutil
import sqlite3
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

FEW_STEPS = (
    "--set=training.semantic={steps: 16, save_every: 8, evaluate_every: 4, warm_up_steps: 2}",
    "--set=training.wave={steps: 12, save_every: 6, evaluate_every: 4, warm_up_steps: 2}",
    "--set=evaluation={utterances: 1, sentences: 0, common: 0, prompts: 0}",
    "--set=registry.sentences_at_saves=0",
)


def gsv(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    assert "Traceback" not in done.stderr
    return done


def onboard(recordings: Path, workspace: Path, *more: str, expect: int = 0) -> dict:
    done = gsv("onboard", recordings, "--workspace", workspace, "--json", *FEW_STEPS, *more, expect=expect)
    return json.loads(done.stdout)


def voice(summary: dict, name: str) -> dict:
    return next(entry for entry in summary["voices"] if entry["voice"] == name)


def state_of(workspace: Path) -> dict[str, str]:
    """Digest of every file of the corpus that must not change when nothing is new."""
    return {
        str(path.relative_to(workspace)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((workspace / "corpus").rglob("*"))
        if path.is_file() and "report" not in path.parts
    }


@pytest.fixture(scope="module")
def onboarded(demo_voices: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict]:
    """(recordings, workspace, summary) of the first run: two voices, and one with too little speech."""
    root = tmp_path_factory.mktemp("onboard")
    recordings = root / "recordings"
    shutil.copytree(demo_voices, recordings)
    lines = sorted((recordings / "ada").glob("*.txt"))
    (recordings / "too_short").mkdir()
    for path in [lines[0], *(lines[0].with_suffix(suffix) for suffix in (".wav", ".flac", ".mp3"))]:
        if path.exists():
            shutil.copy(path, recordings / "too_short" / path.name)
    (recordings / "too_short" / "broken.wav").write_bytes(b"RIFF nothing")
    return recordings, root / "workspace", onboard(recordings, root / "workspace")


def test_every_voice_with_enough_speech_is_registered(onboarded: tuple[Path, Path, dict]) -> None:
    _, workspace, summary = onboarded
    for name in ("ada", "linus"):
        line = voice(summary, name)
        assert (line["state"], line["model"], line["version"]) == ("registered", f"gsv-{name}", 1)
        assert line["seconds_kept"] > 30
        assert line["scores"]["likeness"] is not None
    assert voice(summary, "too_short")["state"] == "too_little_data"
    assert voice(summary, "too_short")["rejections"]["unreadable"] == 1
    assert summary["speech"]  # nano cannot speak, and says so
    assert Path(summary["report"]).stat().st_size > 10_000
    with sqlite3.connect(workspace / "mlflow.db") as store:
        assert dict(store.execute("select name, count(*) from model_versions group by name")) == {
            "gsv-ada": 1,
            "gsv-linus": 1,
        }


def test_shards_are_read_with_plain_webdataset(onboarded: tuple[Path, Path, dict]) -> None:
    _, workspace, _ = onboarded
    shards = [str(path) for path in sorted((workspace / "corpus" / "voices" / "ada" / "shards").glob("*.tar"))]
    examples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert examples
    for example in examples:
        members = {name for name in example if not name.startswith("__")}
        assert members == {"flac", "json", "content.npy", "speaker.npy", "semantic.npy", "sv.npy"}
        description = json.loads(example["json"])
        content = np.load(io.BytesIO(example["content.npy"]))
        tokens = np.load(io.BytesIO(example["semantic.npy"]))
        speaker = np.load(io.BytesIO(example["speaker.npy"]))
        assert example["__key__"] == description["clip_id"]
        assert content.dtype == np.float16
        assert tokens.dtype == np.int16
        assert len(tokens) == len(content) // 2
        assert abs(len(content) / 50 - description["num_samples"] / 32_000) < 0.1
        assert np.linalg.norm(speaker) == pytest.approx(1, abs=1e-4)
        assert description["text"]
        assert len(description["phoneme_ids"]) == len(description["phonemes"])


def test_every_sample_is_accounted_for_and_every_loss_has_a_reason(onboarded: tuple[Path, Path, dict]) -> None:
    _, workspace, _ = onboarded
    voices = workspace / "corpus" / "voices"
    marks = [json.loads(path.read_text()) for path in voices.glob("*/units/*.done")]
    accounts = [account for mark in marks for account in mark["accounts"]]
    assert accounts
    for account in accounts:
        parts = ("kept_samples", "rejected_samples", "non_speech_samples")
        assert account["duration_samples"] == sum(account[part] for part in parts)
    for mark in marks:
        for path, digest in mark["files"].items():
            assert hashlib.sha256((workspace / "corpus" / path).read_bytes()).hexdigest() == digest
    rejected = [row for path in voices.glob("*/rejected/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert all(row["reason"] and row["stage"] and row["uri"] for row in rejected)
    assert "unreadable" in {row["reason"] for row in rejected}


def test_held_out_losses_are_recorded_and_fall(onboarded: tuple[Path, Path, dict]) -> None:
    _, workspace, _ = onboarded
    for path in (workspace / "corpus" / "voices").glob("*/runs/*/curves.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for phase, metric in (("semantic", "cross_entropy"), ("wave", "mel")):
            curve = [
                record["metrics"][metric]
                for record in records
                if record["phase"] == phase and record["kind"] == "held_out"
            ]
            assert len(curve) >= 3
            assert curve[-1] < curve[0]
        losses = {name for record in records if record["phase"] == "wave" for name in record["metrics"]}
        assert {"mel", "kl", "adversarial", "feature_matching", "discriminator"} <= losses


def test_running_again_does_nothing_and_changes_nothing(onboarded: tuple[Path, Path, dict]) -> None:
    recordings, workspace, _ = onboarded
    before = state_of(workspace)
    again = onboard(recordings, workspace)
    assert again["did_nothing"]
    assert state_of(workspace) == before
    done = gsv("onboard", recordings, "--workspace", workspace, *FEW_STEPS)
    assert "Nothing new" in done.stdout
    assert "train" not in done.stderr


def test_a_registered_voice_makes_sound_and_the_same_sound_twice(
    onboarded: tuple[Path, Path, dict], tmp_path: Path
) -> None:
    _, workspace, _ = onboarded
    sentence = ("--text", "Good morning, everybody.", "--language", "en")
    for name in ("a.wav", "b.wav"):
        done = gsv("synth", "--workspace", workspace, "--voice", "ada", *sentence, "--out", tmp_path / name)
        assert "not speech" in done.stdout
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert file.getframerate() == 32_000
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    assert len(samples) > 0.5 * 32_000
    assert np.abs(samples).max() > 100
    wrong = gsv(
        "synth", "--workspace", workspace, "--voice", "nobody", *sentence, "--out", tmp_path / "c.wav", expect=2
    )
    assert "ada" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1


def test_parts_can_be_run_alone(onboarded: tuple[Path, Path, dict]) -> None:
    _, workspace, _ = onboarded
    for verb in ("train", "evaluate", "register"):
        done = gsv(verb, "--workspace", workspace, "--json", *FEW_STEPS)
        rows = {row["voice"]: row for row in json.loads(done.stdout)}
        assert (rows["ada"]["outcome"], rows["linus"]["outcome"]) == ("done", "done")
        assert "at least 4 Utterances" in rows["too_short"]["outcome"]
        if verb == "register":
            assert (rows["ada"]["model"], rows["ada"]["version"]) == ("gsv-ada", 1)
    assert Path(gsv("report", "--workspace", workspace).stdout.strip()).is_file()


# Last in the file: it changes the corpus.
def test_a_new_recording_causes_only_its_own_work(onboarded: tuple[Path, Path, dict]) -> None:
    recordings, workspace, _ = onboarded
    before = state_of(workspace)
    source = next(path for path in sorted((recordings / "linus").iterdir()) if path.suffix == ".mp3")
    shutil.copy(source, recordings / "too_short" / "more.mp3")
    shutil.copy(source.with_suffix(".srt"), recordings / "too_short" / "more.srt")
    summary = onboard(recordings, workspace)
    assert voice(summary, "too_short")["state"] == "registered"
    assert voice(summary, "too_short")["new"]
    for name in ("ada", "linus"):
        assert voice(summary, name)["version"] == 1
        assert not voice(summary, name)["new"]
    after = state_of(workspace)
    shared = {"corpus/corpus.json", "corpus/inventory.parquet"}
    changed = {path for path in before if after.get(path) != before[path]} - shared
    assert not changed
    added = {path for path in after if path not in before}
    assert added
    assert all("too_short" in path or path.startswith("corpus/plan/") for path in added)
