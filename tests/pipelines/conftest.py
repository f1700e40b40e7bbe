"""Two demonstration recordings, taken through the stages one after the other, once per session."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.rows import Example, LevelledRecording, Recording, Source, SpokenClip
from pipelines.stage import Stage
from pipelines.stages.features import ExtractFeatures
from pipelines.stages.ingest import IngestSources
from pipelines.stages.normalise import NormaliseRecordings
from pipelines.stages.phonemise import PhonemiseUtterances
from pipelines.stages.slice import SliceRecordings
from pipelines.stages.transcribe import TranscribeClips


def source_of(path: Path, voice: str = "ada", **said: Any) -> Source:
    """The Source that `gather` would make of a file, without its neighbours."""
    data = path.read_bytes()
    return Source(voice=voice, uri=str(path), digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data), **said)


def levelled_of(path: Path, **said: Any) -> LevelledRecording:
    """A file through ingest and normalise."""
    (recording,) = IngestSources().process(source_of(path, **said), None)
    assert isinstance(recording, Recording)
    (levelled,) = NormaliseRecordings().process(recording, None)
    assert isinstance(levelled, LevelledRecording)
    return levelled


@dataclass(frozen=True, eq=False)
class Travelled:
    """The rows of two recordings of one voice, as each stage left them; with the models that made them."""

    levelled: tuple[LevelledRecording, ...]
    sliced: tuple[LevelledRecording, ...]
    spoken: tuple[SpokenClip, ...]
    phonemised: tuple[SpokenClip, ...]
    examples: tuple[Example, ...]
    models: dict[str, Any]


@pytest.fixture(scope="session")
def travelled(demo_voices: Path) -> Travelled:
    """`day_1.wav` with its text and `day_2.flac` without, from Source to Example. Read only."""
    folder = demo_voices / "ada"
    text = (folder / "day_1.txt").read_text(encoding="utf-8").strip()
    levelled = (
        levelled_of(folder / "day_1.wav", language="en", transcript=text),
        levelled_of(folder / "day_2.flac", language="en"),
    )
    models: dict[str, Any] = {}
    rows: list[tuple[Any, ...]] = [levelled]
    stages: list[Stage[Any, Any]] = [SliceRecordings(), TranscribeClips(), PhonemiseUtterances(), ExtractFeatures()]
    for stage in stages:
        models[stage.name] = stage.load()
        rows.append(tuple(result for row in rows[-1] for result in stage.process(row, models[stage.name])))
    _, sliced, spoken_clips, phonemised, examples = rows
    return Travelled(levelled, sliced, spoken_clips, phonemised, examples, models)


@pytest.fixture
def spoken(travelled: Travelled) -> SpokenClip:
    """One spoken clip with its phonemes, free to be changed by `replace`."""
    return replace(travelled.phonemised[0])
