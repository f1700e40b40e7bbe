import subprocess
import sys

import pytest

from pipelines.engines.choose import (
    EngineConfig,
    engine_versions,
    load_quality,
    load_recogniser,
    load_speaker_verifier,
    load_voice_activity,
)


@pytest.mark.parametrize("field", ["recogniser", "speaker_verifier", "quality"])
def test_an_unknown_engine_is_named_with_those_there_are(field):
    with pytest.raises(ValueError, match=rf"engines\.{field}: expected one of .*, got 'magic'"):
        EngineConfig(**{field: "magic"})


def test_the_embedded_engines_need_nothing_but_packages():
    config = EngineConfig()
    names = [load(config).name for load in (load_recogniser, load_speaker_verifier, load_quality, load_voice_activity)]
    assert [name.split()[0] for name in names] == ["pocketsphinx", "resemblyzer", "dnsmos-p835-overall", "silero-v6"]
    assert load_quality(EngineConfig(quality="none")) is None


def test_the_embedded_engines_pull_in_no_heavy_library():
    code = (
        "import sys\nfrom pipelines.engines.choose import *\nconfig = EngineConfig()\n"
        "for load in (load_recogniser, load_speaker_verifier, load_quality, load_voice_activity):\n    load(config)\n"
        "heavy = 'whisperx faster_whisper ctranslate2 speechbrain librosa resemblyzer speechmos transformers'\n"
        "print(*sorted(set(heavy.split()) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == ""


def test_what_is_in_a_models_folder_counts_and_not_its_name_alone(tmp_path):
    folder = tmp_path / "ecapa"
    folder.mkdir()
    (folder / "embedding_model.ckpt").write_bytes(b"one")
    config = EngineConfig(speaker_verifier="ecapa", speaker_verifier_model=str(folder))
    before = engine_versions(config)
    assert engine_versions(config) == before
    assert len(before["speaker verifier model"]) == 64
    (folder / "embedding_model.ckpt").write_bytes(b"two!")
    assert engine_versions(config) != before
    # The hub's names have no folder, and what is not used is not read.
    assert "speaker verifier model" not in engine_versions(EngineConfig(speaker_verifier="ecapa"))
    assert "speaker verifier model" not in engine_versions(EngineConfig(speaker_verifier_model=str(folder)))
