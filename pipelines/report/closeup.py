"""One voice looked at closely: where its clips lie in the recordings, its oddest clips, and what was rejected.

Read from the same files as the corpus report; rejected audio, which no shard holds, comes from the recordings as far
as they are still where they were.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from statistics import median
from typing import Any

import numpy as np

from pipelines.engines.decoder import DecodeLimits, UndecodableError, decode
from pipelines.engines.flac import decode_flac, encode_flac
from pipelines.report.listening import AudioSample
from pipelines.report.tables import clip_audio, committed_units, current_units, read_rows
from pipelines.rows import RATE_HZ, Account
from pipelines.storage import Storage, open_storage

MOST_ODD = 6
MOST_REJECTED = 6
MOST_TIMELINES = 60
_LONGEST_S = 12.0
_LIMITS = DecodeLimits(longest_s=1800.0)
"""A rejected clip of a longer recording is not fetched: all before it would have to be decoded."""
_JUDGED_BY = (
    "clip_seconds",
    "snr_db",
    "phonemes_per_second",
    "quality",
    "level_lufs",
    "character_error_rate",
    "speaker_consistency",
)


@dataclass(frozen=True, kw_only=True)
class TimeSpan:
    """A stretch of a recording: `kind` is `kept` or `rejected`; `says` its words, or why it was left out."""

    start_s: float
    end_s: float
    kind: str
    says: str


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One recording from its beginning to its end."""

    name: str
    seconds: float
    spans: tuple[TimeSpan, ...]


@dataclass(frozen=True, kw_only=True)
class LookedAt:
    """A clip to see and hear. `key` names the number that makes it odd, or is the reason of its rejection."""

    key: str
    value: float | None
    typical: float | None
    recording: str
    start_s: float
    seconds: float
    wave: np.ndarray
    rate_hz: int
    sample: AudioSample


@dataclass(frozen=True, kw_only=True)
class Closeup:
    """Everything the page of one voice shows beyond what the corpus report says of it."""

    voice: str
    timelines: tuple[Timeline, ...]
    recordings: int
    odd: tuple[LookedAt, ...]
    rejected: tuple[LookedAt, ...]


def look_closely(corpus: Path | str | Storage, voice: str) -> Closeup:
    """Read what there is of `voice`.

    Raises:
        ValueError: there is no corpus in this place, or no such voice in it.
    """
    storage = open_storage(corpus)
    if voice not in storage.names("voices"):
        raise ValueError(f"{storage.root}: no voice {voice!r} in it")
    place = f"voices/{voice}"
    committed = committed_units(storage, place, current_units(storage))
    manifest = [row for done in committed for row in read_rows(storage, f"{place}/manifest/{done.unit_id}.parquet")]
    rejected = [row for done in committed for row in read_rows(storage, f"{place}/rejected/{done.unit_id}.parquet")]
    accounts = [account for done in committed for account in done.accounts]
    chosen = _oddest(manifest)
    audio = clip_audio(storage, place, [row for row, *_ in chosen])
    return Closeup(
        voice=voice,
        timelines=tuple(_timelines(accounts, manifest, rejected)[:MOST_TIMELINES]),
        recordings=len(accounts),
        odd=tuple(_kept(*entry, audio[entry[0]["clip_id"]]) for entry in chosen if entry[0]["clip_id"] in audio),
        rejected=tuple(_heard_rejected(rejected)),
    )


def _timelines(
    accounts: Sequence[Account], manifest: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]
) -> list[Timeline]:
    """In order of name."""
    spans: dict[str, list[TimeSpan]] = defaultdict(list)
    for row in manifest:
        spans[row["uri"]].append(_span(row, "kept", row["text"]))
    for row in rejected:
        if row["start_sample"] is not None and row["num_samples"]:
            spans[row["uri"]].append(_span(row, "rejected", f"{row['stage']}: {row['reason']}"))
    timelines = [
        Timeline(
            name=PurePath(account.uri).name,
            seconds=account.duration_samples / RATE_HZ,
            spans=tuple(sorted(spans[account.uri], key=lambda span: span.start_s)),
        )
        for account in accounts
    ]
    return sorted(timelines, key=lambda timeline: timeline.name)


