"""Is this wave a recording? Several judges, each looking at another rhythm of it.

One judge over the wave itself (MelGAN, Kumar et al. 2019, arXiv:1910.06711), one per period over the wave folded into
rows of that length (HiFi-GAN, Kong et al. 2020, arXiv:2010.05646). Shapes: B batch, T samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gsv_core.networks.layers import WeightNormColumnConv2d, WeightNormConv1d

SLOPE = 0.1
"""Of every leaky ReLU."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Periods and widths. The defaults are v2Pro's; v1 and v2 have periods (2, 3, 5, 7, 11)."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11, 17, 23)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    scale_channels: tuple[int, ...] = (16, 64, 256, 1024, 1024, 1024)
    scale_groups: tuple[int, ...] = (1, 4, 16, 64, 256, 1)

    def __post_init__(self) -> None:
        if len(self.scale_channels) != len(self.scale_groups) or len(self.scale_channels) < 2:
            raise ValueError(
                f"need one group count per scale channel, got {self.scale_groups} and {self.scale_channels}"
            )
        for before, after, groups in zip((1, *self.scale_channels), self.scale_channels, self.scale_groups):
            if before % groups or after % groups:
                raise ValueError(f"scale channels {before} and {after} do not divide into {groups} groups")
        if not self.period_channels or any(period < 1 for period in self.periods):
            raise ValueError(f"need positive periods and channels, got {self.periods} and {self.period_channels}")


@dataclass(frozen=True)
class DiscriminatorOutput:
    """What one judge says. `score` (B, N): 1 for a recording, 0 for synthesis; the last feature map is the score."""

    score: Tensor
    feature_maps: tuple[Tensor, ...]


class Discriminators(nn.Module):
    """The scale judge first, then one per period."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminators = nn.ModuleList(
            [
                ScaleDiscriminator(config.scale_channels, config.scale_groups),
                *(PeriodDiscriminator(period, config.period_channels) for period in config.periods),
            ]
        )

    def forward(self, wave: Tensor) -> list[DiscriminatorOutput]:
        """(B, 1, T) -> one output per judge."""
        if wave.ndim != 3 or wave.shape[1] != 1:
            raise ValueError(f"expected waves (B, 1, T), got {tuple(wave.shape)}")
        return [judge(wave) for judge in self.discriminators]


def _output(feature_maps: Iterable[Tensor]) -> DiscriminatorOutput:
    maps = tuple(feature_maps)
    return DiscriminatorOutput(maps[-1].flatten(1), maps)


class ScaleDiscriminator(nn.Module):
    """Grouped convolutions over the wave, four times coarser in each layer between the first and the last."""

    def __init__(self, channels: tuple[int, ...], groups: tuple[int, ...]) -> None:
        super().__init__()
        first, last = WeightNormConv1d(1, channels[0], 15, padding=7), len(channels) - 1
        middle = (
            WeightNormConv1d(channels[i - 1], channels[i], 41, stride=4, padding=20, groups=groups[i])
            for i in range(1, last)
        )
        final = WeightNormConv1d(channels[last - 1], channels[last], 5, padding=2, groups=groups[last])
        self.convs = nn.ModuleList([first, *middle, final])
        self.conv_post = WeightNormConv1d(channels[last], 1, 3, padding=1)

    def forward(self, wave: Tensor) -> DiscriminatorOutput:
        x, feature_maps = wave, []
        for conv in self.convs:
            x = functional.leaky_relu(conv(x), SLOPE)
            feature_maps.append(x)
        return _output([*feature_maps, self.conv_post(x)])


class PeriodDiscriminator(nn.Module):
    """Two-dimensional convolutions over the wave folded to rows of `period` samples; columns never mix."""

    def __init__(self, period: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.period = period
        last = len(channels) - 1
        self.convs = nn.ModuleList(
            WeightNormColumnConv2d(before, after, 5, stride=3 if i < last else 1, padding=2)
            for i, (before, after) in enumerate(zip((1, *channels), channels))
        )
        self.conv_post = WeightNormColumnConv2d(channels[last], 1, 3, padding=1)

    def forward(self, wave: Tensor) -> DiscriminatorOutput:
        missing = -wave.shape[-1] % self.period
        folded = functional.pad(wave, (0, missing), mode="reflect").unflatten(2, (-1, self.period))  # (B, 1, R, W)
        x, feature_maps = folded.permute(0, 3, 2, 1).flatten(0, 1), []  # (B * W, R, 1)
        for conv in self.convs:
            x = conv(x, SLOPE)
            feature_maps.append(x)
        feature_maps.append(self.conv_post(x))
        return _output(x.unflatten(0, (-1, self.period)).permute(0, 3, 2, 1) for x in feature_maps)  # (B, C, R, W)


def judge_both(
    discriminators: Discriminators, recorded: Tensor, generated: Tensor
) -> tuple[list[DiscriminatorOutput], list[DiscriminatorOutput]]:
    """The outputs for two batches (B, 1, T).

    While the judges are trained both go through in one pass: half the calls, and so less overhead on small networks.
    Once they are frozen each goes alone, because the recording then needs no backward pass at all.
    """
    if not any(parameter.requires_grad for parameter in discriminators.parameters()):
        return discriminators(recorded), discriminators(generated)
    outputs = discriminators(torch.cat([recorded, generated]))
    count = recorded.shape[0]
    halves = (slice(None, count), slice(count, None))
    first, second = (
        [DiscriminatorOutput(o.score[half], tuple(m[half] for m in o.feature_maps)) for o in outputs] for half in halves
    )
    return first, second
