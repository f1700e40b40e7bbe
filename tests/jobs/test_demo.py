"""The demonstration voices are what they say: decodable, with text where it is said, the same bytes every time."""

import hashlib
import re
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import yaml

pytest.importorskip("espeakng_loader", reason="the extra `demo` is not installed")

from jobs import demo, espeak
from pipelines.engines.audio_writer import encode_audio


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    return demo.make_demo_voices(tmp_path_factory.mktemp("demo") / "recordings")


def _read(path):
    """(T, C) float32 and its rate, by PyAV directly: the writer is what is under test."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        planar = av.AudioResampler(format="fltp")
        blocks = [part.to_ndarray() for frame in container.decode(stream) for part in planar.resample(frame)]
        return np.concatenate(blocks, axis=1).T, stream.rate


def test_formats_rates_and_lengths(voices):
    seconds = {"ada": 0.0, "linus": 0.0}
    seen = set()
    for path in sorted(voices.glob("*/*")):
        if path.suffix in (".wav", ".flac", ".mp3"):
            wave, rate_hz = _read(path)
            seconds[path.parent.name] += len(wave) / rate_hz
            seen.add((path.suffix, rate_hz, wave.shape[1]))
            assert 0.1 < np.abs(wave).max() < 1.0, f"{path.name} is silent or clipped"
            assert (path.with_suffix(".txt").exists()) != (path.with_suffix(".srt").exists())
    assert seen == {(".wav", 44_100, 2), (".flac", 48_000, 1), (".mp3", 44_100, 1)}
    assert all(65 < length < 85 for length in seconds.values()), seconds


def test_subtitles_lie_on_the_speech(voices):
    wave, rate_hz = _read(voices / "linus" / "radio_hour.mp3")
    text = (voices / "linus" / "radio_hour.srt").read_text(encoding="utf-8")
    stamps = re.findall(r"(\d+):(\d+):(\d+),(\d+) --> (\d+):(\d+):(\d+),(\d+)", text)
    spans = []
    for stamp in stamps:
        numbers = list(map(int, stamp))
        spans.append([h * 3600 + m * 60 + s + ms / 1000 for h, m, s, ms in (numbers[:4], numbers[4:])])
    assert len(spans) == 12
    inside = np.zeros(len(wave), dtype=bool)
    for start_s, end_s in spans:
        assert 3.0 < end_s - start_s < 8.0
        inside[round((start_s - 0.03) * rate_hz) : round((end_s + 0.06) * rate_hz)] = True
    level = np.abs(wave[:, 0])
    assert np.sqrt(np.mean(level[inside] ** 2)) > 30 * np.sqrt(np.mean(level[~inside] ** 2))
    pauses = [later[0] - earlier[1] for earlier, later in pairwise(spans)]
    assert min(pauses) > 0.59
    assert max(pauses) < 1.01


def test_transcripts_and_consent(voices):
    ada = " ".join(path.read_text(encoding="utf-8").strip() for path in sorted((voices / "ada").glob("*.txt")))
    assert len(re.findall(r"[.?]", ada)) == 12
    for voice in ("ada", "linus"):
        known = yaml.safe_load((voices / voice / "voice.yaml").read_text(encoding="utf-8"))
        assert known["language"] == "en"
        assert set(known["consent"]) == {"by", "reference", "purpose"}
    assert "synthetic" in (voices / "README.txt").read_text(encoding="utf-8")


def test_there_are_clips_enough_to_hold_some_out(voices, tmp_path):
    """Neighbours that fit in one clip would be joined, and a voice of fewer than ten clips holds none out."""
    from pipelines.sources import gather
    from pipelines.stages.ingest import IngestSources
    from pipelines.stages.normalise import NormaliseRecordings
    from pipelines.stages.slice import SliceRecordings
    from pipelines.storage import LocalStorage

    ingest, normalise, cut = IngestSources(), NormaliseRecordings(), SliceRecordings()
    engine = cut.load()
    clips = {"ada": 0, "linus": 0}
    for source in gather(voices, LocalStorage(tmp_path), language=None).sources:
        for recording in ingest.process(source, ingest.load()):
            for levelled in normalise.process(recording, normalise.load()):
                clips[source.voice] += sum(len(row.clips) for row in cut.process(levelled, engine))
    assert clips == {"ada": 12, "linus": 12}


def test_twice_gives_the_same_bytes(voices, tmp_path):
    time.sleep(1.1)  # eSpeak seeds its noise with the second it starts in, unless told otherwise
    again = demo.make_demo_voices(tmp_path)
    for path in sorted(file for file in voices.rglob("*") if file.is_file()):
        twin = again / path.relative_to(voices)
        assert hashlib.sha256(twin.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest(), path.name


def test_every_supported_language_speaks():
    waves = espeak.speak(
        [
            espeak.Sentence(text="今天天气很好。", voice="cmn"),
            espeak.Sentence(text="こんにちは。", voice="ja"),
            espeak.Sentence(text="안녕하세요.", voice="ko"),
            espeak.Sentence(text="你好。", voice="yue"),
        ]
    )
    assert all(len(wave) > 0.3 * espeak.RATE_HZ and np.abs(wave).max() > 0.1 for wave in waves)


def test_unknown_voice_is_named():
    with pytest.raises(ValueError, match="no voice named 'martian'"):
        espeak.speak([espeak.Sentence(text="Hello.", voice="martian")])


def test_absent_extra_is_named(monkeypatch, tmp_path):
    # What find_spec looks at first: a loaded module without a spec cannot be imported.
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "espeakng_loader", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'gsv-fleet\[demo\]'"):
        demo.make_demo_voices(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_lossless_formats_keep_every_sample(tmp_path, suffix):
    wave = np.random.default_rng(0).uniform(-1, 1, (5000, 2)).astype(np.float32)
    read, rate_hz = _read(encode_audio(tmp_path / f"a{suffix}", wave, 48_000))
    assert rate_hz == 48_000
    assert read.shape == wave.shape
    assert np.abs(read - wave).max() < 1 / 16384


@pytest.mark.parametrize(
    ("name", "wave", "cause"),
    [
        ("a.xyz", np.zeros(10), "cannot write this format"),
        ("a.wav", np.zeros((10, 3)), "expected a wave"),
        ("a.wav", np.zeros(0), "expected a wave"),
        ("a.wav", np.array([0.0, np.nan]), "NaN"),
    ],
)
def test_writer_names_what_it_cannot_do(tmp_path, name, wave, cause):
    with pytest.raises(ValueError, match=cause):
        encode_audio(tmp_path / name, wave, 16_000)
    assert not (tmp_path / name).exists()
