"""A wave to content features: what is said, frame by frame, with little of who says it.

`HubertContentEncoder` runs a HuBERT (Hsu et al. 2021, arXiv:2106.07447) from a folder, as every published base model
needs it; `MelContentEncoder` is arithmetic and needs nothing. Both give 50 frames per second of a 16 kHz wave.
Shapes: B batch, T samples, L frames, C width of the content features.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gsv_core.audio.spectrogram import SpectrogramConfig, mel_spectrogram
from gsv_core.networks.pretrained import check_complete, folder_digest, weights_file

RATE_HZ = 16_000
FRAMES_PER_SECOND = 50


class ContentEncoder(Protocol):
    """What makes content features."""

    name: str
    rate_hz: int
    frames_per_second: int
    loud_in_training: bool
    """Published bases were trained on its features of much louder audio: see `gsv_core.features.training_gain`."""

    @property
    def digest(self) -> str:
        """64 hex digits that change whenever the features would."""
        ...

    @property
    def width(self) -> int:
        """Of the features."""
        ...

    def ready(self) -> Self:
        """Load now what is otherwise loaded when it is first needed, so that what is wrong with it is said now.

        Raises:
            ValueError: the files hold something else.
        """
        ...

    def encode(self, wave: Tensor | np.ndarray) -> Tensor:
        """`wave` (T,) at `rate_hz` -> (L, C) float32.

        Raises:
            ValueError: the wave is too short for a single frame.
        """
        ...

    def encode_batch(self, waves: Sequence[Tensor | np.ndarray]) -> list[Tensor]:
        """`encode` of each wave, many at once where that is faster; equal to `encode` within 1e-4."""
        ...

    def to(self, device: str) -> Self:
        """Compute on `device` from now on."""
        ...


def buckets(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Numbers of `lengths` in groups of similar length, each at most `most` long when padded to its longest.

    Longest first, ties in order of number: the same lengths give the same groups.
    """
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > most:
            groups.append([])
        groups[-1].append(number)
    return groups


