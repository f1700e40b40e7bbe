import numpy as np
import pytest

from gsv_core.metrics.speaker import centroid_near, consistency, cosine, majority, robust_centroid, windows


def test_cosine():
    assert cosine(np.array([1.0, 0.0]), np.array([3.0, 0.0])) == pytest.approx(1.0)
    assert cosine(np.array([1.0, 0.0]), np.array([0.0, 2.0])) == pytest.approx(0.0)
    assert cosine(np.array([1.0, 0.0]), np.zeros(2)) == 0.0
    with pytest.raises(ValueError, match="one width"):
        cosine(np.zeros(2), np.zeros(3))


def _near(centre, count, random):
    """Vectors at a cosine of about 0.9 to `centre`, so of about 0.8 to each other."""
    return [centre + 0.5 * random.standard_normal(len(centre)) / np.sqrt(len(centre)) for _ in range(count)]


@pytest.mark.parametrize("counts", [(12, 8), (10, 10), (8, 6, 6), (9, 8, 8, 8)])
def test_the_centre_is_that_of_the_largest_share_whatever_the_others(counts):
    random = np.random.default_rng(0)
    vectors = [vector for axis, count in enumerate(counts) for vector in _near(np.eye(64)[axis], count, random)]
    centre, cosines = robust_centroid(vectors, [1.0] * len(vectors), 0.6)
    assert centre.dtype == np.float32
    assert np.linalg.norm(centre) == pytest.approx(1.0, abs=1e-6)
    assert cosine(centre, np.eye(64)[0]) > 0.95
    assert cosines[: counts[0]].min() > cosines[counts[0] :].max() + 0.4
    mean = np.mean(vectors, axis=0)
    assert cosine(mean, np.eye(64)[0]) < 0.9  # what a plain mean would have said


def test_a_share_is_weighed_by_speech_and_not_by_clips():
    random = np.random.default_rng(1)
    vectors = _near(np.eye(64)[0], 10, random) + _near(np.eye(64)[1], 4, random)
    assert majority(vectors, [1.0] * 10 + [3.0] * 4, 0.6).tolist() == [10, 11, 12, 13]
    assert majority(vectors, [1.0] * 14, 0.6).tolist() == list(range(10))


def test_equal_shares_fall_to_the_first_in_order():
    random = np.random.default_rng(2)
    one, other = _near(np.eye(64)[0], 6, random), _near(np.eye(64)[1], 6, random)
    assert majority(one + other, [1.0] * 12, 0.6).tolist() == list(range(6))
    assert majority(other + one, [1.0] * 12, 0.6).tolist() == list(range(6))


def test_of_very_many_some_stand_for_all():
    random = np.random.default_rng(3)
    rows = np.array(_near(np.eye(64)[0], 2_500, random) + _near(np.eye(64)[1], 1_500, random))
    centre, cosines = robust_centroid(rows, np.ones(len(rows)), 0.6)
    assert cosine(centre, np.eye(64)[0]) > 0.99
    assert cosines[:2_500].min() > cosines[2_500:].max()


def test_one_and_two_vectors():
    one, cosines = robust_centroid([np.array([0.0, 2.0])], [1.0], 0.5)
    assert one.tolist() == [0.0, 1.0]
    assert cosines.tolist() == [1.0]
    apart = [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    assert robust_centroid(apart, [1.0, 1.0], 0.5)[1] == pytest.approx([1.0, 0.0])
    assert robust_centroid(apart, [1.0, 1.0], -1.0)[1] == pytest.approx([np.sqrt(0.5)] * 2)


def test_with_a_reference_its_speaker_counts_and_not_the_majority():
    random = np.random.default_rng(4)
    vectors = _near(np.eye(64)[0], 12, random) + _near(np.eye(64)[1], 3, random)
    centre, cosines = centroid_near(vectors, _near(np.eye(64)[1], 1, random)[0], 0.6)
    assert cosine(centre, np.eye(64)[1]) > 0.95
    assert cosines[12:].min() > 0.8
    assert cosines[:12].max() < 0.5
    _, strange = centroid_near(vectors, np.eye(64)[2], 0.6)
    assert strange.max() < 0.5
    with pytest.raises(ValueError, match="wide"):
        centroid_near(vectors, np.ones(3), 0.6)


@pytest.mark.parametrize("bad", [[], [np.zeros(3)], [np.array([np.nan, 1.0])]])
def test_vectors_that_say_nothing_are_refused(bad):
    with pytest.raises(ValueError, match="centroid"):
        robust_centroid(bad, [1.0] * len(bad), 0.5)


def test_consistency_falls_where_the_speaker_changes():
    random = np.random.default_rng(5)
    one = _near(np.eye(64)[0], 9, random)
    turns = one[:5] + _near(np.eye(64)[1], 4, random)
    assert consistency(one) > 0.8
    assert consistency(turns) < 0.4
    assert consistency(turns[2:8]) < 0.4
    assert consistency(one[:2]) is None
    assert np.isnan(consistency([*one, np.full(64, np.nan)]))


def test_windows_cover_the_clip_and_leave_out_pauses():
    wave = np.sin(np.arange(64_000) * 0.3).astype(np.float32)
    parts = windows(wave, 16_000)
    assert [len(part) for part in parts] == [25_600] * 4
    assert parts[-1][-1] == wave[-1]
    assert windows(wave[:25_599], 16_000) == []
    wave[20_000:] *= 1e-3
    assert len(windows(wave, 16_000)) == 2
    assert windows(np.zeros(64_000, dtype=np.float32), 16_000) == []
