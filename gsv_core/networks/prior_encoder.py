"""Quantised content, phonemes and timbre to the distribution the wave's latent is drawn from (upstream: `enc_p`).

Content and phonemes are encoded apart, joined by cross-attention, encoded again and projected to a mean and a log
scale per frame (the prior of VITS, Kim et al. 2021, arXiv:2106.06103).
Shapes: B batch, C channels, D width, L frames, P phonemes, G width of the joined timbre, Z channels of the latent.
"""

import math

from torch import Tensor, nn
from torch.nn import functional

from gsv_core.networks.attention import Attention, AttentionEncoder


class PriorEncoder(nn.Module):
    """Content (B, C, L), phoneme ids (B, P) and timbre (B, G, 1) to mean and log scale (B, Z, L')."""

    def __init__(
        self,
        *,
        phoneme_count: int,
        content_width: int,
        width: int,
        filter_width: int,
        join_width: int,
        join_heads: int,
        latent: int,
        heads: int,
        layers: int,
        kernel: int,
        window: int,
        dropout: float,
    ) -> None:
        super().__init__()

        def encoder(depth: int) -> AttentionEncoder:
            return AttentionEncoder(
                width, filter_width, heads=heads, layers=depth, kernel=kernel, window=window, dropout=dropout
            )

        self.latent = latent
        self.ssl_proj = nn.Conv1d(content_width, width, 1)
        self.encoder_ssl = encoder(layers // 2)
        self.text_embedding = nn.Embedding(phoneme_count, width)
        nn.init.normal_(self.text_embedding.weight, std=1 / math.sqrt(width))
        self.encoder_text = encoder(layers)
        self.mrte = _Join(width, join_width, join_heads)
        self.encoder2 = encoder(layers // 2)
        self.proj = nn.Conv1d(width, 2 * latent, 1)

    def forward(
        self,
        content: Tensor,
        content_mask: Tensor,
        phoneme_ids: Tensor,
        phoneme_mask: Tensor,
        timbre: Tensor,
        *,
        speed: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, log scale and the mask of their frames, L' = L at speed 1, else int(L / speed) + 1."""
        joined, mask = self.join(content, content_mask, phoneme_ids, phoneme_mask, timbre, speed=speed)
        mean, log_scale = (self.proj(joined) * mask).split(self.latent, dim=1)
        return mean, log_scale, mask

    def join(
        self,
        content: Tensor,
        content_mask: Tensor,
        phoneme_ids: Tensor,
        phoneme_mask: Tensor,
        timbre: Tensor,
        *,
        speed: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """What is known of each frame before it becomes a distribution, and the mask: (B, D, L'), (B, 1, L')."""
        spoken = self.encoder_ssl(self.ssl_proj(content * content_mask), content_mask)
        written = self.encoder_text(self.text_embedding(phoneme_ids).transpose(1, 2), phoneme_mask)
        joined = self.encoder2(self.mrte(spoken, content_mask, written, phoneme_mask, timbre), content_mask)
        if speed != 1.0:
            length = int(joined.shape[2] / speed) + 1
            joined = functional.interpolate(joined, size=length, mode="linear")
            content_mask = functional.interpolate(content_mask, size=length, mode="nearest")
        return joined, content_mask


class _Join(nn.Module):
    """Content looks up the phonemes it stands for; timbre is added to every frame.

    After the multi-reference timbre encoder of Mega-TTS 2 (Jiang et al. 2023, arXiv:2307.07218).
    """

    def __init__(self, width: int, join_width: int, heads: int) -> None:
        super().__init__()
        self.cross_attention = Attention(join_width, heads)
        self.c_pre = nn.Conv1d(width, join_width, 1)
        self.text_pre = nn.Conv1d(width, join_width, 1)
        self.c_post = nn.Conv1d(join_width, width, 1)

    def forward(self, content: Tensor, content_mask: Tensor, text: Tensor, text_mask: Tensor, timbre: Tensor) -> Tensor:
        frames = self.c_pre(content) * content_mask
        phonemes = self.text_pre(text) * text_mask
        joined = self.cross_attention(frames, phonemes, text_mask) + frames + timbre
        return self.c_post(joined * content_mask)
