"""A run becomes one version, whatever was cut off before, and the version says what it is worth."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsv_core.checkpoints.hub import file_digest
from gsv_core.checkpoints.releases import RELEASES, Release
from jobs.register import register_voice
from jobs.synth import speak
from jobs.tracking import Tracker, TrackingError
from tests.jobs.run_fixture import PAIRS, write_nano_run
from tests.jobs.stores import mlflow_server, postgres, server_uri

REGISTER = """
import sys
from pathlib import Path
from jobs.register import register_voice
from jobs.tracking import Tracker
uri, files, *runs = sys.argv[1:]
tracker = Tracker(uri, "corpus", artifact_root=files)
for run in runs:
    print(register_voice(tracker, Path(run)).version)
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def tracker(workspace: Path) -> Tracker:
    return Tracker(f"sqlite:///{workspace}/mlflow.db", "corpus")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server over PostgreSQL that keeps the files itself, as in the compose file."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="gsv-pg-") as folder:
        Path(folder).chmod(0o755)
        with postgres(Path(folder) / "server") as database:
            files = tmp_path_factory.mktemp("served")
            with mlflow_server(database, files, Path(folder) / "mlflow.log") as process:
                yield server_uri(process)


def test_a_version_says_what_it_is_and_what_it_is_worth(tracker: Tracker, workspace: Path) -> None:
    consent = {"who": "Alice", "when": "2026-01-02", "consent_id": "paper-17"}
    run_dir = write_nano_run(workspace / "corpus", run_id="1" * 20)
    registered = register_voice(tracker, run_dir, consent=consent)
    assert (registered.name, registered.version, registered.uri) == ("gsv-alice", 1, "models:/gsv-alice/1")
    client = tracker.store.client
    (version,) = client.search_model_versions("name = 'gsv-alice'")
    assert version.status == "READY"
    tags = version.tags
    run = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    for key in ("release", "base_digest", "corpus_digest", "run_id", "voice"):
        assert tags[key] == run[key]
    assert (tags["consent_id"], tags["consent.who"], tags["consent.when"]) == ("paper-17", "Alice", "2026-01-02")
    assert (tags["score.likeness"], tags["likeness_independent"]) == ("0.5", "false")
    assert tags["engine.speaker_verifier"] == "resemblyzer"
    assert "score.quality" not in tags
    assert "its speech is not speech" in version.description
    assert "| Character errors | 80.0 % | 100.0 % | 20.0 % |" in version.description
    assert "recogniser: pocketsphinx" in version.description
    assert "| corpus | `0123456789abcdef` |" in version.description
    assert "| who | Alice |" in version.description
    page = client.get_registered_model("gsv-alice").description
    assert "| challenger, challenger-nano | 1 | nano | 80.0 % | 0.500 | – | paper-17 |" in page
    assert tags["weights.wave"] == file_digest(run_dir / "weights" / f"{PAIRS[1][1]}.safetensors")
    assert tags["lineage.base"] == f"nano {run['base_digest']}"
    assert client.get_registered_model("gsv-alice").aliases == {"challenger": 1, "challenger-nano": 1}
    run_of_it = client.get_run(version.run_id)
    assert run_of_it.data.tags["gsv.run_id"] == "1" * 20
    assert run_of_it.data.metrics["best/score"] == 1.1
    (model,) = client.search_logged_models([tracker.prepare()], f"source_run_id = '{version.run_id}'")
    assert model.status == "READY"
    assert {metric.key: metric.value for metric in model.metrics}["best/likeness"] == 0.5
    assert run_of_it.outputs.model_outputs[0].model_id == model.model_id


def test_prompts_by_style_timbre_and_lineage_go_into_the_version(tracker: Tracker, workspace: Path) -> None:
    parents = [{"voice": "alice", "version": 1, "share": 0.6}]
    run_dir = write_nano_run(workspace / "corpus", voice="alia", run_id="2" * 20, parents=parents)
    for name in ("timbre.safetensors", "prompts.json", "prompts/calm/prompt.json"):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text(name, encoding="utf-8")
    version = register_voice(tracker, run_dir)
    with tracker.registry.files_of(version) as folder:
        for name in ("timbre.safetensors", "prompts.json", "prompts/calm/prompt.json"):
            assert (folder / name).read_text(encoding="utf-8") == name
    assert json.loads(tracker.registry.tags_of(version)["lineage.parents"]) == parents
    assert "| none | nobody has said" in tracker.store.client.get_model_version(version.name, "1").description


