"""A registered version is whole: MLflow loads it in a process that has none of our code, and it speaks."""

import io
import json
import os
import shutil
import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from gsv_core.audio.wav import wav_bytes
from gsv_core.text.lexicon import Lexicon
from jobs.register import _collect_files, register_voice
from jobs.run_folder import RunFolder
from jobs.synth import speak
from jobs.tracking import Tracker
from jobs.voice_model import Voice, VoiceModel, load_voice, signature
from tests.jobs.run_fixture import tone_wav, write_nano_run

TEXT = "Good morning to you."

ELSEWHERE = """
import base64, json, sys
# As on a machine without our checkout: the editable install is no help here.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
sys.path = [place for place in sys.path if place != sys.argv[3]]
try:
    import gsv_core
except ImportError:
    pass
else:
    raise SystemExit("this process can see the checkout, so it proves nothing")
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/gsv-alice/1")
rows = pandas.DataFrame({"text": [sys.argv[2]], "language": ["en"], "seed": [7]})
(line,) = model.predict(rows).to_dict("records")
import gsv_core
print(json.dumps([base64.b64encode(line["audio"]).decode(), line["rate_hz"], gsv_core.__file__]))
"""


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    workspace = tmp_path_factory.mktemp("workspace")
    tracker = Tracker(f"sqlite:///{workspace}/mlflow.db", "corpus")
    register_voice(tracker, write_nano_run(workspace / "corpus"))
    return tracker


@pytest.fixture(scope="module")
def files(tracker: Tracker) -> Path:
    with tracker.registry.files_of(tracker.registry.version_of("alice")) as folder:
        return folder


@pytest.fixture(scope="module")
def voice(files: Path) -> Voice:
    return load_voice(files)


def _rows(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"text": [TEXT], "language": ["en"], **columns})


def _predict(voice: Voice, rows: pd.DataFrame) -> pd.DataFrame:
    model = VoiceModel()
    model._voice = voice
    return model.predict(None, rows)  # type: ignore[arg-type]  # the context is for loading


def test_a_process_without_our_code_loads_a_version_and_speaks(tracker: Tracker, tmp_path: Path) -> None:
    checkout = str(Path(__file__).resolve().parents[2])
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tracker.store.uri, TEXT, checkout],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    audio, rate_hz, place = json.loads(done.stdout.splitlines()[-1])
    assert "mlartifacts" in place
    import base64

    spoken = speak(tracker.store.uri, "alice", TEXT, "en", seed=7)
    assert (base64.b64decode(audio), rate_hz) == (spoken.wav, spoken.rate_hz)


def test_every_line_becomes_a_wav(voice: Voice) -> None:
    rows = pd.DataFrame({"text": [TEXT, "Good evening."], "language": ["en", "en"], "seed": [1, 2]})
    spoken = _predict(voice, rows)
    assert list(spoken.columns) == signature().outputs.input_names() == ["audio", "rate_hz"]
    assert list(spoken["rate_hz"]) == [32_000, 32_000]
    for content in spoken["audio"]:
        with wave.open(io.BytesIO(content)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (32_000, 1, 2)
            assert file.getnframes() > 32_000 // 5
    assert len(set(spoken["audio"])) == 2


def test_empty_cells_take_their_defaults(voice: Voice) -> None:
    plain = _predict(voice, _rows())["audio"][0]
    empty = _predict(voice, _rows(reference=[None], speed=[float("nan")], seed=[None]))["audio"][0]
    assert plain == empty
    assert plain != _predict(voice, _rows(seed=[3]))["audio"][0]


def test_speed_shortens(voice: Voice) -> None:
    slow, fast = (_predict(voice, _rows(speed=[speed]))["audio"][0] for speed in (1.0, 2.0))
    assert len(fast) == pytest.approx(len(slow) / 2, rel=0.1)


def test_a_reference_gives_the_timbre_and_must_last_three_to_ten_seconds(voice: Voice) -> None:
    own = voice.speak(TEXT, "en")[0]
    assert voice.speak(TEXT, "en", reference=tone_wav(4.0))[0] != own
    with pytest.raises(ValueError, match=r"3 to 10 s, got 2\.0 s"):
        voice.speak(TEXT, "en", reference=tone_wav(2.0))
    with pytest.raises(ValueError, match="bytes of a WAV"):
        voice.speak(TEXT, "en", reference=b"no audio at all")


def test_the_voice_is_not_the_base(voice: Voice, files: Path, tmp_path: Path) -> None:
    from gsv_core.synthesis.synthesiser import Synthesiser

    base = voice.synthesiser.base
    untuned = Synthesiser(base).speak(TEXT, "en", voice.prompt)
    assert wav_bytes(untuned.wave, untuned.rate_hz) != voice.speak(TEXT, "en")[0]


def test_another_base_is_refused(files: Path, tmp_path: Path) -> None:
    other = shutil.copytree(files, tmp_path / "voice")
    description = json.loads((other / "voice.json").read_text(encoding="utf-8"))
    (other / "voice.json").write_text(json.dumps(description | {"base_digest": "f" * 64}), encoding="utf-8")
    with pytest.raises(ValueError, match="was trained on base nano with digest ffffffffffffffff"):
        load_voice(other)


def test_a_published_base_that_is_missing_is_named(files: Path, tmp_path: Path) -> None:
    other = shutil.copytree(files, tmp_path / "voice")
    description = json.loads((other / "voice.json").read_text(encoding="utf-8"))
    (other / "voice.json").write_text(json.dumps(description | {"release": "v2Pro"}), encoding="utf-8")
    with pytest.raises(ValueError, match="gsv models pull v2Pro"):
        load_voice(other, models=tmp_path / "nowhere")


def test_a_version_holds_the_words_of_its_voice_and_a_caller_s_count_before_them(tmp_path: Path) -> None:
    run = write_nano_run(tmp_path / "corpus")
    (run.parent.parent / "lexicon.tsv").write_text("morning\tM AO1 N\ten\n", encoding="utf-8")
    files = tmp_path / "files"
    files.mkdir()
    _collect_files(RunFolder.read(run), files)
    voice = load_voice(files)
    assert [(entry.word, entry.pronunciation) for entry in voice.lexicon.entries] == [("morning", "M AO1 N")]
    other = Lexicon.parse(b"Morning\tM UW1 N\nyou\tY UW1 Y UW1\n")
    as_written, own, called = (
        replace(voice, lexicon=Lexicon()).speak(TEXT, "en"),
        voice.speak(TEXT, "en"),
        voice.speak(TEXT, "en", lexicon=other),
    )
    assert as_written != own
    assert called not in (as_written, own)
    assert called == replace(voice, lexicon=other).speak(TEXT, "en")
