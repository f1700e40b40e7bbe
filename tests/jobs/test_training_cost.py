"""What a training is predicted to take, and how that follows what was measured."""

from pathlib import Path

import pytest

from gsv_core.checkpoints.releases import Release
from gsv_core.training.schedules import PhasePlan
from jobs.training_cost import Measured, Rates, SharedClock, makespan, rate_key, work_of
from pipelines.rows import RATE_HZ, SelectionRow

PLAN = PhasePlan(steps=20, batch_size=4, learning_rate=1e-4, evaluate_every=10, longest_frames=100)


def row(seconds: float, split: str = "train", *, keep: bool = True) -> SelectionRow:
    return SelectionRow(
        clip_id=f"{split}{seconds}",
        unit_id="u",
        keep=keep,
        reason="",
        split=split,
        prompt=False,
        num_samples=round(seconds * RATE_HZ),
    )


def test_work_counts_what_goes_through_the_network() -> None:
    rows = [row(2.0), row(4.0), row(6.0), row(8.0), row(10.0), row(99.0, keep=False)]
    # 30 s of five clips in two batches of a pass: 15 s a step.
    assert work_of(PLAN, rows, "semantic") == pytest.approx(20 * 15.0)
    # Of each clip a window of 2 s, and three evaluations of 2 s that only go forward.
    assert work_of(PLAN, [*rows, row(6.0, "held_out")], "wave") == pytest.approx(20 * 5.0 + 3 * 2.0 / 3)
    assert work_of(PLAN, [], "wave") == 0.0


def test_a_rate_follows_what_was_measured(tmp_path: Path) -> None:
    rates, key = Rates(), rate_key(Release.NANO, "wave", PLAN, "cpu")
    guessed = rates.seconds(Release.NANO, "wave", PLAN, "cpu", 100.0)
    assert guessed > 0
    rates.add(Measured(key=key, seconds=50.0, work=25.0))
    rates.add(Measured(key=key, seconds=10.0, work=35.0))
    rates.add(Measured(key=key, seconds=0.0, work=0.0))
    assert rates.seconds(Release.NANO, "wave", PLAN, "cpu", 100.0) == pytest.approx(100.0)
    assert rates.seconds(Release.NANO, "semantic", PLAN, "cpu", 100.0) != pytest.approx(100.0)
    path = tmp_path / "rates.json"
    rates.write(path)
    assert Rates.read(path).seconds(Release.NANO, "wave", PLAN, "cpu", 100.0) == pytest.approx(100.0)


@pytest.mark.parametrize("content", ["", "[]", '{"k": {"seconds": 1}}', '{"k": 1}'])
def test_a_damaged_file_of_rates_is_no_obstacle(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(content)
    assert Rates.read(path).seconds(Release.V2, "wave", PLAN, "cuda:0", 1.0) > 0


def test_what_was_measured_long_ago_counts_less() -> None:
    rates, key = Rates(), rate_key(Release.NANO, "wave", PLAN, "cpu")
    rates.add(Measured(key=key, seconds=10_000.0, work=10_000.0))
    rates.add(Measured(key=key, seconds=20_000.0, work=5_000.0))
    assert rates.seconds(Release.NANO, "wave", PLAN, "cpu", 1.0) == pytest.approx(25_000 / 10_000)


def test_the_longest_first_ends_when_the_last_worker_does() -> None:
    assert makespan([4.0, 3.0, 2.0], 2) == 5.0
    assert makespan([], 3) == 0.0
    assert makespan([7.0], 3) == 7.0


def test_voices_in_hand_at_once_share_the_seconds() -> None:
    now = 100.0
    clock = SharedClock(lambda: now)
    with clock.in_hand():
        began = clock()
        now += 4
        with clock.in_hand():
            second = clock()
            now += 6
            assert clock() - second == 3
        now += 1
        assert clock() - began == 4 + 3 + 1
