"""Waves for tests that need no recording."""

import numpy as np


def tone(seconds: float, rate_hz: int, hz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """(T,) a sine."""
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def speech_like(seconds: float, rate_hz: int, seed: int = 0, pitch_hz: float = 120.0) -> np.ndarray:
    """(T,) a buzz with four syllables a second: enough for a network to have something to chew."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    phase = 2 * np.pi * pitch_hz * time + 0.3 * np.sin(2 * np.pi * 5 * time)
    harmonics = sum(np.sin(order * phase) / order for order in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 4 * time), 0, 1) ** 0.5
    return (0.1 * harmonics * syllables + 0.001 * random.standard_normal(len(time))).astype(np.float32)
