"""Text to speech through a registered version of a voice.

Reads the version's data alone, with the gsv_core that is installed: no code out of a registry runs here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gsv_core.audio.resample import resample
from gsv_core.audio.wav import wav_bytes
from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.features import RATE_HZ
from gsv_core.synthesis.reference import LEAST_SPEECH_S, Embed, check_reference, prompt_of_reference
from gsv_core.synthesis.sampling import Sampling
from gsv_core.synthesis.synthesiser import PAUSE_S, Prompt, Speech
from gsv_core.text.lexicon import Lexicon
from jobs.tracking import Registry
from pipelines.engines.choose import EngineConfig, load_speaker_verifier, load_voice_activity
from pipelines.engines.decoder import DecodeLimits, UndecodableError, decode
from pipelines.engines.protocols import VoiceActivity

if TYPE_CHECKING:
    from gsv_core.checkpoints.base import BaseModel
    from jobs.voice_model import Manner, Voice

_REFERENCE_LIMITS = DecodeLimits(longest_s=600.0)


@dataclass(frozen=True, kw_only=True)
class VoiceAddress:
    """Where a registered version is: the given one, the one an alias points to, or the newest."""

    tracker_uri: str
    voice: str
    version: int | None = None
    alias: str | None = None
    models: str | None = None
    """The folder of the base models"""
    prefix: str = "gsv-"


@dataclass(frozen=True, kw_only=True)
class References:
    """Recordings that are followed instead of the voice's Prompt; the text is the first one's, where it is known."""

    paths: tuple[Path, ...] = ()
    text: str | None = None
    language: str | None = None
    engines: EngineConfig = field(default_factory=EngineConfig)
    least_consistency: float | None = None
    """Below it, as the engines' verifier measures, a recording has two speakers; None: no engine is asked"""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How a text is said, as `Synthesiser.stream` has it."""

    speed: float = 1.0
    seed: int = 0
    cut: str = "cut5"
    pause_s: float = PAUSE_S
    sampling: Sampling | None = None
    steps: int | None = None
    guidance: float | None = None
    rate_hz: int | None = None


@dataclass(frozen=True, kw_only=True)
class Speaking:
    """What is being said, piece by piece. `note` must be said beside it, where its base cannot speak."""

    pieces: Iterator[Speech]
    rate_hz: int
    release: str
    note: str | None


@contextmanager
def opened(address: VoiceAddress, *, base: "BaseModel | None" = None, device: str = "cpu") -> "Iterator[Voice]":
    """The voice at `address`, ready to speak.

    Raises:
        ValueError: no such voice, version or alias (the message lists those there are), or a missing base.
    """
    registry = Registry(address.tracker_uri, prefix=address.prefix)
    found = registry.version_of(address.voice, version=address.version, alias=address.alias)
    from jobs.voice_model import load_voice

    with registry.files_of(found) as folder:
        yield load_voice(folder, models=address.models, base=base, device=device)


@contextmanager
def speaking(
    address: VoiceAddress,
    text: str,
    language: str,
    *,
    style: str | None = None,
    references: References | None = None,
    lexicon: Path | None = None,
    delivery: Delivery | None = None,
) -> Iterator[Speaking]:
    """`text` by the voice at `address`; words of the `lexicon` file count before those the version holds.

    Raises:
        ValueError: what `opened` refuses, text that cannot be spoken, an unknown style, an unfit reference, a wrong
            line in the lexicon, or a setting out of range or that the release has not.
    """
    words = None if lexicon is None else Lexicon.read(lexicon, language)
    said = delivery or Delivery()
    heard = hear(references) if references else []
    with opened(address) as voice:
        pieces = voice.stream(
            text,
            language,
            manner=manner_of(voice, style, references, heard),
            lexicon=words,
            **vars(said),
        )
        release = Release(voice.description["release"])
        rate_hz = said.rate_hz or voice.synthesiser.rate_hz
        yield Speaking(pieces=pieces, rate_hz=rate_hz, release=str(release), note=RELEASES[release].note)


