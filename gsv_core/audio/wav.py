"""16-bit PCM WAV files in memory, for what people and web pages listen to. Axes: T samples."""

import io
import struct
import wave

import numpy as np

_UNKNOWN = 0xFFFFFFFF
"""In place of a length, what programs write that do not know it yet."""


def pcm_bytes(samples: np.ndarray) -> bytes:
    """(T,) float in [-1, 1] as 16-bit little-endian integers; what lies outside is clipped."""
    return np.clip(np.rint(np.asarray(samples, dtype=np.float64) * 32768.0), -32768, 32767).astype("<i2").tobytes()


def wav_bytes(samples: np.ndarray, rate_hz: int) -> bytes:
    """(T,) float in [-1, 1] as a mono 16-bit WAV; what lies outside is clipped."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(pcm_bytes(samples))
    return buffer.getvalue()


def endless_header(rate_hz: int) -> bytes:
    """What stands before the samples of a mono 16-bit WAV whose length is not known yet: players read on to the end."""
    return _header(rate_hz, _UNKNOWN, _UNKNOWN)


def sized_header(rate_hz: int, samples: int) -> bytes:
    """The same where it is known."""
    return _header(rate_hz, 36 + 2 * samples, 2 * samples)


def _header(rate_hz: int, form_bytes: int, data_bytes: int) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", form_bytes, b"WAVE") + form + struct.pack("<4sI", b"data", data_bytes)


def read_wav(content: bytes) -> tuple[np.ndarray, int]:
    """A 16-bit WAV as ((T,) float32, rate in Hz), its channels averaged.

    Raises:
        ValueError: these are no bytes of such a file.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            width, channels, rate_hz = file.getsampwidth(), file.getnchannels(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"expected the bytes of a WAV file, got {len(content)} bytes: {error}") from error
    if width != 2:
        raise ValueError(f"expected a WAV of 16 bits, got {8 * width}")
    usable = len(frames) - len(frames) % (2 * channels)  # a truncated file may end inside a frame
    samples = np.frombuffer(frames[:usable], dtype="<i2").reshape(-1, channels)
    return (samples.astype(np.float32) / 32768.0).mean(axis=1), rate_hz
