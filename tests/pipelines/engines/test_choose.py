import subprocess
import sys

import pytest

from pipelines.engines.choose import (
    EngineConfig,
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
