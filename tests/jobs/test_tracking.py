"""What is logged can be read back by plain MLflow, once, whatever was cut off before."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import jobs
from jobs.tracking import RUN_ID_TAG, Registry, Tracker, TrackingError, environment, set_defaults
from jobs.tracking.store import until_alone
from tests.jobs.run_fixture import write_run
from tests.jobs.stores import PASSWORD, free_port, postgres

PREPARE = "import sys; from jobs.tracking import Tracker; print(Tracker(sys.argv[1], 'corpus').prepare())"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def tracker(workspace: Path) -> Tracker:
    return Tracker(f"sqlite:///{workspace}/mlflow.db", "corpus")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # Under /tmp itself: another user must be able to reach it, which pytest's own folders do not allow.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="gsv-pg-") as folder:
        Path(folder).chmod(0o755)
        with postgres(Path(folder) / "server") as uri:
            yield uri


def test_a_voice_is_logged_with_curves_scores_dataset_and_files(
    tracker: Tracker, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = write_run(workspace / "corpus", voice="alice", run_id="a" * 20, steps=40)
    with tracker.parent_run("onboard", {"machine": "laptop"}, {"base": "nano"}) as parent_id:
        run_id = tracker.log_voice(parent_id, run_dir)
    client = tracker.store.client
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 15_000  # train and evaluate
    assert run.data.tags["mlflow.parentRunId"] == parent_id
    assert run.data.tags[RUN_ID_TAG] == "a" * 20
    assert run.data.tags["engine.recogniser"] == "pocketsphinx"
    assert "not speech" in run.data.tags["speech"]
    assert "| Likeness | 0.500 | – | 0.900 |" in run.data.tags["mlflow.note.content"]
    assert run.data.params["recipe.semantic.steps"] == "40"
    assert run.data.metrics["best/likeness"] == 0.5
    assert run.data.metrics["ceiling/likeness"] == 0.9
    assert run.data.metrics["cost/train_seconds"] == 12.0
    assert "best/quality" not in run.data.metrics, "null is a number that could not be had, not 0"
    curve = client.get_metric_history(run_id, "semantic/cross_entropy")
    assert sorted((point.step, point.value) for point in curve) == [(n, 7 - 0.01 * n) for n in range(1, 41)]
    assert [(p.step, p.value) for p in client.get_metric_history(run_id, "held_out/wave/mel")] == [(40, 1.5)]
    (logged,) = run.inputs.dataset_inputs
    assert logged.dataset.name == "corpus/alice"
    assert logged.dataset.digest == ("0123456789abcdef" * 4)[:32]
    assert run.data.tags["corpus_digest"] == "0123456789abcdef" * 4
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.store.uri)  # load_table asks the default store
    table = client.load_table(tracker.prepare(), "pairs.json", run_ids=[run_id])
    assert list(table["wave"]) == ["wave-s000030", "wave-s000060"]
    assert list(table["score"]) == [0.1, 1.1]
    names = {entry.path for entry in client.list_artifacts(run_id)}
    assert {"report.html", "pairs.json", "utterances.json", "environment.json", "scores.json", "audio"} <= names
    (audio,) = client.list_artifacts(run_id, "audio/semantic-s000040+wave-s000060")
    assert audio.path.endswith(".wav")
    assert audio.file_size > 1000
    parent = client.get_run(parent_id)
    assert (parent.info.status, parent.data.params, parent.data.tags["machine"]) == (
        "FINISHED",
        {"base": "nano"},
        "laptop",
    )
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(workspace / "mlartifacts")


def test_a_second_call_returns_the_run_that_is_there(tracker: Tracker, workspace: Path) -> None:
    run_dir = write_run(workspace / "corpus", voice="bob", run_id="b" * 20)
    run_id = tracker.log_voice(None, run_dir)
    assert tracker.find_run("b" * 20) == run_id
    other = Tracker(tracker.store.uri, "corpus")  # as another process would
    assert other.log_voice("another parent", run_dir) == run_id
    found = tracker.store.client.search_runs([tracker.prepare()], f"tags.`{RUN_ID_TAG}` = '{'b' * 20}'")
    assert len(found) == 1


def test_a_run_cut_off_in_the_middle_is_completed_and_not_doubled(tmp_path: Path, tracker: Tracker) -> None:
    blocked = tmp_path / "artifacts"
    blocked.write_text("a file where a folder should be", encoding="utf-8")
    own = Tracker(tracker.store.uri, "blocked", artifact_root=blocked.as_uri())
    run_dir = write_run(tmp_path / "corpus", voice="carol", run_id="c" * 20)
    with pytest.raises(TrackingError, match="could not log the run of carol"):
        own.log_voice(None, run_dir)
    assert own.find_run("c" * 20) is None
    (half,) = own.store.client.search_runs([own.prepare()])
    assert half.info.status == "FAILED"
    assert half.data.metrics, "the failure came after the metrics"
    blocked.unlink()
    assert own.log_voice(None, run_dir) == half.info.run_id
    run = own.store.client.get_run(half.info.run_id)
    assert run.info.status == "FINISHED"
    assert len(own.store.client.get_metric_history(run.info.run_id, "semantic/cross_entropy")) == 40
    assert len(run.inputs.dataset_inputs) == 1


def test_a_parent_run_whose_work_fails_is_marked_failed(tracker: Tracker) -> None:
    begun = []

    def work() -> None:
        with tracker.parent_run("onboard") as parent_id:
            begun.append(parent_id)
            tracker.log_numbers(parent_id, {"voices": 3})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    run = tracker.store.client.get_run(begun[0])
    assert (run.info.status, run.data.metrics) == ("FAILED", {"voices": 3.0})


def test_an_unfinished_run_is_not_logged(tmp_path: Path, tracker: Tracker) -> None:
    run_dir = write_run(tmp_path / "corpus")
    (run_dir / "done.json").unlink()
    with pytest.raises(ValueError, match="holds no finished run"):
        tracker.log_voice(None, run_dir)


def test_a_newer_run_is_refused(tmp_path: Path, tracker: Tracker) -> None:
    with pytest.raises(ValueError, match="newer gsv-fleet"):
        tracker.log_voice(None, write_run(tmp_path / "corpus", schema_version=99))


def test_more_than_one_batch_of_metrics_arrives_whole(tmp_path: Path, tracker: Tracker) -> None:
    run_id = tracker.log_voice(None, write_run(tmp_path / "corpus", voice="dave", run_id="d" * 20, steps=1100))
    assert len(tracker.store.client.get_metric_history(run_id, "wave/mel")) == 1100


def test_many_threads_prepare_one_new_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: Tracker(uri, "corpus").prepare(), range(4)))
    assert len(set(ids)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_many_processes_prepare_one_new_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    started = [subprocess.Popen([sys.executable, "-c", PREPARE, uri], stdout=subprocess.PIPE) for _ in range(2)]
    answers = [process.communicate()[0].decode().split()[-1] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert len(set(answers)) == 1


def test_a_process_killed_while_it_makes_the_store_leaves_none(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    process = subprocess.Popen([sys.executable, "-c", PREPARE, uri], stdout=subprocess.DEVNULL)
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert Tracker(uri, "corpus").prepare()


def test_addresses_that_cannot_work_are_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got ftp://somewhere/x"):
        Tracker("ftp://somewhere/x", "corpus")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="choose another workspace"):
        Tracker(f"sqlite:///{tmp_path}/file/mlflow.db", "corpus").prepare()
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"cannot be reached: nobody answers there \(connection refused\)"):
        Tracker(f"http://127.0.0.1:{free_port()}", "corpus").prepare()
    with pytest.raises(ValueError, match=r"cannot be reached: nobody answers there \(connection refused\)"):
        Registry(f"http://127.0.0.1:{free_port()}").version_of("anna")
    with pytest.raises(ValueError, match="cannot be reached") as caught:
        Tracker(f"postgresql://gsv:{PASSWORD}@127.0.0.1:{free_port()}/x", "corpus").prepare()
    assert time.monotonic() - started < 15
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_deleted_experiment_is_named(tracker: Tracker) -> None:
    gone = Tracker(tracker.store.uri, "gone")
    tracker.store.client.delete_experiment(gone.prepare())
    with pytest.raises(ValueError, match="was deleted"):
        Tracker(tracker.store.uri, "gone").prepare()


def test_an_older_store_says_how_to_upgrade(tmp_path: Path, tracker: Tracker) -> None:
    import sqlite3

    tracker.prepare()
    old = tmp_path / "mlflow.db"
    with sqlite3.connect(tracker.store.sqlite_path or "") as source, sqlite3.connect(old) as target:
        source.backup(target)
        target.execute("update alembic_version set version_num = 'cc1f77228345'")
    with pytest.raises(ValueError, match="mlflow db upgrade"):
        Tracker(f"sqlite:///{old}", "corpus").prepare()


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.delenv("MLFLOW_UV_AUTO_DETECT", raising=False)
    set_defaults()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert os.environ["MLFLOW_UV_AUTO_DETECT"] == "false"


def test_importing_tracking_neither_imports_mlflow_nor_changes_the_environment() -> None:
    code = (
        "import os, sys; before = dict(os.environ); import jobs.tracking, jobs.register, jobs.synth; "
        "assert 'mlflow' not in sys.modules and dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_postgresql_takes_a_voice(database: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="artifact root"):
        Tracker(database, "corpus").prepare()
    tracker = Tracker(database, "corpus", artifact_root=(tmp_path / "files").as_uri())
    run_id = tracker.log_voice(None, write_run(tmp_path / "corpus"))
    assert tracker.log_voice(None, tmp_path / "corpus/voices/alice/runs" / ("r" * 20)) == run_id
    assert len(tracker.store.client.get_metric_history(run_id, "semantic/cross_entropy")) == 40
    assert PASSWORD not in str(tracker.store)
    assert "PASSWORD" not in json.dumps(tracker.store.client.get_run(run_id).to_dictionary())
    assert Registry(database).voices() == []


def test_the_environment_names_code_lock_and_kernels() -> None:
    here = environment()
    lock = Path(jobs.__file__).parents[1] / "requirements.lock"
    assert here["lock_digest"] == hashlib.sha256(lock.read_bytes()).hexdigest()
    assert len(here["code_digest"]) == 64
    assert here["kernels"]
    assert here["packages"]["torch"].startswith("2.")
    assert json.loads(json.dumps(here)) == here


def test_what_another_process_writes_at_this_moment_is_tried_again_and_nothing_else_is() -> None:
    from mlflow.exceptions import MlflowException

    answers: list[Exception | str] = [
        MlflowException("(psycopg2.errors.UniqueViolation) duplicate key"),
        MlflowException("(sqlite3.OperationalError) database is locked"),
        "there",
    ]

    def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert until_alone(call) == "there"
    answers.append(MlflowException("no space left"))
    with pytest.raises(MlflowException, match="no space left"):
        until_alone(call)
    assert answers == []


def test_one_voice_is_one_run_whoever_creates_it_at_the_same_moment(tracker: Tracker, tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "corpus", voice="zoe", run_id="z" * 20)
    first = tracker.log_voice(None, run_dir)
    started = tracker.store.client.get_run(first).info.start_time
    tags = {RUN_ID_TAG: "z" * 20}
    assert tracker._create_once("zoe", tags, started + 1) == first
    assert len(tracker.store.client.search_runs([tracker.prepare()], f"tags.`{RUN_ID_TAG}` = '{'z' * 20}'")) == 1
