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

import numpy as np
import pandas as pd
import pytest
import torch

from gsv_core.audio.wav import read_wav, wav_bytes
from gsv_core.synthesis.timbre import save_timbre
from gsv_core.text.lexicon import Lexicon
from jobs.register import _collect_files, register_voice
from jobs.run_folder import RunFolder
from jobs.synth import Delivery, speak
from jobs.tracking import Tracker
from jobs.voice_model import Voice, VoiceModel, input_example, load_voice, signature
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

    spoken = speak(tracker.store.uri, "alice", TEXT, "en", delivery=Delivery(seed=7))
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
    with pytest.raises(ValueError, match="this is silent"):
        voice.speak(TEXT, "en", reference=wav_bytes(np.zeros(4 * 32_000), 32_000))
    with pytest.raises(ValueError, match="bytes of a WAV"):
        voice.speak(TEXT, "en", reference=b"no audio at all")


def test_a_reference_with_its_text_is_followed_in_its_manner_too(voice: Voice) -> None:
    said = {"reference": [tone_wav(4.0)], "reference_text": ["Good evening."], "reference_language": ["en"]}
    followed = _predict(voice, _rows(**said))["audio"][0]
    assert followed != voice.speak(TEXT, "en", reference=tone_wav(4.0))[0]
    with pytest.raises(ValueError, match="text needs its language"):
        voice.speak(TEXT, "en", reference=tone_wav(4.0), reference_text="Good evening.")


def test_without_a_reference_a_voice_speaks_in_its_mean_timbre(files: Path, tmp_path: Path) -> None:
    other = shutil.copytree(files, tmp_path / "voice")
    plain = load_voice(files)
    assert plain.timbre is None
    mean = plain.synthesiser.mean_timbre([plain.prompt, replace(plain.prompt, wave=plain.prompt.wave.flip(0))]) * 1.5
    save_timbre(other, mean, {"wave": "wave-s000060"})
    voice = load_voice(other)
    with_mean, with_own = voice.speak(TEXT, "en"), voice.speak(TEXT, "en", style="default")
    assert with_mean != with_own == plain.speak(TEXT, "en")
    direct = voice.synthesiser.speak(TEXT, "en", voice.prompt, timbre=mean)
    assert with_mean == (wav_bytes(direct.wave, direct.rate_hz), direct.rate_hz)
    assert voice.speak(TEXT, "en", reference=tone_wav(4.0)) == plain.speak(TEXT, "en", reference=tone_wav(4.0))


def test_a_style_is_one_of_the_prompts_and_an_unknown_one_is_named(files: Path, tmp_path: Path) -> None:
    other = shutil.copytree(files, tmp_path / "voice")
    own = load_voice(files)
    lively = replace(own.prompt, wave=own.prompt.wave.flip(0), tokens=own.prompt.tokens.flip(0))
    lively.save(other / "prompts" / "lively")
    voice = load_voice(other)
    assert list(voice.styles) == ["lively"]
    spoken = _predict(voice, _rows(style=["lively"]))["audio"][0]
    direct = own.synthesiser.speak(TEXT, "en", lively)
    assert spoken == wav_bytes(direct.wave, direct.rate_hz)
    assert spoken != voice.speak(TEXT, "en")[0] == _predict(voice, _rows(style=[None]))["audio"][0]
    with pytest.raises(ValueError, match=r"voice 'alice' has no style '\.\./prompt'; it has: default, lively"):
        voice.speak(TEXT, "en", style="../prompt")
    with pytest.raises(ValueError, match="a style or a reference, not both"):
        voice.speak(TEXT, "en", style="lively", reference=tone_wav(4.0))


def test_several_references_are_averaged_in_timbre_and_the_first_is_followed(voice: Voice) -> None:
    one, two = (voice.reference(*read_wav(tone_wav(seconds))) for seconds in (4.0, 6.0))
    manner = voice.manner(references=[one, two])
    assert manner.prompt is one
    assert torch.equal(manner.timbre, voice.synthesiser.mean_timbre([one, two]))
    assert voice.manner(references=[one]).timbre is None


def test_the_input_example_is_input(voice: Voice) -> None:
    example = pd.DataFrame(input_example(TEXT, "en"))
    required, known = signature().inputs.required_input_names(), signature().inputs.input_names()
    assert set(required) <= set(example.columns) <= set(known)
    assert _predict(voice, example)["audio"][0] == voice.speak(TEXT, "en")[0]


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
