import io
import json
import time

import numpy as np
import pytest
import soundfile

from gsv_core.audio.resample import resample
from gsv_core.metrics.fingerprint import MOST_DISTANCE, find_copies, fingerprint
from pipelines.engines.decoder import decode
from tests.shared import shared_path

RATE_HZ = 16_000


def spoken(path: str) -> tuple[np.ndarray, int]:
    wave, rate_hz = soundfile.read(shared_path(f"recordings/voices/{path}"), dtype="float32")
    return wave, rate_hz


def babble(seed: int, seconds: float = 5.0) -> np.ndarray:
    """Noise in bands that come and go at the pace of syllables: as many bits change as in speech."""
    random = np.random.default_rng(seed)
    count = round(seconds * RATE_HZ)
    spectrum = np.fft.rfft(random.standard_normal(count))
    frequencies = np.fft.rfftfreq(count, 1 / RATE_HZ)
    wave = np.zeros(count)
    for low in (300, 600, 1_000, 1_500):
        band = np.where((frequencies >= low) & (frequencies < 1.6 * low), spectrum, 0)
        pace = np.interp(np.arange(count), np.arange(0, 2_000 * 100, 2_000), random.random(100))
        wave += np.fft.irfft(band, count) * pace
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


def mp3(wave: np.ndarray) -> tuple[np.ndarray, int]:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE_HZ, format="MP3", subtype="MPEG_LAYER_III")
    buffer.seek(0)
    return soundfile.read(buffer, dtype="float32")


def copies(waves: list[tuple[np.ndarray, int]]) -> dict[int, int]:
    codes = [fingerprint(wave, rate_hz) for wave, rate_hz in waves]
    return {place: copy.of for place, copy in find_copies(codes, range(len(codes))).items()}


def test_copies_are_known_by_level_rate_codec_noise_and_shift() -> None:
    own = babble(1)
    noise = np.random.default_rng(0).standard_normal(len(own)).astype(np.float32) * own.std() / 10
    others = [(babble(seed), RATE_HZ) for seed in range(2, 8)]
    made = [
        (own, RATE_HZ),
        (0.05 * own, RATE_HZ),
        (resample(own, RATE_HZ, 44_100), 44_100),
        mp3(own),
        (own + noise, RATE_HZ),
        (own[4_321:], RATE_HZ),  # 0.27 s later, and not a whole number of hops
        (np.concatenate([babble(9, 1.0), own[: 3 * RATE_HZ]]), RATE_HZ),
    ]
    assert copies([*made, *others]) == dict.fromkeys(range(1, len(made)), 0)


def test_half_of_the_shorter_one_makes_a_copy_and_less_does_not() -> None:
    own = babble(1)
    most = np.concatenate([own[: 3 * RATE_HZ], babble(2, 2.0)])
    least = np.concatenate([own[:RATE_HZ], babble(3, 4.0)])
    assert copies([(own, RATE_HZ), (most, RATE_HZ), (least, RATE_HZ)]) == {1: 0}


def test_the_preferred_one_stands_for_the_others() -> None:
    codes = [fingerprint(babble(1), RATE_HZ) for _ in range(3)]
    found = find_copies(codes, [2, 0, 1])
    assert {place: (copy.of, copy.distance) for place, copy in found.items()} == {0: (2, 0.0), 1: (2, 0.0)}


def test_what_stands_between_two_goes_and_both_stay() -> None:
    """The middle one shares most with either; once it is gone they have a second in common."""
    long = babble(1, 9.0)
    parts = [long[round(start * RATE_HZ) : round((start + 4) * RATE_HZ)] for start in (0.0, 1.5, 3.0)]
    codes = [fingerprint(part, RATE_HZ) for part in parts]
    assert find_copies(codes, [0, 1, 2]).keys() == {1}


def test_another_reading_of_the_same_words_is_no_copy() -> None:
    """A reader never keeps the pace of the first time: here by 4 % at most, in waves."""
    own = babble(1)
    places = np.arange(len(own)) + 0.04 * RATE_HZ / np.pi * np.sin(2 * np.pi * np.arange(len(own)) / RATE_HZ)
    again = np.interp(places, np.arange(len(own)), own).astype(np.float32)
    assert copies([(own, RATE_HZ), (again, RATE_HZ)]) == {}


@pytest.mark.parametrize("nothing", [np.zeros(0, dtype=np.float32), np.zeros(1_000, dtype=np.float32)])
def test_too_short_for_a_fingerprint(nothing: np.ndarray) -> None:
    assert len(fingerprint(nothing, RATE_HZ)) == 0
    assert find_copies([fingerprint(nothing, RATE_HZ)] * 2, [0, 1]) == {}


def test_silence_is_no_copy_of_silence() -> None:
    assert copies([(np.zeros(3 * RATE_HZ, dtype=np.float32), RATE_HZ)] * 2) == {}


def test_ten_thousand_clips_take_seconds() -> None:
    random = np.random.default_rng(0)
    # Each frame keeps about nine tenths of the bits of the one before, as overlapping frames do.
    flips = random.random((10_000 * 150, 32)) < 0.08
    codes = np.bitwise_xor.accumulate(np.packbits(flips, axis=1).view("<u4").reshape(10_000, 150), axis=1)
    clips = [*codes, *(clip[3:] for clip in codes[:50])]
    started = time.process_time()
    found = find_copies(clips, range(len(clips)))
    assert {place: copy.of for place, copy in found.items()} == {10_000 + number: number for number in range(50)}
    assert time.process_time() - started < 10


def test_real_copies_are_found_and_other_takes_are_not() -> None:
    takes = [f"lj/clips/LJ001-00{number}.wav" for number in range(21, 25)]
    session, rate_hz = spoken("../bad/two_speakers.wav")
    turns = [(session[round(a * rate_hz) : round(b * rate_hz)], rate_hz) for a, b in ((1.0, 9.4), (19.0, 26.1))]
    waves = [*map(spoken, takes), spoken("../bad/UPPERCASE.WAV"), *turns]
    # LJ001-0024, LJ001-0023 and LJ001-0022 over again.
    assert copies(waves) == {4: 3, 5: 2, 6: 1}


def test_the_same_words_of_two_people_are_no_copies() -> None:
    """Both read the rainbow passage."""
    texts: dict[str, list[tuple[np.ndarray, int]]] = {}
    for file in ("vctk_p226/p226_session_a.m4a", "vctk_p287_noisy/p287_noisy_16k.wav"):
        truth = json.loads(shared_path(f"recordings/truth/{file.replace('/', '__')}.json").read_text())
        heard = decode(shared_path(f"recordings/voices/{file}"))
        for clip in truth["clips"]:
            start, end = (round(clip[key] * heard.rate_hz) for key in ("start_s", "end_s"))
            texts.setdefault(clip["text"], []).append((heard.wave.mean(axis=1)[start:end], heard.rate_hz))
    twice = [waves for waves in texts.values() if len(waves) > 1]
    assert twice
    assert all(copies(waves) == {} for waves in twice)


def test_unrelated_fingerprints_are_far_from_the_limit() -> None:
    one, other = (fingerprint(babble(seed), RATE_HZ) for seed in (1, 2))
    differing = np.bitwise_count(one ^ other).mean() / 32
    assert differing > MOST_DISTANCE + 0.1
