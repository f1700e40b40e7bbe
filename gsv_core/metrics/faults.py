"""Speech, its tokens and what was heard of it to the faults that synthesis is known for.

Long pauses in the middle, a beginning or end that is cut off in full voice, words said again and again, tokens that
run in a circle. Axes: T samples, L frames.
"""

from collections.abc import Sequence

import numpy as np

from gsv_core.metrics.recognition import words_of
from gsv_core.metrics.signal import FRAME_S, frame_powers

_SILENCE_BELOW_DB = 40.0
_SILENCE_FLOOR = 1e-6  # -60 dB of full scale
_CUT_ABOVE_DB = -15.0
_LONGEST_PHRASE = 6
_LONGEST_CYCLE = 25
_FEWEST_ROUNDS = 3


def longest_pause_s(wave: np.ndarray, rate_hz: int) -> float:
    """The longest silence of (T,) between its first and last sound, in seconds; 0 where nothing sounds."""
    powers = frame_powers(wave, rate_hz)
    if not len(powers):
        return 0.0
    bound = max(float(np.quantile(powers, 0.9)) * 10.0 ** (-_SILENCE_BELOW_DB / 10.0), _SILENCE_FLOOR)
    sounding = np.flatnonzero(powers >= bound)
    return float(max(np.diff(sounding) - 1, default=0)) * FRAME_S


def cut_edges(wave: np.ndarray, rate_hz: int) -> tuple[bool, bool]:
    """Whether (T,) begins, and ends, within 15 dB of its loud parts: speech that was cut off, not finished."""
    powers = frame_powers(wave, rate_hz)
    loud = float(np.quantile(powers, 0.9)) if len(powers) else 0.0
    if loud <= _SILENCE_FLOOR:
        return False, False
    size = round(FRAME_S * rate_hz)
    bound = loud * 10.0 ** (_CUT_ABOVE_DB / 10.0)
    return tuple(float(np.var(edge.astype(np.float64))) > bound for edge in (wave[:size], wave[-size:]))  # type: ignore[return-value]


def repeated_share(reference: str, heard: str, language: str) -> float:
    """Share of the heard words that say again what was just said, beyond what the reference repeats itself.

    Phrases of up to six words; characters in languages without blanks.
    """
    expected, spoken = (words_of(text, language) for text in (reference, heard))
    return max(0, _repeated(spoken) - _repeated(expected)) / len(spoken) if spoken else 0.0


def longest_loop(tokens: Sequence[int]) -> int:
    """Length of the longest stretch of tokens that goes round in a cycle of up to 25, at least three times; else 0."""
    sequence = np.asarray(tokens)
    longest = 0
    for period in range(1, min(_LONGEST_CYCLE, len(sequence) // _FEWEST_ROUNDS) + 1):
        breaks = np.flatnonzero(sequence[period:] != sequence[:-period])
        ends = np.concatenate([[-1], breaks, [len(sequence) - period]])
        run = int(np.diff(ends).max()) - 1
        if run >= (_FEWEST_ROUNDS - 1) * period:
            longest = max(longest, run + period)
    return longest


def _repeated(words: Sequence[str]) -> int:
    again = np.zeros(len(words), dtype=bool)
    for size in range(1, _LONGEST_PHRASE + 1):
        for start in range(len(words) - 2 * size + 1):
            if words[start : start + size] == words[start + size : start + 2 * size]:
                again[start + size : start + 2 * size] = True
    return int(again.sum())
