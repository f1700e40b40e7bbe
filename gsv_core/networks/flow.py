"""The latent of a recording to the latent the text side predicts, and back.

Volume-preserving coupling layers (Dinh et al. 2017, arXiv:1605.08803; as in VITS, arXiv:2106.06103): half of the
channels shifts the other half, then their order is reversed. Shapes: B batch, Z latent channels, L frames.
"""

import torch
from torch import Tensor, nn

from gsv_core.networks.layers import GatedStack


class Flow(nn.Module):
    """(B, Z, L) -> (B, Z, L), invertible; conditioned on timbre (B, G, 1)."""

    def __init__(self, latent: int, width: int, *, kernel: int, layers: int, couplings: int, timbre_width: int) -> None:
        super().__init__()
        # Each coupling is followed by a reversal, which has no weights but counts in the numbering.
        self.flows = nn.ModuleList()
        for _ in range(couplings):
            self.flows.append(_Coupling(latent, width, kernel, layers, timbre_width))
            self.flows.append(_Reversal())

    def forward(self, latent: Tensor, mask: Tensor, timbre: Tensor) -> Tensor:
        """From the recording's latent to the text side's."""
        for flow in self.flows:
            latent = flow(latent, mask, timbre)
        return latent

    def inverse(self, latent: Tensor, mask: Tensor, timbre: Tensor) -> Tensor:
        """From the text side's latent to one that decodes to a wave."""
        for flow in reversed(list(self.flows)):
            assert isinstance(flow, _Coupling | _Reversal)
            latent = flow.inverse(latent, mask, timbre)
        return latent


class _Coupling(nn.Module):
    def __init__(self, latent: int, width: int, kernel: int, layers: int, timbre_width: int) -> None:
        super().__init__()
        self.pre = nn.Conv1d(latent // 2, width, 1)
        self.enc = GatedStack(width, kernel, layers, timbre_width)
        self.post = nn.Conv1d(width, latent // 2, 1)
        # A new flow changes nothing, so that training starts from the identity.
        for parameter in self.post.parameters():
            nn.init.zeros_(parameter)

    def _shift(self, fixed: Tensor, mask: Tensor, timbre: Tensor) -> Tensor:
        return self.post(self.enc(self.pre(fixed) * mask, mask, timbre)) * mask

    def forward(self, latent: Tensor, mask: Tensor, timbre: Tensor) -> Tensor:
        fixed, moved = latent.chunk(2, dim=1)
        return torch.cat([fixed, moved * mask + self._shift(fixed, mask, timbre)], dim=1)

    def inverse(self, latent: Tensor, mask: Tensor, timbre: Tensor) -> Tensor:
        fixed, moved = latent.chunk(2, dim=1)
        return torch.cat([fixed, (moved - self._shift(fixed, mask, timbre)) * mask], dim=1)


class _Reversal(nn.Module):
    def forward(self, latent: Tensor, _mask: Tensor, _timbre: Tensor) -> Tensor:
        return latent.flip(1)

    inverse = forward
