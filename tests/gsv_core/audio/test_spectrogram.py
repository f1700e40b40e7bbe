import pytest
import torch

from gsv_core.audio.spectrogram import (
    SpectrogramConfig,
    linear_spectrogram,
    mel_filterbank,
    mel_of_linear,
    mel_spectrogram,
)

CONFIG = SpectrogramConfig()


def _tone(hertz, samples=32_000):
    return torch.sin(2 * torch.pi * hertz * torch.arange(samples) / CONFIG.rate_hz).unsqueeze(0)


@pytest.mark.parametrize("samples, frames", [(32_000, 50), (32_639, 50), (32_640, 51)])
def test_there_is_one_frame_per_whole_hop(samples, frames):
    assert linear_spectrogram(torch.zeros(2, samples), CONFIG).shape == (2, 1025, frames)


def test_a_tone_lies_in_its_bin_and_band():
    spectrogram = linear_spectrogram(_tone(2000), CONFIG)
    assert spectrogram[0, :, 25].argmax() == 2000 * 2048 // 32_000
    band = mel_of_linear(spectrogram, CONFIG)[0, :, 25].argmax()
    assert mel_filterbank(CONFIG)[band, 128] > 0


def test_silence_is_the_floor_and_level_is_additive_in_log():
    wave = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    louder = mel_spectrogram(wave * 10, CONFIG) - mel_spectrogram(wave, CONFIG)
    torch.testing.assert_close(louder, torch.full_like(louder, 2.302585), atol=1e-3, rtol=0)
    assert mel_spectrogram(torch.zeros(1, 16_000), CONFIG).max() < -6


def test_gradients_are_finite_in_silence():
    wave = torch.zeros(1, 16_000, requires_grad=True)
    (gradient,) = torch.autograd.grad(mel_spectrogram(wave, CONFIG).sum(), wave)
    assert torch.isfinite(gradient).all()


def test_mel_triangles_have_unit_area_between_their_edges():
    config = SpectrogramConfig(rate_hz=24_000, n_fft=8192, hop=256, window=1024, mel_bands=40, fmin=50, fmax=9000)
    filters = mel_filterbank(config)
    assert filters.shape == (40, 4097)
    torch.testing.assert_close(filters.sum(dim=1) * 24_000 / 8192, torch.ones(40), atol=0.02, rtol=0)
    bins_hz = torch.linspace(0, 12_000, 4097)
    assert filters[:, bins_hz < 50].max() == 0
    assert filters[:, bins_hz > 9000].max() == 0


@pytest.mark.parametrize("wave", [torch.zeros(32_000), torch.zeros(1, 704)])
def test_waves_that_cannot_be_mirrored_are_refused(wave):
    with pytest.raises(ValueError, match="more than 704 samples"):
        linear_spectrogram(wave, CONFIG)


@pytest.mark.parametrize(
    "sizes", [{"hop": 0}, {"window": 4096}, {"fmin": 9, "fmax": 8}, {"fmax": 20_000}, {"mel_bands": 0}]
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="need"):
        SpectrogramConfig(**sizes)


def test_a_filterbank_first_used_in_inference_can_be_trained_with_later() -> None:
    config = SpectrogramConfig(mel_bands=37)
    with torch.inference_mode():
        mel_spectrogram(torch.zeros(1, 4096), config)
    wave = torch.randn(1, 4096, requires_grad=True)
    mel_spectrogram(wave, config).sum().backward()
    assert wave.grad is not None
