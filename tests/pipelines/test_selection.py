from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.rows import MANIFEST_SCHEMA, RATE_HZ, Source
from pipelines.selection import SelectionPolicy, select
from pipelines.stages.shard import parquet_bytes
from pipelines.storage import LocalStorage
from pipelines.units import Unit

POLICY = SelectionPolicy()


def unit_of(corpus: LocalStorage, name: str, lines: list[dict[str, object]]) -> Unit:
    """A unit of voice `anna` whose manifest has the given lines."""
    unit = Unit.of([Source(voice="anna", uri=name, digest=name, size_bytes=1)], "config")
    full = [{**dict.fromkeys(MANIFEST_SCHEMA.names), **line} for line in lines]
    table = pa.Table.from_pylist(full, schema=MANIFEST_SCHEMA)
    corpus.write(f"voices/anna/manifest/{unit.unit_id}.parquet", parquet_bytes(table))
    return unit


def line(number: int, *, recording: str = "r", speaker: list[float] | None = None, seconds: float = 5) -> dict:
    noise = np.random.default_rng(number).normal(size=8) * 0.1
    vector = np.array(speaker or [1, 0, 0, 0, 0, 0, 0, 0]) + noise
    return {
        "clip_id": f"clip{number:03d}",
        "recording_id": recording,
        "voice": "anna",
        "start_sample": 0,
        "num_samples": round(seconds * RATE_HZ),
        "speaker": (vector / np.linalg.norm(vector)).tolist(),
    }


def test_a_foreign_voice_is_left_out(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    foreign = [line(20 + number, speaker=[0, 1, 0, 0, 0, 0, 0, 0]) for number in range(3)]
    unit = unit_of(corpus, "a", [*(line(number) for number in range(12)), *foreign])
    selection = select("anna", [unit], corpus, POLICY)
    assert {row.clip_id for row in selection.rows if row.reason == "other_speaker"} == {"clip020", "clip021", "clip022"}
    assert len(selection.kept()) == 12
    assert all(row.split == "" for row in selection.rows if not row.keep)


def test_a_tenth_is_held_out_and_nothing_of_few(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    unit = unit_of(corpus, "a", [line(number) for number in range(30)])
    assert len(select("anna", [unit], corpus, POLICY).kept("held_out")) == 3
    few = unit_of(corpus, "b", [line(number + 100) for number in range(9)])
    assert not select("anna", [few], LocalStorage(tmp_path), POLICY).kept("held_out")


def test_with_many_recordings_whole_recordings_are_held_out(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    unit = unit_of(corpus, "a", [line(number, recording=f"r{number // 3}") for number in range(30)])
    selection = select("anna", [unit], corpus, POLICY)
    held = {int(row.clip_id[4:]) // 3 for row in selection.kept("held_out")}
    trained = {int(row.clip_id[4:]) // 3 for row in selection.kept("train")}
    assert held
    assert not held & trained


def test_what_was_held_out_stays_so_as_the_voice_grows(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    first = unit_of(corpus, "a", [line(number) for number in range(20)])
    before = {row.clip_id for row in select("anna", [first], corpus, POLICY).kept("held_out")}
    second = unit_of(corpus, "b", [line(number, recording=f"q{number}") for number in range(20, 90)])
    after = {row.clip_id for row in select("anna", [first, second], corpus, POLICY).kept("held_out")}
    assert before
    assert before < after


def test_the_same_manifests_give_the_same_selection_and_file(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    unit = unit_of(corpus, "a", [line(number) for number in range(20)])
    one = select("anna", [unit], corpus, POLICY)
    assert select("anna", [unit], corpus, POLICY) == one
    assert corpus.names("voices/anna/selection") == [f"{one.digest}.parquet"]


def test_prompts_come_from_the_training_split_and_have_their_length(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    unit = unit_of(corpus, "a", [line(number, seconds=2 + number % 10) for number in range(40)])
    selection = select("anna", [unit], corpus, POLICY)
    prompts = [row for row in selection.rows if row.prompt]
    assert prompts
    assert all(row.split == "train" and 3 <= row.num_samples / RATE_HZ <= 10 for row in prompts)


def test_enough_is_four_utterances_and_ten_seconds(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    four = unit_of(corpus, "a", [line(number, seconds=3) for number in range(4)])
    three = unit_of(corpus, "b", [line(number + 50, seconds=9) for number in range(3)])
    short = unit_of(corpus, "c", [line(number + 70, seconds=2) for number in range(4)])
    assert select("anna", [four], corpus, POLICY).enough(POLICY)
    assert not select("anna", [three], corpus, POLICY).enough(POLICY)
    assert not select("anna", [short], corpus, POLICY).enough(POLICY)
    assert not select("anna", [], corpus, POLICY).enough(POLICY)


def test_a_policy_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ValueError, match="held_out_share"):
        SelectionPolicy(held_out_share=0.9)
