"""What makes a clip doubtful, and that nothing does where there are no numbers."""

from pipelines.bounds import Bound
from pipelines.doubts import doubts


def test_the_least_certain_comes_first_and_says_why() -> None:
    sure, unsure, wrong = doubts(
        [
            {"confidence": 0.95, "character_error_rate": None},
            {"confidence": 0.4, "character_error_rate": 0.0},
            {"confidence": 0.4, "character_error_rate": 0.5},
        ],
        [],
    )
    assert sure.score < unsure.score < wrong.score <= 1
    assert sure.reasons == ()
    assert wrong.reasons == ("heard with little confidence (0.4)", "given and heard text differ (0.5)")


def test_a_pace_far_from_the_voice_s_own_is_doubtful_and_a_usual_one_is_not() -> None:
    paces = [11.0, 11.5, 12.0, 12.5, 13.0, 12.2, 11.8, 12.1]
    found = doubts([{"phonemes_per_second": pace} for pace in [*paces, 30.0, 2.0]], [])
    assert [doubt.score for doubt in found] == [0.0] * 8 + [1.0, 1.0]
    # Of few clips none can be called unusual.
    assert {doubt.score for doubt in doubts([{"phonemes_per_second": pace} for pace in [*paces[:4], 30.0]], [])} == {
        0.0
    }


def test_only_a_low_likeness_is_doubtful() -> None:
    cosines = [0.90, 0.91, 0.92, 0.93, 0.905, 0.915, 0.925, 0.935, 0.5, 0.999]
    found = doubts([{"centroid_cosine": cosine} for cosine in cosines], [])
    assert found[8].reasons == ("perhaps another speaker (0.5)",)
    assert found[9].score == 0


def test_near_a_bound_or_beyond_it() -> None:
    bounds = [Bound(name="least_snr_db", limit=10.0), Bound(name="most_clipped_share", limit=None)]
    clips = [{"snr_db": value, "clipped_share": 1.0} for value in (9.0, 10.0, 10.3, 14.0, 30.0, 30.0, 30.0)]
    scores = [doubt.score for doubt in doubts(clips, bounds)]
    assert scores[:2] == [1.0, 1.0]
    assert 0 < scores[2] < 1
    assert scores[3:] == [0.0] * 4


def test_without_numbers_nothing_is_doubtful() -> None:
    (doubt,) = doubts([{"confidence": None, "snr_db": None}], [Bound(name="least_snr_db", limit=1.0)])
    assert (doubt.score, doubt.reasons) == (0.0, ())
    assert doubts([], []) == []
