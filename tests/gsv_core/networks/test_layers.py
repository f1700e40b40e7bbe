import copy

import pytest
import torch
from torch import nn

from gsv_core.networks.layers import (
    ChannelLayerNorm,
    GatedStack,
    WeightNormColumnConv2d,
    WeightNormConv1d,
    WeightNormConvTranspose1d,
    fold_weight_norm,
    frame_mask,
    sequence_mask,
    slice_frames,
    weights_kept,
)


def test_sequence_mask_marks_what_is_no_padding():
    assert sequence_mask(torch.tensor([0, 2, 3]), 3).tolist() == [[False] * 3, [True, True, False], [True] * 3]
    assert frame_mask(torch.tensor([1]), 2, torch.float64).tolist() == [[[1.0, 0.0]]]


def test_slice_frames_takes_each_items_own_piece():
    values = torch.arange(12.0).reshape(2, 1, 6)
    assert slice_frames(values, torch.tensor([0, 3]), 2).tolist() == [[[0, 1]], [[9, 10]]]


def test_weight_norm_starts_as_the_plain_convolution():
    torch.manual_seed(0)
    ours = WeightNormConv1d(4, 6, 3, padding=2, dilation=2, groups=2)
    plain = torch.nn.Conv1d(4, 6, 3, padding=2, dilation=2, groups=2)
    plain.load_state_dict({"weight": ours.weight_v, "bias": ours.bias})
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(ours(x), plain(x))


def test_weight_norm_depends_on_the_direction_of_v_and_the_length_g():
    convolution = WeightNormConvTranspose1d(3, 2, 4, stride=2)
    before = convolution.weight.detach()
    with torch.no_grad():
        convolution.weight_v.mul_(7)
    torch.testing.assert_close(convolution.weight, before)
    with torch.no_grad():
        convolution.weight_g.mul_(2)
    torch.testing.assert_close(convolution.weight, 2 * before)
    # One length per input channel, the first axis of a transposed convolution.
    assert convolution.weight_g.shape == (3, 1, 1)


def test_convolutions_keep_their_promised_shapes():
    assert WeightNormConvTranspose1d(3, 2, 16, stride=10)(torch.zeros(1, 3, 7)).shape == (1, 2, 70)
    assert WeightNormColumnConv2d(1, 2, 5, stride=3, padding=2)(torch.zeros(4, 9, 1)).shape == (4, 3, 2)


def test_channel_layer_norm_normalises_over_channels():
    x = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(1)) * 3 + 4
    normal = ChannelLayerNorm(8)(x)
    torch.testing.assert_close(normal.mean(dim=1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(dim=1, correction=0), torch.ones(2, 5), atol=1e-3, rtol=0)


def test_gated_stack_keeps_padding_out_and_reaches_every_weight():
    torch.manual_seed(2)
    stack = GatedStack(6, 5, 3, timbre_width=4)
    x, timbre = torch.randn(1, 6, 10), torch.randn(1, 4, 1)
    mask = frame_mask(torch.tensor([7]), 10, x.dtype)
    padded = stack(x * mask, mask, timbre)
    alone = stack(x[..., :7], mask[..., :7], timbre)
    torch.testing.assert_close(padded[..., :7], alone)
    assert padded[..., 7:].abs().max() == 0
    padded.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in stack.parameters())


@pytest.mark.parametrize(
    ("convolution", "inputs"),
    [
        (WeightNormConv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (2, 4, 9)),
        (WeightNormConv1d(4, 6, 3, bias=False), (2, 4, 9)),
        (WeightNormColumnConv2d(2, 3, 5, stride=3, padding=2), (4, 9, 2)),
        (WeightNormConvTranspose1d(3, 2, 16, stride=10), (1, 3, 7)),
    ],
)
def test_a_folded_convolution_gives_the_same_numbers(convolution, inputs):
    torch.manual_seed(3)
    network = torch.nn.Sequential(convolution)
    with torch.no_grad():
        convolution.weight_g.mul_(torch.rand_like(convolution.weight_g) + 0.5)
    folded = copy.deepcopy(network).requires_grad_(False)
    state = torch.get_rng_state()
    fold_weight_norm(folded)
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(inputs)
    assert torch.equal(folded(x), network(x))
    assert sorted(folded.state_dict()) == ["0.bias", "0.weight"] if convolution.bias is not None else ["0.weight"]
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_folding_a_gated_stack_reaches_every_part():
    stack = GatedStack(6, 5, 3, timbre_width=4)
    x, timbre, mask = torch.randn(1, 6, 10), torch.randn(1, 4, 1), torch.ones(1, 1, 10)
    expected = stack(x, mask, timbre)
    fold_weight_norm(stack)
    assert torch.equal(stack(x, mask, timbre), expected)
    assert not any("weight_" in name for name in stack.state_dict())


def test_frozen_weights_are_computed_once_in_a_block():
    network = nn.Sequential(WeightNormConv1d(2, 3, 3), WeightNormConv1d(3, 2, 3)).requires_grad_(False)
    x = torch.randn(1, 2, 9)
    expected = network(x)
    with weights_kept(network):
        kept = network[0].weight
        assert network[0].weight is kept
        assert torch.equal(network(x), expected)
    assert network[0].weight is not kept
    with pytest.raises(AssertionError, match="another after each step"), weights_kept(network.requires_grad_(True)):
        pass
    assert network[0].weight.requires_grad
