"""A wave to an audio file, through PyAV: what the demonstration voices and listening samples are written with.

The file's suffix names the format: `.wav` and `.flac` are 16-bit and lossless, `.mp3` is lossy. The same wave gives the
same bytes. T samples, C channels.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np

# suffix: (container, codec, sample format, bits per second)
_FORMATS = {
    ".wav": ("wav", "pcm_s16le", "s16", None),
    ".flac": ("flac", "flac", "s16", None),
    ".mp3": ("mp3", "libmp3lame", "s16p", 96_000),
}
_FRAME_SAMPLES = 1152  # what an MP3 frame holds; the lossless codecs take any size


def encode_audio(path: Path, wave: np.ndarray, rate_hz: int) -> Path:
    """Write `wave`, (T,) or (T, C) with one or two channels, float in [-1, 1], to `path`; what lies outside is clipped.

    Raises:
        ValueError: a suffix that is not `.wav`, `.flac` or `.mp3`, a wave of another shape, or with NaN or infinity.
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
        for start in range(0, len(integers), _FRAME_SAMPLES):
            block = integers[start : start + _FRAME_SAMPLES]
            # Planar formats take (C, T), packed ones their interleaved samples as (1, T * C).
            data = block.T if sample_format.endswith("p") else block.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format=sample_format, layout=layout)
            frame.sample_rate = rate_hz
            frame.time_base = Fraction(1, rate_hz)
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
