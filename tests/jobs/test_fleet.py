"""The queue by itself, and the real worker group: voices that fail, workers that are killed or asked to end."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from jobs.cluster import Cluster
from jobs.fleet import FleetSettings, VoiceQueue, train_fleet
from jobs.progress import Silent
from jobs.train import Step, VoiceTask, is_trained, train_voice
from tests.jobs.conftest import CONFIG, MadeCorpus, one_thread
from tests.jobs.processes import processes_titled

Weights = Callable[[VoiceTask], dict[str, str]]
SETTINGS = FleetSettings(release=CONFIG.flow.release, base_folder=None, attempts=2)


class Disturbing:
    """A Progress that does something to the workers once, as soon as so many steps are done, and looks on after it."""

    def __init__(
        self, after_steps: int, disturb: Callable[[], None], look_on: Callable[[], None] = lambda: None
    ) -> None:
        self._after_steps, self._disturb, self._look_on = after_steps, disturb, look_on
        self.disturbed_at: float | None = None

    def say(self, line: str) -> None:
        del line

    @contextmanager
    def bar(self, what: str) -> Iterator["Disturbing"]:
        assert what == "train"
        yield self

    def update(self, done: float, total: float, note: str = "") -> None:
        del note
        if self.disturbed_at is not None:
            self._look_on()
        elif self._after_steps <= done < total:
            self.disturbed_at = done
            self._disturb()


def signal_a_worker(number: signal.Signals) -> None:
    """Send it to the busiest of the processes that train."""
    os.kill(processes_titled("RayTrainWorker")[0], number)


def longer(task: VoiceTask, *, save_every: int) -> VoiceTask:
    """The same task with steps enough to be caught in the middle of them."""
    recipe = replace(task.recipe, semantic=replace(task.recipe.semantic, steps=150, save_every=save_every))
    return replace(task, recipe=recipe)


def damaged(made: MadeCorpus, folder: Path) -> VoiceTask:
    """Ada's corpus under another name, with a shard that ends in the middle."""
    voices = folder / "voices"
    shutil.copytree(made.workspace.voice("ada"), voices / "broken")
    for shard in (voices / "broken" / "shards").iterdir():
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    return replace(made.task("ada", folder / "run"), voice="broken", corpus=str(folder))


def test_the_queue_gives_the_longest_first(made: MadeCorpus) -> None:
    ada, linus = made.tasks["ada"], longer(made.tasks["linus"], save_every=50)
    queue = VoiceQueue([ada, linus], attempts=2)
    assert queue.take(0) == linus
    assert queue.take(1) == ada
    assert queue.take(0) is None
    queue.tell(Step(voice="ada", phase="semantic", done=3, total=18))
    queue.tell(Step(voice="linus", phase="semantic", done=4, total=156))
    assert queue.read().done == 7
    queue.finish(0)
    queue.finish(1)
    assert queue.read().trained == ["linus", "ada"]
    assert queue.read().working == {}


def test_the_queue_tries_a_failed_voice_again_after_the_others(made: MadeCorpus) -> None:
    queue = VoiceQueue([longer(made.tasks["ada"], save_every=50), made.tasks["linus"]], attempts=2)
    queue.take(0)
    queue.fail(0, "first")
    assert queue.read().failed == {}
    assert [queue.take(worker).voice for worker in (0, 1)] == ["linus", "ada"]
    queue.fail(1, "second")
    assert queue.read().failed == {"ada": "second"}
    assert queue.take(1) is None


def test_the_queue_takes_back_what_a_worker_had(made: MadeCorpus) -> None:
    queue = VoiceQueue(list(made.tasks.values()), attempts=1)
    had = queue.take(1)
    queue.join(1)  # restarted: a loss is no failed attempt, but the others come first
    assert queue.take(0) != had
    queue.release(0)
    assert queue.take(0) != had  # what was saved and given back goes on first of all
    queue.finish(0)
    assert queue.take(0) == had
    queue.release(0)
    queue.release(0)  # nothing in hand any more
    assert queue.read().waiting[0] == had.voice
    assert queue.read().waiting == [had.voice]
    assert queue.read().working == {}


def test_a_voice_that_always_loses_its_worker_is_given_up(made: MadeCorpus) -> None:
    queue = VoiceQueue(list(made.tasks.values())[:1], attempts=1)
    losses = 0
    while (task := queue.take(0)) is not None:
        queue.join(0)
        losses += 1
    assert losses == 5
    assert "lost 5 times" in next(iter(queue.read().failed.values()))
    assert task is None


def test_nothing_to_train_starts_nothing(tmp_path: Path) -> None:
    unused = Cluster(CONFIG.cluster, tmp_path)
    assert train_fleet([], SETTINGS, unused, tmp_path, Silent()) == {}
    assert not unused.started


def test_a_voice_that_fails_is_reported_and_a_killed_worker_changes_nothing(
    made: MadeCorpus, trained: dict[str, VoiceTask], cluster: Cluster, tmp_path: Path, weights_of: Weights
) -> None:
    """One group for three voices; the busier worker dies behind the first save of the longest."""
    alone = longer(made.task("ada", tmp_path / "alone"), save_every=25)
    with one_thread():
        assert train_voice(alone, made.base)
    ada = replace(alone, run_dir=str(tmp_path / "ada"))
    linus, broken = made.task("linus", tmp_path / "linus"), damaged(made, tmp_path / "damaged")
    progress = Disturbing(60, lambda: signal_a_worker(signal.SIGKILL))
    errors = train_fleet([linus, broken, ada], SETTINGS, cluster, tmp_path, progress)
    assert progress.disturbed_at is not None
    assert progress.disturbed_at < ada.steps
    assert set(errors) == {"broken"}
    assert "damaged" in errors["broken"]
    assert not is_trained(broken)
    assert is_trained(ada)
    assert is_trained(linus)
    assert weights_of(ada) == weights_of(alone)
    assert weights_of(linus) == weights_of(trained["linus"])


def test_a_worker_that_is_asked_to_end_saves_the_step_it_has_reached(
    made: MadeCorpus, cluster: Cluster, tmp_path: Path, weights_of: Weights
) -> None:
    """No save is due before the last step: what is gone on from is what SIGTERM left."""
    alone = longer(made.task("ada", tmp_path / "alone"), save_every=1000)
    with one_thread():
        assert train_voice(alone, made.base)
    task = replace(alone, run_dir=str(tmp_path / "asked"))
    saved = set()

    def look_on() -> None:
        saved.update(path.name for path in (tmp_path / "asked" / "checkpoints" / "semantic").glob("step-*.pt"))

    progress = Disturbing(20, lambda: signal_a_worker(signal.SIGTERM), look_on)
    assert train_fleet([task], SETTINGS, cluster, tmp_path, progress) == {}
    assert progress.disturbed_at is not None
    early = {name for name in saved if name < f"step-{task.recipe.semantic.steps:06d}"}
    assert len(early) == 1
    assert min(early) >= f"step-{int(progress.disturbed_at):06d}"
    assert weights_of(task) == weights_of(alone)
