"""Speaker vectors to likeness: cosines, and the centre of a voice that a few strangers cannot move.

Axes: N vectors, K their width.
"""

from collections.abc import Sequence

import numpy as np

_ROUNDS = 10
_MOST_GROUPED = 1_000
"""Vectors that are grouped one by one; of more, evenly spaced ones stand for all, since the work is quadratic."""
_LEAST_LEVEL_DB = -30.0
_CHANGE_S = 1.6


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """(K,), (K,) -> [-1, 1]; 1 is the same direction. 0 where one of them is zero."""
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"cosine: expected two vectors of one width, got {first.shape} and {second.shape}")
    left, right = first.astype(np.float64), second.astype(np.float64)
    length = np.linalg.norm(left) * np.linalg.norm(right)
    return float(np.clip(left @ right / length, -1.0, 1.0)) if length else 0.0


def robust_centroid(vectors: Sequence[np.ndarray] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N vectors (K,) -> (the centre of their majority (K,) of unit length, each one's cosine to it (N,)).

    The vector with the highest median cosine to all others starts; then the mean of the nearer half is taken until it
    rests. Up to half of the clips may be someone else's without moving it.

    Raises:
        ValueError: there are no vectors, or one of them is zero.
    """
    rows = _unit(vectors)
    centre = rows[int(np.argmax(np.median(rows @ rows.T, axis=1)))]
    half = (len(rows) + 2) // 2
    kept: np.ndarray | None = None
    for _ in range(_ROUNDS):
        # Stable order: equal cosines keep the order of the clips, so that the result does not hang on the sort.
        nearest = np.sort(np.argsort(-(rows @ centre), kind="stable")[:half])
        if kept is not None and np.array_equal(nearest, kept):
            break
        kept = nearest
        mean = rows[nearest].mean(axis=0)
        centre = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return centre.astype(np.float32), np.clip(rows @ centre, -1.0, 1.0).astype(np.float32)


def majority(vectors: np.ndarray, weights: Sequence[float], least_cosine: float) -> np.ndarray:
    """N vectors (N, K) with the weight of each -> the places (M,) of those that make up the heaviest speaker.

    Groups are merged, the nearest two first, while their centres' cosine reaches `least_cosine`; so two speakers of
    equal share fall apart, where a mean would lie between them. Of equally heavy groups the one that comes first wins.

    Raises:
        ValueError: there are no vectors, or one of them is zero.
    """
    rows = _unit(vectors)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_GROUPED)).round().astype(int))
    sums, weight = rows[chosen].copy(), np.asarray(weights, dtype=np.float64)[chosen]
    group = np.arange(len(chosen))
    alive = np.ones(len(chosen), dtype=bool)
    likeness = sums @ sums.T
    np.fill_diagonal(likeness, -np.inf)
    while len(chosen) > 1:
        first, second = divmod(int(np.argmax(likeness)), len(chosen))
        if likeness[first, second] < least_cosine:
            break
        first, second = min(first, second), max(first, second)
        sums[first] += sums[second]
        group[group == second] = first
        alive[second] = False
        likeness[second, :] = likeness[:, second] = -np.inf
        lengths = np.maximum(np.linalg.norm(sums, axis=1) * np.linalg.norm(sums[first]), 1e-12)
        nearness = np.where(alive, sums @ sums[first] / lengths, -np.inf)
        nearness[first] = -np.inf
        likeness[first, :] = likeness[:, first] = nearness
    heaviest = int(np.argmax(np.bincount(group, weights=weight, minlength=len(chosen))))
    return chosen[group == heaviest]


def windows(wave: np.ndarray, rate_hz: int, *, seconds: float = _CHANGE_S) -> list[np.ndarray]:
    """(T,) -> its sounding windows, each overlapping the next by half or a little more, in order.

    Those 30 dB below the loudest are left out: pauses have no speaker.
    """
    size = round(seconds * rate_hz)
    if len(wave) < size:
        return []
    count = 1 + -(-(len(wave) - size) // (size // 2))
    starts = np.linspace(0, len(wave) - size, count).round().astype(int)
    parts = [wave[start : start + size] for start in starts]
    powers = np.array([np.mean(part.astype(np.float64) ** 2) for part in parts])
    sounding = powers > powers.max() * 10.0 ** (_LEAST_LEVEL_DB / 10.0)
    return [part for part, heard in zip(parts, sounding, strict=True) if heard]


def consistency(vectors: Sequence[np.ndarray]) -> float | None:
    """Vectors (K,) of a clip's `windows` -> how alike it is before and after the place where it changes most, [-1, 1].

    The lowest cosine, over all places, between the mean of the windows that end by there and of those that begin after:
    one speaker stays near the likeness of clips, two in turn fall to that of strangers. None for fewer than three
    windows, of which no two are apart.
    """
    if len(vectors) < 3:
        return None
    rows = np.asarray(vectors, dtype=np.float64)
    # The window over the place itself belongs to neither side.
    return min(cosine(rows[:place].mean(axis=0), rows[place + 1 :].mean(axis=0)) for place in range(1, len(rows) - 1))


def _unit(vectors: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """(N, K) float64 of unit length."""
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"centroid: expected vectors (N, K) with N > 0, got shape {rows.shape}")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise ValueError("centroid: a vector is zero or not a number")
    return rows / lengths