def test_the_same_run_is_registered_once(tracker: Tracker, workspace: Path) -> None:
    run_dir = write_nano_run(workspace / "corpus", voice="bob", run_id="1" * 20)
    first = register_voice(tracker, run_dir)
    again = register_voice(Tracker(tracker.store.uri, "corpus"), run_dir)
    assert again == first
    assert len(tracker.store.client.search_model_versions("name = 'gsv-bob'")) == 1


def test_challenger_is_the_newest_run_and_registering_an_old_one_again_leaves_it(
    tracker: Tracker, workspace: Path
) -> None:
    runs = [write_nano_run(workspace / "corpus", voice="carol", run_id=digit * 20) for digit in "12"]
    versions = [register_voice(tracker, run_dir).version for run_dir in runs]
    assert versions == [1, 2]
    register_voice(tracker, runs[0])
    aliases = tracker.store.client.get_registered_model("gsv-carol").aliases
    assert aliases == {"challenger": 2, "challenger-nano": 2}


def test_a_registration_cut_off_between_version_and_alias_is_completed(tracker: Tracker, workspace: Path) -> None:
    run_dir = write_nano_run(workspace / "corpus", voice="dave", run_id="1" * 20)
    first = register_voice(tracker, run_dir)
    tracker.store.client.delete_registered_model_alias("gsv-dave", "challenger")
    assert register_voice(tracker, run_dir) == first
    assert tracker.store.client.get_registered_model("gsv-dave").aliases["challenger"] == 1


def test_a_registration_cut_off_before_its_version_leaves_one_model(tracker: Tracker, tmp_path: Path) -> None:
    blocked = tmp_path / "artifacts"
    own = Tracker(tracker.store.uri, "blocked", artifact_root=blocked.as_uri())
    run_dir = write_nano_run(tmp_path / "corpus", voice="erin")
    run_id = own.log_voice(None, run_dir)
    (blocked / "models").write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(TrackingError, match="could not register gsv-erin"):
        register_voice(own, run_dir)
    assert own.store.client.search_model_versions("name = 'gsv-erin'") == []
    assert "erin" not in own.registry.voices()
    (blocked / "models").unlink()
    assert register_voice(own, run_dir).version == 1
    (model,) = own.store.client.search_logged_models([own.prepare()], f"source_run_id = '{run_id}'")
    assert model.status == "READY"


def test_missing_weights_are_named_and_nothing_is_registered(tracker: Tracker, workspace: Path) -> None:
    run_dir = write_nano_run(workspace / "corpus", voice="frank")
    (run_dir / "weights" / f"{PAIRS[1][1]}.safetensors").unlink()
    with pytest.raises(ValueError, match="is missing, but scores"):
        register_voice(tracker, run_dir)
    assert "frank" not in tracker.registry.voices()


def test_consent_can_be_required(tracker: Tracker, workspace: Path) -> None:
    run_dir = write_nano_run(workspace / "corpus", voice="grace")
    with pytest.raises(ValueError, match=r"voice 'grace' has no consent; .*voice\.yaml"):
        register_voice(tracker, run_dir, require_consent=True)
    assert "grace" not in tracker.registry.voices()
    register_voice(tracker, run_dir, require_consent=True, consent={"who": "Grace"})
    (version,) = tracker.store.client.search_model_versions("name = 'gsv-grace'")
    assert len(version.tags["consent_id"]) == 20


