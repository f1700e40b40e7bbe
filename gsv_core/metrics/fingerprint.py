"""A wave to an acoustic fingerprint, and many fingerprints to those that are of one and the same performance.

Haitsma & Kalker 2002, "A highly robust audio fingerprinting system", at a third of its frame rate: the sign of the
change, from frame to frame, of the energy difference between neighbouring bands. Level, resampling, MP3 and a shift
leave most bits as they are; a second reading of the same sentence agrees in half of them, as strangers do.
Axes: L frames, N fingerprints.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gsv_core.audio.resample import resample

_RATE_HZ = 8_000
_FRAME = 3_072  # 0.38 s: neighbouring frames overlap by 92 %, so that half a hop of shift changes few bits
_HOP = 256
_BANDS = 33
_LOWEST_HZ, _HIGHEST_HZ = 300.0, 2_000.0  # inside any telephone's band
MOST_DISTANCE = 0.25
"""Share of bits that differ up to which two stretches are one performance. On this project's recordings: 0.06 after MP3
at 64 kbit/s, 0.11 at 24, 0.17 after Opus at 16, 0.03 for a shift within a hop; 0.41 and more between others."""
_LEAST_OVERLAP = 32
"""Frames: about a second. In fewer, two strangers could agree by chance."""
_LEAST_SHARE = 0.5
_LEAST_VOTES = 2
_NEIGHBOURS = 3
_BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Which other fingerprint, by its place in the list, holds the same audio; `distance`: share of other bits."""

    of: int
    distance: float


def fingerprint(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """(T,) -> (L,) uint32, 31 a second; none for less than 0.45 s."""
    audio = resample(wave, rate_hz, _RATE_HZ)
    count = (len(audio) - _FRAME) // _HOP + 1
    if count < 2:
        return np.zeros(0, dtype=np.uint32)
    frames = np.lib.stride_tricks.sliding_window_view(audio, _FRAME)[::_HOP] * np.hanning(_FRAME).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    edges = np.geomspace(_LOWEST_HZ, _HIGHEST_HZ, _BANDS + 1) * _FRAME / _RATE_HZ
    energies = np.add.reduceat(power[:, : round(edges[-1])], np.rint(edges[:-1]).astype(int), axis=1)
    slopes = np.diff(np.diff(energies, axis=1), axis=0)
    return np.packbits(slopes > 0, axis=1, bitorder="little").view("<u4")[:, 0].astype(np.uint32)


def find_copies(fingerprints: Sequence[np.ndarray], preference: Sequence[int]) -> dict[int, Copy]:
    """N fingerprints (L,) -> those that share audio with another, by place, each with the one that stands for it.

    Shared are at least a second and half of the shorter one. `preference` orders all places, the ones rather kept
    first: what is left when the copies found are taken away shares nothing. Equal frames are looked up, so that the
    work grows with the sum of lengths, not with the number of pairs.
    """
    links = _links(fingerprints)
    rank = {place: number for number, place in enumerate(preference)}
    copies: dict[int, Copy] = {}
    for group in _groups(links):
        kept: list[int] = []
        for place in sorted(group, key=lambda place: rank[place]):
            distances = [
                (_distance(fingerprints[other], fingerprints[place], group[place] - group[other]), other)
                for other in kept
            ]
            distance, other = min(distances, default=(1.0, place))
            if distance <= MOST_DISTANCE:
                copies[place] = Copy(of=other, distance=distance)
            else:
                kept.append(place)
    return copies


def _links(fingerprints: Sequence[np.ndarray]) -> dict[int, dict[int, int]]:
    """place -> other place -> frames that the other begins after the first, for pairs that do share audio."""
    lengths = np.array([len(codes) for codes in fingerprints], dtype=np.int64)
    links: dict[int, dict[int, int]] = {}
    for first, second, offset in _candidates(fingerprints, lengths) if lengths.sum() else ():
        if _distance(fingerprints[first], fingerprints[second], offset) <= MOST_DISTANCE:
            links.setdefault(first, {}).setdefault(second, offset)
            links.setdefault(second, {}).setdefault(first, -offset)
    return links


def _groups(links: Mapping[int, Mapping[int, int]]) -> Iterator[dict[int, int]]:
    """Places that hang together, each with its frames behind the first of them."""
    seen: set[int] = set()
    for start in sorted(links):
        if start in seen:
            continue
        group, waiting = {start: 0}, [start]
        while waiting:
            place = waiting.pop()
            for other, offset in sorted(links[place].items()):
                if other not in group:
                    group[other] = group[place] + offset
                    waiting.append(other)
        seen |= group.keys()
        yield group


def _distance(first: np.ndarray, second: np.ndarray, offset: int) -> float:
    """Share of other bits where both are heard, `second` beginning `offset` frames after `first`; 1 if too little."""
    left, right = first[max(0, offset) :], second[max(0, -offset) :]
    shared = min(len(left), len(right))
    if shared < max(_LEAST_OVERLAP, _LEAST_SHARE * min(len(first), len(second))):
        return 1.0
    return float(np.bitwise_count(left[:shared] ^ right[:shared]).sum(dtype=np.int64)) / (32 * shared)


def _candidates(fingerprints: Sequence[np.ndarray], lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, second, frames that the second begins after the first) of pairs with several equal frames."""
    codes = np.concatenate([np.asarray(entry, dtype=np.uint32) for entry in fingerprints])
    owners = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    telling = codes != 0  # digital silence
    codes, owners, places = codes[telling], owners[telling], places[telling]
    order = np.argsort(codes, kind="stable")
    codes, owners, places = codes[order], owners[order], places[order]
    span = 2 * int(lengths.max()) + 1
    keys = []
    # Only the next few of an equal frame: what many clips share says nothing, and copies of a clip stand side by side.
    for step in range(1, _NEIGHBOURS + 1):
        equal = (codes[step:] == codes[:-step]) & (owners[step:] != owners[:-step])
        first, second = owners[:-step][equal], owners[step:][equal]
        offset = places[:-step][equal] - places[step:][equal]
        keys.append((first * len(lengths) + second) * span + offset + span // 2)
    found, votes = np.unique(np.concatenate(keys), return_counts=True)
    # Of one pair the offset with the most votes first.
    found = found[votes >= _LEAST_VOTES][np.argsort(-votes[votes >= _LEAST_VOTES], kind="stable")]
    pairs, offsets = np.divmod(found, span)
    firsts, seconds = np.divmod(pairs, len(lengths))
    return list(zip(firsts.tolist(), seconds.tolist(), (offsets - span // 2).tolist(), strict=True))
