"""Speech through the registry, and what is said when there is none."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from gsv_core.audio.wav import read_wav, wav_bytes
from jobs.cli import main
from jobs.register import register_voice
from jobs.synth import Delivery, References, Spoken, speak
from jobs.tracking import Tracker
from pipelines.engines.audio_writer import encode_audio
from pipelines.engines.decoder import decode
from tests.jobs.run_fixture import tone, tone_wav, write_nano_run
from tests.shared import shared_path

ONE = Delivery(seed=1)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    workspace = tmp_path_factory.mktemp("workspace")
    tracker = Tracker(f"sqlite:///{workspace}/mlflow.db", "corpus")
    for number, scale in ((1, 1.01), (2, 1.05)):
        register_voice(tracker, write_nano_run(workspace / "corpus", run_id=str(number) * 20, scale=scale))
    return tracker.store.uri


def test_the_newest_version_speaks_unless_another_is_named(uri: str) -> None:
    spoken = speak(uri, "alice", "Good morning.", "en", delivery=ONE)
    newest, rate_hz = spoken.wav, spoken.rate_hz
    assert (spoken.release, spoken.note is not None) == ("nano", True)
    samples, read_rate_hz = read_wav(newest)
    assert rate_hz == read_rate_hz == 32_000
    assert len(samples) > rate_hz // 5
    assert abs(samples).max() > 0
    assert speak(uri, "alice", "Good morning.", "en", delivery=ONE, version=2).wav == newest
    assert speak(uri, "alice", "Good morning.", "en", delivery=ONE, alias="challenger").wav == newest
    assert speak(uri, "alice", "Good morning.", "en", delivery=ONE, version=1).wav != newest


def test_what_is_not_there_is_said_with_what_is(uri: str) -> None:
    with pytest.raises(ValueError, match=r"no voice 'bob' .*registered: alice$"):
        speak(uri, "bob", "Hello.", "en")
    with pytest.raises(ValueError, match=r'no voice "o\'hara" .*registered: alice$'):
        speak(uri, "o'hara", "Hello.", "en")
    with pytest.raises(ValueError, match=r"no version 9; it has: 1, 2$"):
        speak(uri, "alice", "Hello.", "en", version=9)
    with pytest.raises(ValueError, match=r"no alias 'champion'; it has: challenger, challenger-nano$"):
        speak(uri, "alice", "Hello.", "en", alias="champion")
    with pytest.raises(ValueError, match="not both"):
        speak(uri, "alice", "Hello.", "en", alias="champion", version=1)


def test_text_that_cannot_be_spoken_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="can be spoken"):
        speak(uri, "alice", "…", "en")


def test_steps_and_guidance_are_refused_where_the_release_has_none(uri: str) -> None:
    for delivery in (Delivery(steps=4), Delivery(guidance=1.0)):
        with pytest.raises(ValueError, match="belong to v3 and v4; nano speaks without them"):
            speak(uri, "alice", "Hello.", "en", delivery=delivery)


def test_without_a_store_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gsv onboard"):
        speak(f"sqlite:///{tmp_path}/mlflow.db", "alice", "Hello.", "en")
    assert list(tmp_path.iterdir()) == []


def test_words_are_said_as_a_lexicon_says_and_a_wrong_one_is_named(uri: str, tmp_path: Path) -> None:
    words = tmp_path / "words.tsv"
    words.write_text("morning\tM AO1 N\n", encoding="utf-8")
    plain = speak(uri, "alice", "Good morning.", "en", delivery=ONE).wav
    assert speak(uri, "alice", "Good morning.", "en", delivery=ONE, lexicon=words).wav != plain
    assert speak(uri, "alice", "Good evening.", "en", delivery=ONE, lexicon=words).wav == (
        speak(uri, "alice", "Good evening.", "en", delivery=ONE).wav
    )
    words.write_text("morning\tmoan\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"words.tsv, line 1: 'MOAN' is no ARPAbet"):
        speak(uri, "alice", "Good morning.", "en", lexicon=words)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for seconds in (2, 4, 6):
        (folder / f"{seconds}.wav").write_bytes(tone_wav(float(seconds)))
    encode_audio(folder / "stereo.mp3", np.stack([tone(5.0), tone(5.0)], axis=1), 32_000)
    (folder / "silent.wav").write_bytes(wav_bytes(np.zeros(5 * 32_000), 32_000))
    (folder / "text.wav").write_bytes(b"Good morning.")
    return folder


def followed(uri: str, *paths: Path, **said: str) -> Spoken:
    return speak(uri, "alice", "Good morning.", "en", references=References(paths=paths, **said))


def test_a_reference_is_followed_and_several_are_averaged(uri: str, recordings: Path) -> None:
    plain = speak(uri, "alice", "Good morning.", "en")
    first, second = recordings / "4.wav", recordings / "stereo.mp3"
    told = followed(uri, first, text="Good evening.", language="en")
    others = (followed(uri, first), followed(uri, second), followed(uri, first, second), told)
    assert len({plain.wav, *(spoken.wav for spoken in others)}) == 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("2.wav", r"3 to 10 s, got 2\.0 s$"),
        ("silent.wav", r"this is silent but for 0\.0 s$"),
        ("text.wav", "libav knows no audio or video format in it$"),
        ("nowhere.wav", "No such file or directory$"),
    ],
)
def test_a_reference_that_does_not_do_is_named(uri: str, recordings: Path, name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^--reference .*{name}: .*{reason}"):
        followed(uri, recordings / "4.wav", recordings / name)


def test_a_reference_with_two_speakers_is_refused(uri: str, tmp_path: Path) -> None:
    decoded = decode(shared_path("recordings/bad/two_speakers.wav"))
    wave, rate_hz = decoded.wave.mean(axis=1), decoded.rate_hz
    truth = json.loads(shared_path("recordings/truth/bad__two_speakers.wav.json").read_text(encoding="utf-8"))
    first, second = truth["clips"][:2]
    assert first["speaker"] != second["speaker"]
    middle = (first["voiced_end_s"] + second["voiced_start_s"]) / 2
    for name, start, end in (("two", middle - 4.5, middle + 4.5), ("one", first["start_s"], first["start_s"] + 8)):
        cut = wave[round(start * rate_hz) : round(end * rate_hz)]
        (tmp_path / f"{name}.wav").write_bytes(wav_bytes(cut, rate_hz))
    both = References(paths=(tmp_path / "two.wav",), least_consistency=0.55)
    with pytest.raises(ValueError, match=r"two\.wav: .*one speaker; before and after one place"):
        speak(uri, "alice", "Hello.", "en", references=both)
    alone = References(paths=(tmp_path / "one.wav",), least_consistency=0.55)
    assert speak(uri, "alice", "Hello.", "en", references=alone).wav


def test_noise_is_no_reference_where_somebody_listens(uri: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * 32_000)
    (tmp_path / "noise.wav").write_bytes(wav_bytes(noise, 32_000))
    asked = References(paths=(tmp_path / "noise.wav",), least_consistency=0.1)
    with pytest.raises(ValueError, match=r"noise\.wav: .*in this one somebody speaks for 0\.0 s"):
        speak(uri, "alice", "Hello.", "en", references=asked)


def test_the_text_of_a_reference_needs_the_recording_and_the_language(uri: str, recordings: Path) -> None:
    with pytest.raises(ValueError, match="says what is in a --reference; name that, too"):
        followed(uri, text="Good evening.", language="en")
    with pytest.raises(ValueError, match="needs --reference-language"):
        followed(uri, recordings / "4.wav", text="Good evening.")


def test_the_command_speaks_from_an_argument_a_file_and_standard_input(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\ufeffGood morning.\n", encoding="utf-8")
    common = ["synth", "--workspace", str(tmp_path), "--tracking-uri", uri, "--voice", "alice", "--language", "en"]
    outs = [tmp_path / f"{name}.wav" for name in ("argument", "file", "standard")]
    assert main([*common, "--text", "Good morning.", "--out", str(outs[0])]) == 0
    assert main([*common, "--text-file", str(words), "--out", str(outs[1])]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Good morning.\n")))
    assert main([*common, "--out", str(outs[2]), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["rate_hz"], facts["release"]) == (32_000, "nano")
    assert len({out.read_bytes() for out in outs}) == 1
    assert main([*common, "--text", "a", "--text-file", str(words), "--out", str(outs[0])]) == 2
    assert "--text or --text-file, not both" in capsys.readouterr().err
    words.write_bytes(b"\xff\xfe\x00")
    assert main([*common, "--text-file", str(words), "--out", str(outs[0])]) == 2
    assert "not UTF-8 text" in capsys.readouterr().err


def test_a_stream_has_the_samples_of_the_whole(
    uri: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    common = ["synth", "--workspace", str(tmp_path), "--tracking-uri", uri, "--voice", "alice", "--language", "en"]
    common += ["--text", "Good morning. How are you?", "--pause", "0.2", "--rate-hz", "16000", "--seed", "4"]
    assert main([*common, "--out", str(tmp_path / "whole.wav")]) == 0
    assert main([*common, "--out", str(tmp_path / "stream.wav"), "--stream"]) == 0
    whole = (tmp_path / "whole.wav").read_bytes()
    assert (tmp_path / "stream.wav").read_bytes() == whole
    capfdbinary.readouterr()
    assert main([*common, "--out", "-", "--stream"]) == 0
    streamed = capfdbinary.readouterr().out
    assert streamed[44:] == whole[44:]
    samples, rate_hz = read_wav(streamed)
    assert rate_hz == 16_000
    assert len(samples) == (len(whole) - 44) // 2


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--voice", "bob"], "no voice 'bob'"),
        (["--alias", "best"], "no alias 'best'"),
        (["--style", "angry"], "voice 'alice' has no style 'angry'; it has: default"),
        (["--text", "🙂"], "can be spoken as en"),
        (["--speed", "9"], "speed should be between"),
        (["--top-k", "0"], "top_k"),
        (["--temperature", "0"], "temperature must be positive"),
        (["--cut", "cut9"], "unknown cutting method"),
        (["--language", "fr"], "unknown language 'fr'"),
        (["--out", "-"], "--out - goes with --stream"),
    ],
)
def test_wrong_use_is_one_line(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], reason: str
) -> None:
    common = ["synth", "--workspace", str(tmp_path), "--tracking-uri", uri, "--voice", "alice", "--language", "en"]
    common += ["--text", "Hello.", "--out", str(tmp_path / "a.wav")]
    assert main([*common, *wrong]) == 2
    captured = capsys.readouterr()
    assert reason in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert not (tmp_path / "a.wav").exists()
