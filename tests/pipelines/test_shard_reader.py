from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.engines.flac import encode_flac
from pipelines.rows import RATE_HZ, Example, Screening, SelectionRow, Utterance
from pipelines.shard_reader import read_examples
from pipelines.stages.shard import ShardWriter
from pipelines.storage import LocalStorage
from tests.pipelines.engines.signals import speech_like


def example(number: int, **changes: object) -> Example:
    random = np.random.default_rng(number)
    wave = speech_like(2.0, RATE_HZ, seed=number)
    utterance = Utterance(
        clip_id=f"{number:020x}", recording_id="r", voice="ada", start_sample=0, num_samples=len(wave),
        text="Hello.", language="en", confidence=0.5, phonemes=("HH", "AH0"), phoneme_ids=(3, 4),
    )  # fmt: skip
    made = Example(
        utterance=utterance,
        flac=encode_flac(wave, RATE_HZ),
        uri="/a.wav",
        gain_db=1.5,
        content=random.standard_normal((100, 8)).astype(np.float16),
        tokens=random.integers(0, 1024, 50).astype(np.int16),
        speaker=np.full(4, 0.5, dtype=np.float32),
        speaker_vector=random.standard_normal(6).astype(np.float16),
        screening=Screening(snr_db=33.0),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def chosen(number: int, unit_id: str = "u1") -> SelectionRow:
    return SelectionRow(
        clip_id=f"{number:020x}", unit_id=unit_id, keep=True, reason="", split="train", prompt=False,
        num_samples=2 * RATE_HZ,
    )  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> LocalStorage:
    """Units u1 (0 to 4, in shards of two) and u10 (5), whose name begins as the other's does."""
    storage = LocalStorage(tmp_path)
    writer = ShardWriter(most_examples=2)
    for unit_id, numbers in (("u1", range(5)), ("u10", [5])):
        for path, data in writer.files("ada", unit_id, [example(n) for n in numbers], [], {}).items():
            storage.write(path, data)
    return storage


def test_selected_examples_come_back_as_they_were_written_in_order(corpus: LocalStorage) -> None:
    rows = read_examples("ada", [chosen(5, "u10"), chosen(3), chosen(0)], corpus)
    assert [row.utterance for row in rows] == [example(number).utterance for number in (0, 3, 5)]
    for row, number in zip(rows, (0, 3, 5), strict=True):
        written = example(number)
        assert row.flac == written.flac
        assert row.rate_hz == RATE_HZ
        assert row.wave.dtype == np.float32
        np.testing.assert_allclose(row.wave, speech_like(2.0, RATE_HZ, seed=number), atol=1 / 32_000)
        assert row.description["snr_db"] == 33.0
        np.testing.assert_array_equal(row.arrays["content"], written.content)
        np.testing.assert_array_equal(row.arrays["semantic"], written.tokens)


def test_a_training_item_has_the_types_that_networks_take(corpus: LocalStorage) -> None:
    (row,) = read_examples("ada", [chosen(2)], corpus)
    item = row.training_item()
    assert item.clip_id == f"{2:020x}"
    assert item.phoneme_ids.tolist() == [3, 4]
    assert (item.phoneme_ids.dtype, item.tokens.dtype) == (torch.int64, torch.int64)
    assert item.tokens.tolist() == example(2).tokens.tolist()
    assert (item.content.dtype, item.content.shape) == (torch.float32, (100, 8))
    assert item.text_vectors is None
    assert item.speaker_vector is not None
    assert item.speaker_vector.dtype == torch.float32
    assert item.wave.shape == (2 * RATE_HZ,)


def test_nothing_selected_reads_nothing(corpus: LocalStorage) -> None:
    assert read_examples("ada", [], corpus) == []


def test_a_clip_in_no_shard_is_an_error_that_names_it(corpus: LocalStorage) -> None:
    with pytest.raises(ValueError, match=f"1 selected clips are in no shard, the first is {9:020x}"):
        read_examples("ada", [chosen(0), chosen(9)], corpus)


def test_a_damaged_shard_is_an_error_that_names_it(corpus: LocalStorage) -> None:
    path = "voices/ada/shards/u1-00001.tar"
    corpus.write(path, corpus.read(path)[:700])
    with pytest.raises(ValueError, match=r"shard u1-00001\.tar is damaged"):
        read_examples("ada", [chosen(3)], corpus)
