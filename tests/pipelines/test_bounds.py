from dataclasses import dataclass

import pytest

from pipelines.bounds import Bound, bounds_in, first_broken


@dataclass(frozen=True, kw_only=True)
class Limits:
    least_snr_db: float | None = 10.0
    most_silence_share: float | None = 0.5
    least_quality: float | None = None


@pytest.mark.parametrize(
    ("name", "limit", "value", "broken"),
    [
        ("least_quality", 2.0, 1.9, True),
        ("least_quality", 2.0, 2.0, False),
        ("most_quality", 2.0, 2.0, False),
        ("most_quality", 2.0, 2.1, True),
        ("least_quality", None, 1.0, False),
        ("least_quality", 2.0, None, False),
    ],
)
def test_the_limit_itself_is_allowed_and_nothing_breaks_where_there_is_no_number(
    name: str, limit: float | None, value: float | None, broken: bool
) -> None:
    assert Bound(name=name, limit=limit).broken_by(value) is broken


def test_the_first_broken_bound_in_order_of_the_fields() -> None:
    assert [bound.number for bound in bounds_in(Limits())] == ["snr_db", "silence_share", "quality"]
    broken = first_broken(Limits(), {"snr_db": 3.0, "silence_share": 0.9, "quality": 1.0})
    assert broken is not None
    assert broken.says(3.0) == "snr_db is 3, at least 10 is needed"
    assert first_broken(Limits(), {"snr_db": None, "silence_share": 0.5, "quality": 1.0}) is None
