import copy

import pytest
import torch

from gsv_core.networks.generator import Generator
from gsv_core.networks.layers import fold_weight_norm


def made_generator(timbre_width=6):
    torch.manual_seed(0)
    return Generator(
        4,
        16,
        rates=(5, 4, 2),
        kernels=(9, 8, 4),
        block_kernels=(3, 5),
        block_dilations=((1, 3), (1,)),
        timbre_width=timbre_width,
    )


def test_a_frame_becomes_the_product_of_the_rates():
    generator = made_generator()
    wave = generator(torch.randn(2, 4, 7), torch.randn(2, 6, 1))
    assert wave.shape == (2, 1, 7 * 40)
    assert wave.abs().max() <= 1
    wave.square().sum().backward()
    assert [n for n, p in generator.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_a_timbre_is_given_exactly_where_there_is_room_for_one():
    latent, timbre = torch.randn(1, 4, 3), torch.randn(1, 6, 1)
    with pytest.raises(ValueError, match="needs a timbre"):
        made_generator()(latent)
    without = made_generator(timbre_width=None)
    assert without(latent).shape == (1, 1, 120)
    with pytest.raises(ValueError, match="takes no timbre"):
        without(latent, timbre)


def test_folded_it_says_the_same():
    generator = made_generator()
    folded = copy.deepcopy(generator)
    fold_weight_norm(folded)
    latent, timbre = torch.randn(2, 4, 7), torch.randn(2, 6, 1)
    assert torch.equal(folded(latent, timbre), generator(latent, timbre))
    assert "ups.0.weight_v" in generator.state_dict()
    assert not any("weight_" in name for name in folded.state_dict())


def test_it_is_never_rounded_to_bfloat16_and_its_last_convolution_to_nothing():
    """In the upper bands of speech, 50 dB and more below the lower ones, the noise would be all there is."""
    generator = made_generator()
    latent, timbre = torch.randn(2, 4, 7), torch.randn(2, 6, 1)
    wave = generator(latent, timbre)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(generator(latent.bfloat16().float(), timbre), generator(latent.bfloat16(), timbre))
        assert torch.equal(generator(latent, timbre), wave)
        assert torch.equal(generator(latent, timbre, recompute=True), wave)
    with torch.autocast("cpu", dtype=torch.float16):
        rounded = generator(latent, timbre)
    assert rounded.dtype is torch.float32
    assert 0 < (rounded - wave).square().mean() / wave.var() < 10**-4
