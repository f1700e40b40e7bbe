"""Speaker vectors to likeness: cosines, and the centre of a voice that a few strangers cannot move.

Axes: N vectors, K their width.
"""

from collections.abc import Sequence

import numpy as np

_ROUNDS = 10


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
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"centroid: expected vectors (N, K) with N > 0, got shape {rows.shape}")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise ValueError("centroid: a vector is zero or not a number")
    rows = rows / lengths
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
