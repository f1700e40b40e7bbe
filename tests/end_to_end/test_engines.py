"""whisperX and ECAPA by name in the config, through the real flow.

The models are tiny and built from a seed, in each engine's own on-disk format: this proves loading and wiring, and what
they say decides nothing (every bound is off).
"""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from tests.end_to_end.test_onboard import gsv
from tests.pipelines.engines.tiny_models import write_tiny_ecapa, write_tiny_wav2vec2, write_tiny_whisper


def test_engines_of_a_cluster_run_from_local_folders(demo_voices: Path, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    shutil.copytree(demo_voices / "ada", recordings / "ada")
    engines = {
        "recogniser": "whisperx",
        "recogniser_model": str(write_tiny_whisper(tmp_path / "whisper")),
        "align_models": {"en": str(write_tiny_wav2vec2(tmp_path / "wav2vec2"))},
        "speaker_verifier": "ecapa",
        "speaker_verifier_model": str(write_tiny_ecapa(tmp_path / "ecapa")),
        "quality": "none",
    }
    setting = f"--set=flow.engines={json.dumps(engines)}"
    done = gsv("prepare", recordings, "--workspace", tmp_path / "w", "--json", setting)
    (line,) = json.loads(done.stdout)["voices"]
    assert line["failed_units"] == []
    assert line["seconds_kept"] > 30
    corpus = tmp_path / "w" / "corpus"
    rows = [row for path in corpus.glob("voices/ada/manifest/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert all(row["given"] and row["text"] for row in rows)  # the delivered text stands, whatever was heard
    assert all(row["recognised_text"] is not None for row in rows)
    assert all(row["quality"] is None for row in rows)
    description = json.loads((corpus / "corpus.json").read_text())
    assert description["engines"]["recogniser"] == "whisperx"
    assert description["derived_from"]["speaker"] == "ecapa"


def test_a_model_folder_that_is_missing_is_named(demo_voices: Path, tmp_path: Path) -> None:
    engines = {"recogniser": "whisperx", "recogniser_model": str(tmp_path / "nowhere")}
    setting = f"--set=flow.engines={json.dumps(engines)}"
    done = gsv("prepare", demo_voices, "--workspace", tmp_path / "w", setting, expect=2)
    assert "nowhere" in done.stderr
