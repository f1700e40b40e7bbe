"""A committed unit to the same unit for another base, from what is stored: nothing is sliced or recognised again.

Every derived member names what made it. Those whose maker is the same are taken over, the others are computed from the
stored FLAC, content and text. The result is byte for byte what the whole flow would have made of the recordings.
Where that cannot be known, because a clip that is in no shard might now be kept, the unit is not derivable.
"""

import io
import json
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from gsv_core.checkpoints.base import BaseModel
from gsv_core.features import content_gain, encoder_wave, speaker_vector_of, text_vectors_of, tokens_of
from gsv_core.text.mandarin_polyphones import Polyphones
from pipelines.engines.flac import decode_flac
from pipelines.flow import Flow
from pipelines.rows import Example, Rejection, Screening, SpokenClip, Treatment, utterance_of
from pipelines.stages.features import ExtractFeatures
from pipelines.stages.phonemise import PhonemiseUtterances
from pipelines.stages.screen import ScreenExamples
from pipelines.storage import Storage
from pipelines.units import Committed, Unit, commit, file_digests, read_committed

_Kind = TypeVar("_Kind")
_READS_PHONEMES = frozenset(("phonemise", "features", "screen"))
"""Stages that may leave a clip out for what it is read as."""


class NotDerivable(Exception):  # noqa: N818 - says what a unit is, and is always caught
    """The unit must be made from its recordings; the message says why."""


@dataclass(frozen=True)
class Deriver:
    """Derives units for one flow. Models are loaded when the first unit needs them, the recogniser never."""

    flow: Flow

    def derive(self, unit: Unit, earlier: Unit, corpus: Storage) -> Committed:
        """Commit `unit`, made of `earlier`'s files.

        Raises:
            NotDerivable: it must be made from its recordings.
        """
        mark = read_committed(earlier, corpus)
        rejections = [
            Rejection(**line) for path in mark.files if "/rejected/" in path for line in _lines(corpus.read(path))
        ]
        made_by = self._made_by(mark, corpus)
        differs = {
            name
            for name in {*made_by, *self.flow.derived_from}
            if made_by.get(name) != self.flow.derived_from.get(name)
        }
        reread = "phonemes" in differs
        self._check(rejections, reread)
        examples = [self._derived(stored, differs) for stored in _stored(mark, corpus)]
        files = self.flow.writer.files(unit.voice, unit.unit_id, examples, rejections, self.flow.derived_from)
        committed = replace(mark, unit_id=unit.unit_id, config_digest=unit.config_digest, files=file_digests(files))
        commit(unit, files, committed, corpus)
        return committed

    def _made_by(self, mark: Committed, corpus: Storage) -> dict[str, str]:
        for path in sorted(mark.files):
            if path.endswith(".tar"):
                for members in _members(corpus.read(path)):
                    made_by: dict[str, str] = json.loads(members["json"])["derived_from"]
                    return made_by
        return {}  # without a clip nothing says so

    @staticmethod
    def _check(rejections: Collection[Rejection], reread: bool) -> None:
        for rejection in rejections:
            if rejection.stage == "features" or (reread and rejection.stage in _READS_PHONEMES):
                raise NotDerivable(f"a clip was left out as {rejection.reason}, and might now be kept")

    def _derived(self, stored: "_Stored", differs: Collection[str]) -> Example:
        example = stored.example
        reread = "phonemes" in differs
        if reread:
            if example.not_finite:
                raise NotDerivable("a number of a clip was not finite, and is not known any more")
            example = self._read_again(example)
        example = self._arrays(example, stored.arrays, differs)
        return self._screened(example) if reread else example

    def _read_again(self, example: Example) -> Example:
        stage = _stage(self.flow, PhonemiseUtterances)
        row = SpokenClip(
            utterance=example.utterance,
            flac=example.flac,
            uri=example.uri,
            gain_db=example.gain_db,
            treatment=example.treatment,
        )
        (spoken,) = stage.process(row, self._polyphones)
        if isinstance(spoken, Rejection):
            raise NotDerivable(f"a clip would now be left out as {spoken.reason}")
        return replace(example, utterance=spoken.utterance)

    def _screened(self, example: Example) -> Example:
        (screened,) = self._screen[0].process(example, self._screen[1])
        if isinstance(screened, Rejection):
            raise NotDerivable(f"a clip would now be left out as {screened.reason}")
        return screened

    def _arrays(self, example: Example, stored: dict[str, np.ndarray], differs: Collection[str]) -> Example:
        """The example with its derived arrays: those of the same maker as they are, the others computed."""
        content, tokens = stored["content"], stored["semantic"]
        wave = None
        if {"content", "sv"} & set(differs):
            wave, _ = decode_flac(example.flac)
        if "content" in differs:
            assert wave is not None
            loud = encoder_wave(wave) * content_gain(self._base, wave, loud=True)
            content = self._base.content_encoder.encode(loud).to(torch.float16).numpy()
        if {"content", "semantic"} & set(differs):
            tokens = tokens_of(self._base, torch.from_numpy(content)).to(torch.int16).numpy()
        text_vectors, speaker_vector = stored.get("bert"), stored.get("sv")
        if {"bert", "phonemes"} & set(differs):
            text_vectors = text_vectors_of(self._base, example.utterance)
        if "sv" in differs:
            assert wave is not None
            speaker_vector = speaker_vector_of(self._base, encoder_wave(wave))
        if not all(np.isfinite(array).all() for array in (content, text_vectors, speaker_vector) if array is not None):
            raise NotDerivable("a feature is NaN or infinite")
        return replace(
            example,
            content=content,
            tokens=tokens,
            text_vectors=text_vectors,
            speaker_vector=speaker_vector,
            wave=wave,
        )

    @cached_property
    def _base(self) -> BaseModel:
        return _stage(self.flow, ExtractFeatures).load_base()

    @cached_property
    def _polyphones(self) -> Polyphones | None:
        return _stage(self.flow, PhonemiseUtterances).load()

    @cached_property
    def _screen(self) -> tuple[ScreenExamples, Any]:
        stage = _stage(self.flow, ScreenExamples)
        return stage, stage.load()


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """An Example as a shard and its manifest hold it; `arrays` by the names of the members."""

    example: Example
    arrays: dict[str, np.ndarray]


