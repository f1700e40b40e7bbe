"""A committed corpus of one unit, made of rows from numbers: for tests of what looks at corpora from outside."""

import json

import numpy as np

from pipelines.rows import Account, Example, Rejection, Source, Utterance
from pipelines.stages.shard import ShardWriter
from pipelines.storage import LocalStorage
from pipelines.units import Committed, Unit, commit, file_digests, write_plan


def example(number: int, voice: str = "anna") -> Example:
    utterance = Utterance(
        clip_id=f"{number:020x}",
        recording_id="r",
        voice=voice,
        start_sample=number * 100_000,
        num_samples=96_000,
        text="hello",
        language="en",
        confidence=0.9,
    )
    return Example(
        utterance=utterance,
        flac=b"not decoded here",
        uri=f"/{voice}/1.wav",
        gain_db=0.0,
        content=np.zeros((150, 4), np.float16),
        tokens=np.zeros(75, np.int16),
        speaker=np.ones(4, np.float32) / 2,
    )


def commit_unit(
    corpus: LocalStorage,
    clips: int = 3,
    config: str = "config",
    voice: str = "anna",
    examples: list[Example] | None = None,
) -> Unit:
    """Plan and commit one unit with `clips` clips, or with these."""
    examples = examples or [example(number, voice) for number in range(clips)]
    clips = len(examples)
    unit = Unit.of([Source(voice=voice, uri=f"/{voice}/1.wav", digest="d" * 64, size_bytes=1)], config)
    rejections = [Rejection(row_id="x", voice=voice, uri=f"/{voice}/1.wav", stage="slice", reason="no_speech")]
    write_plan([unit], corpus)
    files = ShardWriter(most_examples=2).files(voice, unit.unit_id, examples, rejections, {})
    account = Account(
        recording_id="r",
        voice=voice,
        uri=f"/{voice}/1.wav",
        digest="d" * 64,
        duration_samples=clips * 100_000,
        kept_samples=clips * 96_000,
        rejected_samples=0,
        non_speech_samples=clips * 4_000,
    )
    mark = Committed(
        unit_id=unit.unit_id,
        voice=voice,
        config_digest=config,
        files=file_digests(files),
        accounts=(account,),
        kept=clips,
        rejected=1,
        counts={},
    )
    commit(unit, files, mark, corpus)
    return unit


def describe(corpus: LocalStorage, *units: Unit) -> None:
    """The part of `corpus.json` that says what is current."""
    description = {"units": sorted(unit.unit_id for unit in units), "voices": sorted({unit.voice for unit in units})}
    corpus.write("corpus.json", json.dumps(description).encode())
