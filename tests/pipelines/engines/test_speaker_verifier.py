import numpy as np
import pytest
import torch

from pipelines.engines.choose import EngineConfig, load_speaker_verifier
from pipelines.engines.speaker_verifier import EcapaVerifier
from tests.pipelines.engines.signals import speech_like
from tests.pipelines.engines.tiny_models import write_tiny_ecapa

RATE_HZ = 22_050


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_ecapa(tmp_path_factory.mktemp("ecapa") / "tiny")


def test_embeds_through_speechbrain_with_the_folder_s_tensors_only(folder):
    # The folder's own YAML would abort the process if anything read it.
    verifier = load_speaker_verifier(EngineConfig(speaker_verifier="ecapa", speaker_verifier_model=str(folder)))
    assert verifier.width == 24
    wave = speech_like(2.0, RATE_HZ)
    vector = verifier.embed(wave, RATE_HZ)
    assert vector.shape == (24,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(vector, verifier.embed(wave, RATE_HZ))
    assert not np.allclose(vector, verifier.embed(speech_like(2.0, RATE_HZ, pitch_hz=240.0), RATE_HZ))


def test_equals_the_network_that_was_saved(folder):
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
    from speechbrain.processing.features import InputNormalization

    network = ECAPA_TDNN(
        80, channels=[16, 16, 16, 16, 48], attention_channels=8, res2net_scale=4, se_channels=8, lin_neurons=24
    ).eval()
    network.load_state_dict(torch.load(folder / "embedding_model.ckpt", weights_only=True))
    wave = torch.from_numpy(speech_like(1.0, 16_000))[None]
    normalise = InputNormalization(norm_type="sentence", std_norm=False)
    with torch.inference_mode():
        expected = network(normalise(Fbank(n_mels=80)(wave), torch.ones(1)))[0, 0]
    actual = EcapaVerifier(str(folder)).embed(wave[0].numpy(), 16_000)
    assert np.allclose(actual, (expected / expected.norm()).numpy(), atol=1e-5)


class _Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_asks_for_more_than_tensors_is_refused(tmp_path, capsys):
    torch.save({"blocks": _Payload()}, tmp_path / "embedding_model.ckpt")
    with pytest.raises(ValueError, match="more than tensors"):
        EcapaVerifier(str(tmp_path))
    assert "executed" not in capsys.readouterr().out


def test_what_is_no_ecapa_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected embedding_model\.ckpt"):
        EcapaVerifier(str(tmp_path))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "embedding_model.ckpt")
    with pytest.raises(ValueError, match=r"blocks\.0\.conv\.conv\.weight is missing"):
        EcapaVerifier(str(tmp_path))


def test_silence_has_no_speaker(folder):
    with pytest.raises(ValueError, match="with sound"):
        EcapaVerifier(str(folder)).embed(np.zeros(RATE_HZ, np.float32), RATE_HZ)