def _stored(mark: Committed, corpus: Storage) -> Iterator[_Stored]:
    lines = {line["clip_id"]: line for path in mark.files if "/manifest/" in path for line in _lines(corpus.read(path))}
    for path in sorted(mark.files):
        if not path.endswith(".tar"):
            continue
        for members in _members(corpus.read(path)):
            line = lines[json.loads(members["json"])["clip_id"]]
            arrays = {
                suffix.removesuffix(".npy"): np.load(io.BytesIO(data), allow_pickle=False)
                for suffix, data in members.items()
                if suffix.endswith(".npy")
            }
            yield _Stored(example=_example(line, members["flac"], arrays), arrays=arrays)


def _example(line: dict[str, Any], flac: bytes, arrays: dict[str, np.ndarray]) -> Example:
    treatment: dict[str, Any] = {entry.name: line.get(entry.name) for entry in fields(Treatment)}
    return Example(
        utterance=utterance_of(line),
        flac=flac,
        uri=line["uri"],
        gain_db=line["gain_db"],
        content=arrays["content"],
        tokens=arrays["semantic"],
        speaker=arrays["speaker"],
        screening=Screening(**{entry.name: line[entry.name] for entry in fields(Screening)}),
        treatment=(
            None
            if treatment["source_codec"] is None
            else Treatment(**{**treatment, "warnings": tuple(treatment["warnings"] or ())})
        ),
        fingerprint=line["fingerprint"],
        not_finite=tuple(line["not_finite"] or ()),
    )


def _stage(flow: Flow, kind: type[_Kind]) -> _Kind:
    (stage,) = (stage for stage in flow.stages if isinstance(stage, kind))
    return stage


def _lines(parquet: bytes) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = pq.read_table(pa.BufferReader(parquet)).to_pylist()
    return lines


def _members(shard: bytes) -> Iterator[dict[str, bytes]]:
    """Suffix → content, clip by clip."""
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        key, members = "", dict[str, bytes]()
        for entry in tar:
            identity, _, suffix = entry.name.partition(".")
            file = tar.extractfile(entry)
            assert file is not None
            if identity != key and members:
                yield members
                members = {}
            key = identity
            members[suffix] = file.read()
        if members:
            yield members
