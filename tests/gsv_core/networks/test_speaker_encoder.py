import pytest
import torch

from gsv_core.networks.speaker_encoder import SpeakerEncoder, SpeakerEncoderConfig, kaldi_fbank

SMALL = SpeakerEncoderConfig(channels=8, blocks=(1, 1, 1, 1), expansion=2)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SpeakerEncoder(SMALL)


def test_a_wave_becomes_one_vector_of_the_stated_width(network):
    wave = torch.randn(2, 12_000, generator=torch.Generator().manual_seed(0)) * 0.1
    vectors = network.eval()(wave)
    assert vectors.shape == (2, SMALL.width)
    torch.testing.assert_close(vectors[1:], network(wave[1:]), atol=1e-4, rtol=1e-4)
    assert network.verify(kaldi_fbank(wave)).shape == (2, SMALL.head_width)


def test_the_published_width():
    assert SpeakerEncoderConfig().width == 20_480


def test_filter_banks_have_a_hundred_frames_per_second_and_follow_the_pitch():
    seconds = torch.arange(16_000) / 16_000
    tones = torch.stack([torch.sin(2 * torch.pi * hertz * seconds) for hertz in (300, 3000)])
    banks = kaldi_fbank(tones)
    assert banks.shape == (2, 98, 80)
    low, high = banks.mean(dim=1).argmax(dim=1).tolist()
    assert 5 < low < high < 70


@pytest.mark.parametrize("bands", [23, 80])
def test_filter_banks_are_those_of_torchaudio(bands):
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi", exc_type=(ImportError, RuntimeError))
    draw = torch.Generator().manual_seed(0)
    waves = torch.stack([0.1 * torch.randn(8_765, generator=draw), 0.5 + 0.4 * torch.sin(0.07 * torch.arange(8_765))])
    expected = [
        kaldi.fbank(wave[None], num_mel_bins=bands, sample_frequency=16_000, dither=0, snip_edges=True)
        for wave in waves
    ]
    torch.testing.assert_close(kaldi_fbank(waves, bands), torch.stack(expected), atol=5e-4, rtol=0)


def test_silence_has_the_least_energy_there_is():
    assert torch.equal(kaldi_fbank(torch.zeros(1, 800)), torch.full((1, 3, 80), 2**-23).log())


def test_every_weight_gets_a_gradient(network):
    network.train()
    fbank = torch.randn(2, 32, 80, generator=torch.Generator().manual_seed(0))
    (network.describe(fbank).square().sum() + network.verify(fbank).square().sum()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_short_waves_and_impossible_sizes_are_refused(network):
    with pytest.raises(ValueError, match="400 samples or more"):
        network(torch.zeros(1, 300))
    with pytest.raises(ValueError, match="multiple of 8"):
        SpeakerEncoderConfig(mel_bands=81)
    with pytest.raises(ValueError, match="positive"):
        SpeakerEncoderConfig(channels=2)
