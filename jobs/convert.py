"""A recording of anybody to the same words, pace and pauses in a registered voice.

The voice's decoder reads what is said beside how it sounds: a text that is given, or one that the configured recogniser
hears where it speaks the language; without either it reads nothing, and pronounces a little less clearly.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gsv_core.audio.wav import wav_bytes
from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.features import RATE_HZ
from gsv_core.synthesis.conversion import convert
from jobs.synth import References, VoiceAddress, hear, manner_of, opened, read_audio
from pipelines.engines.choose import EngineConfig, load_recogniser
from pipelines.engines.decoder import DecodeLimits

_LIMITS = DecodeLimits(longest_s=3600.0)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A recording to convert. With its text nothing need be heard; with its language alone the recogniser listens."""

    path: Path
    text: str | None = None
    language: str | None = None
    engines: EngineConfig = field(default_factory=EngineConfig)


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The bytes of a 16-bit WAV. `text` is what the decoder read, `heard_by` who heard it, where it was not given."""

    wav: bytes
    rate_hz: int
    seconds: float
    release: str
    note: str | None
    text: str | None
    heard_by: str | None


def convert_recording(
    address: VoiceAddress,
    source: Source,
    *,
    style: str | None = None,
    references: References | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    rate_hz: int | None = None,
) -> Converted:
    """`source` in the voice at `address`, in its mean timbre or as `style` or `references` say.

    Raises:
        ValueError: the source cannot be read or is silent, the voice is not there, a style or reference does not do, or
            a setting is out of range or the release has it not.
    """
    wave = read_audio(source.path, "SOURCE", _LIMITS)
    text, heard_by = _text_of(source, wave)
    heard = hear(references) if references else []
    with opened(address) as voice:
        manner = manner_of(voice, style, references, heard)
        release = Release(voice.description["release"])
        try:
            speech = convert(
                voice.synthesiser,
                wave,
                manner.prompt,
                timbre=manner.timbre,
                text=text,
                language=source.language,
                seed=seed,
                steps=steps,
                guidance=guidance,
                rate_hz=rate_hz,
            )
        except ValueError as error:
            raise ValueError(f"{source.path}: {error}") from error
    return Converted(
        wav=wav_bytes(speech.wave, speech.rate_hz),
        rate_hz=speech.rate_hz,
        seconds=speech.seconds,
        release=str(release),
        note=RELEASES[release].note,
        text=text,
        heard_by=heard_by,
    )


def _text_of(source: Source, wave: np.ndarray) -> tuple[str | None, str | None]:
    """What is said in the source, and who heard it; None where nobody can tell."""
    if source.text and not source.language:
        raise ValueError("--text needs --language: zh, en, ja, ko or yue")
    if source.text or not source.language:
        return source.text, None
    recogniser = load_recogniser(source.engines)
    if not recogniser.speaks(source.language):
        return None, None
    text = recogniser.transcribe(wave, RATE_HZ, source.language).text
    return (text, recogniser.name) if text.strip() else (None, None)