def _span(row: Mapping[str, Any], kind: str, says: str) -> TimeSpan:
    start = row["start_sample"] / RATE_HZ
    return TimeSpan(start_s=start, end_s=start + row["num_samples"] / RATE_HZ, kind=kind, says=says)


def _oddest(manifest: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str, float, float]]:
    """The clips furthest from the voice's median in any number, in multiples of its spread: (row, key, value, median).

    The spread is 1.4826 x the median absolute deviation, the standard deviation of a normal distribution.
    """
    found: dict[str, tuple[float, Mapping[str, Any], str, float, float]] = {}
    for key in _JUDGED_BY:
        values = [(row, _value(row, key)) for row in manifest]
        known = [(row, value) for row, value in values if value is not None and math.isfinite(value)]
        if len(known) < MOST_ODD:
            continue
        middle = median(value for _, value in known)
        spread = 1.4826 * median(abs(value - middle) for _, value in known)
        for row, value in known:
            distance = abs(value - middle) / (spread or 1.0)
            if distance > found.get(row["clip_id"], (2.5,))[0]:
                found[row["clip_id"]] = (distance, row, key, value, middle)
    ordered = sorted(found.items(), key=lambda entry: (-entry[1][0], entry[0]))[:MOST_ODD]
    return [(row, key, value, middle) for _, (_, row, key, value, middle) in ordered]


def _value(row: Mapping[str, Any], key: str) -> float | None:
    return row["num_samples"] / RATE_HZ if key == "clip_seconds" else row.get(key)


def _kept(row: Mapping[str, Any], key: str, value: float, middle: float, flac: bytes) -> LookedAt:
    wave, rate_hz = decode_flac(flac)
    return _looked_at(row, key, value, middle, wave, rate_hz, row["text"], row["language"] or "")


def _heard_rejected(rejected: Sequence[Mapping[str, Any]]) -> list[LookedAt]:
    """One clip for each reason, as far as its recording is still there; the reasons of most rows first."""
    by_reason: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rejected:
        if row["start_sample"] is not None and row["num_samples"]:
            by_reason[row["reason"]].append(row)
    heard = []
    for reason, rows in sorted(by_reason.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        for row in rows[:3]:
            piece = _cut_out(row)
            if piece is not None:
                wave, rate_hz = piece
                heard.append(_looked_at(row, reason, None, None, wave, rate_hz, row["detail"], ""))
                break
        if len(heard) == MOST_REJECTED:
            break
    return heard


def _cut_out(row: Mapping[str, Any]) -> tuple[np.ndarray, int] | None:
    """The stretch of the recording that a rejection claims; None where the recording is gone or too long."""
    if not Path(row["uri"]).is_file():
        return None
    try:
        decoded = decode(row["uri"], limits=_LIMITS)
    except UndecodableError:
        return None
    first = row["start_sample"] * decoded.rate_hz // RATE_HZ
    last = first + min(row["num_samples"], round(_LONGEST_S * RATE_HZ)) * decoded.rate_hz // RATE_HZ
    wave = np.nan_to_num(decoded.wave[first:last].mean(axis=1))
    peak = float(np.abs(wave).max(initial=0.0))
    return (wave / max(1.0, peak)).astype(np.float32), decoded.rate_hz


def _looked_at(
    row: Mapping[str, Any],
    key: str,
    value: float | None,
    typical: float | None,
    wave: np.ndarray,
    rate_hz: int,
    text: str,
    language: str,
) -> LookedAt:
    recording = PurePath(row["uri"]).name
    return LookedAt(
        key=key,
        value=value,
        typical=typical,
        recording=recording,
        start_s=row["start_sample"] / RATE_HZ,
        seconds=row["num_samples"] / RATE_HZ,
        wave=wave,
        rate_hz=rate_hz,
        sample=AudioSample(
            title=recording, text=text, language=language, data=encode_flac(wave, rate_hz), rate_hz=rate_hz
        ),
    )
