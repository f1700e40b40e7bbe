"""A recording in another voice, through the registry."""

import json
from pathlib import Path

import numpy as np
import pytest

from gsv_core.audio.wav import read_wav, wav_bytes
from jobs.cli import main
from jobs.convert import Source, convert_recording
from jobs.register import register_voice
from jobs.synth import References, VoiceAddress
from jobs.tracking import Tracker
from tests.jobs.run_fixture import tone, tone_wav, write_nano_run


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    workspace = tmp_path_factory.mktemp("workspace")
    tracker = Tracker(f"sqlite:///{workspace}/mlflow.db", "corpus")
    register_voice(tracker, write_nano_run(workspace / "corpus"))
    return tracker.store.uri


@pytest.fixture(scope="module")
def address(uri: str) -> VoiceAddress:
    return VoiceAddress(tracker_uri=uri, voice="alice")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "talk.wav"
    path.write_bytes(tone_wav(3.3))
    return path


def test_a_source_keeps_its_length_and_gets_the_voice(address: VoiceAddress, source: Path, tmp_path: Path) -> None:
    converted = convert_recording(address, Source(path=source))
    samples, rate_hz = read_wav(converted.wav)
    assert (rate_hz, converted.rate_hz, converted.release) == (32_000, 32_000, "nano")
    assert len(samples) / rate_hz == converted.seconds == pytest.approx(3.3, abs=0.041)
    assert 0 < np.abs(samples).max() < 1
    assert converted.note is not None
    assert converted.wav == convert_recording(address, Source(path=source)).wav
    (tmp_path / "other.wav").write_bytes(wav_bytes(tone(4.0)[::-1] * 0.5, 32_000))
    as_other = convert_recording(address, Source(path=source), references=References(paths=(tmp_path / "other.wav",)))
    assert as_other.wav != converted.wav
    assert len(as_other.wav) == len(converted.wav)


def test_the_text_of_a_source_is_given_or_heard_where_somebody_can(address: VoiceAddress, source: Path) -> None:
    plain = convert_recording(address, Source(path=source))
    given = convert_recording(address, Source(path=source, text="Good morning.", language="en"))
    assert (given.text, given.heard_by) == ("Good morning.", None)
    assert given.wav != plain.wav
    # No embedded recogniser speaks Korean.
    korean = convert_recording(address, Source(path=source, language="ko"))
    assert (korean.text, korean.heard_by, korean.wav) == (None, None, plain.wav)
    with pytest.raises(ValueError, match="--text needs --language"):
        convert_recording(address, Source(path=source, text="Good morning."))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file has 0 bytes"),
        (b"no audio at all, but some letters", "libav knows no audio"),
        (wav_bytes(np.zeros(64_000), 32_000), "not be silent"),
        (tone_wav(0.2), "0.5 s or more"),
    ],
)
def test_a_source_that_does_not_do_is_named(address: VoiceAddress, tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.wav: .*{reason}"):
        convert_recording(address, Source(path=path))


def test_the_command_writes_a_wave_and_says_what_it_did(
    uri: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["convert", str(source), "--workspace", str(tmp_path), "--tracking-uri", uri, "--voice", "alice"]
    out = tmp_path / "out" / "talk.wav"
    assert main([*common, "--out", str(out), "--json", "--rate-hz", "16000"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rate_hz"], facts["text"], facts["heard_by"]) == (16_000, None, None)
    assert len(read_wav(out.read_bytes())[0]) / 16_000 == pytest.approx(facts["seconds"], abs=1e-3)
    assert main([*common[:1], str(tmp_path / "nowhere.wav"), *common[2:], "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"gsv: SOURCE {tmp_path}/nowhere.wav: No such file")
