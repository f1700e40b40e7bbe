"""A wave to the spans in which somebody speaks: the Silero network, version 6, that faster-whisper carries.

Silero VAD (Silero Team 2021, github.com/snakers4/silero-vad) answers with one probability per 32 ms at 16 kHz; the
spans follow from them by two thresholds, a shortest silence and a shortest speech. Only the ONNX file is used, so
neither ctranslate2 nor a recogniser is loaded. Axes: T samples, N windows.
"""

from dataclasses import dataclass

import numpy as np

from gsv_core.audio.resample import resample
from pipelines.engines.packaged import onnx_session, package_version, packaged_file
from pipelines.engines.protocols import Span

_RATE_HZ = 16_000
_WINDOW = 512
_CONTEXT = 64  # each window is seen with the end of the one before
_STATE = 128
_WINDOWS_PER_CALL = 4_096  # bounds the memory of one call; the state carries over, so the result is the same


@dataclass(frozen=True, kw_only=True)
class VoiceActivityConfig:
    """How probabilities become spans."""

    on: float = 0.5
    off: float = 0.35
    shortest_speech_s: float = 0.1
    shortest_silence_s: float = 0.2
    padding_s: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.off <= self.on < 1.0:
            raise ValueError(f"voice activity: need 0 < off <= on < 1, got {self.off} and {self.on}")
        if min(self.shortest_speech_s, self.shortest_silence_s, self.padding_s) < 0.0:
            raise ValueError(f"voice activity: need times >= 0, got {self}")


class SileroVoiceActivity:
    """The packaged Silero network on one thread."""

    def __init__(self, config: VoiceActivityConfig | None = None) -> None:
        self.config = config or VoiceActivityConfig()
        self.name = f"silero-v6 (faster-whisper {package_version('faster-whisper')})"
        self._session = onnx_session(packaged_file("faster_whisper", "assets/silero_vad_v6.onnx"))

    def speech(self, wave: np.ndarray, rate_hz: int) -> list[Span]:
        """Speech spans of `wave` (T,), disjoint, in order, in samples of `wave`."""
        scale = rate_hz / _RATE_HZ
        spans = []
        for start, end in self._windows_of_speech(self.probabilities(wave, rate_hz)):
            first = min(len(wave), max(0, round(start * scale)))
            last = min(len(wave), round(end * scale))
            if last > first:
                spans.append(Span(start_sample=first, num_samples=last - first))
        return spans

    def probabilities(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        """(T,) -> (N,) float32: the probability of speech in each 32 ms of `wave`."""
        if wave.ndim != 1:
            raise ValueError(f"voice activity: expected a mono wave (T,), got shape {wave.shape}")
        audio = resample(wave, rate_hz, _RATE_HZ)
        if not len(audio):
            return np.zeros(0, np.float32)
        windows = np.pad(audio, (0, -len(audio) % _WINDOW)).reshape(-1, _WINDOW)
        context = np.zeros((len(windows), _CONTEXT), np.float32)
        context[1:] = windows[:-1, -_CONTEXT:]
        inputs = np.concatenate([context, windows], axis=1)
        hidden = cell = np.zeros((1, 1, _STATE), np.float32)
        answers = []
        for at in range(0, len(inputs), _WINDOWS_PER_CALL):
            feeds = {"input": inputs[at : at + _WINDOWS_PER_CALL], "h": hidden, "c": cell}
            answer, hidden, cell = self._session.run(None, feeds)
            answers.append(answer.reshape(-1))
        return np.concatenate(answers)

    def _windows_of_speech(self, probabilities: np.ndarray) -> list[tuple[int, int]]:
        """(N,) -> (start, end) in 16 kHz samples, padded, disjoint."""
        config = self.config
        shortest_silence = config.shortest_silence_s * _RATE_HZ / _WINDOW
        runs: list[list[int]] = []  # [first window, window after the last]
        start, silent_from = None, None
        for index, probability in enumerate(probabilities):
            if probability >= config.on:
                start = index if start is None else start
                silent_from = None
            elif start is not None and probability < config.off:
                silent_from = index if silent_from is None else silent_from
                if index + 1 - silent_from >= shortest_silence:
                    runs.append([start, silent_from])
                    start = silent_from = None
        if start is not None:
            runs.append([start, silent_from if silent_from is not None else len(probabilities)])
        shortest = config.shortest_speech_s * _RATE_HZ / _WINDOW
        return self._padded([(first, last) for first, last in runs if last - first >= shortest])

    def _padded(self, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Each run with padding on both sides; where two would meet, they share the silence between them."""
        padding = round(self.config.padding_s * _RATE_HZ)
        edges = [(first * _WINDOW, last * _WINDOW) for first, last in runs]
        padded = []
        for index, (start, end) in enumerate(edges):
            before = start - edges[index - 1][1] if index else start
            after = edges[index + 1][0] - end if index + 1 < len(edges) else padding
            padded.append(
                (start - min(padding, before - before // 2 if index else before), end + min(padding, after // 2))
            )
        return padded
