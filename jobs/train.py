"""Train: the selection of one voice → a run folder with candidates of both phases, its curves and its Prompt.

Everything about one voice is here; which worker trains which voice, and what happens when one is lost, is `jobs.fleet`.
"""

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gsv_core.checkpoints.base import BaseModel
from gsv_core.checkpoints.checkpoint import save_patiently
from gsv_core.checkpoints.weights import save_weights, write_atomically, write_json
from gsv_core.synthesis.synthesiser import Prompt
from gsv_core.training.adapter_trainer import packable
from gsv_core.training.batches import TrainingItem
from gsv_core.training.loop import FitResult, Record, Save, Trainer, fit
from gsv_core.training.mel_trainer import MelTrainer
from gsv_core.training.memory import fit_to, free_memory
from gsv_core.training.parallel import Reducer
from gsv_core.training.precision import resolved
from gsv_core.training.recipes import Recipe, choose_recipe
from gsv_core.training.schedules import PhasePlan
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.updates import TRAINER_VERSION
from gsv_core.training.wave_trainer import WaveTrainer
from jobs.config import JobConfig
from jobs.mirror import Mirror
from jobs.prepare import PreparedVoice
from jobs.save_audio import SaveAudio
from jobs.telemetry import Telemetry, TelemetryPlan, accelerator_memory, telemetry_plan
from jobs.training_cost import PHASES, Measured, rate_key, work_of, workers_for
from jobs.workspace import Workspace
from pipelines.rows import RATE_HZ, SelectionRow
from pipelines.selection import Selection
from pipelines.shard_reader import StoredExample, read_examples
from pipelines.stage import digest_of
from pipelines.storage import open_storage

SAVE_EVERY_S = 300.0
"""What a lost worker costs a voice at most: a full-size one has tens of minutes between its candidates."""
Compute = Callable[[Callable[[], Any]], Any]
"""Do some work where it may compute, and give what comes out."""


