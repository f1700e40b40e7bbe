import json
from itertools import pairwise

import pytest

from gsv_core.training.schedules import PhasePlan, Trains, rate_share


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
    ],
)
def test_a_plan_out_of_range_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values)) if "trains" not in values else "half"):
        plan(**values)
