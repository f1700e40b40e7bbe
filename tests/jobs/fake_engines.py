"""Engines that answer at once and always the same, for tests of what is done with their answers."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from gsv_core.checkpoints.base import BaseModel
from jobs.scoring import Models


@dataclass
class Recogniser:
    """Hears what it is told to, in English."""

    text: str = "good morning"
    name: str = "told"

    def speaks(self, language: str | None) -> bool:
        return language == "en"

    def transcribe(self, wave: np.ndarray, rate_hz: int, language: str | None) -> SimpleNamespace:
        del wave, rate_hz, language
        return SimpleNamespace(text=self.text)


class Verifier:
    """Four bands of the spectrum stand for a speaker."""

    name, width = "bands", 4

    def embed(self, wave: np.ndarray, rate_hz: int) -> np.ndarray:
        del rate_hz
        power = np.abs(np.fft.rfft(wave[:16_000])) ** 2
        vector = np.array([part.sum() for part in np.array_split(power, 4)], dtype=np.float32)
        return vector / np.linalg.norm(vector)


class Quality:
    """As good as loud."""

    name = "loudness"

    def predict(self, wave: np.ndarray, rate_hz: int) -> float:
        del rate_hz
        return float(1 + 4 * min(1.0, np.abs(wave).max()))


def fake_models(base: BaseModel | None = None, text: str = "good morning") -> Models:
    names = {"recogniser": "told", "speaker_verifier": "bands", "quality": "loudness"}
    return Models(recogniser=Recogniser(text), verifier=Verifier(), quality=Quality(), base=base, names=names)