def manner_of(
    voice: "Voice", style: str | None, references: References | None, heard: Sequence[np.ndarray]
) -> "Manner":
    """What `voice` follows: recordings (T,) at 32 kHz, a style, or where neither is named its own Prompt."""
    text = (references.text, references.language) if references else (None, None)
    prompts: list[Prompt] = []
    for number, wave in enumerate(heard):
        prompts.append(prompt_of_reference(voice.synthesiser.base, wave, RATE_HZ, *(text if number == 0 else ())))
    return voice.manner(style=style, references=prompts)


def hear(references: References) -> list[np.ndarray]:
    """The recordings, (T,) each at 32 kHz, seen to be fit.

    Raises:
        ValueError: one is not, or a text is given without its recording or language.
    """
    if references.text and not references.paths:
        raise ValueError("--reference-text says what is in a --reference; name that, too")
    if references.text and not references.language:
        raise ValueError("--reference-text needs --reference-language: zh, en, ja, ko or yue")
    if not references.paths or references.least_consistency is None:
        return [read_reference(path) for path in references.paths]
    embed = load_speaker_verifier(references.engines).embed
    activity = load_voice_activity(references.engines)
    return [read_reference(path, embed, references.least_consistency, activity) for path in references.paths]


def read_reference(
    path: Path,
    embed: Embed | None = None,
    least_consistency: float = 0.0,
    activity: VoiceActivity | None = None,
) -> np.ndarray:
    """A recording in any container, (T,) at 32 kHz, its channels averaged.

    Raises:
        ValueError: it cannot be read, or followed (see `check_reference`), or `activity` hears nobody speak.
    """
    wave = read_audio(path, "--reference", _REFERENCE_LIMITS)
    try:
        check_reference(wave, RATE_HZ, embed=embed, least_consistency=least_consistency)
    except ValueError as error:
        raise ValueError(f"--reference {path}: {error}") from error
    if activity is not None:
        spoken = sum(span.num_samples for span in activity.speech(wave, RATE_HZ)) / RATE_HZ
        if spoken < LEAST_SPEECH_S:
            raise ValueError(
                f"--reference {path}: a reference should hold {LEAST_SPEECH_S:g} s of speech or more; in this one "
                f"somebody speaks for {spoken:.1f} s"
            )
    return wave


def read_audio(path: Path, option: str, limits: DecodeLimits) -> np.ndarray:
    """A recording in any container, (T,) at 32 kHz, its channels averaged.

    Raises:
        ValueError: it is not there, or holds no audio.
    """
    try:
        decoded = decode(path, limits=limits)
    except UndecodableError as error:
        raise ValueError(f"{option} {path}: {error.detail}") from error
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror or error}") from error
    return resample(np.ascontiguousarray(decoded.wave.mean(axis=1)), decoded.rate_hz, RATE_HZ)


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What a version said: the bytes of a 16-bit WAV. `note` must be said beside it, where its base cannot speak."""

    wav: bytes
    rate_hz: int
    release: str
    note: str | None


def speak(
    tracker_uri: str,
    voice: str,
    text: str,
    language: str,
    *,
    version: int | None = None,
    alias: str | None = None,
    models: str | None = None,
    prefix: str = "gsv-",
    style: str | None = None,
    references: References | None = None,
    lexicon: Path | None = None,
    delivery: Delivery | None = None,
) -> Spoken:
    """`text` spoken by `voice`: what `speaking` gives, joined. More there and in `VoiceAddress`."""
    address = VoiceAddress(
        tracker_uri=tracker_uri, voice=voice, version=version, alias=alias, models=models, prefix=prefix
    )
    with speaking(
        address, text, language, style=style, references=references, lexicon=lexicon, delivery=delivery
    ) as said:
        wave = np.concatenate([piece.wave for piece in said.pieces])
    return Spoken(wav=wav_bytes(wave, said.rate_hz), rate_hz=said.rate_hz, release=said.release, note=said.note)
