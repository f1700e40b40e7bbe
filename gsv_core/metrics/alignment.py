"""The costs of pairing two sequences' frames to the cheapest way of walking through both: dynamic time warping.

Sakoe and Chiba 1978, "Dynamic programming algorithm optimization for spoken word recognition". Two readings of a
sentence differ in pace; along the path their frames can be compared one with one. Axes: L frames of the first, L' of
the second, N steps.
"""

from dataclasses import dataclass

import numpy as np

_DIAGONAL, _ABOVE, _LEFT = range(3)


@dataclass(frozen=True)
class Warping:
    """The path (N, 2) of paired frames, from both beginnings to both ends, and the mean cost of its steps."""

    path: np.ndarray
    mean_cost: float


def warp(costs: np.ndarray) -> Warping:
    """(L, L') costs -> the path with the least sum by steps down, right and diagonal.

    Of equally cheap steps the diagonal is taken. Worked by anti-diagonals, whose cells do not depend on each other.
    Memory beside `costs`: one byte a cell.

    Raises:
        ValueError: one of the sequences is empty.
    """
    if costs.ndim != 2 or not costs.size:
        raise ValueError(f"warp: expected costs (L, L') of two sequences with frames, got shape {costs.shape}")
    rows, columns = costs.shape
    came_from = np.zeros((rows, columns), dtype=np.uint8)
    before, last = np.full(rows, np.inf), np.full(rows, np.inf)  # sums by row, of the two anti-diagonals before
    for diagonal in range(rows + columns - 1):
        index = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        here = costs[index, diagonal - index]
        sums = np.full(rows, np.inf)
        if diagonal == 0:
            sums[0] = here[0]
        else:
            above, first = index - 1, index == 0
            ways = np.stack([np.where(first, np.inf, before[above]), np.where(first, np.inf, last[above]), last[index]])
            chosen = ways.argmin(axis=0)  # of equals the first: the diagonal
            sums[index] = ways[chosen, np.arange(len(index))] + here
            came_from[index, diagonal - index] = chosen
        before, last = last, sums
    path = _walk_back(came_from)
    return Warping(path=path, mean_cost=float(last[-1] / len(path)))


def _walk_back(came_from: np.ndarray) -> np.ndarray:
    row, column = came_from.shape[0] - 1, came_from.shape[1] - 1
    path = [(row, column)]
    while row or column:
        way = came_from[row, column]
        row -= way != _LEFT
        column -= way != _ABOVE
        path.append((row, column))
    return np.array(path[::-1])
