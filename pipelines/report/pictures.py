"""A wave as people look at it: its outline as SVG, its spectrogram as a PNG that a page carries inside.

Axes: T samples, F frequency bins, L columns.
"""

import struct
import zlib

import numpy as np
from markupsafe import Markup

_COLUMNS = 320
_WINDOW = 1024
_LOWEST_DB = -80.0
_COLOURS = np.array(
    [[13, 14, 28], [36, 40, 88], [28, 92, 112], [64, 150, 120], [184, 196, 110], [250, 240, 205]], dtype=np.float32
)
"""From silence to the loudest, growing in lightness, so that it also reads in grey."""


def outline(wave: np.ndarray, *, title: str, height: int = 48) -> Markup:
    """The lowest and highest sample of each of some hundred columns of `wave` (T,), within [-1, 1]."""
    edges = np.linspace(0, len(wave), min(_COLUMNS, len(wave)) + 1).astype(int)[:-1]
    lows, highs = np.minimum.reduceat(wave, edges), np.maximum.reduceat(wave, edges)
    middle = height / 2
    upper = [f"{x},{middle - middle * min(1.0, float(y)):.1f}" for x, y in enumerate(highs)]
    lower = [f"{x},{middle - middle * max(-1.0, float(y)):.1f}" for x, y in enumerate(lows)]
    return Markup(
        '<svg class="outline" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<polygon points="{}"/></svg>'
    ).format(len(edges), height, title, " ".join(upper + lower[::-1]))


def spectrogram_png(wave: np.ndarray, rate_hz: int, *, height: int = 96, highest_hz: float = 8_000.0) -> bytes:
    """Energy over time and frequency of `wave` (T,), 80 dB of it; low frequencies at the bottom, on a root scale."""
    padded = np.pad(wave.astype(np.float32), _WINDOW // 2)
    starts = np.linspace(0, len(padded) - _WINDOW, min(_COLUMNS, max(1, len(wave) // 64))).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[starts] * np.hanning(_WINDOW)
    energy = np.abs(np.fft.rfft(frames, axis=1)) ** 2  # (L, F)
    top = min(highest_hz, rate_hz / 2)
    # Speech lives below, so lower bins get more of the height.
    wanted = top * np.linspace(0, 1, height) ** 1.6
    bins = np.clip(np.round(wanted * _WINDOW / rate_hz).astype(int), 0, energy.shape[1] - 1)
    level = 10 * np.log10(energy[:, bins] / max(float(energy.max(initial=0.0)), 1e-12) + 1e-12)
    shade = np.clip(1 - level / _LOWEST_DB, 0, 1).T[::-1]  # (height, L), low frequencies last
    position = shade * (len(_COLOURS) - 1)
    lower = np.minimum(position.astype(int), len(_COLOURS) - 2)
    part = (position - lower)[..., None]
    return png((_COLOURS[lower] * (1 - part) + _COLOURS[lower + 1] * part).astype(np.uint8))


def png(pixels: np.ndarray) -> bytes:
    """`pixels` (height, width, 3) uint8 as a PNG file (ISO/IEC 15948)."""
    height, width, _ = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # filter type 0

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
