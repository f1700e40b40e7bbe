import numpy as np
import pytest

from gsv_core.metrics.speaker import cosine, robust_centroid


def _around(centre, count, random, spread=0.3):
    return [centre + spread * random.standard_normal(len(centre)) / np.sqrt(len(centre)) for _ in range(count)]


def test_cosine():
    assert cosine(np.array([1.0, 0.0]), np.array([3.0, 0.0])) == pytest.approx(1.0)
    assert cosine(np.array([1.0, 0.0]), np.array([0.0, 2.0])) == pytest.approx(0.0)
    assert cosine(np.array([1.0, 0.0]), np.zeros(2)) == 0.0
    with pytest.raises(ValueError, match="one width"):
        cosine(np.zeros(2), np.zeros(3))


def test_strangers_do_not_move_the_centre():
    random = np.random.default_rng(0)
    own, other = np.eye(64)[0], np.eye(64)[1]
    vectors = _around(own, 12, random) + _around(other, 8, random)
    centre, cosines = robust_centroid(vectors)
    assert centre.dtype == np.float32
    assert np.linalg.norm(centre) == pytest.approx(1.0, abs=1e-6)
    assert cosine(centre, own) > 0.97
    assert cosines[:12].min() > cosines[12:].max() + 0.5
    mean = np.mean(vectors, axis=0)
    assert cosine(mean, own) < 0.9  # what a plain mean would have said


def test_one_and_two_vectors():
    one, cosines = robust_centroid([np.array([0.0, 2.0])])
    assert one.tolist() == [0.0, 1.0]
    assert cosines.tolist() == [1.0]
    _, cosines = robust_centroid([np.array([1.0, 0.0]), np.array([0.0, 1.0])])
    assert cosines == pytest.approx([np.sqrt(0.5)] * 2)


@pytest.mark.parametrize("bad", [[], [np.zeros(3)], [np.array([np.nan, 1.0])]])
def test_vectors_that_say_nothing_are_refused(bad):
    with pytest.raises(ValueError, match="centroid"):
        robust_centroid(bad)