@dataclass(frozen=True, kw_only=True)
class VoiceTask:
    """All that a worker needs to train one voice; small enough to travel in a message."""

    voice: str
    run_id: str
    run_dir: str
    corpus: str
    rows: tuple[SelectionRow, ...]
    recipe: Recipe
    record: dict[str, Any]
    """What `run.json` will say."""
    telemetry: TelemetryPlan = field(default_factory=TelemetryPlan)
    workers: int = 1
    """Processes that train the voice together; more than one for a large voice."""
    memory_bytes: int | None = None
    """What training may take of a worker's memory; None: its share of the GPU, no bound on a CPU."""
    gpu_share: float = 1.0
    """Of a GPU what its worker may take. In a pack each voice has its part of this and of `memory_bytes`."""
    checkpoint_uri: str | None = None
    """Where the run is copied to while it is trained."""

    @property
    def steps(self) -> int:
        return self.recipe.semantic.steps + self.recipe.wave.steps


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far a voice is: steps of both phases together, and the phase it is in."""

    voice: str
    phase: str
    done: int
    total: int


def plan_run(
    voice: PreparedVoice,
    selection: Selection,
    base: BaseModel,
    corpus_digest: str,
    config: JobConfig,
    workspace: Workspace,
) -> VoiceTask:
    """The run that this selection, base, recipe and seed call for. The same inputs name the same run.

    Raises:
        ValueError: the config overrides a field of the recipe that does not exist.
    """
    seconds = selection.seconds("train")
    training = config.training
    precision = training.precision
    if not config.cluster.gpus_per_worker:
        precision = resolved(precision, torch.device("cpu"))
    recipe = choose_recipe(
        seconds,
        base.release,
        name=training.recipe,
        seed=training.seed,
        precision=precision,
        semantic=training.semantic,
        wave=training.wave,
    )
    record = {
        "schema_version": 1,
        "voice": voice.card.voice,
        "display_name": voice.card.display_name,
        "language": voice.card.language,
        "licence": voice.card.licence,
        "consent_id": voice.card.consent_id,
        "release": str(base.release),
        "base_digest": base.digest,
        "token_digest": base.token_digest,
        "selection_digest": selection.digest,
        "seed": training.seed,
        "trainer_version": TRAINER_VERSION,
        "recipe": recipe.record(),
        "speech": base.spec.note,
        "seconds_train": round(seconds, 3),
        "seconds_held_out": round(selection.seconds("held_out"), 3),
        "utterances_train": len(selection.kept("train")),
        "utterances_held_out": len(selection.kept("held_out")),
        "content_engine": base.content_encoder.name,
        "screening_engine": config.flow.engines.speaker_verifier,
        "polyphones": _polyphones_of(workspace),
    }
    workers = workers_for(seconds, training.workers_per_voice, gpus=config.cluster.gpus_per_worker > 0)
    if training.pack > 1 and workers == 1 and any(packable(plan) for plan in (recipe.semantic, recipe.wave)):
        record["packed"] = True
    run_id = digest_of(_identity_of(record, recipe, workers))[:16]
    # The corpus may grow for other voices without touching this one, so its digest names the run's origin only.
    return VoiceTask(
        voice=voice.card.voice,
        run_id=run_id,
        run_dir=str(workspace.run(voice.card.voice, run_id)),
        corpus=workspace.corpus_place,
        rows=selection.rows,
        recipe=recipe,
        telemetry=telemetry_plan(config, workspace),
        workers=workers,
        gpu_share=min(1.0, config.cluster.gpus_per_worker) if workers == 1 else 1.0,
        memory_bytes=config.cluster.memory_mb * 1_000_000 if config.cluster.memory_mb else None,
        checkpoint_uri=config.cluster.checkpoint_uri,
        record={"run_id": run_id, "corpus_digest": corpus_digest, **record},
    )


def _identity_of(record: dict[str, Any], recipe: Recipe, workers: int) -> dict[str, Any]:
    """What decides the weights, and nothing else: not how a step is computed, nor what a recipe is called.

    Several workers sum in another order than one, so that their number counts; so do voices that share a batch.
    """
    keys = ("voice", "base_digest", "selection_digest", "seed", "trainer_version")
    plans = {phase: getattr(recipe, phase).decisive() for phase in PHASES}
    packed = {"packed": True} if record.get("packed") else {}
    return {key: record[key] for key in keys} | plans | packed | ({"workers": workers} if workers > 1 else {})


def _polyphones_of(workspace: Workspace) -> str | None:
    """The digest of the g2pW that the corpus was made with: the voice has to be spoken to with the same."""
    corpus = workspace.storage
    if not corpus.exists("corpus.json"):
        return None
    digest: str | None = json.loads(corpus.read("corpus.json")).get("text", {}).get("g2pW")
    return digest


def is_trained(task: VoiceTask) -> bool:
    return (Path(task.run_dir) / "trained.json").is_file()


def train_voice(
    task: VoiceTask,
    base: BaseModel,
    *,
    device: str = "cpu",
    reducer: Reducer | None = None,
    on_step: Callable[[Step], None] = lambda _: None,
    on_measured: Callable[[Measured], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    trainers: Callable[[BaseModel, str], Callable[..., Any]] | None = None,
    clock: Callable[[], float] = time.monotonic,
    compute: Compute = lambda work: work(),
) -> bool:
    """Train both phases of one voice, going on from whatever its run folder holds. False: stopped before the end.

    With a `reducer` several processes call this for the same voice, each taking its part of every batch; rank 0 writes.
    `on_note` is told what people should know of the training, in a line. `trainers` takes the place of `trainer_class`,
    `clock` counts the seconds that the training costs, `compute` does what computes outside of a trainer.

    Raises:
        ValueError: the corpus is damaged, or belongs to another base; or not even one clip fits into the memory.
        SaveError: the storage took no checkpoint; the last one is still there.
        DivergedError: training gave no finite numbers.
    """
    run_dir = Path(task.run_dir)
    mirror = None
    if task.checkpoint_uri and (reducer is None or reducer.rank == 0):
        mirror = Mirror.of(run_dir, task.checkpoint_uri, task.voice, task.run_id)
        if mirror.fetch():
            on_note(f"{task.voice}: goes on from the copy in {task.checkpoint_uri}")
    if reducer is not None:
        reducer.total([0.0])  # the others wait for what the first one fetches
    if is_trained(task):
        return True
    hooks = _Hooks(on_step, on_measured, on_note, should_stop, trainers or trainer_class, clock, compute)
    with mirror.kept() if mirror else nullcontext():
        return _train(task, base, device, reducer, hooks)


@dataclass(frozen=True)
class _Hooks:
    """What a training tells while it goes on, and what it asks."""

    on_step: Callable[["Step"], None]
    on_measured: Callable[[Measured], None]
    on_note: Callable[[str], None]
    should_stop: Callable[[], bool]
    trainers: Callable[[BaseModel, str], Callable[..., Any]]
    clock: Callable[[], float]
    compute: Compute


def _train(task: VoiceTask, base: BaseModel, device: str, reducer: Reducer | None, hooks: _Hooks) -> bool:
    started = hooks.clock()
    run_dir = Path(task.run_dir)
    writes = reducer is None or reducer.rank == 0
    data = _read(task, base)
    if writes:
        write_json(run_dir / "run.json", task.record)
    watch = Stopwatch(hooks.clock)
    records: list[Record] = []
    with _telemetry(task, data, device) if writes else nullcontext() as telemetry:
        for phase in PHASES:
            trainer = _trainer_of(task, base, phase, data, device, reducer, hooks)
            if not trainer.plan.steps:
                if writes:
                    _save(run_dir, Save(phase=phase, step=0, weights={}, metadata=trainer.metadata()))
                continue
            watch.time(trainer)
            notes = _Notes(telemetry, _audio_at_saves(task, data, base), hooks.compute) if telemetry else None
            result = _train_phase(task, trainer, data, hooks, device=device, notes=notes)
            records += result.records
            if writes:
                _write_curves(run_dir, records)
            if not result.finished:
                if writes:
                    _add_cost(task, hooks.clock() - started, device, watch)
                return False
        if telemetry:
            _finish(task, data, hooks.clock() - started, device, watch)
            telemetry.finished = True
    return True


def _trainer_of(
    task: VoiceTask,
    base: BaseModel,
    phase: str,
    data: "_Data",
    device: str,
    reducer: Reducer | None,
    hooks: _Hooks,
) -> SemanticTrainer | WaveTrainer | MelTrainer:
    """What trains this phase, with a plan that fits into the memory there is."""
    plan = hooks.compute(partial(_fitted_plan, task, base, phase, data, device, hooks.on_note))
    trainer: SemanticTrainer | WaveTrainer | MelTrainer = hooks.trainers(base, phase)(
        base, plan, voice=task.voice, device=device, reducer=reducer
    )
    return trainer


def _fitted_plan(
    task: VoiceTask, base: BaseModel, phase: str, data: "_Data", device: str, on_note: Callable[[str], None]
) -> PhasePlan:
    """Steps may be taken to measure what they need: nothing else should compute on `device` at the time."""
    plan: PhasePlan = getattr(task.recipe, phase)
    budget = _memory_for(task, device)
    if budget is None or not plan.steps:
        return plan
    unfitted = trainer_class(base, phase)(base, replace(plan, steps=0), voice=task.voice)
    lengths = [unfitted.length(item) for item in data.train]
    fitted = fit_to(budget, base, phase, plan, lengths, device=device)
    if fitted != plan:
        before, after = plan.record(), fitted.record()
        changes = ", ".join(f"{name} {after[name]}" for name in after if after[name] != before[name])
        on_note(f"{task.voice}: to fit {phase} training into {budget / 1e6:.0f} MB: {changes}")
    return fitted


def _memory_for(task: VoiceTask, device: str) -> int | None:
    """Bytes that training may take; None where nothing bounds it."""
    if task.memory_bytes or not device.startswith("cuda"):
        return task.memory_bytes
    there = torch.cuda.get_device_properties(device).total_memory
    return min(free_memory(device), int(there * task.gpu_share))


@dataclass(frozen=True)
class _Notes:
    """What the process that writes does beside training: tells the tracker, and keeps each save with its audio."""

    telemetry: Telemetry
    audio: SaveAudio | None
    compute: Compute

    def save(self, run_dir: Path, save: Save) -> None:
        _save(run_dir, save)
        if self.audio is not None:
            # It touches torch's own random state, which a step made meanwhile may be drawing from.
            for name, data in self.compute(partial(self.audio.speak, save)).items():
                self.telemetry.add_file(name, data)


def _telemetry(task: VoiceTask, data: "_Data", device: str) -> Telemetry:
    clips = {phase: min(getattr(task.recipe, phase).batch_size, len(data.train)) for phase in PHASES}
    return Telemetry(Path(task.run_dir), task.telemetry.address, clips=clips, memory=accelerator_memory(device))


def _audio_at_saves(task: VoiceTask, data: "_Data", base: BaseModel) -> SaveAudio | None:
    if not task.telemetry.sentences:
        return None
    prompt = prompt_of(choose_prompt(data.rows, data.examples))
    return SaveAudio(
        base=base,
        weights=Path(task.run_dir) / "weights",
        prompt=prompt,
        language=prompt.language,
        sentences=task.telemetry.sentences,
        phase="wave" if task.recipe.wave.steps else "semantic",
    )


@dataclass(frozen=True, kw_only=True)
class _Data:
    """What a voice is trained on, in memory."""

    rows: list[SelectionRow]
    examples: dict[str, StoredExample]
    train: list[TrainingItem]
    held_out: list[TrainingItem]


def _read(task: VoiceTask, base: BaseModel) -> _Data:
    kept = [row for row in task.rows if row.keep]
    corpus = open_storage(task.corpus)
    examples = {example.utterance.clip_id: example for example in read_examples(task.voice, kept, corpus)}
    _check_made_for(task, base, examples)

    def items(split: str) -> list[TrainingItem]:
        return [examples[row.clip_id].training_item() for row in kept if row.split == split]

    return _Data(rows=kept, examples=examples, train=items("train"), held_out=items("held_out"))


def _train_phase(
    task: VoiceTask,
    trainer: Trainer,
    data: _Data,
    hooks: _Hooks,
    *,
    device: str,
    notes: _Notes | None,
) -> FitResult:
    """One phase, from where its checkpoint stands."""
    run_dir, phase, plan = Path(task.run_dir), trainer.phase, trainer.plan
    before = 0 if phase == PHASES[0] else task.recipe.semantic.steps
    started, first = hooks.clock(), None

    def note(record: Record) -> None:
        nonlocal first
        if notes:
            notes.telemetry.note(record)
        if record.kind == "train":
            first = record.step if first is None else first
            hooks.on_step(Step(voice=task.voice, phase=phase, done=before + record.step, total=task.steps))

    result = fit(
        trainer,
        data.train,
        data.held_out,
        plan,
        resume=run_dir / "checkpoints" / phase,
        save_every_s=SAVE_EVERY_S,
        on_step=note,
        on_save=lambda save: notes.save(run_dir, save) if notes else None,
        should_stop=hooks.should_stop,
    )
    if first is not None:
        share = (result.steps - first + 1) / plan.steps
        key = rate_key(task.record["release"], phase, plan, device)
        work = work_of(plan, task.rows, phase) * share
        hooks.on_measured(Measured(key=key, seconds=hooks.clock() - started, work=work))
    return result


def _finish(task: VoiceTask, data: _Data, seconds: float, device: str, watch: "Stopwatch") -> None:
    """Write what comes after the last step; `trained.json`, written last, says that all of it is there."""
    run_dir = Path(task.run_dir)
    chosen = choose_prompt(data.rows, data.examples)
    prompt_of(chosen).save(run_dir)
    write_atomically(run_dir / "prompt.flac", lambda path: _write_bytes(path, chosen.flac))
    _add_cost(task, seconds, device, watch)
    write_json(run_dir / "trained.json", {"run_id": task.run_id, "weights": saved_weights(run_dir)})
    # Only needed to go on; a finished run is never gone on from.
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)


class Stopwatch:
    """Where a trainer's time goes: in its steps, in making batches of clips, and in listening to held-out clips."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._running = False

    def time(self, trainer: Trainer) -> None:
        """Have these methods of `trainer` counted from now on."""
        for name in ("step", "collate", "evaluate", "speak"):
            setattr(trainer, name, self._timed(name, getattr(trainer, name)))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            if self._running:  # one of them calls another: that is the first one's time
                return call(*arguments, **named)
            started, self._running = self._clock(), True
            try:
                return call(*arguments, **named)
            finally:
                self.seconds[name] += self._clock() - started
                self._running = False

        return timed


