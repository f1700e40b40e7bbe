"""A noisy mel spectrogram, the time and a condition per frame to the velocity towards the clean one.

A diffusion transformer (Peebles and Xie 2022, arXiv:2212.09748) as F5-TTS arranges it (Chen et al. 2024,
arXiv:2410.06885): the condition passes ConvNeXt-V2 blocks (Woo et al. 2023, arXiv:2301.00808), is put beside the noisy
and the known frames, and every block is modulated by the time. Unusual: the step size is an input as well (Frans et al.
2024, arXiv:2410.12557), and the rotary embedding (Su et al. 2021, arXiv:2104.09864) turns the first head only.
Parameter names are those of the files.
Shapes: B batch, L frames, M mel bands, C width of the condition, D width, H heads, R width of a head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gsv_core.networks.dropout import Dropout

LONGEST_POSITION = 4096
"""Frames of the condition beyond this share the last position."""
TIME_SCALE = 1000
TIME_RATES = 128
"""Sines, and as many cosines, that describe a time."""


class DiffusionTransformer(nn.Module):
    """Velocity (B, M, L) at one time. What does not change from step to step is embedded apart, to be kept.

    `padding_leaks`: let convolutions and norms look into the padding of shorter items, as GPT-SoVITS does in batches;
    otherwise an item gives in a batch what it gives alone.
    """

    def __init__(
        self,
        *,
        mel_bands: int,
        condition_width: int,
        condition_layers: int,
        width: int,
        heads: int,
        head_width: int,
        layers: int,
        filter_width: int,
        position_kernel: int,
        position_groups: int,
        dropout: float,
        padding_leaks: bool = False,
    ) -> None:
        super().__init__()
        self.padding_leaks = padding_leaks
        self.time_embed = _ScalarEmbedding(width)
        self.d_embed = _ScalarEmbedding(width)
        self.text_embed = _ConditionEmbedding(condition_width, condition_layers)
        self.input_embed = _InputEmbedding(2 * mel_bands + condition_width, width, position_kernel, position_groups)
        self.rotary_embed = _Rotations(head_width)
        self.transformer_blocks = nn.ModuleList(
            _Block(width, heads, head_width, filter_width, dropout) for _ in range(layers)
        )
        self.norm_out = _FinalNorm(width)
        self.proj_out = nn.Linear(width, mel_bands)

    def embed_condition(self, condition: Tensor, mask: Tensor | None, *, drop: bool = False) -> Tensor:
        """(B, C, L), (B, L) -> (B, L, C). `drop` puts zeros in the place of the condition, for guidance."""
        if drop:
            condition = torch.zeros_like(condition)
        return self.text_embed(condition.transpose(1, 2), self._convolved(mask))

    def embed_step(self, step: Tensor) -> Tensor:
        """Size of the step that the velocity is for, 0 for an infinitely small one: (B,) -> (B, D)."""
        return self.d_embed(step)

    def forward(
        self,
        x: Tensor,
        known: Tensor,
        time: Tensor,
        step: Tensor,
        condition: Tensor,
        mask: Tensor | None = None,
        *,
        recompute: bool = False,
    ) -> Tensor:
        """Noisy frames (B, M, L), known frames (B, M, L), time (B,) and what `embed_step` and `embed_condition` gave.

        `mask` (B, L) is True where there is a frame, None where nothing is padding. `recompute` keeps no activations of
        the blocks for the backward pass and computes them again there.
        """
        moment = self.time_embed(time) + step
        frames = torch.cat([x.transpose(1, 2), known.transpose(1, 2), condition], dim=2)
        hidden = self.input_embed(frames, self._convolved(mask))
        rotation = self.rotary_embed(hidden.shape[1])
        for block in self.transformer_blocks:
            if recompute:
                hidden = checkpoint(block, hidden, moment, rotation, mask, use_reentrant=False)
            else:
                hidden = block(hidden, moment, rotation, mask)
        return self.proj_out(self.norm_out(hidden, moment)).transpose(1, 2)

    def _convolved(self, mask: Tensor | None) -> Tensor | None:
        """The mask as a factor (B, L, 1) for what looks across frames without being attention."""
        return None if mask is None or self.padding_leaks else mask.unsqueeze(2)


class _ScalarEmbedding(nn.Module):
    """Sines and cosines of a number, then two layers: (B,) -> (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(2 * TIME_RATES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, scalar: Tensor) -> Tensor:
        # The angles reach 1000, where the last bit of a rate shows: the rates are computed in the order in which the
        # published weights met them. The slowest is 1/10000, hence one less than their number.
        spacing = -math.log(10000.0) / (TIME_RATES - 1)
        rates = torch.exp(torch.arange(TIME_RATES, device=scalar.device, dtype=torch.float32) * spacing)
        angles = TIME_SCALE * scalar.float().unsqueeze(1) * rates
        return self.time_mlp(torch.cat([angles.sin(), angles.cos()], dim=1).to(scalar.dtype))


class _ConditionEmbedding(nn.Module):
    """Positions, then ConvNeXt-V2 blocks: (B, L, C) -> (B, L, C)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.text_blocks = nn.ModuleList(_ConvNextBlock(width) for _ in range(layers))

    def forward(self, condition: Tensor, mask: Tensor | None) -> Tensor:
        condition = condition + _sinusoids(condition)
        for block in self.text_blocks:
            condition = block(condition, mask)
        return condition


def _sinusoids(like: Tensor) -> Tensor:
    """Cosines of all rates, then sines: (B, L, C) -> (L, C)."""
    length, width = like.shape[1:]
    rates = 1 / 10000.0 ** (torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    positions = torch.arange(length, device=like.device, dtype=torch.float32).clamp(max=LONGEST_POSITION - 1)
    angles = torch.outer(positions, rates)
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(like.dtype)


class _ConvNextBlock(nn.Module):
    """Depthwise convolution, norm, and a wider layer whose channels compete; residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 2 * width)
        self.grn = _ResponseNorm(2 * width)
        self.pwconv2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, C), (B, L, 1) -> (B, L, C)."""
        seen = x if mask is None else x * mask
        hidden = self.norm(self.dwconv(seen.transpose(1, 2)).transpose(1, 2))
        return x + self.pwconv2(self.grn(functional.gelu(self.pwconv1(hidden)), mask))


class _ResponseNorm(nn.Module):
    """Global response normalisation: each channel by its norm over time, relative to the mean of all channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        counted = x if mask is None else x * mask
        response = torch.linalg.vector_norm(counted, dim=1, keepdim=True)
        relative = response / (response.mean(dim=2, keepdim=True) + 1e-6)
        return self.gamma * (x * relative) + self.beta + x


