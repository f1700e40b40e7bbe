import torch
from torch import nn

from gsv_core.networks.dropout import Dropout, clip_keys, column_keys, follow_clips

CPU = torch.device("cpu")


def layers(share=0.3):
    network = nn.ModuleDict({"first": Dropout(share), "second": Dropout(share)}).train()
    return network, follow_clips(network)


def test_a_clip_loses_the_same_values_in_any_batch_and_padding():
    network, keys = layers()
    keys.clips = clip_keys([7, 8, 9], CPU)
    together = network["first"](torch.ones(3, 20, 4, 6))
    keys.clips = clip_keys([9], CPU)
    alone = network["first"](torch.ones(1, 12, 4, 6))
    assert torch.equal(alone[0], together[2, :12])
    assert not torch.equal(together[0], together[1])


def test_columns_of_items_behind_each_other_lose_what_they_lose_side_by_side():
    network, keys = layers()
    keys.clips = clip_keys([3, 4], CPU)
    side_by_side = network["first"](torch.ones(2, 5, 8))
    lengths = torch.tensor([5, 2])
    keys.columns = column_keys(keys.clips, lengths)
    behind = network["first"](torch.ones(7, 8))
    assert torch.equal(behind, torch.cat([side_by_side[0], side_by_side[1, :2]]))


def test_layers_passes_and_keys_lose_other_values_and_the_right_share():
    network, keys = layers()
    keys.clips = clip_keys([2**62 + 1], CPU)
    x = torch.ones(1, 500, 400)
    first, second = network["first"](x), network["second"](x)
    keys.passes = 1
    again = network["first"](x)
    keys.clips = clip_keys([2**62 + 2], CPU)
    other = network["first"](x)
    masks = [(kept == 0).float() for kept in (first, second, again, other)]
    for mask in masks:
        assert abs(mask.mean().item() - 0.3) < 0.005
        assert (mask.mean(1) - 0.3).abs().max() < 0.12  # no channel and
        assert (mask.mean(2) - 0.3).abs().max() < 0.12  # no place is favoured
    for index, mask in enumerate(masks):
        for later in masks[index + 1 :]:
            assert abs((mask * later).mean().item() - 0.09) < 0.005
    # Neighbours in either direction have nothing in common.
    mask = masks[0]
    assert abs((mask[:, 1:] * mask[:, :-1]).mean().item() - 0.09) < 0.005
    assert abs((mask[..., 1:] * mask[..., :-1]).mean().item() - 0.09) < 0.005


def test_what_is_kept_is_scaled_and_carries_the_gradient():
    network, keys = layers(0.5)
    keys.clips = clip_keys([1], CPU)
    x = torch.full((1, 6, 6), 3.0, requires_grad=True)
    out = network["first"](x)
    assert set(out.unique().tolist()) == {0.0, 6.0}
    out.sum().backward()
    assert torch.equal(x.grad, out.detach() / 3)


def test_without_keys_it_is_torchs_and_in_use_nothing_is_lost():
    network, keys = layers()
    x = torch.ones(2, 50, 8)
    torch.manual_seed(1)
    first = network["first"](x)
    torch.manual_seed(1)
    assert torch.equal(first, nn.functional.dropout(x, 0.3))
    keys.clips = clip_keys([1, 2], CPU)
    assert torch.equal(network.eval()["first"](x), x)
