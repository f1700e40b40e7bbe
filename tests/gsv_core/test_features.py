import numpy as np
import pytest
import torch

from gsv_core.checkpoints.base import load_base
from gsv_core.features import extract_features, text_vectors_of, tokens_of
from gsv_core.text.front_end import phonemise
from tests.gsv_core.made_items import made_wave


@pytest.fixture(scope="module")
def base():
    return load_base("nano")


def test_every_array_has_its_shape_and_stored_type(base):
    features = extract_features(base, made_wave(0, 2.0).numpy(), phonemise("hello", "en"))
    assert features.content.shape == (100, base.content_encoder.width)
    assert features.tokens.shape == (50,)
    assert (features.content.dtype, features.tokens.dtype) == (np.float16, np.int16)
    assert 0 <= features.tokens.min() <= features.tokens.max() < 1024
    assert features.speaker_vector is not None
    assert features.speaker_vector.dtype == np.float16
    assert features.text_vectors is None
    for array in (features.content, features.speaker_vector):
        assert np.isfinite(array.astype(np.float32)).all()


def test_tokens_can_be_made_again_from_the_stored_content(base):
    features = extract_features(base, made_wave(1, 1.5).numpy(), None)
    again = tokens_of(base, torch.from_numpy(features.content))
    assert np.array_equal(again.numpy(), features.tokens)


def test_the_same_wave_gives_the_same_arrays_and_another_gives_others(base):
    first, again, other = (extract_features(base, made_wave(number, 1.5).numpy(), None) for number in (2, 2, 3))
    assert np.array_equal(first.content, again.content)
    assert np.array_equal(first.speaker_vector, again.speaker_vector)
    assert not np.array_equal(first.tokens, other.tokens)
    assert not np.array_equal(first.speaker_vector, other.speaker_vector)


def test_without_a_text_encoder_mandarin_has_no_vectors_either(base):
    assert text_vectors_of(base, phonemise("你好", "zh")) is None


@pytest.mark.parametrize("wave", [np.zeros((100, 2), np.float32), np.zeros(100, np.float32)])
def test_stereo_and_scraps_are_refused(base, wave):
    with pytest.raises(ValueError, match="expected a mono wave"):
        extract_features(base, wave, None)


def test_silence_gives_finite_arrays(base):
    features = extract_features(base, np.zeros(32_000, np.float32), None)
    assert np.isfinite(features.content.astype(np.float32)).all()
    assert len(features.tokens) == 25
