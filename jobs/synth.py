"""Text to speech through a registered version of a voice.

Reads the version's data alone, with the gsv_core that is installed: no code out of a registry runs here.
"""

from jobs.tracking import Registry


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
) -> tuple[bytes, int]:
    """`text` spoken by `voice`: the bytes of a 16-bit WAV and their rate in Hz.

    Takes the given version, the one an alias points to, or the newest. `models` is the folder of the base models.

    Raises:
        ValueError: no such voice, version or alias (the message lists those there are), text that cannot be spoken, or
            a missing base.
    """
    registry = Registry(tracker_uri, prefix=prefix)
    found = registry.version_of(voice, version=version, alias=alias)
    from jobs.voice_model import load_voice

    with registry.files_of(found) as folder:
        return load_voice(folder, models=models).speak(text, language, speed=speed, seed=seed)
