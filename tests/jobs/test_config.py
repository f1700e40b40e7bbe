from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsv_core.checkpoints.releases import Release
from gsv_core.training.precision import Precision
from jobs.config import JobConfig, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"


def test_a_file_and_overrides_fill_nested_dataclasses(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("flow:\n  release: v2\n  longest_s: 9\n  engines: {quality: none}\ntraining: {seed: 1}\n")
    config = load_config(file, ["training.seed=3", "flow.bounds.least_snr_db=null", "registry.prefix=team-"])
    assert config.flow.release is Release.V2
    assert config.flow.longest_s == 9.0
    assert config.flow.engines.quality == "none"
    assert config.training.seed == 3
    assert config.flow.bounds.least_snr_db is None
    assert config.registry.prefix == "team-"
    assert config.selection == JobConfig().selection


def test_the_cluster_configuration_is_valid() -> None:
    config = load_config(CONFIGS / "cluster.yaml", [])
    assert config.registry.require_consent
    assert config.flow.engines.recogniser == "whisperx"


@pytest.mark.parametrize("text", ["- list", "a: [", "flow: 3", "!!python/name:os.system"])
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="config"):
        load_config(file, [])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml", [])


@given(st.text(max_size=40))
def test_any_override_is_taken_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert isinstance(load_config(None, [text]), JobConfig)


def test_the_precision_of_training_is_one_of_four() -> None:
    assert load_config(None, ["training.precision=bfloat16"]).training.precision is Precision.BFLOAT16
    with pytest.raises(ValueError, match="expected one of auto, float32, bfloat16, float16"):
        load_config(None, ["training.precision=half"])


def test_a_number_with_an_exponent_and_no_dot_is_a_number() -> None:
    config = load_config(None, ["selection.least_seconds=1e1", "training.semantic={learning_rate: 1e-4}"])
    assert config.selection.least_seconds == 10.0
    assert config.training.semantic == {"learning_rate": 1e-4}


@pytest.mark.parametrize(
    "override",
    [
        "language=[1",
        "training.semantic={steps: many}",
        "training.attempts=0",
        "training.seed=-1",
        "training.pack=0",
        "training.workers_per_voice=0",
        "cluster.max_hours=0",
        "cluster.max_gpu_hours=1",  # without a GPU it would never be spent
        "language=klingon",
        "selection.fewest_utterances=0",
        "selection.shortest_prompt_s=11",
        "flow={1: 2, x: 3}",
    ],
)
def test_a_wrong_override_is_wrong_use(override: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        load_config(None, [override])


def test_named_values_are_taken_as_they_are() -> None:
    config = load_config(None, ["flow.base_folder=a"], {"flow.base_folder": "/models 😀: no"})
    assert config.flow.base_folder == "/models 😀: no"


def test_folders_and_files_are_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of Ray Train has another working directory than who named them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whisper").mkdir()
    named = {
        "flow.base_folder": "models",
        "flow.polyphones": "~/g2pw",
        "flow.engines.recogniser_model": "whisper",
        "flow.engines.speaker_verifier_model": "speechbrain/spkrec-ecapa-voxceleb",
        "flow.engines.align_models": {"en": "whisper", "de": "someone/wav2vec2"},
        "registry.tracking_uri": "sqlite:///runs/mlflow.db",
        "cluster.checkpoint_uri": "s3://bucket/runs",
        "corpus_uri": "../corpus",
    }
    config = load_config(None, [], named)
    engines = config.flow.engines
    assert config.flow.base_folder == str(tmp_path / "models")
    assert config.flow.polyphones == str(Path.home() / "g2pw")
    assert engines.recogniser_model == engines.align_models["en"] == str(tmp_path / "whisper")
    assert engines.speaker_verifier_model == "speechbrain/spkrec-ecapa-voxceleb"
    assert engines.align_models["de"] == "someone/wav2vec2"
    assert config.registry.tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert config.cluster.checkpoint_uri == "s3://bucket/runs"
    assert config.corpus_uri == str(tmp_path / ".." / "corpus")
    assert load_config(None, ["registry.tracking_uri=http://host:1"]).registry.tracking_uri == "http://host:1"