class HubertContentEncoder:
    """The last hidden layer of a HuBERT in transformers' own folder format (CN-HuBERT for the published bases).

    `encode` takes a clip alone, which is fastest on a CPU. The first layer normalises over time, so padding would
    change the result: `encode_batch` takes that layer's statistics over the valid part of each clip, keeps the padding
    zero where the network looks to the sides, and masks it in the attention. The wave's scale drops out in the first
    layer, too, but for its epsilon.

    The network is loaded when it is first needed: who trains a voice or speaks with it mostly needs none.
    """

    rate_hz = RATE_HZ
    frames_per_second = FRAMES_PER_SECOND
    loud_in_training = True
    longest_batch_s = 160
    """Of one padded batch: less than 4 GB of activations at full size."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        """Raises: ValueError when the folder is incomplete."""
        weights_file(folder)
        self.name = f"hubert:{folder.name}"
        self._folder, self._device = folder, device

    @cached_property
    def digest(self) -> str:
        return folder_digest(self._folder)

    @property
    def width(self) -> int:
        return int(self._network.config.hidden_size)

    def ready(self) -> Self:
        _ = self._network
        return self

    @cached_property
    def _network(self) -> Any:
        network = load_hubert(self._folder)
        if prod(network.config.conv_stride) * FRAMES_PER_SECOND != RATE_HZ:
            raise ValueError(f"{self._folder}: strides {network.config.conv_stride} do not give 50 frames per second")
        for weight in network.parameters():  # a mapped file lies on small pages, memory of our own can lie on huge ones
            weight.data = weight.data.clone()
        return network.to(self._device)

    @property
    def shortest(self) -> int:
        """Samples that make one frame."""
        samples = 1
        for kernel, stride in zip(
            reversed(self._network.config.conv_kernel), reversed(self._network.config.conv_stride), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples

    @torch.inference_mode()
    def encode(self, wave: Tensor | np.ndarray) -> Tensor:
        samples = _as_wave(wave, self.shortest)
        return self._network(samples.unsqueeze(0).to(self._network.device)).last_hidden_state[0].float().cpu()

    @torch.inference_mode()
    def encode_batch(self, waves: Sequence[Tensor | np.ndarray]) -> list[Tensor]:
        samples = [_as_wave(wave, self.shortest) for wave in waves]
        content: list[Tensor] = [torch.empty(0)] * len(samples)
        for group in buckets([len(wave) for wave in samples], self.longest_batch_s * RATE_HZ):
            for number, encoded in zip(group, self._encode_padded([samples[number] for number in group]), strict=True):
                content[number] = encoded
        return content

    def _encode_padded(self, waves: Sequence[Tensor]) -> list[Tensor]:
        network = self._network
        batch = nn.utils.rnn.pad_sequence(list(waves), batch_first=True).to(network.device)  # (B, T)
        lengths = torch.tensor([len(wave) for wave in waves], device=network.device)
        layers = zip(network.config.conv_kernel, network.config.conv_stride, strict=True)
        frames = list(accumulate(layers, lambda length, layer: (length - layer[0]) // layer[1] + 1, initial=lengths))
        first, *others = network.feature_extractor.conv_layers
        hidden = first.conv(batch[:, None])  # (B, C, L)
        if network.config.feat_extract_norm == "group":
            hidden = first.activation(_normalise_valid(hidden, frames[1], first.layer_norm))
        else:  # normalises each frame by itself
            hidden = first(batch[:, None])
        # Nothing is padded in these layers: a frame of valid samples sees no others.
        for layer in others:
            hidden = layer(hidden)
        valid = torch.arange(hidden.shape[2], device=network.device) < frames[-1][:, None]  # (B, L)
        projected = network.feature_projection(hidden.transpose(1, 2))
        encoded = network.encoder(projected, attention_mask=valid).last_hidden_state.float().cpu()
        return [row[:length] for row, length in zip(encoded, frames[-1].tolist(), strict=True)]

    def to(self, device: str) -> Self:
        """Compute on `device`; what it gives still comes back to the CPU."""
        self._device = device
        if "_network" in vars(self):
            self._network.to(device)
        return self


def load_hubert(folder: Path) -> Any:  # a HubertModel; as transformers annotates it, it could not be moved to a device
    """transformers' network out of `folder`, ready for use.

    Raises:
        ValueError: the folder is incomplete or holds something else.
    """
    from transformers import HubertModel

    network, loading = HubertModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    check_complete(folder, loading, unused=("masked_spec_embed",))
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):  # else computed anew for every clip
            parametrize.remove_parametrizations(module, "weight")
    return network.eval()


def save_untrained(folder: Path, *, seed: int = 0) -> None:
    """Put a HuBERT of the size that published bases use into `folder`, with weights from `seed`: for measuring."""
    from transformers import HubertConfig, HubertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        HubertModel(HubertConfig()).save_pretrained(folder)


class MelContentEncoder:
    """Log-mel bands, each with zero mean and unit variance over the clip, which takes out level and average timbre."""

    rate_hz = RATE_HZ
    frames_per_second = FRAMES_PER_SECOND
    loud_in_training = False

    def __init__(self, bands: int = 32) -> None:
        self.width = bands
        self.name = f"mel-{bands}"
        self._config = SpectrogramConfig(
            rate_hz=RATE_HZ, n_fft=1024, hop=RATE_HZ // FRAMES_PER_SECOND, window=1024, mel_bands=bands, fmin=60.0
        )
        self.digest = hashlib.sha256(f"{self.name} normalised per clip, {self._config}".encode()).hexdigest()

    @property
    def shortest(self) -> int:
        """Samples that can be mirrored at the ends, the least a spectrogram takes."""
        return (self._config.n_fft - self._config.hop) // 2 + 1

    @torch.inference_mode()
    def encode(self, wave: Tensor | np.ndarray) -> Tensor:
        bands = mel_spectrogram(_as_wave(wave, self.shortest).unsqueeze(0), self._config)[0].T
        spread = bands.std(dim=0, correction=0)
        # A band without any variation, as in digital silence, becomes zero instead of amplified rounding.
        return (bands - bands.mean(dim=0)) / spread.clamp(min=1e-3)

    def encode_batch(self, waves: Sequence[Tensor | np.ndarray]) -> list[Tensor]:
        return [self.encode(wave) for wave in waves]

    def ready(self) -> Self:
        return self

    def to(self, device: str) -> Self:  # noqa: ARG002 - arithmetic of microseconds stays on the CPU
        return self


def _normalise_valid(hidden: Tensor, frames: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Each channel with the mean and variance of its first `frames` frames: (B, C, L), (B,) -> (B, C, L)."""
    valid = (torch.arange(hidden.shape[2], device=hidden.device) < frames[:, None])[:, None]  # (B, 1, L)
    count = frames[:, None, None]
    mean = (hidden * valid).sum(dim=2, keepdim=True) / count
    variance = (((hidden - mean) * valid) ** 2).sum(dim=2, keepdim=True) / count
    scaled = (hidden - mean) * torch.rsqrt(variance + norm.eps)
    return scaled * norm.weight[:, None] + norm.bias[:, None]


def _as_wave(wave: Tensor | np.ndarray, shortest: int) -> Tensor:
    samples = torch.as_tensor(wave, dtype=torch.float32)
    if samples.ndim != 1 or samples.shape[0] < shortest:
        raise ValueError(f"expected a wave (T,) of {shortest} samples or more, got {tuple(samples.shape)}")
    return samples
