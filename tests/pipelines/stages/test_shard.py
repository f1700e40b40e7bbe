import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from pipelines.engines.flac import decode_flac
from pipelines.rows import MANIFEST_SCHEMA, REJECTION_SCHEMA, Example, Rejection, utterance_of
from pipelines.stages.shard import ShardWriter, shard_members
from tests.pipelines.conftest import Travelled

DERIVED = {"content": "mel 80", "semantic": "abc"}


def rejection(uri: str, start: int | None) -> Rejection:
    return Rejection(
        row_id=f"{uri}{start}", voice="ada", uri=uri, stage="slice", reason="no_speech", start_sample=start
    )


REJECTIONS = [rejection("/b.wav", None), rejection("/a.wav", 9), rejection("/a.wav", 5)]


def files(examples: list[Example], writer: ShardWriter | None = None, **changes: object) -> dict[str, bytes]:
    rejections = changes.get("rejections", REJECTIONS)
    return (writer or ShardWriter()).files("ada", "u1", examples, rejections, DERIVED)  # type: ignore[arg-type]


def shards(made: dict[str, bytes]) -> list[bytes]:
    return [data for path, data in sorted(made.items()) if path.endswith(".tar")]


def keys(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return list(dict.fromkeys(member.name.split(".")[0] for member in opened))


def many(travelled: Travelled, count: int) -> list[Example]:
    """Examples with ids of their own, from one."""
    row = travelled.examples[0]
    return [replace(row, utterance=replace(row.utterance, clip_id=f"{number:020x}")) for number in range(count)]


def test_the_same_rows_in_any_order_give_the_same_bytes(travelled: Travelled) -> None:
    examples = list(travelled.examples)
    once, again = files(examples), files(examples[::-1], rejections=REJECTIONS[::-1])
    assert once == again
    assert sorted(once) == [
        "voices/ada/manifest/u1.parquet",
        "voices/ada/rejected/u1.parquet",
        "voices/ada/shards/u1-00000.tar",
    ]


def test_a_shard_is_read_with_nothing_but_webdataset(travelled: Travelled, tmp_path: Path) -> None:
    (tar,) = shards(files(list(travelled.examples)))
    (tmp_path / "u1-00000.tar").write_bytes(tar)
    samples = list(webdataset.WebDataset(str(tmp_path / "u1-00000.tar"), shardshuffle=False))
    examples = sorted(travelled.examples, key=lambda row: row.utterance.clip_id)
    assert [sample["__key__"] for sample in samples] == [row.utterance.clip_id for row in examples]
    for sample, row in zip(samples, examples, strict=True):
        description = json.loads(sample["json"])
        assert utterance_of(description) == row.utterance
        assert description["derived_from"] == DERIVED
        assert description["snr_db"] == row.screening.snr_db
        wave, rate_hz = decode_flac(sample["flac"])
        assert (len(wave), rate_hz) == (row.utterance.num_samples, 32_000)
        arrays = {"content": row.content, "semantic": row.tokens, "speaker": row.speaker, "sv": row.speaker_vector}
        for name, expected in arrays.items():
            if expected is None:
                assert f"{name}.npy" not in sample
                continue
            stored = np.load(io.BytesIO(sample[f"{name}.npy"]), allow_pickle=False)
            assert stored.dtype == expected.dtype
            np.testing.assert_array_equal(stored, expected)


def test_text_vectors_are_a_member_only_where_there_are_some(travelled: Travelled) -> None:
    row = replace(travelled.examples[0], text_vectors=None)
    assert "bert.npy" not in shard_members(row, DERIVED)
    vectors = np.ones((3, 4), dtype=np.float16)
    np.testing.assert_array_equal(
        np.load(io.BytesIO(shard_members(replace(row, text_vectors=vectors), DERIVED)["bert.npy"])), vectors
    )


def test_a_shard_holds_no_more_examples_than_allowed(travelled: Travelled) -> None:
    tars = shards(files(many(travelled, 7), ShardWriter(most_examples=3)))
    assert [len(keys(tar)) for tar in tars] == [3, 3, 1]
    assert [key for tar in tars for key in keys(tar)] == [f"{number:020x}" for number in range(7)]


def test_a_shard_holds_no_more_bytes_than_allowed(travelled: Travelled) -> None:
    examples = many(travelled, 5)
    weight = sum(len(data) for data in shard_members(examples[0], DERIVED).values())
    assert [len(keys(t)) for t in shards(files(examples, ShardWriter(most_bytes=2 * weight)))] == [2, 2, 1]
    # One that is over the bound alone still gets a shard.
    assert [len(keys(t)) for t in shards(files(examples, ShardWriter(most_bytes=1)))] == [1] * 5


def test_the_manifest_has_every_example_with_its_shard(travelled: Travelled) -> None:
    made = files(many(travelled, 3), ShardWriter(most_examples=2))
    table = pq.read_table(pa.BufferReader(made["voices/ada/manifest/u1.parquet"]))
    assert table.schema.equals(MANIFEST_SCHEMA)
    assert table.schema.metadata[b"schema_version"] == b"1"
    assert table["shard"].to_pylist() == ["u1-00000.tar", "u1-00000.tar", "u1-00001.tar"]
    line = table.to_pylist()[0]
    assert utterance_of(line) == many(travelled, 1)[0].utterance
    np.testing.assert_array_equal(np.float32(line["speaker"]), travelled.examples[0].speaker)


def test_rejections_are_sorted_by_place_and_a_unit_without_examples_has_no_shard() -> None:
    made = files([])
    assert not shards(made)
    assert pq.read_table(pa.BufferReader(made["voices/ada/manifest/u1.parquet"])).num_rows == 0
    table = pq.read_table(pa.BufferReader(made["voices/ada/rejected/u1.parquet"]))
    assert table.schema.equals(REJECTION_SCHEMA)
    assert [(row["uri"], row["start_sample"]) for row in table.to_pylist()] == [
        ("/a.wav", 5), ("/a.wav", 9), ("/b.wav", None)
    ]  # fmt: skip
