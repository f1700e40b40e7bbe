"""Choose Prompts: the clips of a voice that show synthesis how to sound, one by default and one per style.

Candidates are clips of 3 to 10 s of the training split, never held-out ones. First each is judged as a recording:
predicted quality, signal to noise, agreement of its text with what was heard, likeness to the voice's centre, a length
near five seconds. Then the best are spoken with by the chosen pair, on fixed sentences, and measured like any sentence.
The default is the best of both together.

Styles are those the voice itself has: a clip is the livelier, the higher and the more varied its pitch, the louder its
voice and the quicker its words are against the voice's other clips. The best candidate of the calmest third is the
Prompt for `calm`, that of the liveliest third for `lively`. A voice with few candidates has no styles.
"""

import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gsv_core.checkpoints.weights import write_atomically, write_json
from gsv_core.metrics.pitch import track_pitch
from jobs.scoring import mean_of_known
from jobs.train import prompt_of
from pipelines.rows import RATE_HZ, SelectionRow
from pipelines.shard_reader import StoredExample

STYLES = ("calm", "lively")
RULE = (
    "mean of quality / 5, signal to noise / 40 dB, 1 − character error rate, likeness to the voice's centre and "
    "nearness to 5 s, as far as known; of the best ones, the mean of that and the score of sentences spoken with them"
)
_BEST_SECONDS = 5.0
_FULL_SNR_DB = 40.0
_MOST_HEARD = 40
"""Candidates whose style is looked at: the best recordings among them."""
_FEWEST_FOR_STYLES = 6
_LEAST_SPREAD = 0.05
"""Semitones, decibels or phonemes per second: clips that differ by less are alike."""
_LEAST_GAIN = 0.02
"""By which another candidate must be better than the best recording to take its place: spoken scores are noisy."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A clip that may serve as Prompt: what is known of it, its worth as a recording, and that of what it was for."""

    clip_id: str
    row: SelectionRow
    seconds: float
    numbers: Mapping[str, float | None]
    worth: float
    liveliness: float | None = None
    spoken: float | None = None

    @property
    def total(self) -> float:
        return self.worth if self.spoken is None else (self.worth + self.spoken) / 2

    def record(self) -> dict[str, Any]:
        rounded = {name: None if value is None else round(value, 4) for name, value in self.numbers.items()}
        return {
            "clip_id": self.clip_id,
            "seconds": round(self.seconds, 3),
            "numbers": rounded,
            "worth": round(self.worth, 4),
            "liveliness": None if self.liveliness is None else round(self.liveliness, 4),
            "spoken": None if self.spoken is None else round(self.spoken, 4),
        }


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The chosen Prompts of a voice: the default, one per style, and all that was looked at."""

    default: Candidate
    styles: Mapping[str, Candidate]
    candidates: tuple[Candidate, ...]


def candidates_of(rows: Sequence[SelectionRow], examples: Mapping[str, StoredExample]) -> list[Candidate]:
    """Every clip that may serve, the best recording first; where none has the right length, the longest there is.

    Raises:
        ValueError: nothing is kept for training.
    """
    train = [row for row in rows if row.keep and row.split == "train"]
    if not train:
        raise ValueError("no clip is kept for training, so there is no Prompt to choose")
    chosen = [row for row in train if row.prompt] or [max(train, key=lambda row: (row.num_samples, row.clip_id))]
    found = [_candidate(row, examples[row.clip_id]) for row in chosen]
    found.sort(key=lambda candidate: (-candidate.worth, candidate.clip_id))
    return _with_liveliness(found[:_MOST_HEARD], examples) + found[_MOST_HEARD:]


def choose_prompts(candidates: Sequence[Candidate], spoken: Callable[[Candidate], float], *, most: int) -> Prompts:
    """The Prompts among `candidates`, the best recording first; `spoken` scores sentences said with one.

    The `most` best are tried, and the one of each style.
    """
    styles = _styles(candidates)
    tried = {candidate.clip_id for candidate in (*candidates[:most], *styles.values())}
    if not most or len(candidates) == 1:
        tried = set()
    judged = {
        candidate.clip_id: replace(candidate, spoken=spoken(candidate)) if candidate.clip_id in tried else candidate
        for candidate in candidates
    }
    first = judged[candidates[0].clip_id]
    best = max((judged[candidate.clip_id] for candidate in candidates[: max(1, most)]), key=lambda entry: entry.total)
    return Prompts(
        default=best if best.total > first.total + _LEAST_GAIN else first,
        styles={style: judged[candidate.clip_id] for style, candidate in styles.items()},
        candidates=tuple(judged.values()),
    )


def write_prompts(run_dir: Path, prompts: Prompts, examples: Mapping[str, StoredExample]) -> None:
    """The default as `prompt.*`, each style's as `prompts/<style>/prompt.*`, and `prompts.json`, which says why."""
    shutil.rmtree(run_dir / "prompts", ignore_errors=True)  # an earlier choice may have had other styles
    for style, candidate in prompts.styles.items():
        _write_prompt(run_dir / "prompts" / style, examples[candidate.clip_id])
    _write_prompt(run_dir, examples[prompts.default.clip_id])
    record = {
        "schema_version": 1,
        "default": prompts.default.clip_id,
        "styles": {style: candidate.clip_id for style, candidate in prompts.styles.items()},
        "rule": RULE,
        "candidates": [candidate.record() for candidate in prompts.candidates],
    }
    write_json(run_dir / "prompts.json", record)