def test_a_uv_project_in_the_current_folder_stays_out_of_the_version(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("uv.lock", "pyproject.toml"):
        (tmp_path / name).write_text('[project]\nname = "x"\nversion = "0"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    register_voice(tracker, write_nano_run(tmp_path / "corpus", voice="heidi"))
    folder = Path(tracker.store.client.get_model_version("gsv-heidi", "1").source.removeprefix("file://"))
    names = {path.name for path in folder.rglob("*")}
    assert {"MLmodel", "voice_model.py", "voice.json", "synthesiser.py"} <= names
    assert not {"uv.lock", "pyproject.toml", "__pycache__"} & names
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    assert {line.partition("==")[0] for line in requirements} >= {"torch", "mlflow", "soxr", "pypinyin"}
    assert not [line for line in requirements if "+" in line or "==" not in line]


def test_a_bundle_carries_the_files_of_its_base_or_says_which_are_missing(tracker: Tracker, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in RELEASES[Release.V2].files:
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_bytes(name.encode())
    run_dir = write_nano_run(tmp_path / "corpus", voice="ivan", release="v2")
    registered = register_voice(tracker, run_dir, base=models, bundle=True)
    with tracker.registry.files_of(registered) as folder:
        for name in RELEASES[Release.V2].files:
            assert (folder / "base" / name).read_bytes() == name.encode()
    other = write_nano_run(tmp_path / "corpus", voice="judy", release="v2Pro")
    with pytest.raises(ValueError, match=r"cannot bundle base v2Pro: .* run `gsv models pull v2Pro`"):
        register_voice(tracker, other, base=models, bundle=True)
    assert "judy" not in tracker.registry.voices()


@pytest.mark.parametrize(
    "refusal", ["UNIQUE constraint failed: ...", "(UniqueViolation) duplicate key value violates ..."]
)
def test_an_alias_that_another_process_adds_at_the_same_moment_is_no_failure(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    registered = register_voice(tracker, write_nano_run(tmp_path / "corpus", voice="kim"))
    tracker.store.client.delete_registered_model_alias("gsv-kim", "challenger")
    set_alias, refusals = MlflowClient.set_registered_model_alias, [MlflowException(refusal)]

    def refused_once(*given: object) -> None:
        if refusals:
            raise refusals.pop()
        set_alias(*given)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", refused_once)
    tracker.registry.point(registered, ["challenger"])
    assert not refusals
    assert tracker.registry.aliases("kim")["challenger"] == registered.version


def test_a_server_over_postgresql_takes_and_gives_a_voice(server: str, tmp_path: Path) -> None:
    tracker = Tracker(server, "corpus", prefix="team-")
    run_dir = write_nano_run(tmp_path / "corpus")
    with tracker.parent_run("onboard") as parent_id:
        run_id = tracker.log_voice(parent_id, run_dir)
    registered = register_voice(tracker, run_dir)
    assert registered.run_id == run_id
    assert register_voice(tracker, run_dir) == registered
    assert tracker.registry.voices() == ["alice"]
    spoken = speak(server, "alice", "Good morning.", "en", prefix="team-")
    audio, rate_hz = spoken.wav, spoken.rate_hz
    assert audio[:4] == b"RIFF"
    assert rate_hz == 32_000


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/mlflow.db"
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="gsv-pg-") as folder:
        Path(folder).chmod(0o755)
        with postgres(Path(folder) / "server") as uri:
            yield uri


@pytest.mark.slow
def test_eight_processes_register_at_once_without_loss(empty_store: str, tmp_path: Path) -> None:
    """Eight versions of one voice, and a ninth run that all of them register."""
    files = (tmp_path / "files").as_uri()
    tracker = Tracker(empty_store, "corpus", artifact_root=files)
    tracker.prepare()
    runs = [write_nano_run(tmp_path / "corpus", run_id=f"run-{number}") for number in range(8)]
    common = write_nano_run(tmp_path / "corpus", run_id="run-of-all")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", REGISTER, empty_store, files, str(run), str(common)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for run in runs
    ]
    said = [process.communicate(timeout=500) for process in started]
    assert not any(process.returncode for process in started), [errors[-2000:] for _, errors in said if errors]
    own, shared = zip(*(map(int, out.split()) for out, _ in said))
    assert len(set(own)) == 8
    assert len(set(shared)) == 1
    versions = tracker.store.client.search_model_versions("name = 'gsv-alice'")
    assert sorted(int(version.version) for version in versions) == sorted({*own, *shared})
    assert sorted(version.tags["run_id"] for version in versions) == sorted(path.name for path in (*runs, common))
    newest = max(int(version.version) for version in versions)
    assert tracker.registry.aliases("alice") == {"challenger": newest, "challenger-nano": newest}
    assert len(tracker.store.client.search_runs([tracker.prepare()])) >= 9
