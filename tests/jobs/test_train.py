"""One voice, trained in this process: the same weights however it went, and refusals that name their cause."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gsv_core.checkpoints.checkpoint import SaveError
from gsv_core.synthesis.synthesiser import Prompt
from gsv_core.training.memory import estimate
from gsv_core.training.precision import Precision
from gsv_core.training.semantic_trainer import SemanticTrainer
from jobs.config import TrainingConfig
from jobs.train import Step, VoiceTask, choose_prompt, is_trained, plan_run, saved_weights, train_voice
from pipelines.rows import RATE_HZ
from pipelines.selection import select
from pipelines.shard_reader import read_examples
from pipelines.storage import LocalStorage
from tests.jobs.conftest import CONFIG, MadeCorpus, one_thread

Weights = Callable[[VoiceTask], dict[str, str]]


def test_a_run_leaves_candidates_curves_and_prompt(trained: dict[str, VoiceTask]) -> None:
    task = trained["ada"]
    folder = Path(task.run_dir)
    assert is_trained(task)
    assert saved_weights(folder) == {
        "semantic": ["semantic-s000006", "semantic-s000012"],
        "wave": ["wave-s000006"],
    }
    run = json.loads((folder / "run.json").read_text())
    assert (run["run_id"], run["voice"], run["release"]) == (task.run_id, "ada", "nano")
    assert run["utterances_train"] + run["utterances_held_out"] == len([row for row in task.rows if row.keep])
    curves = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    steps = [(entry["phase"], entry["step"]) for entry in curves if entry["kind"] == "train"]
    assert steps == [("semantic", step) for step in range(1, 13)] + [("wave", step) for step in range(1, 7)]
    assert json.loads((folder / "cost.json").read_text())["steps"] == 18
    prompt = Prompt.load(folder)
    held_out = {row.clip_id for row in task.rows if row.split == "held_out"}
    assert held_out
    assert prompt.clip_id not in held_out
    assert not (folder / "checkpoints").exists()


def test_twice_gives_the_same_bytes(
    made: MadeCorpus, trained: dict[str, VoiceTask], tmp_path: Path, weights_of: Weights
) -> None:
    again = made.task("ada", tmp_path)
    with one_thread():
        assert train_voice(again, made.base)
    assert weights_of(again) == weights_of(trained["ada"])


@pytest.mark.parametrize("stop_at", [4, 15])
def test_stopped_and_gone_on_gives_the_same_bytes(
    made: MadeCorpus, trained: dict[str, VoiceTask], tmp_path: Path, weights_of: Weights, stop_at: int
) -> None:
    """Between two saves of the first phase, and in the second."""
    task = made.task("linus", tmp_path)
    steps: list[Step] = []
    with one_thread():
        assert not train_voice(
            task, made.base, on_step=steps.append, should_stop=lambda: bool(steps) and steps[-1].done >= stop_at
        )
        assert [step.done for step in steps] == list(range(1, stop_at + 1))
        assert not is_trained(task)
        steps.clear()
        until_stopped = json.loads((tmp_path / "cost.json").read_text())
        assert train_voice(task, made.base, on_step=steps.append)
    assert json.loads((tmp_path / "cost.json").read_text())["train_seconds"] > until_stopped["train_seconds"] > 0
    # Nothing that was done is done again.
    assert [step.done for step in steps] == list(range(stop_at + 1, task.steps + 1))
    assert is_trained(task)
    assert weights_of(task) == weights_of(trained["linus"])
    for name in ("curves.jsonl", "prompt.json", "prompt.flac"):
        assert (tmp_path / name).read_bytes() == (Path(trained["linus"].run_dir) / name).read_bytes(), name


def test_a_corpus_of_another_base_is_refused(made: MadeCorpus, tmp_path: Path) -> None:
    task = made.task("ada", tmp_path)
    other = replace(task, record={**task.record, "token_digest": "0" * 64})
    with pytest.raises(ValueError, match="another base") as refusal:
        train_voice(other, made.base)
    message = str(refusal.value)
    assert "\n" not in message
    assert "ada" in message
    assert "--base nano" in message
    assert not list(tmp_path.iterdir())


def test_the_same_inputs_name_the_same_run_and_others_another(made: MadeCorpus) -> None:
    voice, corpus = made.prepared.voices["ada"], LocalStorage(made.workspace.corpus)
    selection = select("ada", voice.units, corpus, CONFIG.selection)

    def run_id(**training: object) -> str:
        config = replace(CONFIG, training=replace(CONFIG.training, **training))
        return plan_run(voice, selection, made.base, "any corpus", config, made.workspace).run_id

    assert run_id() == made.tasks["ada"].run_id
    assert run_id(attempts=5) == run_id()  # how it is tried does not change what comes out
    # Nor does how a step is computed, as long as it gives the same.
    assert run_id(pack=4) == run_id(semantic={**CONFIG.training.semantic, "accumulate": 2, "checkpoint_layers": True})
    assert run_id(pack=4) == run_id(workers_per_voice=1) == run_id()
    others = [run_id(seed=1), run_id(wave={"steps": 3}), run_id(wave={"augment": True}), run_id(workers_per_voice=2)]
    others += [run_id(semantic={"patience": 3}), run_id(semantic={"preference": True})]
    assert len({run_id(), *others}) == 1 + len(others)
    # On a CPU `auto` is float32, and says no more than what was there before there was another.
    assert run_id(precision=Precision.FLOAT32) == run_id() != run_id(precision=Precision.BFLOAT16)
    # What a worker may take of a GPU; a pack divides it.
    on_gpus = replace(CONFIG, cluster=replace(CONFIG.cluster, gpus_per_worker=0.5))
    for config in (on_gpus, replace(on_gpus, training=replace(CONFIG.training, pack=4))):
        assert plan_run(voice, selection, made.base, "", config, made.workspace).gpu_share == 0.5
    fewer = replace(CONFIG, training=TrainingConfig())
    assert plan_run(voice, selection, made.base, "", fewer, made.workspace).recipe.semantic.steps == 60


def test_a_phase_without_steps_leaves_the_base_as_it_is(made: MadeCorpus, tmp_path: Path) -> None:
    task = made.task("ada", tmp_path)
    recipe = replace(task.recipe, semantic=replace(task.recipe.semantic, steps=0))
    assert train_voice(replace(task, recipe=recipe), made.base)
    assert saved_weights(tmp_path) == {"semantic": ["semantic-s000000"], "wave": ["wave-s000006"]}


def test_the_prompt_is_a_training_clip_of_three_to_ten_seconds(made: MadeCorpus) -> None:
    for task in made.tasks.values():
        rows = [row for row in task.rows if row.keep]
        by_id = {row.clip_id: row for row in rows}
        examples = {
            example.utterance.clip_id: example
            for example in read_examples(task.voice, rows, LocalStorage(made.workspace.corpus))
        }
        chosen = by_id[choose_prompt(rows, examples).utterance.clip_id]
        assert chosen.split == "train"
        assert 3 <= chosen.num_samples / RATE_HZ <= 10
        # Without the one that was best, another of them; without any, the longest of what there is to train on.
        others = [row for row in rows if row != chosen]
        assert by_id[choose_prompt(others, examples).utterance.clip_id].prompt
        none = [replace(row, prompt=False) for row in rows]
        longest = max((row for row in rows if row.split == "train"), key=lambda row: row.num_samples)
        chosen = by_id[choose_prompt(none, examples).utterance.clip_id]
        assert chosen.num_samples == longest.num_samples


def test_a_corpus_made_for_a_release_without_speaker_vectors_is_refused(made: MadeCorpus, tmp_path: Path) -> None:
    """As one of v2 is for v2Pro: content and tokens are there, `sv` is not."""
    folder = tmp_path / "corpus"
    shutil.copytree(made.workspace.voice("ada"), folder / "voices" / "ada", ignore=shutil.ignore_patterns("runs"))
    for shard in (folder / "voices" / "ada" / "shards").iterdir():
        without(shard, ".sv.npy")
    task = replace(made.task("ada", tmp_path / "run"), corpus=str(folder))
    with pytest.raises(ValueError, match="sv") as refusal:
        train_voice(task, made.base)
    assert "\n" not in str(refusal.value)
    assert "--base nano" in str(refusal.value)


def without(shard: Path, member: str) -> None:
    """Write the tar anew without its members of that kind."""
    with tarfile.open(shard) as old:
        kept = [(entry, old.extractfile(entry).read()) for entry in old if not entry.name.endswith(member)]
    with tarfile.open(shard, "w") as new:
        for entry, data in kept:
            new.addfile(entry, io.BytesIO(data))


def test_a_checkpoint_of_another_shape_is_refused_and_kept(made: MadeCorpus, tmp_path: Path) -> None:
    task = made.task("ada", tmp_path)
    steps: list[Step] = []
    with one_thread():
        train_voice(task, made.base, on_step=steps.append, should_stop=lambda: len(steps) >= 7)
    path = next((tmp_path / "checkpoints" / "semantic").glob("step-*7.pt"))
    stored = torch.load(path, weights_only=True)
    name, tensor = next((name, tensor) for name, tensor in stored["state"]["trained"].items() if tensor.ndim == 2)
    stored["state"]["trained"][name] = tensor[:-1].clone()
    torch.save(stored, path)
    with pytest.raises(ValueError, match="weights of another shape") as refusal:
        train_voice(task, made.base)
    assert "\n" not in str(refusal.value)
    assert path.exists()


def test_a_storage_that_takes_no_checkpoint_ends_the_voice_and_what_was_saved_is_gone_on_from(
    made: MadeCorpus,
    trained: dict[str, VoiceTask],
    tmp_path: Path,
    weights_of: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gsv_core.checkpoints.checkpoint.PAUSES_S", (0.0,))
    task, steps = made.task("linus", tmp_path), []
    save = torch.save

    def full(content: object, path: Path) -> None:
        if len(steps) > 6:
            raise OSError(28, "No space left on device")
        save(content, path)

    with monkeypatch.context() as failing, one_thread():
        failing.setattr(torch, "save", full)
        with pytest.raises(SaveError, match="No space left on device"):
            train_voice(task, made.base, on_step=steps.append)
    assert [step.done for step in steps] == list(range(1, 13))
    steps.clear()
    with one_thread():
        assert train_voice(task, made.base, on_step=steps.append)
    assert steps[0].done == 7
    assert weights_of(task) == weights_of(trained["linus"])


def test_a_run_whose_folder_is_gone_goes_on_from_its_copy(
    made: MadeCorpus, trained: dict[str, VoiceTask], tmp_path: Path, weights_of: Weights
) -> None:
    task = replace(made.task("linus", tmp_path / "run"), checkpoint_uri=str(tmp_path / "store"))
    steps: list[Step] = []
    notes: list[str] = []
    with one_thread():
        assert not train_voice(task, made.base, on_step=steps.append, should_stop=lambda: len(steps) >= 8)
        shutil.rmtree(tmp_path / "run")
        steps.clear()
        assert train_voice(task, made.base, on_step=steps.append, on_note=notes.append)
        assert steps[0].done == 9
        assert notes == [f"linus: goes on from the copy in {task.checkpoint_uri}"]
        assert weights_of(task) == weights_of(trained["linus"])
        # A finished run is there as a whole, and nothing is trained again.
        shutil.rmtree(tmp_path / "run")
        steps.clear()
        assert train_voice(task, made.base, on_step=steps.append)
    assert steps == []
    assert weights_of(task) == weights_of(trained["linus"])
    assert not list((tmp_path / "store").rglob("*.pt"))


def test_a_plan_is_fitted_to_the_memory_and_says_so(made: MadeCorpus, tmp_path: Path) -> None:
    notes: list[str] = []
    task = made.task("ada", tmp_path)
    trainer = SemanticTrainer(made.base, task.recipe.semantic, voice="ada")
    examples = read_examples("ada", [row for row in task.rows if row.keep], LocalStorage(made.workspace.corpus))
    lengths = [trainer.length(example.training_item()) for example in examples]
    needed = estimate(made.base, "semantic", task.recipe.semantic, lengths)
    # A little less than all, and more than for a single clip.
    task = replace(task, memory_bytes=needed.total - needed.activations // 4)
    with one_thread():
        train_voice(task, made.base, on_note=notes.append, should_stop=lambda: True)
    assert len(notes) == 1
    assert notes[0].startswith("ada: to fit semantic training into ")
    assert "most_frames" in notes[0]
    with pytest.raises(ValueError, match="one clip at a time"):
        train_voice(replace(task, memory_bytes=1_000, run_dir=str(tmp_path / "b")), made.base)


def test_the_cost_says_where_the_time_went(trained: dict[str, VoiceTask]) -> None:
    cost = json.loads((Path(trained["ada"].run_dir) / "cost.json").read_text())
    parts = cost["step_seconds"] + cost["batch_seconds"] + cost["held_out_seconds"]
    assert 0 < cost["step_seconds"] < parts < cost["train_seconds"]
    assert cost["batch_seconds"] < 0.05 * cost["train_seconds"]
