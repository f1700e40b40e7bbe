"""Voices trained in one batch leave the run folders that they leave alone."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gsv_core.checkpoints.base import BaseModel, load_base
from gsv_core.training.loop import Save
from gsv_core.training.schedules import PhasePlan, Trains
from jobs import packed, train
from jobs.bench_train import _small_voice
from jobs.packed import Outcome, train_packed
from jobs.save_audio import SaveAudio
from jobs.train import Step, VoiceTask, _identity_of, is_trained, saved_weights, train_voice
from tests.jobs.conftest import one_thread

VOICES = ("ada", "linus")
UNTRAINED = PhasePlan(steps=0, batch_size=1, learning_rate=1e-4, trains=Trains.NOTHING)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("nano")


@pytest.fixture(scope="module")
def voices(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> list[VoiceTask]:
    """GPT of both learns by adapters, one longer than the other; nano's SoVITS cannot."""
    tasks = []
    for number, voice in enumerate(VOICES):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            task = _small_voice(tmp_path_factory.mktemp(voice), voice, base)
        semantic = replace(task.recipe.semantic, trains=Trains.LOW_RANK, rank=4, steps=6 + 2 * number, save_every=3)
        wave = replace(task.recipe.wave, steps=2, batch_size=2, longest_frames=64, save_every=2)
        recipe = replace(task.recipe, semantic=semantic, wave=wave)
        silent = replace(task.telemetry, sentences=())
        tasks.append(replace(task, recipe=recipe, rows=(*task.rows[:3], task.rows[-1]), telemetry=silent))
    return tasks


def at(tasks: list[VoiceTask], folder: Path) -> list[VoiceTask]:
    return [replace(task, run_dir=str(folder / task.voice)) for task in tasks]


