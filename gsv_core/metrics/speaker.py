"""Speaker vectors to likeness: cosines, the centre of a voice among strangers, and whether a clip has one speaker.

Axes: N vectors, K their width.
"""

from collections.abc import Sequence

import numpy as np

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


def robust_centroid(
    vectors: Sequence[np.ndarray] | np.ndarray, weights: Sequence[float], least_cosine: float
) -> tuple[np.ndarray, np.ndarray]:
    """N vectors (K,) -> (the centre of the heaviest speaker (K,) of unit length, each one's cosine to it (N,)).

    A mean over the `majority` alone, so that no stranger moves it.

    Raises:
        ValueError: there are no vectors, or one of them is zero.
    """
    rows = _unit(vectors)
    centre = rows[majority(rows, weights, least_cosine)].mean(axis=0)
    centre /= max(float(np.linalg.norm(centre)), 1e-12)
    return centre.astype(np.float32), np.clip(rows @ centre, -1.0, 1.0).astype(np.float32)


def centroid_near(
    vectors: Sequence[np.ndarray] | np.ndarray, reference: np.ndarray, least_cosine: float
) -> tuple[np.ndarray, np.ndarray]:
    """The same for the speaker of `reference` (K,): the centre of the group that it falls into.

    Raises:
        ValueError: there are no vectors, one of them is zero, or the reference has another width.
    """
    rows, own = _unit(vectors), _unit(reference[None])
    if rows.shape[1] != own.shape[1]:
        raise ValueError(f"centroid: the reference is {own.shape[1]} wide, the vectors {rows.shape[1]}")
    chosen = np.concatenate([own, rows[_standing_for(len(rows))]])
    group = _groups(chosen, least_cosine)
    centre = chosen[group == group[0]].mean(axis=0)
    centre /= max(float(np.linalg.norm(centre)), 1e-12)
    return centre.astype(np.float32), np.clip(rows @ centre, -1.0, 1.0).astype(np.float32)


def majority(vectors: Sequence[np.ndarray] | np.ndarray, weights: Sequence[float], least_cosine: float) -> np.ndarray:
    """N vectors (K,) with the weight of each -> the places (M,) of those that make up the heaviest speaker.

    Two speakers of equal share are two groups, where a mean would lie between them. Of equally heavy groups the one
    that comes first wins; of very many vectors some stand for all.

    Raises:
        ValueError: there are no vectors, or one of them is zero.
    """
    rows = _unit(vectors)
    chosen = _standing_for(len(rows))
    group = _groups(rows[chosen], least_cosine)
    heaviest = int(np.argmax(np.bincount(group, weights=np.asarray(weights, dtype=np.float64)[chosen])))
    return chosen[group == heaviest]


def _standing_for(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_GROUPED)).round().astype(int))


def _groups(rows: np.ndarray, least_cosine: float) -> np.ndarray:
    """(N, K) of unit length -> the group (N,) of each, named by its first place.

    The two nearest groups become one, again and again, while their centres' cosine reaches `least_cosine`.
    """
    sums = rows.copy()
    group = np.arange(len(rows))
    alive = np.ones(len(rows), dtype=bool)
    likeness = sums @ sums.T
    np.fill_diagonal(likeness, -np.inf)
    while alive.sum() > 1:
        places = divmod(int(np.argmax(likeness)), len(rows))
        if likeness[places] < least_cosine:
            break
        first, second = sorted(places)
        sums[first] += sums[second]
        group[group == second] = first
        alive[second] = False
        likeness[second, :] = likeness[:, second] = -np.inf
        lengths = np.maximum(np.linalg.norm(sums, axis=1) * np.linalg.norm(sums[first]), 1e-12)
        nearness = np.where(alive, sums @ sums[first] / lengths, -np.inf)
        nearness[first] = -np.inf
        likeness[first, :] = likeness[:, first] = nearness
    return group


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
    places = range(1, len(rows) - 1)
    # numpy's minimum answers with NaN where there is one; Python's hangs on the order.
    return float(np.min([cosine(rows[:place].mean(axis=0), rows[place + 1 :].mean(axis=0)) for place in places]))


def _unit(vectors: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """(N, K) float64 of unit length."""
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"centroid: expected vectors (N, K) with N > 0, got shape {rows.shape}")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise ValueError("centroid: a vector is zero or not a number")
    return rows / lengths
