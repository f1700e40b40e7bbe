"""Whatever the tracker does, noting returns, and in the end every number is there exactly once."""

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import jobs.telemetry
from gsv_core.training.loop import Record
from jobs.config import load_config
from jobs.run_folder import RunFolder
from jobs.telemetry import Telemetry, TelemetryPlan, accelerator_memory, telemetry_plan
from jobs.tracking import STATE_TAG, Address, Line, Spool, Tracker
from jobs.tracking.spool import Sent
from jobs.train import VoiceTask, train_voice
from jobs.workspace import Workspace
from tests.jobs.conftest import MadeCorpus, one_thread
from tests.jobs.run_fixture import write_run
from tests.jobs.stores import PASSWORD, free_port, mlflow_server, server_uri

SLOWEST_NOTE_S = 1.0
"""A note is one write to a file; a wait for a network would be the time-out of 3 s or more."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.telemetry, "_SEND_EVERY_S", 0.2)
    monkeypatch.setattr(jobs.telemetry, "_LONGEST_PAUSE_S", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    tracker = Tracker(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", "corpus")
    tracker.prepare()
    return tracker


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "corpus", voice=tmp_path.name[:30], run_id=f"run-{tmp_path.name}"[:40])


def address_of(tracker: Tracker) -> Address:
    return Address(uri=tracker.store.uri, experiment=tracker.experiment)


def steps(first: int, last: int, phase: str = "semantic") -> Iterator[Record]:
    for step in range(first, last + 1):
        yield Record(phase=phase, step=step, kind="train", metrics={"cross_entropy": 7 - 0.01 * step})


def note_all(telemetry: Telemetry, records: Iterator[Record]) -> None:
    """Note, and see that none of it waits."""
    for record in records:
        began = time.monotonic()
        telemetry.note(record)
        assert time.monotonic() - began < SLOWEST_NOTE_S


def wait_until_sent(spool: Spool, tracker: Tracker, seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while spool.unsent(tracker.target):
        assert time.monotonic() < give_up, "the spool was not sent"
        time.sleep(0.05)


def points_at(tracker: Tracker, spool: Spool, name: str = "semantic/cross_entropy") -> Counter[int]:
    """Step → how often the tracker has it."""
    sent = spool.sent(tracker.target)
    assert sent is not None
    return Counter(point.step for point in tracker.store.client.get_metric_history(sent.run_id, name))


def test_curves_audio_and_state_reach_the_tracker_while_training_goes_on(tracker: Tracker, run_dir: Path) -> None:
    spool = Spool(run_dir)
    with Telemetry(run_dir, address_of(tracker)) as telemetry:
        note_all(telemetry, steps(1, 20))
        telemetry.note(Record(phase="semantic", step=20, kind="held_out", metrics={"cross_entropy": 6.5}))
        telemetry.add_file("audio/at_saves/semantic-s000020/en-1.wav", b"RIFF")
        wait_until_sent(spool, tracker)
        sent = spool.sent(tracker.target)
        assert sent is not None
        run = tracker.store.client.get_run(sent.run_id)
        assert (run.info.status, run.data.tags[STATE_TAG]) == ("RUNNING", "training")
        assert run.data.params["recipe.semantic.steps"] == "40"
        assert run.data.metrics["held_out/semantic/cross_entropy"] == 6.5
        (audio,) = tracker.store.client.list_artifacts(sent.run_id, "audio/at_saves/semantic-s000020")
        assert audio.path.endswith("en-1.wav")
        telemetry.finished = True
    wait_until_sent(spool, tracker)
    run = tracker.store.client.get_run(sent.run_id)
    assert (run.info.status, run.data.tags[STATE_TAG]) == ("FINISHED", "trained")
    assert tracker.find_run(run.data.tags["gsv.run_id"]) is None, "trained is not yet all that there is of it"
    assert points_at(tracker, spool) == Counter(range(1, 21))


def test_a_run_that_goes_on_from_a_checkpoint_is_one_run_with_every_step_once(tracker: Tracker, run_dir: Path) -> None:
    spool = Spool(run_dir)

    def fail() -> None:
        with Telemetry(run_dir, address_of(tracker)) as telemetry:
            note_all(telemetry, steps(1, 12))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    wait_until_sent(spool, tracker)
    first = spool.sent(tracker.target)
    assert first is not None
    assert tracker.store.client.get_run(first.run_id).info.status == "FAILED"
    with spool.path.open("ab") as file:
        file.write(b'{"time_ms": 17, "metr')  # as a killed process leaves it
    with Telemetry(run_dir, address_of(tracker)) as telemetry:
        note_all(telemetry, steps(9, 20))  # from the checkpoint of step 8 on
        telemetry.finished = True
    wait_until_sent(spool, tracker)
    assert spool.sent(tracker.target).run_id == first.run_id  # type: ignore[union-attr]
    assert points_at(tracker, spool) == Counter(range(1, 21))


def test_what_is_sent_twice_is_there_once(tracker: Tracker, run_dir: Path) -> None:
    """The word that a batch arrived may be lost: killed between the batch and the mark."""
    spool = Spool(run_dir)
    with Telemetry(run_dir, None) as telemetry:
        note_all(telemetry, steps(1, 1200))
    run_id = tracker.send(spool)
    (spool.folder / "sent.json").unlink()
    assert tracker.send(spool) == run_id
    assert points_at(tracker, spool) == Counter(range(1, 1201))


def test_registration_sends_the_rest_and_logs_no_curve_twice(tracker: Tracker, run_dir: Path) -> None:
    spool = Spool(run_dir)
    points = {(point.name, point.step): point.value for point in RunFolder.read(run_dir).curves()}
    with Telemetry(run_dir, None) as telemetry:
        for name, step in list(points)[:30]:
            phase, metric = name.split("/")
            telemetry.note(Record(phase=phase, step=step, kind="train", metrics={metric: points[name, step]}))
        telemetry.finished = True
    with tracker.parent_run("onboard") as parent:
        run_id = tracker.log_voice(parent, run_dir)
    for name in {name for name, _ in points}:
        expected = Counter(step for other, step in points if other == name)
        assert points_at(tracker, spool, name) == expected
    run = tracker.store.client.get_run(run_id)
    assert (run.info.status, run.data.tags[STATE_TAG]) == ("FINISHED", "complete")
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert tracker.log_voice(None, run_dir) == run_id
    assert tracker.find_run(run.data.tags["gsv.run_id"]) == run_id


def test_a_store_that_was_thrown_away_is_told_everything_again(tracker: Tracker, run_dir: Path) -> None:
    spool = Spool(run_dir)
    with Telemetry(run_dir, None) as telemetry:
        note_all(telemetry, steps(1, 5))
    spool.mark(tracker.target, Sent(run_id="0" * 32, offset=spool.path.stat().st_size))
    tracker.send(spool)
    assert points_at(tracker, spool) == Counter(range(1, 6))


def test_a_worker_never_makes_the_store_itself(tmp_path: Path, run_dir: Path) -> None:
    with Telemetry(run_dir, Address(uri=f"sqlite:///{tmp_path}/not-yet.db", experiment="corpus")) as telemetry:
        note_all(telemetry, steps(1, 5))
        time.sleep(1)
    assert not (tmp_path / "not-yet.db").exists()
    assert len(list(Spool(run_dir).lines())) == 7  # the state at both ends, and five steps


def test_a_tracker_that_accepts_and_never_answers_delays_nothing(tmp_path: Path, run_dir: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(8)
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        began = time.monotonic()
        with Telemetry(run_dir, Address(uri=uri, experiment="corpus")) as telemetry:
            note_all(telemetry, steps(1, 50))
            connection, _ = deaf.accept()  # the thread is waiting for an answer by now
            note_all(telemetry, steps(51, 100))
            telemetry.finished = True
        connection.close()
        assert time.monotonic() - began < 8, "ending waited for the tracker"
    assert Spool(run_dir).unsent(Tracker(uri, "corpus").target)


def test_throughput_and_memory_are_measured_from_time_to_time(run_dir: Path) -> None:
    now = iter(range(100))
    with Telemetry(
        run_dir, None, clips={"wave": 4}, memory=lambda: {"gpu_mb": 12.5}, clock=lambda: float(next(now))
    ) as telemetry:
        note_all(telemetry, steps(1, 7, "wave"))
    measured = [
        (line.step, line.metrics)
        for line, _ in Spool(run_dir).lines()
        if line.metrics and "wave/throughput/steps_per_second" in line.metrics
    ]
    assert [step for step, _ in measured] == [3, 5, 7]
    _, numbers = measured[0]
    assert numbers["wave/throughput/steps_per_second"] == 1.0
    assert numbers["wave/throughput/clips_per_second"] == 4.0
    assert numbers["wave/memory/gpu_mb"] == 12.5
    assert 50 < numbers["wave/memory/process_mb"] < 100_000
    assert accelerator_memory("cpu")() == {}


def test_a_password_is_neither_kept_nor_shown(tmp_path: Path, run_dir: Path) -> None:
    config = load_config(None, [], {"registry.tracking_uri": f"postgresql://gsv:{PASSWORD}@127.0.0.1:1/x"})
    plan = telemetry_plan(config, Workspace.open(tmp_path / "work"))
    assert plan.address is not None
    assert PASSWORD not in repr(plan)
    spool = Spool(run_dir)
    spool.open()
    spool.append(Line(time_ms=1, step=1, metrics={"a": 1.0}))
    assert PASSWORD not in Tracker(plan.address.uri, plan.address.experiment).target


def test_a_voice_that_is_told_of_while_it_trains_gets_the_same_weights(
    made: MadeCorpus,
    trained: dict[str, VoiceTask],
    weights_of: Callable[[VoiceTask], dict[str, str]],
    tracker: Tracker,
    tmp_path: Path,
) -> None:
    """`trained` had nobody to tell: its store was never made."""
    voice = min(trained)
    telemetry = TelemetryPlan(address=address_of(tracker), sentences=2)
    task = replace(made.task(voice, tmp_path / "run"), telemetry=telemetry)
    with one_thread():
        assert train_voice(task, made.base)
    assert weights_of(task) == weights_of(trained[voice])
    spool = Spool(tmp_path / "run")
    wait_until_sent(spool, tracker)
    assert points_at(tracker, spool) == Counter(range(1, task.recipe.semantic.steps + 1))
    assert points_at(tracker, spool, "wave/learning_rate") == Counter(range(1, task.recipe.wave.steps + 1))
    sent = spool.sent(tracker.target)
    assert sent is not None
    saves = tracker.store.client.list_artifacts(sent.run_id, "audio/at_saves")
    heard = {name.split(".")[0] for name in weights_of(task) if name.startswith("wave")}
    assert {Path(entry.path).name for entry in saves} == heard
    (first, second) = tracker.store.client.list_artifacts(sent.run_id, saves[-1].path)
    assert (Path(first.path).name, Path(second.path).name) == ("en-1.wav", "en-2.wav")


@pytest.mark.slow
def test_a_server_that_comes_late_stops_hangs_and_is_killed_gets_everything_once(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "corpus")
    port = free_port()
    store, files, log = f"sqlite:///{tmp_path}/server.db", tmp_path / "served", tmp_path / "log"
    Tracker(store, "anything").prepare()
    tracker = Tracker(f"http://127.0.0.1:{port}", "corpus")
    spool = Spool(run_dir)
    with Telemetry(run_dir, address_of(tracker)) as telemetry:
        note_all(telemetry, steps(1, 100))
        assert spool.unsent(tracker.target), "nobody listens yet"
        with mlflow_server(store, files, log, port) as server:
            assert server_uri(server) == tracker.store.uri
            wait_until_sent(spool, tracker)
            os.killpg(server.pid, signal.SIGSTOP)
            note_all(telemetry, steps(101, 200))
            time.sleep(8)  # long enough that a batch was tried and given up
            note_all(telemetry, steps(201, 300))
            assert spool.unsent(tracker.target)
            os.killpg(server.pid, signal.SIGCONT)
            wait_until_sent(spool, tracker)
            note_all(telemetry, steps(301, 400))
            os.killpg(server.pid, signal.SIGKILL)
        note_all(telemetry, steps(401, 500))
        with mlflow_server(store, files, log, port):
            wait_until_sent(spool, tracker)
            note_all(telemetry, steps(501, 510))
            telemetry.close("FINISHED")
            wait_until_sent(spool, tracker)
            assert points_at(tracker, spool) == Counter(range(1, 511))
            runs = tracker.store.client.search_runs([tracker.prepare()])
            assert len(runs) == 1
