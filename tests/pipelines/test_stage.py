from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest

from pipelines.rows import Rejection
from pipelines.stage import Resources, Stage, digest_of


@dataclass(frozen=True, kw_only=True)
class Double(Stage[int, int]):
    """A number twice."""

    name = "double"
    times: int = 2

    def process(self, row: int, model: None) -> Iterator[int | Rejection]:
        yield row * self.times


@dataclass(frozen=True, kw_only=True)
class NewerDouble(Double):
    version = 2


def test_the_fingerprint_is_what_decides_the_result_not_where_it_runs() -> None:
    stage = Double()
    assert stage.fingerprint() == {"stage": "double", "version": 1, "times": 2}
    assert replace(stage, resources=Resources(cpus=4.0, gpus=1.0)).fingerprint() == stage.fingerprint()
    assert replace(stage, times=3).fingerprint() != stage.fingerprint()
    assert NewerDouble().fingerprint() != stage.fingerprint()


def test_a_stage_is_a_value_and_loads_nothing_unless_it_says_so() -> None:
    assert Double() == Double()
    assert hash(Double()) == hash(Double())
    assert list(Double().process(21, Double().load())) == [42]
    with pytest.raises(FrozenInstanceError):
        Double().times = 3  # type: ignore[misc]


def test_a_stage_without_process_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Stage()  # type: ignore[abstract]


def test_a_digest_does_not_depend_on_the_order_of_keys_but_on_every_value() -> None:
    assert digest_of({"a": 1, "b": ["ü", None]}) == digest_of({"b": ["ü", None], "a": 1})
    assert len({digest_of(value) for value in ([1, 2], [2, 1], {"a": 1}, {"a": "1"}, None, "")}) == 6
    # As `sha256sum` says of `{"a": 1}`: ids on disk are made of it, so it must not drift.
    assert digest_of({"a": 1}) == "f9d86028c6e0d64e225186f96acb69338b2c59764df79162107f5c4bb34d1310"
