"""16-bit PCM WAV files in memory, for what people and web pages listen to. Axes: T samples."""

import io
import wave

import numpy as np


def wav_bytes(samples: np.ndarray, rate_hz: int) -> bytes:
    """(T,) float in [-1, 1] as a mono 16-bit WAV; what lies outside is clipped."""
    integers = np.clip(np.rint(np.asarray(samples, dtype=np.float64) * 32768.0), -32768, 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(integers.tobytes())
    return buffer.getvalue()


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
