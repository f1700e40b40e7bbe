"""A wave to the bytes of a FLAC file and back: 16 bit, mono, the same bytes for the same wave.

The stored audio of every shard. Axes: T samples.
"""

import io

import numpy as np


def encode_flac(wave: np.ndarray, rate_hz: int) -> bytes:
    """(T,) float32 in [-1, 1] as a 16-bit mono FLAC.

    Raises:
        ValueError: the wave is empty, not mono, not finite, or over full scale, which 16 bits would clip.
    """
    import soundfile

    if wave.ndim != 1 or not len(wave):
        raise ValueError(f"flac: expected a mono wave (T,) with T > 0, got shape {wave.shape}")
    peak = float(np.abs(wave).max())
    if not peak <= 1.0:
        raise ValueError(f"flac: samples must be finite and within [-1, 1], got a peak of {peak:.4g}; level it first")
    # Rounded here: libsndfile would truncate, and +1.0 has no 16-bit value.
    samples = np.clip(np.rint(wave.astype(np.float64) * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes) -> tuple[np.ndarray, int]:
    """Bytes of `encode_flac` as ((T,) float32, rate in Hz).

    Raises:
        ValueError: these are no bytes of a mono FLAC file.
    """
    import soundfile

    try:
        samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="int16")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"flac: {len(data)} bytes cannot be decoded: {error}") from error
    if samples.ndim != 1:
        raise ValueError(f"flac: expected mono, got {samples.shape[1]} channels")
    return samples.astype(np.float32) / 32768.0, int(rate_hz)
