import pytest
import torch

from gsv_core.networks.attention import Attention, AttentionEncoder, gather_band, spread_band
from gsv_core.networks.layers import frame_mask


@pytest.mark.parametrize("length", [1, 3, 12])
def test_bands_are_what_their_index_formulas_say(length):
    window = 4
    draw = torch.Generator().manual_seed(0)
    band = torch.randn(1, 2, length, 2 * window + 1, generator=draw)
    pairs = torch.randn(1, 2, length, length, generator=draw)
    spread, gathered = spread_band(band, window), gather_band(pairs, window)
    assert spread.shape == pairs.shape
    assert gathered.shape == band.shape
    for i in range(length):
        for j in range(length):
            k = j - i + window
            inside = 0 <= k <= 2 * window
            torch.testing.assert_close(spread[..., i, j], band[..., i, k] if inside else torch.zeros(1, 2))
        for k in range(2 * window + 1):
            j = i + k - window
            torch.testing.assert_close(gathered[..., i, k], pairs[..., i, j] if 0 <= j < length else torch.zeros(1, 2))


def test_attention_sees_nothing_of_masked_context():
    torch.manual_seed(0)
    attention = Attention(8, 2)
    x, context = torch.randn(1, 8, 5), torch.randn(1, 8, 6)
    mask = frame_mask(torch.tensor([4]), 6, x.dtype)
    changed = context.clone()
    changed[..., 4:] = 99
    torch.testing.assert_close(attention(x, context, mask), attention(x, changed, mask))


def test_without_relative_vectors_both_forms_agree():
    torch.manual_seed(0)
    relative, plain = Attention(8, 2, window=4), Attention(8, 2)
    with torch.no_grad():
        relative.emb_rel_k.zero_()
        relative.emb_rel_v.zero_()
    plain.load_state_dict({k: v for k, v in relative.state_dict().items() if "rel" not in k})
    x, mask = torch.randn(2, 8, 7), frame_mask(torch.tensor([7, 5]), 7, torch.float32)
    torch.testing.assert_close(relative(x, x, mask), plain(x, x, mask))


def test_encoder_gives_the_same_with_and_without_padding_and_trains_every_weight():
    torch.manual_seed(0)
    encoder = AttentionEncoder(8, 12, heads=2, layers=2, kernel=3, window=4, dropout=0.0)
    x = torch.randn(1, 8, 9)
    mask = frame_mask(torch.tensor([6]), 9, x.dtype)
    padded = encoder(x, mask)
    torch.testing.assert_close(padded[..., :6], encoder(x[..., :6], mask[..., :6]))
    assert padded[..., 6:].abs().max() == 0
    (padded * torch.randn_like(padded)).sum().backward()
    # A bias of the keys moves all scores of a query alike, so it has no gradient but rounding.
    missing = [n for n, p in encoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert [name for name in missing if not name.endswith("conv_k.bias")] == []
