"""A few values or votes to how sure one may be of them.

Bootstrap: Efron 1979, "Bootstrap methods: another look at the jackknife", percentile interval of the mean. Shares: the
score interval of Wilson 1927, and the exact two-sided binomial test.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def bootstrap_interval(
    values: Sequence[float], *, seed: int, level: float = 0.95, rounds: int = 2000
) -> tuple[float, float] | None:
    """Between what the mean of `values` lies, by drawing them again and again; None for fewer than two.

    The same values and seed give the same interval.
    """
    if len(values) < 2:
        return None
    data = np.asarray(values, dtype=np.float64)
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(len(data), size=(rounds, len(data)))
    low, high = np.quantile(data[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Between what a share of `successes` in `trials` lies; (0, 1) without a trial.

    Raises:
        ValueError: more successes than trials, or fewer than none.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    reach = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def binomial_test(successes: int, trials: int) -> float:
    """The chance of a split at least as uneven as this if both sides were equally likely; 1 without a trial."""
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    tail = sum(math.comb(trials, count) for count in range(min(successes, trials - successes) + 1))
    return min(1.0, 2 * tail / 2**trials)
