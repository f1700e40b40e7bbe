"""Text to speech through a registered version of a voice.

Reads the version's data alone, with the gsv_core that is installed: no code out of a registry runs here.
"""

from dataclasses import dataclass
from pathlib import Path

from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.text.lexicon import Lexicon
from jobs.tracking import Registry


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
    seed: int = 0,
    speed: float = 1.0,
    models: str | None = None,
    prefix: str = "gsv-",
    lexicon: Path | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Spoken:
    """`text` spoken by `voice`.

    Takes the given version, the one an alias points to, or the newest. `models` is the folder of the base models.
    Words of the `lexicon` file count before those the version holds. `steps` and `guidance` are of v3 and v4.

    Raises:
        ValueError: no such voice, version or alias (the message lists those there are), text that cannot be spoken, a
            wrong line in the lexicon, steps or guidance that the release has not, or a missing base.
    """
    words = None if lexicon is None else Lexicon.read(lexicon, language)
    registry = Registry(tracker_uri, prefix=prefix)
    found = registry.version_of(voice, version=version, alias=alias)
    from jobs.voice_model import load_voice

    with registry.files_of(found) as folder:
        loaded = load_voice(folder, models=models)
        wav, rate_hz = loaded.speak(
            text, language, speed=speed, seed=seed, lexicon=words, steps=steps, guidance=guidance
        )
    release = Release(loaded.description["release"])
    return Spoken(wav=wav, rate_hz=rate_hz, release=str(release), note=RELEASES[release].note)
