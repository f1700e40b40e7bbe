import pytest

from jobs.bench_adapters import NETWORKS, AdapterBench, measure_adapters

SMALL = AdapterBench(voices=2, clips=1, steps=1, repeats=1)


@pytest.mark.parametrize("name", ["nano", "flow"])
def test_both_ways_are_timed_and_compared(name):
    alone, together, gain = measure_adapters(SMALL, [name])
    assert (alone.what, together.what) == (
        f"adapters of {name}, one after the other",
        f"adapters of {name}, in one batch",
    )
    assert alone.rate == pytest.approx(2 / alone.seconds)
    assert gain.rate == pytest.approx(alone.seconds / together.seconds)
    assert gain.unit == "times"


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=f"no adapters of wave; there are {', '.join(NETWORKS)}"):
        next(measure_adapters(SMALL, ["wave"]))
