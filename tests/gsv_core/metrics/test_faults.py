import numpy as np
import pytest

from gsv_core.metrics.faults import cut_edges, longest_loop, longest_pause_s, repeated_share

RATE_HZ = 16_000


def _sound(seconds):
    return (0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ))).astype(np.float32)


def _silence(seconds):
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def test_only_pauses_inside_count():
    wave = np.concatenate([_silence(2), _sound(1), _silence(0.3), _sound(1), _silence(1.2), _sound(1), _silence(3)])
    assert longest_pause_s(wave, RATE_HZ) == pytest.approx(1.2, abs=0.03)
    assert longest_pause_s(_sound(2), RATE_HZ) == 0.0
    assert longest_pause_s(_silence(2), RATE_HZ) == 0.0
    assert longest_pause_s(_silence(0), RATE_HZ) == 0.0


def test_speech_cut_off_at_full_voice_is_seen():
    fade = np.linspace(0, 1, RATE_HZ // 5).astype(np.float32)
    faded = _sound(1)
    faded[: len(fade)] *= fade**2
    faded[-len(fade) :] *= fade[::-1] ** 2
    assert cut_edges(faded, RATE_HZ) == (False, False)
    assert cut_edges(faded[: RATE_HZ // 2], RATE_HZ) == (False, True)
    assert cut_edges(faded[RATE_HZ // 2 :], RATE_HZ) == (True, False)
    assert cut_edges(_silence(1), RATE_HZ) == (False, False)


@pytest.mark.parametrize(
    ("reference", "heard", "language", "expected"),
    [
        ("the cat sat", "the cat sat", "en", 0.0),
        ("the cat sat", "the the the cat sat", "en", 2 / 5),
        ("the cat sat", "the cat the cat the cat sat", "en", 4 / 7),
        ("that that is is", "that that is is", "en", 0.0),  # the text itself says it twice
        ("今天天气好", "今天今天今天天气好", "zh", 4 / 9),
        ("爸爸回来了", "爸爸回来了", "zh", 0.0),
        ("the cat sat", "", "en", 0.0),
    ],
)
def test_words_said_again(reference, heard, language, expected):
    assert repeated_share(reference, heard, language) == pytest.approx(expected)


def test_tokens_that_run_in_a_circle():
    rng = np.random.default_rng(0)
    lively = rng.permutation(1000)[:80].tolist()
    assert longest_loop(lively) == 0
    assert longest_loop([]) == 0
    assert longest_loop(lively + [5] * 40 + lively) == 40
    cycle = [1, 2, 3, 4, 5, 6, 7]
    assert longest_loop(lively + cycle * 5 + [1, 2] + lively[::-1]) == 37
    assert longest_loop(lively + cycle * 2 + lively) == 0  # twice is no circle
