"""The recording's own spectrogram to the latent its wave is decoded from; training only (upstream: `enc_q`).

The posterior of VITS (Kim et al. 2021, arXiv:2106.06103). Shapes: B batch, F bins, L frames, Z latent channels.
"""

import torch
from torch import Tensor, nn

from gsv_core.networks.layers import GatedStack


class PosteriorEncoder(nn.Module):
    """(B, F, L) -> latent, mean and log scale, each (B, Z, L)."""

    def __init__(self, bins: int, width: int, latent: int, *, kernel: int, layers: int, timbre_width: int) -> None:
        super().__init__()
        self.latent = latent
        self.pre = nn.Conv1d(bins, width, 1)
        self.enc = GatedStack(width, kernel, layers, timbre_width)
        self.proj = nn.Conv1d(width, 2 * latent, 1)

    def forward(
        self, spectrogram: Tensor, mask: Tensor, timbre: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`noise` (B, Z, L) standard normal. No gradient flows into `timbre` (B, G, 1)."""
        hidden = self.enc(self.pre(spectrogram) * mask, mask, timbre.detach())
        mean, log_scale = (self.proj(hidden) * mask).split(self.latent, dim=1)
        return (mean + noise * torch.exp(log_scale)) * mask, mean, log_scale
