import json
from itertools import pairwise

import pytest

from gsv_core.training.schedules import (
    PhasePlan,
    Trains,
    rate_share,
    upstream_accumulation,
    upstream_intended_rate,
    upstream_semantic_rate,
    upstream_steps_after,
    upstream_wave_rates,
)


def plan(**values):
    return PhasePlan(**{"steps": 11, "batch_size": 2, "learning_rate": 1e-3} | values)


def test_the_rate_rises_then_falls_along_half_a_cosine():
    shares = [rate_share(step, plan(warm_up_steps=3, final_rate_share=0.2)) for step in range(11)]
    assert shares[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert shares[-1] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in pairwise(shares[3:]))
    middle = rate_share(5, plan(final_rate_share=0.0))
    assert middle == pytest.approx(0.5)


def test_a_plan_survives_json():
    record = json.loads(json.dumps(plan(trains=Trains.PROJECTIONS).record()))
    assert PhasePlan(**record) == plan(trains=Trains.PROJECTIONS)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": -1},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"final_rate_share": 1.5},
        {"trains": "half"},
        {"save_every": 0},
        {"schedule": "upstream_wave"},
    ],
)
def test_a_plan_out_of_range_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values)) if "trains" not in values else "half"):
        plan(**values)


def test_upstreams_gpt_has_one_rate_for_the_first_step_and_one_for_the_rest():
    assert [upstream_semantic_rate(step) for step in (0, 1, 2, 50_000)] == [0.01, 0.002, 0.002, 0.002]


def test_the_rate_that_upstream_meant_rises_and_falls():
    settings = {"first": 1e-5, "peak": 1e-2, "last": 1e-4, "warm_up_steps": 20, "total_steps": 40}
    assert upstream_intended_rate(0, **settings) == pytest.approx(1e-5)
    assert upstream_intended_rate(20, **settings) == pytest.approx(1e-2)
    assert upstream_intended_rate(30, **settings) == pytest.approx((1e-2 + 1e-4) / 2)
    assert upstream_intended_rate(40, **settings) == upstream_intended_rate(1000, **settings) == pytest.approx(1e-4)


def test_upstreams_sovits_decays_before_its_first_epoch_and_twice_over_a_resumption():
    assert upstream_wave_rates(1.0, 3, decay=0.5) == [0.5, 0.25, 0.125]
    # Stopped after epoch 2 at 0.25, gone on with in epoch 3: three decays more.
    assert upstream_wave_rates(1.0, 4, decay=0.5, resumed_after=[2]) == [0.5, 0.25, 0.03125, 0.015625]


def test_upstreams_gpt_sums_five_batches_then_four_and_carries_the_rest_over():
    assert [batch for batch in range(13) if upstream_steps_after(batch)] == [4, 8, 12]
    assert upstream_accumulation(9, 2) == [5, 4, 5, 4]
    assert upstream_accumulation(11, 2) == [5, 4, 7, 4]
    assert upstream_accumulation(4, 3) == []
