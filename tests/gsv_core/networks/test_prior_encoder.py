import pytest
import torch

from gsv_core.networks.prior_encoder import PriorEncoder


@pytest.mark.parametrize("speed, length", [(1.0, 10), (1.2, 9), (0.5, 21)])
def test_speed_decides_the_number_of_frames(speed, length):
    torch.manual_seed(0)
    encoder = PriorEncoder(
        phoneme_count=20,
        content_width=6,
        width=8,
        filter_width=12,
        join_width=16,
        join_heads=2,
        latent=4,
        heads=2,
        layers=2,
        kernel=3,
        window=4,
        dropout=0.0,
    )
    ones = torch.ones(1, 1, 10)
    mean, log_scale, mask = encoder(
        torch.randn(1, 6, 10),
        ones,
        torch.zeros(1, 3, dtype=torch.int64),
        ones[..., :3],
        torch.randn(1, 16, 1),
        speed=speed,
    )
    assert mean.shape == log_scale.shape == (1, 4, length)
    assert mask.shape == (1, 1, length)
    assert mask.min() == 1
