"""What a recording says, in another voice; and that nothing is heard of the windows a long one goes through."""

from dataclasses import replace

import numpy as np
import pytest

from gsv_core.checkpoints.base import load_published
from gsv_core.checkpoints.releases import Release
from gsv_core.features import encoder_wave, tokens_of
from gsv_core.synthesis import conversion
from gsv_core.synthesis.conversion import SAMPLES_PER_TOKEN, Windows, convert, source_tokens, windows_of
from gsv_core.synthesis.synthesiser import Prompt, Synthesiser
from tests.gsv_core.made_bases import small_mel_release, write_mel_release
from tests.gsv_core.made_items import made_wave

SHORT = Windows(most_tokens=64, context_tokens=24)


@pytest.fixture(scope="module")
def prompt(base):
    return Prompt.of(base, made_wave(0, 1.5).numpy(), "hello there", "en")


def source(seconds=3.0):
    return made_wave(5, seconds).numpy()


def test_windows_cover_every_token_once_and_end_where_it_is_quiet():
    wave = source(20.0)
    quiet = 50 * SAMPLES_PER_TOKEN
    wave[quiet - 4000 : quiet + 4000] = 0.0
    found = list(windows_of(wave, 500, SHORT))
    assert [found[0].start, *(window.end for window in found)] == [0, *(window.start for window in found[1:]), 500]
    assert found[0].end in (48, 52)
    assert all(32 <= window.end - window.start <= 64 for window in found[:-1])
    assert all(window.first == max(0, window.start - 24) for window in found)
    assert all(window.last == min(500, window.end + 24) for window in found)
    assert len(list(windows_of(wave, 500, Windows()))) == 1
    for wrong in ({"most_tokens": 60}, {"context_tokens": 0}, {"context_tokens": 6}):
        with pytest.raises(ValueError, match="multiples of 8 and 4"):
            Windows(**wrong)


def test_a_source_gives_a_token_for_every_twenty_fifth_of_a_second(base):
    synthesiser = Synthesiser(base)
    for seconds in (1.0, 1.01, 3.333):
        assert len(source_tokens(synthesiser, source(seconds))) == int(np.ceil(len(source(seconds)) / 1280))
    whole = tokens_of(base, base.content_encoder.encode(encoder_wave(source())).half())
    assert (source_tokens(synthesiser, source())[:70] == whole[:70]).float().mean() > 0.9


def test_what_is_converted_is_as_long_as_its_source_and_sounds_like_the_voice(base, prompt):
    synthesiser = Synthesiser(base)
    speech = convert(synthesiser, source(), prompt, seed=1)
    assert speech.rate_hz == 32_000
    assert speech.seconds == pytest.approx(3.0, abs=0.041)
    assert 0 < np.abs(speech.wave).max() <= 1
    assert np.array_equal(speech.wave, convert(synthesiser, source(), prompt, seed=1).wave)
    others = [
        convert(synthesiser, source(), prompt, seed=2),
        convert(synthesiser, source(), replace(prompt, wave=made_wave(9, 1.5)), seed=1),
        convert(synthesiser, source(), prompt, seed=1, text="good morning", language="en"),
    ]
    assert len({speech.wave.tobytes(), *(other.wave.tobytes() for other in others)}) == 4
    assert {other.tokens for other in others} == {speech.tokens}
    half = convert(synthesiser, source(), prompt, seed=1, rate_hz=16_000)
    assert (half.rate_hz, len(half.wave)) == (16_000, len(speech.wave) // 2)


def test_nothing_is_heard_of_the_windows(base, prompt, monkeypatch):
    synthesiser = Synthesiser(base)
    wave = source(12.0)
    tokens = source_tokens(synthesiser, wave)
    monkeypatch.setattr(conversion, "source_tokens", lambda *_: tokens)
    whole = convert(synthesiser, wave, prompt)
    cut = convert(synthesiser, wave, prompt, layout=Windows(most_tokens=96, context_tokens=48))
    assert len(cut.wave) == len(whole.wave)
    places = [window.end * SAMPLES_PER_TOKEN for window in windows_of(wave, 300, Windows(most_tokens=96))][:-1]
    assert len(places) >= 3
    # A seam is a step from one sample to the next, which the whole does not have.
    steps, own = np.abs(np.diff(cut.wave)), np.abs(np.diff(whole.wave))
    for place in places:
        around = slice(place - 400, place + 400)
        assert steps[around].max() <= 1.5 * own.max()
        error = ((cut.wave[around] - whole.wave[around]) ** 2).mean()
        assert error < 0.05 * (whole.wave[around] ** 2).mean()


def test_windows_do_not_change_the_tokens_of_an_encoder_that_hears_locally(base):
    class Local:
        """Each frame by itself: bands of its own samples."""

        def encode(self, wave):
            frames = wave[: len(wave) // 320 * 320].reshape(-1, 320)[:-1]
            return 10 * frames[:, : base.content_encoder.width]

    synthesiser = Synthesiser(base)
    synthesiser.base = replace(base, content_encoder=Local())
    wave = source(10.0)
    tokens = source_tokens(synthesiser, wave, SHORT), source_tokens(synthesiser, wave, Windows())
    assert len(tokens[0].unique()) > 20
    assert (tokens[0] == tokens[1]).float().mean() > 0.98  # resampling differs in the last bits


def test_a_source_that_says_nothing_is_refused(base, prompt):
    synthesiser = Synthesiser(base)
    for wave in (source(0.3), np.zeros(64_000, dtype=np.float32)):
        with pytest.raises(ValueError, match="not be silent, got"):
            convert(synthesiser, wave, prompt)
    with pytest.raises(ValueError, match="text needs its language"):
        convert(synthesiser, source(), prompt, text="hello")
    with pytest.raises(ValueError, match="steps and guidance belong to v3 and v4"):
        convert(synthesiser, source(), prompt, steps=3)


@pytest.mark.parametrize("release", [Release.V3, Release.V4])
def test_releases_with_a_vocoder_convert_with_a_prompt_whose_text_is_known(release, tmp_path):
    spec = small_mel_release(release)
    write_mel_release(tmp_path, spec)
    base = load_published(spec, tmp_path)
    prompt = Prompt.of(base, made_wave(0, 1.5).numpy(), "hello there", "en")
    synthesiser = Synthesiser(base)
    speech = convert(synthesiser, source(6.0), prompt, steps=1, layout=SHORT)
    assert speech.rate_hz == {Release.V3: 24_000, Release.V4: 48_000}[release]
    assert speech.seconds == pytest.approx(6.0, abs=0.05)
    silent = replace(prompt, phoneme_ids=prompt.phoneme_ids[:0])
    with pytest.raises(ValueError, match=f"{release} converts only with a Prompt whose text is known"):
        convert(synthesiser, source(), silent)