def test_a_packed_run_leaves_what_a_run_alone_leaves(base: BaseModel, voices: list[VoiceTask], tmp_path: Path) -> None:
    alone, packed = at(voices, tmp_path / "alone"), at(voices, tmp_path / "packed")
    broken = replace(packed[0], voice="nobody", run_dir=str(tmp_path / "nobody"))
    waiting = iter([*packed, broken])
    steps: list[Step] = []
    ended: list[Outcome] = []
    with one_thread():
        for task in alone:
            assert train_voice(task, base)
        began = time.monotonic()
        outcomes = train_packed(lambda: next(waiting, None), base, seats=2, on_step=steps.append, on_end=ended.append)
        took = time.monotonic() - began
    costs = [json.loads((Path(task.run_dir) / "cost.json").read_text()) for task in packed]
    # Each is told its share of the time, and not the whole of it.
    assert 0.5 * took < sum(cost["train_seconds"] for cost in costs) <= took
    assert all(cost["step_seconds"] + cost["batch_seconds"] <= cost["train_seconds"] for cost in costs)
    assert sum(one.seconds for outcome in outcomes for one in outcome.measured) <= took
    assert {outcome.task.voice for outcome in outcomes} == {*VOICES, "nobody"}
    assert sorted(outcome.task.voice for outcome in ended) == sorted(outcome.task.voice for outcome in outcomes)
    by_voice = {outcome.task.voice: outcome for outcome in outcomes}
    assert by_voice["nobody"].error is not None
    assert not by_voice["nobody"].finished
    for mine, theirs in zip(packed, alone, strict=True):
        assert by_voice[mine.voice].finished
        assert {one.work > 0 for one in by_voice[mine.voice].measured} == {True}
        assert max(step.done for step in steps if step.voice == mine.voice) == mine.steps
        ours, other = Path(mine.run_dir), Path(theirs.run_dir)
        assert is_trained(mine)
        assert saved_weights(ours) == saved_weights(other)
        names = sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file())
        assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
        assert (ours / "run.json").read_bytes() == (other / "run.json").read_bytes()
        curves = [
            [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
            for folder in (ours, other)
        ]
        assert [(one["phase"], one["step"], one["kind"]) for one in curves[0]] == [
            (one["phase"], one["step"], one["kind"]) for one in curves[1]
        ]
        for path in sorted((ours / "weights").iterdir()):
            if path.name.startswith("wave"):
                # Trained beside the pack, with nothing shared: the same bytes.
                assert path.read_bytes() == (other / "weights" / path.name).read_bytes()
                continue
            found, wanted = load_file(path), load_file(other / "weights" / path.name)
            assert found.keys() == wanted.keys()
            for name, tensor in wanted.items():
                torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_voices_that_are_stopped_go_on_later(base: BaseModel, voices: list[VoiceTask], tmp_path: Path) -> None:
    tasks = [replace(task, recipe=replace(task.recipe, wave=UNTRAINED)) for task in at(voices, tmp_path)]
    done: list[Step] = []
    with one_thread():
        waiting = iter(tasks)
        outcomes = train_packed(
            lambda: next(waiting, None),
            base,
            seats=2,
            on_step=done.append,
            should_stop=lambda: len(done) >= 7,
        )
        assert [outcome.finished for outcome in outcomes] == [False, False]
        assert all(outcome.error is None for outcome in outcomes)
        again = iter(tasks)
        done.clear()
        outcomes = train_packed(lambda: next(again, None), base, seats=2, on_step=done.append)
    assert [outcome.finished for outcome in outcomes] == [True, True]
    # What the first call has trained is not trained again.
    assert len(done) < sum(task.steps for task in tasks)


def test_each_voice_of_a_pack_has_its_part_of_the_memory(
    base: BaseModel, voices: list[VoiceTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a GPU as of what is given in bytes: the voices' tensors are there at once."""
    bounded, unbounded = replace(voices[0], memory_bytes=8_000), replace(voices[1], gpu_share=0.5)
    told: dict[str, VoiceTask] = {}

    def train(task: VoiceTask, *_: object, **__: object) -> bool:
        told[task.voice] = task
        return True

    monkeypatch.setattr(packed, "train_voice", train)
    waiting = iter([bounded, unbounded])
    outcomes = train_packed(lambda: next(waiting, None), base, seats=4)
    assert all(outcome.finished for outcome in outcomes)
    assert told["ada"].memory_bytes == 2_000
    assert (told["linus"].memory_bytes, told["linus"].gpu_share) == (None, 0.125)


def test_a_packs_memory_is_measured_where_it_computes(
    base: BaseModel, voices: list[VoiceTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU steps are taken for it, and what other voices need in the meantime would be counted with them."""
    computing: set[str] = set()

    def fit_to(budget_bytes: int, base: BaseModel, phase: str, plan: PhasePlan, *_: object, **__: object) -> PhasePlan:
        assert (budget_bytes, base.release, phase) == (4 * 10**9, "nano", "semantic")
        computing.add(threading.current_thread().name)
        return plan

    monkeypatch.setattr(train, "fit_to", fit_to)
    waiting = iter([replace(task, memory_bytes=8 * 10**9) for task in at(voices, tmp_path)])
    steps: list[Step] = []
    with one_thread():
        outcomes = train_packed(
            lambda: next(waiting, None), base, seats=2, on_step=steps.append, should_stop=lambda: bool(steps)
        )
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert len(computing) == 1
    assert computing.pop().startswith("pack")


def test_a_packed_run_is_a_run_of_its_own(voices: list[VoiceTask]) -> None:
    """Its numbers are those of the voice alone up to rounding, not bit by bit."""
    recipe = voices[0].recipe
    record = dict.fromkeys(("voice", "base_digest", "selection_digest", "seed", "trainer_version"), "the same")
    assert _identity_of(record | {"packed": True}, recipe, 1) != _identity_of(record, recipe, 1)


def test_a_packs_voices_are_heard_where_it_computes(
    base: BaseModel, voices: list[VoiceTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speaking touches torch's random state, and what is drawn from that for another voice's step would change."""
    speaking: list[str] = []

    def speak(audio: SaveAudio, save: Save) -> dict[str, bytes]:
        del audio, save
        speaking.append(threading.current_thread().name)
        return {}

    monkeypatch.setattr(SaveAudio, "speak", speak)
    audible = [replace(task, telemetry=replace(task.telemetry, sentences=1)) for task in at(voices, tmp_path)]
    waiting = iter(audible)
    with one_thread():
        outcomes = train_packed(lambda: next(waiting, None), base, seats=2)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert len(speaking) >= 4
    assert len(set(speaking)) == 1
    assert speaking[0].startswith("pack")
