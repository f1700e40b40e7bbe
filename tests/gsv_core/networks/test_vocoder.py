from dataclasses import replace

import pytest
import torch

from gsv_core.networks.vocoder import HifiGanVocoder, VocoderConfig

TINY = VocoderConfig(
    mel_bands=5,
    channels=16,
    upsample_rates=(3, 2),
    upsample_kernels=(7, 4),
    block_kernels=(3, 5),
    block_dilations=((1, 3), (1,)),
)


def test_a_frame_becomes_hop_samples_and_every_weight_gets_a_gradient():
    torch.manual_seed(0)
    vocoder = HifiGanVocoder(TINY)
    wave = vocoder(torch.randn(2, 5, 7))
    assert TINY.hop == 6
    assert wave.shape == (2, 1, 42)
    assert wave.abs().max() <= 1
    wave.square().sum().backward()
    assert [n for n, p in vocoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_its_weights_are_named_as_in_the_file_plain_and_without_timbre():
    names = HifiGanVocoder(TINY).state_dict().keys()
    assert {"conv_pre.weight", "ups.1.weight", "resblocks.3.convs2.0.bias", "conv_post.bias"} <= names
    assert not any(name.endswith(("weight_g", "weight_v")) or name.startswith("cond") for name in names)
    assert VocoderConfig().hop == 480


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample_kernels": (7,)}, "an upsample kernel per rate"),
        ({"upsample_kernels": (8, 4)}, "larger by an even number"),
        ({"block_kernels": (3,)}, "dilations per block kernel"),
        ({"channels": 3}, "cannot pass 2 stages"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)
