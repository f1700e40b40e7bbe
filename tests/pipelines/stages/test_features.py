from dataclasses import replace

import numpy as np
import pytest

from gsv_core.features import RATE_HZ
from pipelines.engines.choose import SPEAKER_VERIFIERS, EngineConfig
from pipelines.engines.flac import decode_flac
from pipelines.rows import Example, Rejection
from pipelines.stages.features import ExtractFeatures, FeatureModels
from tests.pipelines.conftest import Travelled


def test_a_good_clip_becomes_an_example_with_arrays_of_its_length(travelled: Travelled) -> None:
    models: FeatureModels = travelled.models["features"]
    assert len(travelled.examples) == len(travelled.phonemised)
    for row in travelled.examples:
        seconds = row.utterance.num_samples / RATE_HZ
        assert row.content.dtype == np.float16
        assert row.content.shape[1] == models.base.content_encoder.width
        assert abs(len(row.content) - 50 * seconds) <= 2
        assert row.tokens.dtype == np.int16
        assert abs(len(row.tokens) - 25 * seconds) <= 2
        assert row.tokens.min() >= 0
        assert row.tokens.max() < 1024
        assert row.speaker.dtype == np.float32
        assert row.speaker.shape == (models.speaker_verifier.width,)
        assert abs(float(np.linalg.norm(row.speaker)) - 1) < 1e-3
        assert (row.text_vectors is None) == (models.base.text_encoder is None)
        assert (row.speaker_vector is None) == (models.base.speaker_encoder is None)


def test_features_come_from_the_stored_audio_and_do_not_depend_on_the_order(travelled: Travelled) -> None:
    model = travelled.models["features"]
    again = [result for row in travelled.phonemised[::-1] for result in ExtractFeatures().process(row, model)]
    for before, after in zip(travelled.examples, again[::-1], strict=True):
        assert isinstance(after, Example)
        assert after.utterance == before.utterance
        for name in ("content", "tokens", "speaker", "speaker_vector"):
            one, two = getattr(before, name), getattr(after, name)
            assert (one is None and two is None) or one.tobytes() == two.tobytes()


def test_two_clips_of_one_voice_are_alike(travelled: Travelled) -> None:
    one, two = travelled.examples[0].speaker, travelled.examples[-1].speaker
    assert float(one @ two) > 0.75


class _Overflowing:
    """A verifier whose network overflowed."""

    name, width = "overflowing", 4

    def embed(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        return np.array([1.0, np.inf, 0.0, np.nan], dtype=np.float32)


def test_a_feature_that_is_not_finite_is_rejected(travelled: Travelled) -> None:
    row = travelled.phonemised[0]
    assert np.isfinite(decode_flac(row.flac)[0]).all()
    models = replace(travelled.models["features"], speaker_verifier=_Overflowing())
    (rejection,) = ExtractFeatures().process(row, models)
    assert isinstance(rejection, Rejection)
    assert (rejection.stage, rejection.reason, rejection.row_id) == ("features", "not_finite", row.utterance.clip_id)
    assert (rejection.start_sample, rejection.num_samples) == (row.utterance.start_sample, row.utterance.num_samples)


def test_the_engines_decide_the_result_and_what_a_base_decides_is_said_elsewhere() -> None:
    here, there = ExtractFeatures(base_digest="a", base_folder="/x"), ExtractFeatures(base_digest="b", base_folder="/y")
    assert here.fingerprint() == there.fingerprint()
    resemblyzer, ecapa = (ExtractFeatures(engines=EngineConfig(speaker_verifier=name)) for name in SPEAKER_VERIFIERS)
    assert resemblyzer.fingerprint() != ecapa.fingerprint()


def test_a_machine_with_another_base_is_found_before_it_makes_a_feature() -> None:
    with pytest.raises(ValueError, match="put the same files on every machine"):
        ExtractFeatures(base_digest="b" * 64).load_base()


def test_clips_looked_at_together_have_the_features_of_each_alone(travelled: Travelled) -> None:
    stage, model = ExtractFeatures(), travelled.models["features"]
    assert stage.look_ahead(travelled.phonemised, model) is model  # on a CPU there is nothing to gain
    together = stage.batched(travelled.phonemised, model)
    assert len(together.before) == len(travelled.phonemised)
    for row, alone in zip(travelled.phonemised, travelled.examples, strict=True):
        (example,) = stage.process(row, together)
        assert isinstance(example, Example)
        np.testing.assert_allclose(example.content, alone.content, atol=1e-3)
        assert (example.tokens == alone.tokens).mean() > 0.99
