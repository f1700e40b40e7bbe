"""Select: what each voice keeps of what was prepared, written down or only counted. No recording is read again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.config import JobConfig
from jobs.prepare import Prepared, open_prepared
from jobs.workspace import Workspace
from pipelines.bounds import Bound, bounds_in
from pipelines.reference import read_reference
from pipelines.rows import RATE_HZ, SelectionRow
from pipelines.selection import (
    Selection,
    Wanted,
    bounds_of,
    decide,
    held_out_before,
    read_manifests,
    select,
    voice_numbers,
)
from pipelines.storage import Storage
from pipelines.voice_card import VoiceCard

_PERCENTILES = (0, 5, 50, 95, 100)


@dataclass(frozen=True, kw_only=True)
class BoundEffect:
    """What one bound does to one voice. `rejected`: beyond this bound; `alone`: beyond it and no other."""

    voice: str
    bound: str
    """Its name as `--set` takes it."""
    limit: float | None
    measured: int
    """Clips that have the number; of the others it rejects none."""
    rejected: int
    rejected_seconds: float
    alone: int
    alone_seconds: float
    spread: tuple[float, ...]
    """Least, 5th, 50th and 95th percentile, most; empty where no clip has the number."""


@dataclass(frozen=True, kw_only=True)
class VoiceSelected:
    """What one voice keeps. `left_out`: reason → clips; `not_finite`: number → clips whose model gave no number."""

    voice: str
    digest: str
    clips: int
    kept: int
    kept_seconds: float
    held_out: int
    left_out: Mapping[str, int]
    left_out_seconds: float
    not_finite: Mapping[str, int]
    enough: bool


def wanted_of(card: VoiceCard, corpus: Storage, config: JobConfig) -> Wanted:
    """What a voice's card asks of its selection. Raises ValueError where its reference was not heard yet."""
    return Wanted(pronunciation=card.pronunciation, speaker=read_reference(card, corpus, config.flow.engines))


def select_voices(workspace: Workspace, config: JobConfig, *, only: Sequence[str] = ()) -> list[VoiceSelected]:
    """Decide on every voice (or those in `only`) as `onboard` would, and write the decisions down.

    Raises:
        ValueError: no corpus, or a voice in `only` that it does not have.
    """
    corpus = workspace.storage
    with workspace.lease():
        prepared = open_prepared(workspace, config)
        found = []
        for name in _names(prepared, only):
            voice = prepared.voices[name]
            selection = select(name, voice.units, corpus, config.selection, wanted_of(voice.card, corpus, config))
            found.append(_selected(selection, read_manifests(name, voice.units, corpus), config))
    return found


def try_bounds(
    workspace: Workspace, config: JobConfig, *, only: Sequence[str] = ()
) -> tuple[list[VoiceSelected], list[BoundEffect]]:
    """What `select_voices` would keep, and what each bound does; nothing is written.

    A bound of the flow's own is shown where it is set: stricter than when the clips were stored it would leave them out
    of the next preparing; what it left out then is in no shard.

    Raises:
        ValueError: no corpus, or a voice in `only` that it does not have.
    """
    corpus = workspace.storage
    prepared = open_prepared(workspace, config)
    voices: list[VoiceSelected] = []
    effects: list[BoundEffect] = []
    for name in _names(prepared, only):
        voice = prepared.voices[name]
        wanted, before = wanted_of(voice.card, corpus, config), held_out_before(name, corpus)
        lines = read_manifests(name, voice.units, corpus)
        numbers = voice_numbers(lines, before, config.selection, wanted)
        voices.append(_selected(decide(name, lines, before, config.selection, wanted, numbers), lines, config))
        seconds = np.array([line["num_samples"] / RATE_HZ for line in lines])
        limits = list(bounds_in(bounds_of(config.selection, wanted)))
        effects += _effects(name, "selection.bounds.", limits, numbers, seconds)
        effects += _effects(name, "flow.bounds.", list(bounds_in(config.flow.bounds)), numbers, seconds)
    return voices, effects


def left_out_by_selection(selection: Selection) -> Iterator[tuple[str, int, str]]:
    """(reason, clips, what is to be said of the first) of what a selection leaves out."""
    for reason, count in selection.left_out.items():
        yield reason, count, _said(next(row for row in selection.rows if row.reason == reason))


def _said(row: SelectionRow) -> str:
    if row.reason == "near_duplicate":
        return f"clip {row.clip_id} holds the same audio as {row.copy_of}"
    if row.reason == "other_speaker":
        return f"clip {row.clip_id}: cosine {row.centroid_cosine:.2f} to the voice's centre"
    if row.reason == "pronunciation":
        return f"clip {row.clip_id}: {row.phoneme_error_rate:.0%} of the phonemes are not the text's"
    return f"clip {row.clip_id}; `gsv select --dry-run` shows the bounds"


def _names(prepared: Prepared, only: Sequence[str]) -> list[str]:
    if unknown := sorted(set(only) - set(prepared.voices)):
        raise ValueError(f"--voice {unknown[0]}: not in the corpus; there are {', '.join(sorted(prepared.voices))}")
    return sorted(set(only) or prepared.voices)


def _selected(selection: Selection, lines: Sequence[Mapping[str, Any]], config: JobConfig) -> VoiceSelected:
    odd = [name for line in lines for name in line.get("not_finite") or ()]
    return VoiceSelected(
        voice=selection.voice,
        digest=selection.digest,
        clips=len(selection.rows),
        kept=len(selection.kept()),
        kept_seconds=round(selection.seconds(), 2),
        held_out=len(selection.kept("held_out")),
        left_out=selection.left_out,
        left_out_seconds=round(selection.seconds_left_out, 2),
        not_finite={name: odd.count(name) for name in sorted(set(odd))},
        enough=selection.enough(config.selection),
    )


def _effects(
    voice: str, group: str, bounds: Sequence[Bound], numbers: Sequence[Mapping[str, Any]], seconds: np.ndarray
) -> Iterator[BoundEffect]:
    broken = np.array([[bound.broken_by(entry.get(bound.number)) for entry in numbers] for bound in bounds], dtype=bool)
    broken = broken.reshape(len(bounds), len(numbers))
    for row, bound in zip(broken, bounds, strict=True):
        values = [entry[bound.number] for entry in numbers if entry.get(bound.number) is not None]
        alone = row & (broken.sum(axis=0) == 1)
        yield BoundEffect(
            voice=voice,
            bound=group + bound.name,
            limit=bound.limit,
            measured=len(values),
            rejected=int(row.sum()),
            rejected_seconds=round(float(seconds[row].sum()), 2),
            alone=int(alone.sum()),
            alone_seconds=round(float(seconds[alone].sum()), 2),
            spread=tuple(round(float(value), 4) for value in np.percentile(values, _PERCENTILES)) if values else (),
        )