class _InputEmbedding(nn.Module):
    """Noisy frames, known frames and condition side by side, projected, with convolutions for the positions."""

    def __init__(self, inputs: int, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, width)
        self.conv_pos_embed = _ConvolvedPositions(width, kernel, groups)

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, 2 M + C), (B, L, 1) -> (B, L, D)."""
        hidden = self.proj(frames)
        return hidden + self.conv_pos_embed(hidden, mask)


class _ConvolvedPositions(nn.Module):
    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv1d = nn.Sequential(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups),
            nn.Mish(),
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups),
            nn.Mish(),
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        hidden = x.transpose(1, 2)
        if mask is None:
            return self.conv1d(hidden).transpose(1, 2)
        first, _, second, _ = self.conv1d
        inside = mask.transpose(1, 2)
        hidden = functional.mish(first(hidden * inside))
        return functional.mish(second(hidden * inside)).transpose(1, 2)


class _Rotations(nn.Module):
    """Cosines and sines that turn the pairs of channels at each position: both (L, R / 2). The files hold the rates."""

    inv_freq: Tensor

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1 / 10000.0 ** (torch.arange(0, head_width, 2) / head_width))

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, device=self.inv_freq.device, dtype=torch.float32)
        angles = torch.outer(positions, self.inv_freq.float())
        return angles.cos(), angles.sin()


def _turn_first_head(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn neighbouring pairs among the first R channels of (B, L, H R); the other heads have no position.

    Upstream turns before it splits into heads. The published weights were trained so and cannot do without.
    """
    width = 2 * cosines.shape[1]
    left, right = x[..., :width].unflatten(2, (-1, 2)).unbind(dim=3)
    turned = torch.stack([left * cosines - right * sines, right * cosines + left * sines], dim=3).flatten(2)
    return torch.cat([turned.to(x.dtype), x[..., width:]], dim=2)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_width)
        self.to_k = nn.Linear(width, heads * head_width)
        self.to_v = nn.Linear(width, heads * head_width)
        self.to_out = nn.ModuleList([nn.Linear(heads * head_width, width), Dropout(dropout)])

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D), zero in the padding."""
        turned = (_turn_first_head(self.to_q(x), *rotation), _turn_first_head(self.to_k(x), *rotation), self.to_v(x))
        queries, keys, values = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in turned)
        seen = None if mask is None else mask[:, None, None]
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        project, drop = self.to_out
        mixed = drop(project(mixed.transpose(1, 2).flatten(2)))
        return mixed if mask is None else mixed * mask.unsqueeze(2)


class _Modulation(nn.Module):
    """What the moment says to a block: shift, scale and gate of the attention, then of the feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 6 * width)
        # Every block starts out as the identity.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, moment: Tensor) -> tuple[Tensor, ...]:
        """(B, D) -> six times (B, 1, D)."""
        return self.linear(functional.silu(moment)).unsqueeze(1).chunk(6, dim=2)


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner_width: int, dropout: float) -> None:
        super().__init__()
        widen = nn.Sequential(nn.Linear(width, inner_width), nn.GELU(approximate="tanh"))
        self.ff = nn.Sequential(widen, Dropout(dropout), nn.Linear(inner_width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class _Block(nn.Module):
    """Attention and feed-forward, each modulated before and gated after."""

    def __init__(self, width: int, heads: int, head_width: int, filter_width: int, dropout: float) -> None:
        super().__init__()
        self.attn_norm = _Modulation(width)
        self.attn = _Attention(width, heads, head_width, dropout)
        self.ff = _FeedForward(width, filter_width, dropout)

    def forward(self, x: Tensor, moment: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.attn_norm(moment)
        x = x + gate * self.attn(_plain_norm(x) * (1 + scale) + shift, rotation, mask)
        return x + gate_2 * self.ff(_plain_norm(x) * (1 + scale_2) + shift_2)


class _FinalNorm(nn.Module):
    """Here the scale comes before the shift: the order of the files."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, moment: Tensor) -> Tensor:
        scale, shift = self.linear(functional.silu(moment)).unsqueeze(1).chunk(2, dim=2)
        return _plain_norm(x) * (1 + scale) + shift


def _plain_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)
