from dataclasses import replace

import numpy as np
import pytest
import torch

from gsv_core.checkpoints.base import load_base
from gsv_core.checkpoints.releases import BERT_FOLDER, HUBERT_FOLDER
from gsv_core.features import (
    encoder_wave,
    extract_features,
    features_before,
    text_vectors_of,
    tokens_of,
    training_gain,
)
from gsv_core.networks.content_encoder import HubertContentEncoder, MelContentEncoder
from gsv_core.networks.text_encoder import TextEncoder
from gsv_core.text.front_end import phonemise
from tests.gsv_core.made_bases import write_encoders
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


def test_the_gain_is_that_of_upstreams_data_preparation():
    assert training_gain(np.array([0.1, -0.95], np.float32)) == pytest.approx(1145.14)
    assert training_gain(np.array([0.475], np.float32)) == pytest.approx(1145.14 * 1.5)
    assert training_gain(np.zeros(9, np.float32)) == 1.0


def test_only_an_encoder_that_was_trained_on_it_hears_the_louder_wave(base):
    wave = made_wave(0, 1.0).numpy()
    plain, loud = (extract_features(base, wave, None, loud=loud) for loud in (False, True))
    assert np.array_equal(plain.content, loud.content)
    heard = []

    class Listening(MelContentEncoder):
        loud_in_training = True

        def encode(self, wave):
            heard.append(float(wave.abs().max()))
            return super().encode(wave)

    listening = replace(base, content_encoder=Listening(base.content_encoder.width))
    for loud in (False, True):
        extract_features(listening, wave, None, loud=loud)
    assert heard[1] / heard[0] == pytest.approx(training_gain(wave), rel=1e-5)


def test_very_quiet_audio_is_where_the_louder_wave_matters(tmp_path):
    """The first layer's epsilon: little at normal level, much where there is hardly a signal."""
    write_encoders(tmp_path)
    encoder = HubertContentEncoder(tmp_path / HUBERT_FOLDER)
    wave = made_wave(0, 1.0)
    differences = []
    for level in (1.0, 1e-4):
        plain = encoder.encode(wave * level)
        loud = encoder.encode(wave * level * training_gain(wave.numpy() * level))
        differences.append(float((plain - loud).norm() / loud.norm()))
    assert differences[1] > 4 * differences[0]


def test_many_clips_at_once_have_the_features_of_each_alone(base, tmp_path):
    write_encoders(tmp_path)
    encoders = replace(
        base,
        content_encoder=HubertContentEncoder(tmp_path / HUBERT_FOLDER),
        text_encoder=TextEncoder(tmp_path / BERT_FOLDER),
    )
    texts = [phonemise("你好吗 hello", "zh"), phonemise("hello", "en"), phonemise("你好", "zh"), None]
    clips = [(made_wave(number, 0.5 + number / 3).numpy(), text) for number, text in enumerate(texts)]
    for (wave, text), before in zip(clips, features_before(encoders, clips), strict=True):
        alone = encoders.content_encoder.encode(encoder_wave(wave) * training_gain(wave))
        torch.testing.assert_close(before.content, alone, atol=1e-4, rtol=1e-4)
        vectors = text_vectors_of(encoders, text)
        assert (vectors is None) == (before.text_vectors is None)
        if vectors is not None:
            np.testing.assert_allclose(before.text_vectors.numpy(), vectors, atol=2e-3)
