"""What a group's driver and workers have in common, without Ray: budgets, lines of progress, signals."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from gsv_core.checkpoints.releases import Release
from jobs.progress import Silent
from jobs.train import Step
from jobs.voice_queue import FleetState
from jobs.worker_group import Budget, FleetSettings, Line, Sigterm, Watch, _described, _note, _numbers
from tests.jobs.test_voice_queue import task_of


def test_a_budget_of_the_clock_or_of_gpus() -> None:
    assert Budget().spent(1e9, 8.0) is None
    assert Budget(hours=1.0).spent(3599.0, 0.0) is None
    assert Budget(hours=1.0).spent(3600.0, 0.0) == "the budget of 1 hours is spent"
    assert Budget(gpu_hours=1.0).spent(3600.0, 0.5) is None
    assert Budget(gpu_hours=1.0).spent(1800.0, 2.0) == "the budget of 1 GPU hours is spent"


def test_a_line_of_progress_names_a_few_voices() -> None:
    assert _note(FleetState(waiting=["anna"]), 1) == "starting workers"
    step = Step(voice="v0", phase="wave", done=3, total=9)
    state = FleetState(working={f"v{n}": n for n in range(6)}, steps={"v0": step}, trained=["x"], failed={"y": "no"})
    assert _note(state, 8) == "1 of 8 voices done, 1 failed; v0 wave, v1, v2, v3 and 2 others"
    assert _numbers(state, 8) == {"voices": 8, "voices_trained": 1, "voices_failed": 1}
    state.seconds_left = 61.7
    assert _numbers(state, 8)["seconds_left"] == 62


def test_what_is_written_of_each_voice() -> None:
    step = Step(voice="anna", phase="wave", done=3, total=9)
    state = FleetState(working={"anna": 0}, waiting=["bert"], steps={"anna": step}, failed={"cora": "bad"})
    assert _described("anna", state) == {"state": "training", "phase": "wave", "steps": 3, "of": 9, "error": None}
    assert _described("bert", state)["state"] == "waiting"
    assert (_described("cora", state)["state"], _described("cora", state)["error"]) == ("failed", "bad")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_does_what_it_did(number: signal.Signals, tmp_path: Path) -> None:
    settings = FleetSettings(release=Release.NANO, base_folder=None, attempts=1)
    came = []
    before = signal.signal(number, lambda *_: came.append(number))
    try:
        with Watch(settings, tmp_path, Silent()).asked_to_end() as asked:
            assert not asked()
            os.kill(os.getpid(), number)
            assert asked()
            assert came == []
            os.kill(os.getpid(), number)
            assert came == [number]
        os.kill(os.getpid(), number)
        assert came == [number, number]
    finally:
        signal.signal(number, before)


def test_ray_that_ends_with_us_is_no_failure(tmp_path: Path) -> None:
    watch = Watch(FleetSettings(release=Release.NANO, base_folder=None, attempts=1), tmp_path, Silent())
    with pytest.raises(KeyboardInterrupt), watch.told_with_everything(lambda: True):
        raise ray.exceptions.RayActorError
    with pytest.raises(RuntimeError, match="run the same command again"), watch.told_with_everything(lambda: False):
        raise ray.exceptions.RayActorError


def test_sigterm_is_heeded_only_while_there_is_something_to_save() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        handler = Sigterm()
        handler.install()
        with handler.heeded() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked()
        assert came == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


class Answering:
    """A queue whose answers are there at once."""

    def __init__(self) -> None:
        self.told: list[Step] = []
        self.answer = False

    @property
    def tell(self) -> "Answering":
        return self

    def remote(self, step: Step) -> bool:
        self.told.append(step)
        return self.answer


def test_a_worker_says_now_and_then_how_far_it_is_and_hears_when_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("jobs.worker_group.time.monotonic", lambda: now)
    monkeypatch.setattr(ray, "wait", lambda answers, timeout: (answers, []))
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    queue: Any = Answering()
    line = Line(queue)
    steps = [Step(voice=voice, phase="wave", done=done, total=9) for done in (1, 2, 3) for voice in ("anna", "bert")]
    for step in steps:
        line.tell(step)
    assert queue.told == steps[:1]
    assert not line.stopped()
    now, queue.answer = 101.0, True
    line.tell(steps[4])
    # Of each voice the newest.
    assert {(step.voice, step.done) for step in queue.told[1:]} == {("anna", 3), ("bert", 3)}
    assert line.stopped()
    line.tell(steps[0])
    assert line.stopped()


def test_gpus_are_counted_as_they_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shared one its part; of a voice that several workers train, a whole one for each."""
    now = 0.0
    monkeypatch.setattr("jobs.worker_group.time.monotonic", lambda: now)
    settings = FleetSettings(
        release=Release.NANO, base_folder=None, attempts=1, gpus_per_worker=0.25, budget=Budget(gpu_hours=1.0)
    )
    watch = Watch(settings, tmp_path, Silent())
    small = task_of("anna")
    now = 3600.0
    assert watch.reason_to_stop([small], 3, lambda: False) is None
    assert watch.reason_to_stop([small], 4, lambda: False) == "the budget of 1 GPU hours is spent"
    assert watch.reason_to_stop([replace(small, workers=2)], 2, lambda: False) is not None
    assert watch.reason_to_stop([small], 1, lambda: True) == "asked to end"