def trainer_class(base: BaseModel, phase: str) -> type[SemanticTrainer | WaveTrainer | MelTrainer]:
    """What trains this phase of a voice of `base`."""
    if phase == "semantic":
        return SemanticTrainer
    return WaveTrainer if base.semantic_to_mel is None else MelTrainer


def saved_weights(run_dir: Path) -> dict[str, list[str]]:
    """Names of the saved candidates of each phase, in order of step."""
    names = sorted(path.stem for path in (run_dir / "weights").glob("*.safetensors"))
    return {phase: [name for name in names if name.startswith(f"{phase}-")] for phase in PHASES}


def choose_prompt(rows: list[SelectionRow], examples: dict[str, StoredExample]) -> StoredExample:
    """The Utterance that shows synthesis how to sound: clean, well rated, near five seconds, from the training split.

    Where no clip has the length a Prompt should have (3 to 10 s), the longest serves.
    """
    candidates = [row for row in rows if row.prompt] or sorted(
        (row for row in rows if row.split == "train"), key=lambda row: -row.num_samples
    )[:1]

    def worth(row: SelectionRow) -> tuple[float, str]:
        numbers = examples[row.clip_id].description
        quality = numbers.get("quality") or 0.0
        snr = min(numbers.get("snr_db") or 0.0, 40.0)
        awkward = abs(row.num_samples / RATE_HZ - 5.0)
        return quality + snr / 20.0 - awkward / 5.0, row.clip_id

    return examples[max(candidates, key=worth).clip_id]


