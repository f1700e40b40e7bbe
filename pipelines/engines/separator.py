"""A wave to the same wave without its noise: RNNoise, whose trained network pyrnnoise carries.

Valin 2018, "A hybrid DSP/deep learning approach to real-time full-band speech enhancement", arXiv:1709.08243. Only the
compiled library is used, through ctypes: the package's own modules would import plotting and audio tools that are not
needed. It works at 48 kHz in frames of 10 ms and answers two frames late, which is taken back. Axes: T samples.
"""

import ctypes
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from gsv_core.audio.resample import resample
from pipelines.engines.packaged import package_version, packaged_file
from pipelines.engines.protocols import Separator

SEPARATORS = ("rnnoise",)
_PACKAGES = {"rnnoise": "pyrnnoise"}
_LIBRARIES = {"darwin": "librnnoise.dylib", "win32": "rnnoise.dll"}
_RATE_HZ = 48_000
_LATE_FRAMES = 2
_FULL_SCALE = 32_768.0


def separator_versions(engine: str) -> dict[str, str]:
    """Package → version of the engine: another version may hear otherwise.

    Raises:
        ValueError: it is not installed.
    """
    package = _PACKAGES[engine]
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        raise ValueError(
            f"flow.separation: the package {package} is missing: pip install 'gsv-fleet[separation]'"
        ) from None


def load_separator(engine: str) -> Separator:
    """The engine of that name."""
    assert engine == "rnnoise"
    return RnnoiseSeparator()


class RnnoiseSeparator:
    """RNNoise with the weights that are compiled into its library."""

    def __init__(self) -> None:
        """Raises: ValueError where pyrnnoise is not installed."""
        self.name = f"rnnoise (pyrnnoise {package_version('pyrnnoise')})"
        library: Any = ctypes.CDLL(str(packaged_file("pyrnnoise", _LIBRARIES.get(sys.platform, "librnnoise.so"))))
        library.rnnoise_create.argtypes = [ctypes.c_void_p]
        library.rnnoise_create.restype = ctypes.c_void_p
        library.rnnoise_destroy.argtypes = [ctypes.c_void_p]
        library.rnnoise_process_frame.argtypes = [ctypes.c_void_p] * 3
        library.rnnoise_process_frame.restype = ctypes.c_float
        self._library = library
        self._frame = int(library.rnnoise_get_frame_size())

    def separate(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        """(T,) float32 in [-1, 1] -> (T,), the speech of it.

        Raises:
            ValueError: the wave is empty or not mono.
        """
        if wave.ndim != 1 or not len(wave):
            raise ValueError(f"rnnoise: expected a mono wave (T,) with T > 0, got shape {wave.shape}")
        noisy = resample(wave, rate_hz, _RATE_HZ)
        frames = -(-len(noisy) // self._frame) + _LATE_FRAMES
        heard = np.zeros(frames * self._frame, np.float32)
        heard[: len(noisy)] = noisy * _FULL_SCALE
        spoken = np.empty_like(heard)
        state = self._library.rnnoise_create(None)
        try:
            for offset in range(0, heard.nbytes, self._frame * heard.itemsize):
                self._library.rnnoise_process_frame(state, spoken.ctypes.data + offset, heard.ctypes.data + offset)
        finally:
            self._library.rnnoise_destroy(state)
        late = _LATE_FRAMES * self._frame
        clean = resample(spoken[late : late + len(noisy)] / np.float32(_FULL_SCALE), _RATE_HZ, rate_hz)
        # Two resamplings may end a sample early or late.
        return np.pad(clean, (0, max(0, len(wave) - len(clean))))[: len(wave)]
