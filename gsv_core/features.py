"""One utterance to all its arrays: what shards store, trainers read, and a Prompt consists of.

Computed from the stored audio of one clip alone; on a GPU content and text vectors may be computed for many clips at
once, and agree with those of a clip alone within 1e-4. Shapes: T samples at 32 kHz,
L content frames (50 per second), C content channels, S semantic tokens (25 per second), P phonemes, W text vector,
K speaker vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gsv_core.audio.resample import resample
from gsv_core.checkpoints.base import BaseModel

RATE_HZ = 32_000
ENCODER_RATE_HZ = 16_000


class TextSpan(Protocol):
    """A stretch of a text in one language, and how many phonemes are its own."""

    @property
    def language(self) -> str: ...
    @property
    def normal_text(self) -> str: ...
    @property
    def num_phonemes(self) -> int: ...
    @property
    def phonemes_per_character(self) -> tuple[int, ...]: ...


class SpannedText(Protocol):
    """What is read of a text here: a `PhonemisedText` fresh from the front end has it, so has a stored Utterance."""

    @property
    def spans(self) -> Sequence[TextSpan]: ...


@dataclass(frozen=True, kw_only=True)
class Features:
    """The arrays of one clip, in the types they are stored in."""

    content: np.ndarray
    """(L, C) float16"""
    tokens: np.ndarray
    """(S,) int16"""
    text_vectors: np.ndarray | None = None
    """(P, W) float16; None where the text has no Mandarin or the release no text encoder"""
    speaker_vector: np.ndarray | None = None
    """(K,) float16; None in releases without a speaker encoder"""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeardBefore:
    """Arrays of a clip that need not be computed again, in full precision: content (L, C), text vectors (P, W)."""

    content: Tensor | None = None
    text_vectors: Tensor | None = None


@torch.no_grad()
def extract_features(
    base: BaseModel,
    wave: np.ndarray,
    text: SpannedText | None,
    *,
    loud: bool = False,
    before: HeardBefore | None = None,
) -> Features:
    """All arrays of a clip: wave (T,) float32 at 32 kHz and its phonemised text (None: without text vectors).

    With `loud` the content encoder hears the wave as upstream's training does (see `training_gain`), without it as
    upstream's inference does.

    Raises:
        ValueError: the wave is not mono, or shorter than a token.
    """
    before = before or HeardBefore()
    wave_16k = encoder_wave(wave)
    content = before.content
    if content is None:
        content = base.content_encoder.encode(wave_16k * content_gain(base, wave, loud=loud))
    content = content.to(torch.float16)
    text_vectors = before.text_vectors
    return Features(
        content=content.numpy(),
        tokens=tokens_of(base, content).to(torch.int16).numpy(),
        text_vectors=text_vectors_of(base, text) if text_vectors is None else text_vectors.to(torch.float16).numpy(),
        speaker_vector=speaker_vector_of(base, wave_16k),
    )


def features_before(base: BaseModel, clips: Sequence[tuple[np.ndarray, SpannedText | None]]) -> list[HeardBefore]:
    """Content and text vectors of many clips for `extract_features(..., loud=True)`, in batches: for a GPU."""
    waves = [encoder_wave(wave) * content_gain(base, wave, loud=True) for wave, _ in clips]
    contents = base.content_encoder.encode_batch(waves)
    spoken = [(number, span) for number, (_, text) in enumerate(clips) for span in (_spans_of(base, text) or ())]
    mandarin = [(span.normal_text, span.phonemes_per_character) for _, span in spoken if span.language == "zh"]
    vectors = iter(base.text_encoder.encode_batch(mandarin) if base.text_encoder else ())
    parts: dict[int, list[Tensor]] = {}
    for number, span in spoken:
        assert base.text_encoder is not None
        found = next(vectors) if span.language == "zh" else torch.zeros(span.num_phonemes, base.text_encoder.width)
        parts.setdefault(number, []).append(found)
    return [
        HeardBefore(content=content, text_vectors=torch.cat(parts[number]) if number in parts else None)
        for number, content in enumerate(contents)
    ]


def encoder_wave(wave: np.ndarray) -> Tensor:
    """(T,) at 32 kHz -> (T,) at 16 kHz.

    Raises:
        ValueError: the wave is not mono, or shorter than a token.
    """
    if wave.ndim != 1 or len(wave) < RATE_HZ // 10:
        raise ValueError(f"expected a mono wave (T,) of 0.1 s or more at {RATE_HZ} Hz, got {wave.shape}")
    return torch.from_numpy(resample(np.asarray(wave, dtype=np.float32), RATE_HZ, ENCODER_RATE_HZ))


def content_gain(base: BaseModel, wave: np.ndarray, *, loud: bool) -> float:
    """What `wave` is multiplied by in front of the content encoder."""
    return training_gain(wave) if loud and base.content_encoder.loud_in_training else 1.0


def training_gain(wave: np.ndarray) -> float:
    """What GPT-SoVITS's data preparation multiplies a clip by before CN-HuBERT: 1145.14 (0.475 / peak + 0.5).

    CN-HuBERT's first layer normalises it away but for the epsilon in its denominator: against the unscaled wave, which
    upstream's inference gives, features differ by 0.1 to 0.4 % at normal level and by 18 % in very quiet audio.
    """
    peak = float(np.abs(wave).max(initial=0.0))
    return 1145.14 * (0.475 / peak + 0.5) if peak else 1.0


@torch.no_grad()
def tokens_of(base: BaseModel, content: Tensor) -> Tensor:
    """Tokens of stored content: (L, C) float16 -> (S,) int64. From the stored precision, so that they can be redone."""
    return base.acoustic.encode_tokens(content.float().T[None])[0]


@torch.no_grad()
def speaker_vector_of(base: BaseModel, wave_16k: Tensor) -> np.ndarray | None:
    """(T,) at 16 kHz -> (K,) float16; None in releases without a speaker encoder."""
    if base.speaker_encoder is None:
        return None
    device = next(base.speaker_encoder.parameters()).device
    vector: Tensor = base.speaker_encoder(wave_16k[None].to(device))[0]
    return vector.to(torch.float16).cpu().numpy()


def text_vectors_of(base: BaseModel, text: SpannedText | None) -> np.ndarray | None:
    """(P, W) float16: vectors for Mandarin, zeros elsewhere.

    None where the text has no Mandarin or the release no text encoder.
    """
    spans = _spans_of(base, text)
    if spans is None:
        return None
    assert base.text_encoder is not None
    parts = [
        base.text_encoder.encode(span.normal_text, span.phonemes_per_character)
        if span.language == "zh"
        else torch.zeros(span.num_phonemes, base.text_encoder.width)
        for span in spans
    ]
    return torch.cat(parts).to(torch.float16).numpy()


def _spans_of(base: BaseModel, text: SpannedText | None) -> Sequence[TextSpan] | None:
    """The spans of a text that has vectors; None for one that has none."""
    if base.text_encoder is None or text is None or all(span.language != "zh" for span in text.spans):
        return None
    return text.spans
