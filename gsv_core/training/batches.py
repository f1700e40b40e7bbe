"""Examples in memory and the batches made of them.

An item is one clip with all its arrays. Batches hold clips of similar length, so that little is padding; which clips
meet in which step follows from the seed, the voice and the step alone. Shapes: B batch, P phonemes, S semantic tokens,
C content channels, F frequency bins, L frames of 20 ms, M mel bands, N mel frames, K speaker vector, W text vector,
T samples at 32 kHz.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from gsv_core.audio.resample import resample
from gsv_core.audio.spectrogram import SpectrogramConfig, linear_spectrogram, mel_spectrogram
from gsv_core.networks.semantic_to_mel import normalise_mel
from gsv_core.training.draws import generator_of
from gsv_core.training.schedules import PhasePlan

GRAIN = 16
"""Lengths are padded to multiples of this: kernels are prepared once per shape, and a short run has few steps."""


@dataclass(frozen=True, kw_only=True)
class TrainingItem:
    """One Example as a trainer reads it; floating-point arrays may be half precision."""

    clip_id: str
    phoneme_ids: Tensor
    """(P,) int64"""
    tokens: Tensor
    """(S,) int64, 25 per second"""
    content: Tensor
    """(L, C), 50 frames per second"""
    wave: Tensor
    """(T,) float32 at 32 kHz"""
    text_vectors: Tensor | None = None
    """(P, W)"""
    speaker_vector: Tensor | None = None
    """(K,)"""

    def __post_init__(self) -> None:
        for name in ("phoneme_ids", "tokens", "content", "wave"):
            if len(getattr(self, name)) == 0:
                raise ValueError(f"clip {self.clip_id}: {name} is empty")


class _Movable:
    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        moved = {
            entry.name: value.to(device) if isinstance(value := getattr(self, entry.name), Tensor) else value
            for entry in fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        }
        return type(self)(**moved)


@dataclass(frozen=True, kw_only=True)
class SemanticBatch(_Movable):
    """Phonemes and tokens of some clips, padded on the right."""

    clip_ids: tuple[str, ...]
    phoneme_ids: Tensor
    """(B, P) int64"""
    phoneme_lengths: Tensor
    """(B,)"""
    tokens: Tensor
    """(B, S) int64"""
    token_lengths: Tensor
    """(B,)"""
    text_vectors: Tensor | None
    """(B, P, W); zeros where a clip has none, None where no clip has any"""


@dataclass(frozen=True, kw_only=True)
class WaveBatch(_Movable):
    """Content, spectrogram and wave of some clips, frame by frame in step, padded on the right."""

    clip_ids: tuple[str, ...]
    content: Tensor
    """(B, C, L)"""
    spectrogram: Tensor
    """(B, F, L) linear magnitudes"""
    wave: Tensor
    """(B, 1, L x hop)"""
    lengths: Tensor
    """(B,) frames"""
    phoneme_ids: Tensor
    """(B, P) int64"""
    phoneme_lengths: Tensor
    """(B,)"""
    speaker_vectors: Tensor | None
    """(B, K)"""


@dataclass(frozen=True, kw_only=True)
class MelBatch(_Movable):
    """Content, spectrogram and mel spectrogram of some clips, padded on the right."""

    clip_ids: tuple[str, ...]
    content: Tensor
    """(B, C, L)"""
    spectrogram: Tensor
    """(B, F, L) linear magnitudes"""
    lengths: Tensor
    """(B,) frames"""
    mel: Tensor
    """(B, M, N), normalised"""
    mel_lengths: Tensor
    """(B,) mel frames"""
    phoneme_ids: Tensor
    """(B, P) int64"""
    phoneme_lengths: Tensor
    """(B,)"""


@dataclass(frozen=True)
class BatchOrder:
    """Which clips meet in which step, for ever: every pass over the data is cut and shuffled anew."""

    lengths: tuple[int, ...]
    batch_size: int
    seed: int
    voice: str
    phase: str

    @classmethod
    def of(cls, lengths: Sequence[int], plan: PhasePlan, voice: str, phase: str) -> Self:
        if not lengths:
            raise ValueError(f"voice {voice} has no clip to train {phase} on")
        return cls(tuple(lengths), plan.batch_size, plan.seed, voice, phase)

    @property
    def batches_per_pass(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def batch(self, step: int) -> list[int]:
        """Indices of the clips of step number `step` (from 0). Batches of a pass differ in size by one at most."""
        number, place = divmod(step, self.batches_per_pass)
        draw = generator_of(self.seed, self.voice, self.phase, number, "order")
        count, batches = len(self.lengths), self.batches_per_pass
        # Sorting by length with some noise puts similar lengths together, yet not the same clips in every pass.
        noise = torch.rand(count, generator=draw).tolist()
        ranked = sorted(range(count), key=lambda index: (self.lengths[index] * (0.9 + 0.2 * noise[index]), index))
        chosen = int(torch.randperm(batches, generator=draw)[place])
        return ranked[chosen * count // batches : (chosen + 1) * count // batches]

    def parts(self, chosen: Sequence[int], *, accumulate: int, most_frames: int) -> list[list[int]]:
        """`chosen` clips as the parts they are computed in: at least `accumulate` where there are as many clips, none
        beyond `most_frames` padded columns (0: no bound) unless it is a single clip. Similar lengths stay together."""
        ranked = sorted(chosen, key=lambda index: (-self.lengths[index], index))
        count = min(max(1, accumulate), len(ranked))
        parts = []
        for number in range(count):
            part: list[int] = []
            for index in ranked[number * len(ranked) // count : (number + 1) * len(ranked) // count]:
                # The first is the longest, and decides how far the others are padded.
                longest = padded_length(self.lengths[part[0]]) if part else 0
                if part and most_frames and (len(part) + 1) * longest > most_frames:
                    parts.append(part)
                    part = []
                part.append(index)
            parts.append(part)
        return parts


def collate_semantic(items: Sequence[TrainingItem]) -> SemanticBatch:
    """Items as one batch for the text-to-semantic network."""
    phoneme_ids, phoneme_lengths = _padded([item.phoneme_ids.long() for item in items])
    tokens, token_lengths = _padded([item.tokens.long() for item in items])
    return SemanticBatch(
        clip_ids=tuple(item.clip_id for item in items),
        phoneme_ids=phoneme_ids,
        phoneme_lengths=phoneme_lengths,
        tokens=tokens,
        token_lengths=token_lengths,
        text_vectors=_text_vectors(items),
    )


def collate_wave(
    items: Sequence[TrainingItem],
    config: SpectrogramConfig,
    *,
    starts: Sequence[int] | None = None,
    shortest: int = 32,
    longest: int = 1000,
) -> WaveBatch:
    """Items as one batch for the semantic-to-wave network.

    Each gives at most `longest` frames, from frame `starts[i]` on (even; the beginning where not given). The batch is
    padded to at least `shortest` frames.

    Raises:
        ValueError: a clip is too short for a spectrogram, or some clips have speaker vectors and some have none.
    """
    starts = starts or [0] * len(items)
    windows = [_window(item, config, start, longest) for item, start in zip(items, starts, strict=True)]
    lengths = torch.tensor([spectrogram.shape[-1] for _, spectrogram, _ in windows])
    # Some padding in every batch: the reference encoder's two convolutions look four frames beyond the end, and a clip
    # would otherwise depend on whether it is the longest.
    frames = max(padded_length(int(lengths.max()) + 4), shortest)
    phoneme_ids, phoneme_lengths = _padded([item.phoneme_ids.long() for item in items])
    speaker_vectors = [item.speaker_vector for item in items if item.speaker_vector is not None]
    if speaker_vectors and len(speaker_vectors) < len(items):
        lacking = next(item.clip_id for item in items if item.speaker_vector is None)
        raise ValueError(f"clip {lacking} has no speaker vector, others have; compute the features of all again")
    return WaveBatch(
        clip_ids=tuple(item.clip_id for item in items),
        content=torch.stack([pad(content, (0, frames - content.shape[-1])) for content, _, _ in windows]),
        spectrogram=torch.stack([pad(values, (0, frames - values.shape[-1])) for _, values, _ in windows]),
        wave=torch.stack([pad(wave, (0, frames * config.hop - wave.shape[-1])) for _, _, wave in windows])[:, None],
        lengths=lengths,
        phoneme_ids=phoneme_ids,
        phoneme_lengths=phoneme_lengths,
        speaker_vectors=torch.stack(speaker_vectors).float() if speaker_vectors else None,
    )


def collate_mel(
    items: Sequence[TrainingItem],
    config: SpectrogramConfig,
    mel_config: SpectrogramConfig,
    *,
    stretch: float,
    starts: Sequence[int] | None = None,
    longest: int = 1000,
) -> MelBatch:
    """Items as one batch for the semantic-to-mel network, which makes `stretch` mel frames of a frame.

    Each gives at most `longest` frames, from frame `starts[i]` on (a multiple of `whole_frames`; the beginning where
    not given).

    Raises:
        ValueError: a clip is too short for a spectrogram.
    """
    starts = starts or [0] * len(items)
    windows = [_window(item, config, start, longest) for item, start in zip(items, starts, strict=True)]
    mels = [_mel(wave, config, mel_config) for _, _, wave in windows]
    lengths = torch.tensor([spectrogram.shape[-1] for _, spectrogram, _ in windows])
    # A whole frame of padding at least: the reference encoder's convolutions look a little beyond the end.
    frames = padded_length(int(lengths.max()) + 1)
    mel_lengths = [
        min(mel.shape[-1], int(length * stretch)) for mel, length in zip(mels, lengths.tolist(), strict=True)
    ]
    mel_frames = int(frames * stretch)
    phoneme_ids, phoneme_lengths = _padded([item.phoneme_ids.long() for item in items])
    return MelBatch(
        clip_ids=tuple(item.clip_id for item in items),
        content=torch.stack([pad(content, (0, frames - content.shape[-1])) for content, _, _ in windows]),
        spectrogram=torch.stack([pad(values, (0, frames - values.shape[-1])) for _, values, _ in windows]),
        lengths=lengths,
        mel=torch.stack(
            [pad(mel[:, :known], (0, mel_frames - known)) for mel, known in zip(mels, mel_lengths, strict=True)]
        ),
        mel_lengths=torch.tensor(mel_lengths),
        phoneme_ids=phoneme_ids,
        phoneme_lengths=phoneme_lengths,
    )


def whole_frames(stretch: float) -> int:
    """Fewest frames that are whole tokens and become whole mel frames: 8 in v3, 2 in v4."""
    return math.lcm(2, stretch.as_integer_ratio()[1])


def _mel(wave: Tensor, config: SpectrogramConfig, mel_config: SpectrogramConfig) -> Tensor:
    """(T,) -> (M, N)."""
    heard = torch.from_numpy(resample(wave.numpy(), config.rate_hz, mel_config.rate_hz))
    return normalise_mel(mel_spectrogram(heard[None], mel_config))[0]


def frames_of(item: TrainingItem, hop: int) -> int:
    """Frames that content and wave of `item` share: even, because a token covers two."""
    return min(len(item.content), len(item.wave) // hop) // 2 * 2


def _window(item: TrainingItem, config: SpectrogramConfig, start: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    frames = min(frames_of(item, config.hop) - start, longest) // 2 * 2
    wave = item.wave[start * config.hop : (start + frames) * config.hop].float()
    spectrogram = linear_spectrogram(wave[None], config)[0, :, :frames]
    content = item.content[start : start + frames].float().T
    return content, spectrogram, wave


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = [len(row) for row in rows]
    longest = padded_length(max(lengths))
    return torch.stack([pad(row, (0, longest - len(row))) for row in rows]), torch.tensor(lengths)


def padded_length(length: int) -> int:
    """What a clip of `length` takes in a batch in which it is the longest."""
    return -(-length // GRAIN) * GRAIN


def _text_vectors(items: Sequence[TrainingItem]) -> Tensor | None:
    present = [item.text_vectors for item in items if item.text_vectors is not None]
    if not present:
        return None
    longest, width = padded_length(max(len(item.phoneme_ids) for item in items)), present[0].shape[1]
    stacked = torch.zeros(len(items), longest, width)
    for row, item in enumerate(items):
        if item.text_vectors is not None:
            stacked[row, : len(item.text_vectors)] = item.text_vectors.float()
    return stacked
