"""A wave to an audio file, through PyAV: what the demonstration voices and listening samples are written with.

The file's suffix names the format: `.wav` and `.flac` are 16-bit and lossless, the others are lossy. The same wave
gives the same bytes (but for the containers that store a random id). T samples, C channels.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np

# suffix: (container, codec, sample format, bits per second)
_FORMATS = {
    ".wav": ("wav", "pcm_s16le", "s16", None),
    ".flac": ("flac", "flac", "s16", None),
    ".mp3": ("mp3", "libmp3lame", "s16p", 96_000),
    ".ogg": ("ogg", "libopus", "s16", 64_000),
    ".opus": ("ogg", "libopus", "s16", 64_000),
    ".webm": ("webm", "libopus", "s16", 64_000),
    ".mka": ("matroska", "libopus", "s16", 64_000),
    ".m4a": ("ipod", "aac", "fltp", 96_000),
    ".wma": ("asf", "wmav2", "fltp", 96_000),
}
# What a frame of each lossy codec holds; the lossless ones take any size.
_FRAME_SAMPLES = {"libopus": 960, "aac": 1024, "wmav2": 2048}
_DEFAULT_FRAME_SAMPLES = 1152


def encode_audio(path: Path, wave: np.ndarray, rate_hz: int) -> Path:
    """Write `wave`, (T,) or (T, C) with one or two channels, float in [-1, 1], to `path`; what lies outside is clipped.

    Raises:
        ValueError: a suffix that is not known, a wave of another shape, or with NaN or infinity.
    """
    import av

    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"{path.name}: cannot write this format; name it {', '.join(_FORMATS)}")
    channels_last = wave[:, None] if wave.ndim == 1 else wave
    if channels_last.ndim != 2 or channels_last.shape[1] not in (1, 2) or not len(channels_last):
        raise ValueError(f"{path.name}: expected a wave (T,), (T, 1) or (T, 2) with T > 0, got shape {wave.shape}")
    if not np.isfinite(channels_last).all():
        raise ValueError(f"{path.name}: the wave holds NaN or infinity")
    container_name, codec, sample_format, bit_rate = _FORMATS[path.suffix.lower()]
    integers = np.round(np.clip(channels_last, -1.0, 1.0) * 32767).astype(np.int16)
    layout = "mono" if integers.shape[1] == 1 else "stereo"
    with av.open(str(path), "w", format=container_name) as container:
        settings = {} if bit_rate is None else {"b": str(bit_rate)}
        stream = container.add_stream(codec, rate=rate_hz, options=settings)
        assert isinstance(stream, av.AudioStream)
        stream.layout = layout  # PyAV turns the names into its own types
        stream.format = sample_format
        size = _FRAME_SAMPLES.get(codec, _DEFAULT_FRAME_SAMPLES)
        for start in range(0, len(integers), size):
            block = integers[start : start + size]
            if sample_format == "fltp":
                block = block.astype(np.float32) / np.float32(32768)
            # Planar formats take (C, T), packed ones their interleaved samples as (1, T * C).
            data = block.T if sample_format.endswith("p") else block.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format=sample_format, layout=layout)
            frame.sample_rate = rate_hz
            frame.time_base = Fraction(1, rate_hz)
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
