"""A recording that may be followed, and those that may not."""

import numpy as np
import pytest
import torch

from gsv_core.synthesis.reference import check_reference, prompt_of_reference, sound_seconds
from gsv_core.synthesis.synthesiser import Prompt
from tests.gsv_core.made_items import made_wave

RATE_HZ = 32_000


def speech(seconds: float) -> np.ndarray:
    return made_wave(3, seconds).numpy()


@pytest.mark.parametrize(("seconds", "fits"), [(2.9, False), (3.0, True), (10.0, True), (10.1, False)])
def test_a_reference_lasts_three_to_ten_seconds(seconds, fits):
    if fits:
        check_reference(speech(seconds), RATE_HZ)
    else:
        with pytest.raises(ValueError, match=rf"3 to 10 s, got {seconds} s"):
            check_reference(speech(seconds), RATE_HZ)


@pytest.mark.parametrize("level", [0.0, 1e-4])
def test_a_silent_reference_is_refused(level):
    noise = np.random.default_rng(0).normal(0, level, 4 * RATE_HZ).astype(np.float32)
    with pytest.raises(ValueError, match=r"1 s of speech or more; this is silent but for 0\.0 s"):
        check_reference(noise, RATE_HZ)


def test_a_click_is_no_speech():
    wave = np.zeros(5 * RATE_HZ, dtype=np.float32)
    wave[RATE_HZ : RATE_HZ + 3200] = speech(0.1)
    assert sound_seconds(wave, RATE_HZ) == pytest.approx(0.1, abs=0.03)
    with pytest.raises(ValueError, match="silent but for"):
        check_reference(wave, RATE_HZ)


def test_two_speakers_are_told_apart_where_somebody_can_tell():
    wave = np.concatenate([speech(4), 0.9 * speech(4)])
    middle = 4 * RATE_HZ
    calls = []

    def who(part, rate_hz):
        calls.append(rate_hz)
        second = np.shares_memory(part, wave[middle:]) and not np.shares_memory(part, wave[:middle])
        return np.array([0.2, 1.0]) if second else np.array([1.0, 0.2])

    with pytest.raises(ValueError, match=r"one speaker; .* alike to only 0\.38 \(one speaker has 0\.55 or more\)"):
        check_reference(wave, RATE_HZ, embed=who, least_consistency=0.55)
    check_reference(wave, RATE_HZ, embed=who, least_consistency=0.2)
    check_reference(wave, RATE_HZ, embed=lambda part, rate_hz: np.array([1.0, 0.2]), least_consistency=0.55)
    assert set(calls) == {RATE_HZ}


def test_without_its_text_a_reference_gives_its_timbre_alone(base):
    prompt = prompt_of_reference(base, speech(3), RATE_HZ)
    assert len(prompt.phoneme_ids) == len(prompt.tokens) == 0
    assert prompt.speaker_vector is not None
    np.testing.assert_array_equal(prompt.wave.numpy(), speech(3))


def test_with_its_text_it_is_a_prompt_with_silence_behind(base):
    prompt = prompt_of_reference(base, speech(3), RATE_HZ, "hello there", "en")
    plain = Prompt.of(base, speech(3), "hello there", "en", silence_s=0.6)
    assert torch.equal(prompt.tokens, plain.tokens)
    assert torch.equal(prompt.phoneme_ids, plain.phoneme_ids)
    with pytest.raises(ValueError, match="text needs its language"):
        prompt_of_reference(base, speech(3), RATE_HZ, "hello there")


def test_a_reference_of_another_rate_is_resampled(base):
    prompt = prompt_of_reference(base, speech(3)[::2].copy(), 16_000)
    assert len(prompt.wave) == 3 * RATE_HZ
