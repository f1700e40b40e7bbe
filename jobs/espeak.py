"""Sentences to waves with eSpeak NG, offline: speech with known text, for the demonstration and the tests only.

The library keeps its state in globals and calls back into Python, so it runs in a process of its own: one start, all
sentences, gone. It is GPL-3 and comes with the optional extra `demo`; nothing in the product needs it.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import numpy as np

RATE_HZ = 22_050

_RETRIEVE_SYNCHRONOUSLY = 2
_TEXT_IS_UTF8 = 1
_PARAMETERS = {"words_per_minute": 1, "pitch": 3}  # numbers of eSpeak's parameters


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """What to say and how: `voice` is a language with an optional variant (`en-us+f3`, `cmn`, `ja`, `yue`, `ko`)."""

    text: str
    voice: str = "en-us"
    words_per_minute: int = 155
    pitch: int = 50
    """From 0, low, to 100, high."""


def speak(sentences: Sequence[Sentence]) -> list[np.ndarray]:
    """The waves of `sentences`, each (T,) float32 in [-1, 1] at `RATE_HZ`. The same sentences give the same samples.

    Raises:
        ValueError: the extra `demo` is not installed, or eSpeak knows no such voice.
    """
    if find_spec("espeakng_loader") is None:
        raise ValueError("demonstration voices need eSpeak NG: pip install 'gsv-fleet[demo]'")
    request = json.dumps([asdict(sentence) for sentence in sentences])
    done = subprocess.run(
        [sys.executable, "-m", "jobs.espeak"], input=request.encode(), capture_output=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"eSpeak NG failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    lengths, _, samples = done.stdout.partition(b"\n")
    ends = np.cumsum(json.loads(lengths))
    whole = np.frombuffer(samples, dtype="<i2").astype(np.float32) / 32768
    return np.split(whole, ends[:-1])


def _synthesise(sentences: Sequence[Sentence]) -> list[bytes]:
    """Inside the child: 16-bit samples of each sentence."""
    import ctypes
    import os
    from pathlib import Path

    import espeakng_loader

    # eSpeak copies its data path into a buffer of 160 bytes, so it gets a short one.
    os.chdir(Path(espeakng_loader.get_data_path()).parent)
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    parts: list[bytes] = []

    @callback_type
    def collect(wave, count: int, _events) -> int:
        if wave and count > 0:
            parts.append(ctypes.string_at(wave, 2 * count))
        return 0

    if library.espeak_Initialize(_RETRIEVE_SYNCHRONOUSLY, 500, b".", 0) != RATE_HZ:
        raise RuntimeError("eSpeak NG did not start with its packaged data")
    library.espeak_SetSynthCallback(collect)
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    waves = []
    for sentence in sentences:
        library.espeak_ng_SetRandSeed(1)  # breathy variants draw noise, seeded with the time otherwise
        if library.espeak_SetVoiceByName(sentence.voice.encode()) != 0:
            raise RuntimeError(f"no voice named {sentence.voice!r}")
        for name, number in _PARAMETERS.items():
            library.espeak_SetParameter(number, getattr(sentence, name), 0)
        text = sentence.text.encode() + b"\0"
        if library.espeak_Synth(text, len(text), 0, 1, 0, _TEXT_IS_UTF8, None, None) != 0:
            raise RuntimeError(f"could not speak {sentence.text!r}")
        library.espeak_Synchronize()
        waves.append(b"".join(parts))
        parts.clear()
    return waves


def _child() -> None:
    """Read sentences from standard input; write one line of lengths, then the samples."""
    waves = _synthesise([Sentence(**record) for record in json.load(sys.stdin)])
    sys.stdout.buffer.write(json.dumps([len(wave) // 2 for wave in waves]).encode() + b"\n" + b"".join(waves))


if __name__ == "__main__":
    _child()
