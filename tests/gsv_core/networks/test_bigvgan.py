import copy
import json

import pytest
import torch

from gsv_core.networks.bigvgan import TAPS, BigVganConfig, BigVganVocoder, FilteredSnake, low_pass_taps, read_settings
from gsv_core.networks.layers import fold_weight_norm

SETTINGS = {
    "num_mels": 5,
    "upsample_rates": [3, 2],
    "upsample_kernel_sizes": [7, 4],
    "upsample_initial_channel": 16,
    "resblock": "1",
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1]],
    "activation": "snakebeta",
    "snake_logscale": True,
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
    "sampling_rate": 24000,
}


@pytest.fixture
def vocoder():
    torch.manual_seed(0)
    network = BigVganVocoder(read_settings(SETTINGS))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("alpha", "beta")):
                parameter.normal_(std=0.3)
    return network


def test_a_frame_becomes_hop_samples_and_every_weight_gets_a_gradient(vocoder):
    wave = vocoder(torch.randn(2, 5, 7))
    assert wave.shape == (2, 1, 42)
    wave.square().sum().backward()
    assert [n for n, p in vocoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    loud = vocoder(torch.randn(1, 5, 7) * 1e3)
    assert loud.abs().max() == 1


def test_the_published_sizes_are_the_defaults():
    assert BigVganConfig().hop == 256
    assert BigVganConfig().channels == 1536
    assert not BigVganConfig().final_bias


def test_the_low_pass_filter_passes_half_the_band():
    taps = low_pass_taps()
    torch.testing.assert_close(taps, taps.flip(0))
    response = torch.fft.rfft(taps, 64 * TAPS).abs()
    assert response[0] == pytest.approx(1)
    assert response[len(response) // 2] == pytest.approx(0.5, abs=0.01)  # the cut-off
    assert response[-1] < 1e-3


def test_doubling_and_halving_give_a_slow_signal_back_and_never_weave_channels():
    filtered = FilteredSnake(2)
    time = torch.arange(200.0)
    signal = torch.stack([torch.sin(time * 0.2), torch.cos(time * 0.1)])[None]
    doubled = filtered.upsample(signal)
    assert doubled.shape == (1, 2, 400)
    # The doubled values lie a quarter of a step before and after those they come from.
    expected = torch.sin((torch.arange(400) / 2 - 0.25) * 0.2)
    torch.testing.assert_close(doubled[0, 0, 20:-20], expected[20:-20], atol=2e-3, rtol=0)
    torch.testing.assert_close(filtered.downsample(doubled)[..., 20:-20], signal[..., 20:-20], atol=4e-3, rtol=0)


def test_snake_has_a_frequency_and_a_magnitude_per_channel():
    act = FilteredSnake(2).act
    with torch.no_grad():
        act.alpha.copy_(torch.tensor([0.0, 1.0]))
        act.beta.copy_(torch.tensor([0.5, 0.0]))
    x = torch.randn(1, 2, 9, generator=torch.Generator().manual_seed(0))
    first = x[0, 0] + torch.sin(x[0, 0]) ** 2 / torch.tensor(0.5).exp()
    second = x[0, 1] + torch.sin(x[0, 1] * torch.e) ** 2
    torch.testing.assert_close(act(x)[0], torch.stack([first, second]))


def test_an_activation_alone_makes_noise_that_the_filters_weaken():
    """A high tone squared has an overtone above half the rate; unfiltered it comes back as a low one."""
    signal = torch.sin(torch.arange(400.0) * torch.pi * 0.8)[None, None] * 0.3

    def folded_back(wave):
        spectrum = torch.fft.rfft(wave[0, 0, 50:-50] * torch.hann_window(300)).abs()
        return spectrum[50:70].max()  # twice 0.8 of the band folds to 0.4 of it

    filtered = FilteredSnake(1)
    unfiltered = filtered.act(signal)
    assert folded_back(filtered(signal)) < 0.5 * folded_back(unfiltered)
    assert filtered(signal).shape == signal.shape


def test_folded_it_says_the_same(vocoder):
    folded = copy.deepcopy(vocoder)
    fold_weight_norm(folded)
    mel = torch.randn(1, 5, 7)
    assert torch.equal(folded(mel), vocoder(mel))
    assert not any(name.endswith(("weight_g", "weight_v")) for name in folded.state_dict())
    assert folded.conv_post.bias is None


def test_settings_are_read_and_what_they_ask_for_beyond_that_is_refused():
    settings = json.loads(json.dumps(SETTINGS))
    config = read_settings(settings)
    assert (config.mel_bands, config.channels, config.hop) == (5, 16, 6)
    assert config.block_dilations == ((1, 3), (1,))
    with pytest.raises(ValueError, match="activation 'snake' is not known here, only 'snakebeta'"):
        read_settings(settings | {"activation": "snake"})
    del settings["use_tanh_at_final"]
    with pytest.raises(ValueError, match="use_tanh_at_final None is not known"):
        read_settings(settings)
    with pytest.raises(ValueError, match="lack 'num_mels'"):
        read_settings({name: value for name, value in SETTINGS.items() if name != "num_mels"})
    with pytest.raises(ValueError, match="wrong kind"):
        read_settings(SETTINGS | {"upsample_rates": 4})


def test_ends_are_held_for_the_filters():
    constant = torch.full((1, 1, 3), 0.7)
    filtered = FilteredSnake(1)
    expected = filtered.act(constant)
    torch.testing.assert_close(filtered(constant), expected)
