"""A wave to the speaker vector that conditions the Pro releases.

ERes2NetV2 (Chen et al. 2024, arXiv:2406.02167): a residual network over filter banks whose blocks split their channels
into scales, the two deepest stages fused by attention. Parameter names are those of the published file.
Shapes: B batch, T samples, L frames, C channels, M mel bands, K width of the vector.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

RATE_HZ = 16_000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SAMPLES = 512
PREEMPHASIS = 0.97
LOWEST_HZ = 20.0


@dataclass(frozen=True, kw_only=True)
class SpeakerEncoderConfig:
    """Sizes of the network. The defaults are those of the published one (w24s4ep4)."""

    channels: int = 64
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    base_width: int = 24
    """Channels of one scale in the first stage, per 64 channels."""
    scales: int = 4
    expansion: int = 4
    mel_bands: int = 80
    head_width: int = 192

    def __post_init__(self) -> None:
        if self.mel_bands % 8:
            raise ValueError(f"mel_bands {self.mel_bands} must be a multiple of 8")
        if min(self.channels * self.base_width // 64, self.scales, self.expansion, *self.blocks) < 1:
            raise ValueError(f"every size must be positive, got {self}")

    @property
    def width(self) -> int:
        """K, of the vectors."""
        return self.channels * 8 * self.expansion * (self.mel_bands // 8)


def kaldi_fbank(wave: Tensor, bands: int = 80) -> Tensor:
    """Log filter-bank energies as Kaldi computes them, 100 frames per second: (B, T) at 16 kHz -> (B, L, M).

    Only whole windows become frames. Each loses its mean, is sharpened by the difference to the sample before, and is
    weighted by a Hann window to the power of 0.85.

    Raises:
        ValueError: the wave is shorter than one window of 25 ms.
    """
    if wave.ndim != 2 or wave.shape[1] < WINDOW_SAMPLES:
        raise ValueError(f"expected a wave (B, T) of {WINDOW_SAMPLES} samples or more, got {tuple(wave.shape)}")
    frames = wave.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)
    frames = frames - frames.mean(dim=2, keepdim=True)
    # The first sample has none before it in its window and counts as its own predecessor.
    frames = frames - PREEMPHASIS * torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
    window = torch.hann_window(WINDOW_SAMPLES, periodic=False, dtype=wave.dtype, device=wave.device).pow(0.85)
    spectrum = torch.fft.rfft(frames * window, n=FFT_SAMPLES)[..., :-1]
    power = spectrum.real.square() + spectrum.imag.square()
    energies = power @ _kaldi_filters(bands).to(power).T
    return energies.clamp(min=torch.finfo(torch.float32).eps).log()


@lru_cache(maxsize=4)
def _kaldi_filters(bands: int) -> Tensor:
    """Triangles of height one, straight on the mel scale, 20 Hz to the Nyquist frequency: (M, F) without that bin."""
    with torch.inference_mode(False):  # a tensor made in inference mode could never be used in training
        bins = _kaldi_mel(torch.arange(FFT_SAMPLES // 2, dtype=torch.float64) * RATE_HZ / FFT_SAMPLES)
        lowest, highest = _kaldi_mel(torch.tensor([LOWEST_HZ, RATE_HZ / 2], dtype=torch.float64)).tolist()
        edges = torch.linspace(lowest, highest, bands + 2, dtype=torch.float64)
        lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
        rising = (bins - lower) / (centre - lower)
        falling = (upper - bins) / (upper - centre)
        return torch.minimum(rising, falling).clamp(min=0).float()


def _kaldi_mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log(1.0 + hertz / 700.0)


class SpeakerEncoder(nn.Module):
    """(B, T) at 16 kHz in [-1, 1] -> (B, K), not normalised."""

    def __init__(self, config: SpeakerEncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        outputs = [channels] + [channels * 2**stage * config.expansion for stage in range(4)]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                *(
                    _Block(
                        outputs[stage] if index == 0 else outputs[stage + 1],
                        outputs[stage + 1],
                        scale_width=channels * 2**stage * config.base_width // 64,
                        scales=config.scales,
                        stride=2 if index == 0 and stage > 0 else 1,
                        fused=stage >= 2,
                    )
                    for index in range(config.blocks[stage])
                )
            )
            for stage in range(4)
        )
        self.layer3_ds = nn.Conv2d(outputs[3], outputs[4], 3, stride=2, padding=1, bias=False)
        self.fuse34 = _Fusion(outputs[4])
        self.seg_1 = nn.Linear(2 * config.width, config.head_width)

    def forward(self, wave: Tensor) -> Tensor:
        return self.describe(kaldi_fbank(wave, self.config.mel_bands))

    def describe(self, fbank: Tensor) -> Tensor:
        """Filter banks (B, L, M) to the vector (B, K): the mean over time of the fused maps."""
        return self._fused(fbank).mean(dim=2)

    def verify(self, fbank: Tensor) -> Tensor:
        """The short vector of the network's own head, for comparing speakers: (B, L, M) -> (B, head_width)."""
        maps = self._fused(fbank)
        return self.seg_1(torch.cat([maps.mean(dim=2), torch.sqrt(maps.var(dim=2) + 1e-8)], dim=1))

    def _fused(self, fbank: Tensor) -> Tensor:
        """(B, L, M) -> (B, K, L / 8)."""
        maps = torch.relu(self.bn1(self.conv1(fbank.transpose(1, 2).unsqueeze(1))))  # (B, C, M, L)
        third = self.layer3(self.layer2(self.layer1(maps)))
        return self.fuse34(self.layer4(third), self.layer3_ds(third)).flatten(1, 2)


def _clipped_relu(x: Tensor) -> Tensor:
    return functional.hardtanh(x, 0.0, 20.0)


class _Block(nn.Module):
    """Split the channels into scales; each scale is convolved together with the result of the one before it."""

    def __init__(self, inputs: int, outputs: int, *, scale_width: int, scales: int, stride: int, fused: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, scale_width * scales, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(scale_width * scales)
        self.convs = nn.ModuleList(nn.Conv2d(scale_width, scale_width, 3, padding=1, bias=False) for _ in range(scales))
        self.bns = nn.ModuleList(nn.BatchNorm2d(scale_width) for _ in range(scales))
        self.fuse_models = nn.ModuleList(_Fusion(scale_width) for _ in range(scales - 1)) if fused else None
        self.conv3 = nn.Conv2d(scale_width * scales, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        scales = _clipped_relu(self.bn1(self.conv1(x))).chunk(len(self.convs), dim=1)
        results: list[Tensor] = []
        for index, (scale, conv, norm) in enumerate(zip(scales, self.convs, self.bns, strict=True)):
            if results and self.fuse_models is not None:
                scale = self.fuse_models[index - 1](results[-1], scale)
            elif results:
                scale = results[-1] + scale
            results.append(_clipped_relu(norm(conv(scale))))
        return _clipped_relu(self.bn3(self.conv3(torch.cat(results, dim=1))) + self.shortcut(x))


class _Fusion(nn.Module):
    """Weigh two maps against each other, place by place: (B, C, M, L) twice -> (B, C, M, L)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.local_att = nn.Sequential(
            nn.Conv2d(2 * channels, channels // reduction, 1),
            nn.BatchNorm2d(channels // reduction),
            nn.SiLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        preference = torch.tanh(self.local_att(torch.cat([x, other], dim=1)))
        return x * (1 + preference) + other * (1 - preference)
