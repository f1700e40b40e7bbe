"""One utterance to all its arrays: what shards store, trainers read, and a Prompt consists of.

Computed from the stored audio of one clip alone, so that no batch can change the result. Shapes: T samples at 32 kHz,
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


@torch.no_grad()
def extract_features(base: BaseModel, wave: np.ndarray, text: SpannedText | None) -> Features:
    """All arrays of a clip: wave (T,) float32 at 32 kHz and its phonemised text (None: without text vectors).

    Raises:
        ValueError: the wave is not mono, or shorter than a token.
    """
    if wave.ndim != 1 or len(wave) < RATE_HZ // 10:
        raise ValueError(f"expected a mono wave (T,) of 0.1 s or more at {RATE_HZ} Hz, got {wave.shape}")
    wave_16k = torch.from_numpy(resample(np.asarray(wave, dtype=np.float32), RATE_HZ, ENCODER_RATE_HZ))
    content = base.content_encoder.encode(wave_16k).to(torch.float16)
    return Features(
        content=content.numpy(),
        tokens=tokens_of(base, content).to(torch.int16).numpy(),
        text_vectors=text_vectors_of(base, text),
        speaker_vector=speaker_vector_of(base, wave_16k),
    )


@torch.no_grad()
def tokens_of(base: BaseModel, content: Tensor) -> Tensor:
    """Tokens of stored content: (L, C) float16 -> (S,) int64. From the stored precision, so that they can be redone."""
    return base.acoustic.encode_tokens(content.float().T[None])[0]


@torch.no_grad()
def speaker_vector_of(base: BaseModel, wave_16k: Tensor) -> np.ndarray | None:
    """(T,) at 16 kHz -> (K,) float16; None in releases without a speaker encoder."""
    if base.speaker_encoder is None:
        return None
    vector: Tensor = base.speaker_encoder(wave_16k[None])[0]
    return vector.to(torch.float16).numpy()


def text_vectors_of(base: BaseModel, text: SpannedText | None) -> np.ndarray | None:
    """(P, W) float16: vectors for Mandarin, zeros elsewhere.

    None where the text has no Mandarin or the release no text encoder.
    """
    if base.text_encoder is None or text is None or all(span.language != "zh" for span in text.spans):
        return None
    parts = [
        base.text_encoder.encode(span.normal_text, span.phonemes_per_character)
        if span.language == "zh"
        else torch.zeros(span.num_phonemes, base.text_encoder.width)
        for span in text.spans
    ]
    return torch.cat(parts).to(torch.float16).numpy()
