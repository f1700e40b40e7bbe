import torch

from gsv_core.networks.layers import frame_mask
from gsv_core.networks.posterior_encoder import PosteriorEncoder


def test_noise_is_scaled_around_the_mean_and_timbre_stays_untrained():
    torch.manual_seed(0)
    encoder = PosteriorEncoder(9, 8, 4, kernel=5, layers=2, timbre_width=6)
    spectrogram, timbre = torch.rand(1, 9, 10), torch.randn(1, 6, 1, requires_grad=True)
    mask = frame_mask(torch.tensor([7]), 10, torch.float32)
    noise = torch.randn(1, 4, 10)
    latent, mean, log_scale = encoder(spectrogram, mask, timbre, noise)
    torch.testing.assert_close(latent, (mean + noise * log_scale.exp()) * mask)
    assert latent[..., 7:].abs().max() == 0
    latent.sum().backward()
    assert timbre.grad is None
