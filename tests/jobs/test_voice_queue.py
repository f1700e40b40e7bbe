"""The queue by itself: order, failures, losses, stopping, and how long it still takes."""

import time
from dataclasses import replace

import pytest

from gsv_core.training.recipes import Recipe
from gsv_core.training.schedules import PhasePlan
from jobs.train import Step, VoiceTask
from jobs.training_cost import Measured
from jobs.voice_queue import MOST_LOSSES, VoiceQueue


def task_of(voice: str, steps: int = 10) -> VoiceTask:
    plan = PhasePlan(steps=steps, batch_size=2, learning_rate=1e-4)
    recipe = Recipe(name="test", semantic=plan, wave=replace(plan, steps=0), note="")
    return VoiceTask(voice=voice, run_id=voice, run_dir="", corpus="", rows=(), recipe=recipe, record={})


def queue_of(attempts: int = 2, **seconds: float) -> VoiceQueue:
    return VoiceQueue([task_of(voice) for voice in seconds], attempts, seconds)


def take(queue: VoiceQueue, worker: int) -> str | None:
    task = queue.take(worker)
    return task.voice if task else None


def test_the_longest_comes_first() -> None:
    queue = queue_of(anna=5.0, bert=50.0, cora=5.0)
    assert [take(queue, worker) for worker in range(4)] == ["bert", "anna", "cora", None]
    queue.tell(Step(voice="anna", phase="semantic", done=3, total=10))
    queue.tell(Step(voice="bert", phase="semantic", done=4, total=10))
    assert queue.read().done == 7
    queue.finish("bert", [Measured(key="k", seconds=2.0, work=1.0)])
    queue.finish("anna")
    assert queue.read().trained == ["bert", "anna"]
    assert queue.read().working == {"cora": 2}
    assert queue.read().measured == [Measured(key="k", seconds=2.0, work=1.0)]


def test_a_failed_voice_is_tried_again_behind_the_others() -> None:
    queue = queue_of(anna=2.0, bert=1.0)
    take(queue, 0)
    queue.fail("anna", "first")
    assert queue.read().failed == {}
    assert [take(queue, worker) for worker in (0, 1)] == ["bert", "anna"]
    queue.fail("anna", "second")
    assert queue.read().failed == {"anna": "second"}
    assert take(queue, 1) is None


def test_a_new_group_takes_up_what_the_old_one_had_each_in_its_place() -> None:
    queue = queue_of(anna=4.0, bert=3.0, cora=2.0, dora=1.0)
    assert [take(queue, worker) for worker in (0, 1)] == ["anna", "bert"]
    queue.lose([1])  # the other worker is ended with it, and nobody blames it
    queue.begin()
    assert queue.read().losses == 1
    assert queue.read().working == {}
    # What was lost comes behind the others; it may be what kills workers.
    assert [take(queue, worker) for worker in range(4)] == ["anna", "cora", "dora", "bert"]


def test_a_smaller_group_loses_no_voice() -> None:
    queue = queue_of(anna=2.0, bert=1.0)
    take(queue, 0)
    take(queue, 1)
    queue.begin()  # now of one worker
    assert [take(queue, 0), take(queue, 0)] == ["anna", "bert"]


def test_a_voice_that_always_loses_its_worker_is_given_up_and_another_is_not() -> None:
    queue = queue_of(anna=2.0, bert=1.0)
    for _ in range(MOST_LOSSES):
        workers = {take(queue, worker): worker for worker in (0, 1)}
        queue.lose([workers["anna"]])
        queue.begin()
    assert "lost 5 times" in queue.read().failed["anna"]
    assert take(queue, 0) == "bert"


def test_what_a_worker_gives_back_is_first() -> None:
    queue = queue_of(anna=2.0, bert=1.0)
    take(queue, 0)
    queue.release("anna")
    queue.release("anna")  # nothing in hand any more
    assert queue.read().waiting == ["anna", "bert"]


def test_a_stopped_queue_gives_nothing_and_tells_the_workers() -> None:
    queue = queue_of(anna=2.0, bert=1.0)
    take(queue, 0)
    step = Step(voice="anna", phase="semantic", done=3, total=10)
    assert queue.tell(step) is False
    queue.stop("the budget is spent")
    queue.stop("asked to end")
    assert queue.tell(step) is True
    queue.release("anna")
    assert take(queue, 0) is None
    assert queue.read().stopped == "the budget is spent"


def test_time_left_follows_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    queue = VoiceQueue([task_of("anna"), task_of("bert")], 1, {"anna": 10.0, "bert": 6.0}, workers=1)
    assert queue.read().seconds_left == pytest.approx(16.0)
    take(queue, 0)
    # Twice as slow as predicted: half of it is believed.
    queue.tell(Step(voice="anna", phase="semantic", done=1, total=10))
    now = 110.0
    queue.tell(Step(voice="anna", phase="semantic", done=5, total=10))
    assert queue.read().seconds_left == pytest.approx(6.0 + (5.0 + 10.0) / 2)
    queue.finish("anna")
    assert queue.read().seconds_left == pytest.approx(6.0)
    # Steps that an earlier attempt made took no time now.
    take(queue, 0)
    now = 111.0
    queue.tell(Step(voice="bert", phase="semantic", done=8, total=10))
    assert queue.read().seconds_left == pytest.approx((1.2 + 2.0) / 2)


def test_two_workers_share_what_is_left() -> None:
    seconds = {"anna": 4.0, "bert": 3.0, "cora": 2.0}
    queue = VoiceQueue([task_of(voice) for voice in seconds], 1, seconds, workers=2)
    assert queue.read().seconds_left == pytest.approx(5.0)


def test_a_worker_may_have_several_voices_in_hand() -> None:
    queue = queue_of(anna=3.0, bert=2.0, cora=1.0)
    assert [take(queue, 0), take(queue, 0), take(queue, 1)] == ["anna", "bert", "cora"]
    queue.lose([0])
    assert queue.read().working == {"cora": 1}
    assert queue.read().waiting == ["anna", "bert"]


def test_a_voice_that_gets_further_between_losses_is_not_given_up() -> None:
    queue = queue_of(anna=1.0)
    for loss in range(2 * MOST_LOSSES):
        assert take(queue, 0) == "anna"
        queue.tell(Step(voice="anna", phase="semantic", done=loss + 1, total=10))
        queue.lose([0])
    assert queue.read().failed == {}
