import torch

from gsv_core.networks.layers import frame_mask
from gsv_core.networks.reference_encoder import ReferenceEncoder


def test_one_vector_per_item_whatever_its_length():
    torch.manual_seed(0)
    encoder = ReferenceEncoder(12, 8, 6, heads=2, kernel=5, dropout=0.0)
    spectrogram = torch.rand(2, 12, 20)
    assert encoder(spectrogram, frame_mask(torch.tensor([20, 11]), 20, torch.float32)).shape == (2, 6, 1)


def test_padding_touches_only_the_last_frames():
    torch.manual_seed(0)
    encoder = ReferenceEncoder(12, 8, 6, heads=2, kernel=5, dropout=0.0)
    spectrogram = torch.rand(1, 12, 60)
    mask = frame_mask(torch.tensor([50]), 60, torch.float32)
    padded = encoder(spectrogram * mask, mask)
    other = encoder(torch.nn.functional.pad(spectrogram * mask, (0, 30)), torch.nn.functional.pad(mask, (0, 30)))
    torch.testing.assert_close(padded, other)
    alone = encoder(spectrogram[..., :50], mask[..., :50])
    assert torch.nn.functional.cosine_similarity(padded[0], alone[0], dim=0).item() > 0.99
