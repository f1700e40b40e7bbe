"""Demonstration voices: two folders of recordings with known text, spoken offline by eSpeak NG.

They have what real recordings have: several containers and rates, pauses, room noise, a transcript beside some file.
Everything follows from fixed seeds, so the same versions of the libraries write the same bytes.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gsv_core.audio.resample import resample
from jobs import espeak
from pipelines.engines.audio_writer import encode_audio

_ADA = (
    "Every morning the baker opens a window, and the smell of warm bread fills the street.",
    "A small boat with a blue sail moved slowly across the quiet harbour.",
    "Please measure the flour twice, because good pastry forgives very little.",
    "The children thought the thunder was a giant shuffling his chairs upstairs.",
    "Joy and patience are useful tools for anyone who repairs old clocks.",
    "We watched five grey geese land on the frozen pond behind the church.",
    "Her cousin usually chooses the brown leather shoes that stand near the door.",
    "Nothing tastes better than fresh plums after a long walk in the hills.",
    "The museum keeps a treasure of maps that show how the valley once looked.",
    "Could you show me which of these yellow leaves fell from the old oak this morning?",
    "A gentle breeze pushed the red kite even higher than the roof of the schoolhouse.",
    "They put the kettle on, found two cups, and talked until the rain was over.",
)
_LINUS = (
    "The train to the north leaves from platform seven at half past eight.",
    "My neighbour grows beans, onions and very large pumpkins in her garden.",
    "A clear voice carries further than a loud one, even in a crowded room.",
    "Birds gather on the wires each autumn and decide when to fly away.",
    "He measured the width of the bridge with nothing but a rope and some chalk.",
    "Fresh snow makes the whole village sound as if it were wrapped in wool.",
    "The judge of the pie contest politely asked for a second slice of each.",
    "Which of the three paths through the wood is the shortest one down to the lake?",
    "An honest answer is very often shorter than the question that asked for it.",
    "The smooth stones at the edge of the river shine like coins in the sun.",
    "She wrote the address on a thick yellow envelope and sealed it with care.",
    "Good evening, said the owl in the story, and the fox had to laugh.",
)
# Of eSpeak's variants the two that the packaged English recogniser makes the fewest errors on, speaking slowly. A
# sentence lasts around five seconds, so that two do not fit in one clip: there are enough clips to hold some out.
_ADA_SPEAKS = espeak.Sentence(text="", voice="en-us+f2", words_per_minute=125, pitch=50)
_LINUS_SPEAKS = espeak.Sentence(text="", voice="en-us+m5", words_per_minute=120, pitch=50)
_NOISE_DBFS = -62.0
_README = """Demonstration voices of gsv-fleet

The voices "ada" and "linus" in this folder are synthetic: eSpeak NG spoke sentences written for gsv-fleet. Nobody was
recorded. They show how recordings are handed in; delete the folder whenever you like, it is made again on demand.
"""
_VOICE_YAML = """language: en
licence: CC0-1.0
consent:
  by: nobody, the voice is synthetic (eSpeak NG)
  reference: demonstration-{voice}
  purpose: to demonstrate and test gsv-fleet
"""


@dataclass(frozen=True, kw_only=True)
class _Take:
    """One recording to make: its file name, its sentences and how it is stored."""

    name: str
    texts: tuple[str, ...]
    rate_hz: int
    channels: int = 1


_ADA_TAKES = tuple(
    _Take(name=f"day_{day}.flac", texts=_ADA[2 * day - 2 : 2 * day], rate_hz=48_000)
    if day % 2 == 0
    else _Take(name=f"day_{day}.wav", texts=_ADA[2 * day - 2 : 2 * day], rate_hz=44_100, channels=2)
    for day in range(1, len(_ADA) // 2 + 1)
)
_LINUS_TAKE = _Take(name="radio_hour.mp3", texts=_LINUS, rate_hz=44_100)


def make_demo_voices(folder: Path) -> Path:
    """Write `folder`/ada and `folder`/linus, recordings with their transcripts; replaces them if they are there.

    `ada` is six short recordings, stereo WAV and FLAC by turns, a `.txt` beside each; `linus` one long MP3 with an
    `.srt`.

    Raises:
        ValueError: eSpeak NG is not installed; the message names the extra.
    """
    ada = [replace(_ADA_SPEAKS, text=text) for text in _ADA]
    linus = [replace(_LINUS_SPEAKS, text=text) for text in _LINUS]
    waves = espeak.speak([*ada, *linus])
    spoken = dict(zip(_ADA + _LINUS, waves, strict=True))
    for voice in ("ada", "linus"):
        shutil.rmtree(folder / voice, ignore_errors=True)
        (folder / voice).mkdir(parents=True)
        (folder / voice / "voice.yaml").write_text(_VOICE_YAML.format(voice=voice), encoding="utf-8")
    for seed, take in enumerate(_ADA_TAKES):
        path = folder / "ada" / take.name
        _write_take(path, take, spoken, seed)
        path.with_suffix(".txt").write_text(" ".join(take.texts) + "\n", encoding="utf-8")
    path = folder / "linus" / _LINUS_TAKE.name
    spans = _write_take(path, _LINUS_TAKE, spoken, len(_ADA_TAKES))
    path.with_suffix(".srt").write_text(_srt(_LINUS_TAKE.texts, spans), encoding="utf-8")
    (folder / "README.txt").write_text(_README, encoding="utf-8")
    return folder


def _write_take(path: Path, take: _Take, spoken: dict[str, np.ndarray], seed: int) -> list[tuple[float, float]]:
    """Write one recording; where each of its sentences lies, in seconds."""
    generator = np.random.default_rng(seed)
    parts: list[np.ndarray] = [_pause(generator)]
    spans = []
    for text in take.texts:
        start = sum(map(len, parts))
        parts.append(_trimmed(spoken[text]))
        spans.append((start / espeak.RATE_HZ, (start + len(parts[-1])) / espeak.RATE_HZ))
        parts.append(_pause(generator))
    speech = resample(np.concatenate(parts), espeak.RATE_HZ, take.rate_hz)
    # A microphone off the centre: the second channel is a little quieter, and each has its own noise.
    gains = np.array([1.0, 0.8][: take.channels], dtype=np.float32)
    noise = generator.standard_normal((len(speech), take.channels)).astype(np.float32) * 10 ** (_NOISE_DBFS / 20)
    encode_audio(path, speech[:, None] * (0.8 * gains) + noise, take.rate_hz)
    return spans


def _pause(generator: np.random.Generator) -> np.ndarray:
    """0.6 to 1 s of nothing; the noise comes later."""
    return np.zeros(round(generator.uniform(0.6, 1.0) * espeak.RATE_HZ), dtype=np.float32)


def _trimmed(wave: np.ndarray) -> np.ndarray:
    """`wave` without the digital silence eSpeak puts around a sentence."""
    loud = np.flatnonzero(np.abs(wave) > 1e-3)
    return wave[loud[0] : loud[-1] + 1]


def _srt(texts: tuple[str, ...], spans: list[tuple[float, float]]) -> str:
    """The sentences as SubRip subtitles."""
    blocks = []
    for number, (text, (start_s, end_s)) in enumerate(zip(texts, spans, strict=True), start=1):
        blocks.append(f"{number}\n{_srt_time(start_s)} --> {_srt_time(end_s)}\n{text}\n")
    return "\n".join(blocks)


def _srt_time(seconds: float) -> str:
    """`HH:MM:SS,mmm`."""
    minutes, rest_ms = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest_ms // 1000:02d},{rest_ms % 1000:03d}"
