"""A wave to the opinion listeners would have of it: DNSMOS P.835 overall, the network that speechmos carries.

Reddy, Gopal, Cutler 2022, "DNSMOS P.835: a non-intrusive perceptual objective speech quality metric", arXiv:2110.01763.
The network hears 9.01 s at 16 kHz; a shorter wave is repeated until it is long enough, a longer one is heard in up to
`windows` evenly spaced places. Only the ONNX file is used: this model needs no spectrogram, so no librosa.
Axes: T samples.
"""

import numpy as np

from gsv_core.audio.resample import resample
from pipelines.engines.packaged import onnx_session, package_version, packaged_file

_RATE_HZ = 16_000
_INPUT_SAMPLES = 144_160
# The published model maps its raw overall score to the opinion scale by this polynomial (highest power first).
_OVERALL = (-0.06766283, 1.11546468, 0.04602535)


class DnsmosQuality:
    """Predicted overall opinion on the 1 to 5 scale, higher is better."""

    def __init__(self, *, windows: int = 2) -> None:
        if windows < 1:
            raise ValueError(f"dnsmos: needs at least one window, got {windows}")
        self.name = f"dnsmos-p835-overall (speechmos {package_version('speechmos')})"
        self._windows = windows
        self._session = onnx_session(packaged_file("speechmos", "dnsmos_models/sig_bak_ovr.onnx"))

    def predict(self, wave: np.ndarray, rate_hz: int) -> float:
        """(T,) float32 -> the mean over its windows.

        Raises:
            ValueError: the wave is empty or not mono.
        """
        if wave.ndim != 1 or not len(wave):
            raise ValueError(f"dnsmos: expected a mono wave (T,) with T > 0, got shape {wave.shape}")
        audio = np.clip(resample(wave, rate_hz, _RATE_HZ), -1.0, 1.0)
        raw = [self._session.run(None, {"input_1": window[None]})[0][0, 2] for window in self._split(audio)]
        return float(np.mean(np.polyval(_OVERALL, np.asarray(raw, np.float64))))

    def _split(self, audio: np.ndarray) -> list[np.ndarray]:
        if len(audio) < _INPUT_SAMPLES:
            return [np.resize(audio, _INPUT_SAMPLES)]
        spare = len(audio) - _INPUT_SAMPLES
        # One window per started second beyond the first, as the published script hears it, but no more than asked for.
        count = min(self._windows, 1 + spare // _RATE_HZ)
        starts = [spare // 2] if count == 1 else [spare * index // (count - 1) for index in range(count)]
        return [audio[start : start + _INPUT_SAMPLES] for start in starts]
