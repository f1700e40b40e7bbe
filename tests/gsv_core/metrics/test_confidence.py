import numpy as np
import pytest

from gsv_core.metrics.confidence import binomial_test, bootstrap_interval, wilson_interval


def test_the_bootstrap_interval_is_near_that_of_the_normal_and_the_same_again():
    values = np.random.default_rng(0).normal(3.0, 1.0, size=200)
    low, high = bootstrap_interval(values, seed=1)
    assert (low, high) == bootstrap_interval(values, seed=1)
    assert (low, high) != bootstrap_interval(values, seed=2)
    reach = 1.96 * values.std() / np.sqrt(200)
    assert low == pytest.approx(values.mean() - reach, abs=0.03)
    assert high == pytest.approx(values.mean() + reach, abs=0.03)


def test_it_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(5)
    intervals = [bootstrap_interval(rng.normal(size=40), seed=round_, rounds=400) for round_ in range(200)]
    assert 0.88 < np.mean([low < 0 < high for low, high in intervals]) < 0.99


def test_one_value_has_no_interval():
    assert bootstrap_interval([1.0], seed=0) is None
    assert bootstrap_interval([2.0, 2.0], seed=0) == (2.0, 2.0)


def test_wilson_by_hand():
    # 81 of 263: an example of the literature on intervals of a share (Newcombe 1998).
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="7 of 3"):
        wilson_interval(7, 3)


def test_the_binomial_test_is_exact():
    assert binomial_test(5, 10) == 1.0
    assert binomial_test(9, 10) == binomial_test(1, 10) == pytest.approx(2 * 11 / 1024)
    assert binomial_test(0, 6) == pytest.approx(2 / 64)
    assert binomial_test(0, 0) == 1.0
    with pytest.raises(ValueError, match="-1 of 3"):
        binomial_test(-1, 3)
