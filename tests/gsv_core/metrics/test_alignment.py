import numpy as np
import pytest

from gsv_core.metrics.alignment import warp


def _by_definition(costs):
    """The same recursion cell by cell: the mean cost of the best path."""
    rows, columns = costs.shape
    best = {}
    for row in range(rows):
        for column in range(columns):
            before = [best.get((row - 1, column - 1)), best.get((row - 1, column)), best.get((row, column - 1))]
            total, steps = min((entry for entry in before if entry), key=lambda entry: entry[0], default=(0.0, 0))
            best[row, column] = (total + costs[row, column], steps + 1)
    total, steps = best[rows - 1, columns - 1]
    return total / steps


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (9, 5), (5, 9), (12, 12)])
def test_by_diagonals_equals_cell_by_cell(shape):
    costs = np.random.default_rng(sum(shape)).random(shape)
    warping = warp(costs)
    assert warping.mean_cost == pytest.approx(_by_definition(costs))
    rows, columns = warping.path.T
    assert costs[rows, columns].mean() == pytest.approx(warping.mean_cost)
    assert tuple(warping.path[0]) == (0, 0)
    assert tuple(warping.path[-1]) == (shape[0] - 1, shape[1] - 1)
    steps = {tuple(step) for step in np.diff(warping.path, axis=0)}
    assert steps <= {(1, 1), (1, 0), (0, 1)}


def test_a_slower_reading_is_walked_through_at_its_pace():
    slow = np.repeat(np.arange(5.0), 2)
    path = warp(np.abs(np.arange(5.0)[:, None] - slow[None, :])).path
    assert [tuple(pair) for pair in path] == [(place // 2, place) for place in range(10)]


def test_nothing_cannot_be_aligned():
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        warp(np.zeros((0, 3)))