def prompt_of(example: StoredExample) -> Prompt:
    """What synthesis needs of an Example to use it as a Prompt."""
    item = example.training_item()
    return Prompt(
        text=example.utterance.text,
        language=example.utterance.language,
        phoneme_ids=item.phoneme_ids,
        tokens=item.tokens,
        wave=item.wave,
        text_vectors=item.text_vectors,
        speaker_vector=item.speaker_vector,
        clip_id=example.utterance.clip_id,
    )


def _save(run_dir: Path, save: Save) -> None:
    path = _weights_path(run_dir, save.phase, save.step)
    save_patiently(path, lambda: save_weights(path, save.weights, save.metadata))
    if save.replaces is not None:
        _weights_path(run_dir, save.phase, save.replaces).unlink(missing_ok=True)


def _weights_path(run_dir: Path, phase: str, step: int) -> Path:
    return run_dir / "weights" / f"{phase}-s{step:06d}.safetensors"


def _add_cost(task: VoiceTask, seconds: float, device: str, watch: Stopwatch) -> None:
    """Add to what earlier attempts of the run took. One that was killed could not say, and is not in it.

    `step_seconds` were spent in gradient steps, `batch_seconds` in making batches while no step ran, and
    `held_out_seconds` on held-out clips; the rest of `train_seconds` is reading, saving and starting.
    """
    path = Path(task.run_dir) / "cost.json"
    spent = {
        "train_seconds": seconds,
        "gpu_seconds": seconds if device != "cpu" else 0.0,
        "step_seconds": watch.seconds["step"],
        "batch_seconds": watch.seconds["collate"],
        "held_out_seconds": watch.seconds["evaluate"] + watch.seconds["speak"],
    }
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    cost = {name: round(earlier.get(name, 0.0) + value, 3) for name, value in spent.items()}
    write_json(path, earlier | cost | {"steps": task.steps})


def _write_curves(run_dir: Path, records: list[Record]) -> None:
    lines = "".join(json.dumps(asdict(record), sort_keys=True) + "\n" for record in records)
    write_atomically(run_dir / "curves.jsonl", lambda path: _write_text(path, lines))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _check_made_for(task: VoiceTask, base: BaseModel, examples: dict[str, StoredExample]) -> None:
    """See that the corpus was made for this base, by its description and by what is there."""
    for example in examples.values():
        made_by = example.description["derived_from"]["semantic"]
        if made_by != task.record["token_digest"]:
            raise ValueError(
                f"voice {task.voice}: the corpus holds tokens of another base ({made_by[:12]}, expected "
                f"{task.record['token_digest'][:12]}); prepare it again with --base {task.record['release']}"
            )
        if base.speaker_encoder is not None and "sv" not in example.arrays:
            raise ValueError(
                f"voice {task.voice}: clip {example.utterance.clip_id} has no speaker vector (sv), which "
                f"{base.release} conditions on; prepare it again with --base {base.release}"
            )
