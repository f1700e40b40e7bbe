"""A recording somebody hands over to the Prompt that speech is to follow, if it can serve as one.

Published bases were made to follow 3 to 10 s of one speaker; a recording of silence or of two people gives speech that
is nobody's. Axes: T samples, K speaker vector.
"""

from collections.abc import Callable

import numpy as np
import torch

from gsv_core.audio.resample import resample
from gsv_core.checkpoints.base import BaseModel
from gsv_core.features import ENCODER_RATE_HZ, RATE_HZ, speaker_vector_of
from gsv_core.metrics.speaker import consistency, windows
from gsv_core.synthesis.synthesiser import Prompt

REFERENCE_SECONDS = (3.0, 10.0)
"""What GPT-SoVITS was made to take its manner from; outside of it, it refuses."""
SILENCE_AFTER_S = 0.6
"""Digital silence behind a reference when its tokens are made: upstream's inference has it, and calls it 0.3 s."""
LEAST_SPEECH_S = 1.0

_FRAME_S = 0.02
_SILENT_DBFS = -55.0
_BELOW_LOUDEST_DB = 35.0

Embed = Callable[[np.ndarray, int], np.ndarray]
"""A wave (T,) and its rate in Hz to a vector (K,) that says who speaks."""


def check_reference(
    wave: np.ndarray, rate_hz: int, *, embed: Embed | None = None, least_consistency: float = 0.0
) -> None:
    """See that (T,) can be followed.

    With `embed`, two speakers in turn are told apart: `least_consistency` is the least likeness between the parts
    before and after any place (see `gsv_core.metrics.speaker.consistency`) that one speaker has.

    Raises:
        ValueError: it is too short or long, holds hardly any sound, or two speakers.
    """
    seconds = len(wave) / rate_hz
    shortest, longest = REFERENCE_SECONDS
    if not shortest <= seconds <= longest:
        raise ValueError(f"a reference should last {shortest:g} to {longest:g} s, got {seconds:.1f} s")
    sounding = sound_seconds(wave, rate_hz)
    if sounding < LEAST_SPEECH_S:
        raise ValueError(
            f"a reference should hold {LEAST_SPEECH_S:g} s of speech or more; this is silent but for {sounding:.1f} s"
        )
    if embed is None:
        return
    likeness = consistency([embed(part, rate_hz) for part in windows(wave, rate_hz)])
    if likeness is not None and likeness < least_consistency:
        raise ValueError(
            f"a reference should hold one speaker; before and after one place in it the voices are alike to only "
            f"{likeness:.2f} (one speaker has {least_consistency:g} or more)"
        )


def sound_seconds(wave: np.ndarray, rate_hz: int) -> float:
    """How much of (T,) is no silence: frames above -55 dB of full scale and no more than 35 dB below the loudest."""
    size = round(_FRAME_S * rate_hz)
    frames = wave[: len(wave) // size * size].reshape(-1, size).astype(np.float64)
    if not len(frames):
        return 0.0
    levels = 10 * np.log10((frames**2).mean(axis=1) + 1e-12)
    return float((levels > max(_SILENT_DBFS, levels.max() - _BELOW_LOUDEST_DB)).sum() * _FRAME_S)


def prompt_of_reference(
    base: BaseModel, wave: np.ndarray, rate_hz: int, text: str | None = None, language: str | None = None
) -> Prompt:
    """The Prompt made of a recording (T,); without its text only the timbre is followed.

    Raises:
        ValueError: a text without its language, or one that cannot be spoken.
    """
    samples = resample(wave, rate_hz, RATE_HZ)
    if text:
        if not language:
            raise ValueError("a reference's text needs its language: zh, en, ja, ko or yue")
        return Prompt.of(base, samples, text, language, silence_s=SILENCE_AFTER_S)
    vector = speaker_vector_of(base, torch.from_numpy(resample(samples, RATE_HZ, ENCODER_RATE_HZ)))
    nothing = torch.empty(0, dtype=torch.int64)
    return Prompt(
        text="",
        language=language or "auto",
        phoneme_ids=nothing,
        tokens=nothing,
        wave=torch.from_numpy(samples),
        speaker_vector=None if vector is None else torch.from_numpy(vector),
    )