def _candidate(row: SelectionRow, example: StoredExample) -> Candidate:
    told = example.description
    seconds = row.num_samples / RATE_HZ
    errors = told.get("character_error_rate")
    numbers = {
        "quality": told.get("quality"),
        "snr_db": told.get("snr_db"),
        "agreement": told.get("confidence") if errors is None else 1.0 - errors,
        "likeness": row.centroid_cosine,
        "phonemes_per_second": told.get("phonemes_per_second"),
    }
    parts = [
        None if numbers["quality"] is None else numbers["quality"] / 5.0,
        None if numbers["snr_db"] is None else numbers["snr_db"] / _FULL_SNR_DB,
        numbers["agreement"],
        numbers["likeness"],
        1.0 - abs(seconds - _BEST_SECONDS) / _BEST_SECONDS,
    ]
    return Candidate(clip_id=row.clip_id, row=row, seconds=seconds, numbers=numbers, worth=mean_of_known(parts))


def _with_liveliness(found: Sequence[Candidate], examples: Mapping[str, StoredExample]) -> list[Candidate]:
    heard = []
    for candidate in found:
        example = examples[candidate.clip_id]
        pitch = track_pitch(example.wave, example.rate_hz)
        semitones = 12.0 * np.log2(pitch[pitch > 0])
        voiced = len(semitones) > 0
        level = float(np.sqrt(np.mean(example.wave.astype(np.float64) ** 2)))
        style = {
            "pitch_semitones": float(np.median(semitones)) if voiced else None,
            "pitch_spread_semitones": float(np.subtract(*np.quantile(semitones, [0.9, 0.1]))) if voiced else None,
            "level_db": 20.0 * float(np.log10(max(level, 1e-6))),
        }
        heard.append(replace(candidate, numbers={**candidate.numbers, **style}))
    scales = [
        _standardised([candidate.numbers[name] for candidate in heard])
        for name in ("pitch_semitones", "pitch_spread_semitones", "level_db", "phonemes_per_second")
    ]
    return [
        replace(candidate, liveliness=statistics.fmean(scale[place] for scale in scales))
        for place, candidate in enumerate(heard)
    ]


def _standardised(values: Sequence[float | None]) -> list[float]:
    """Multiples of the spread above the mean; 0 where unknown, or where all are alike."""
    known = [value for value in values if value is not None]
    spread = statistics.pstdev(known) if known else 0.0
    middle = statistics.fmean(known) if known else 0.0
    if spread < _LEAST_SPREAD:
        return [0.0] * len(values)
    return [0.0 if value is None else (value - middle) / spread for value in values]


def _styles(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """The best recording of the calmest and of the liveliest third."""
    heard = sorted(
        (candidate for candidate in candidates if candidate.liveliness is not None),
        key=lambda candidate: (candidate.liveliness, candidate.clip_id),
    )
    if len(heard) < _FEWEST_FOR_STYLES:
        return {}
    third = len(heard) // 3
    return {
        style: max(part, key=lambda candidate: (candidate.worth, candidate.clip_id))
        for style, part in zip(STYLES, (heard[:third], heard[-third:]), strict=True)
    }


def _write_prompt(folder: Path, example: StoredExample) -> None:
    def put(path: Path) -> None:
        path.write_bytes(example.flac)

    prompt_of(example).save(folder)
    write_atomically(folder / "prompt.flac", put)
