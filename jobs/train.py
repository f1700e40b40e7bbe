"""Train: the selection of one voice → a run folder with candidates of both phases, its curves and its Prompt.

Everything about one voice is here; which worker trains which voice, and what happens when one is lost, is `jobs.fleet`.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gsv_core.checkpoints.base import BaseModel
from gsv_core.checkpoints.weights import save_weights, write_atomically, write_json
from gsv_core.synthesis.synthesiser import Prompt
from gsv_core.training.loop import Record, Save, fit
from gsv_core.training.mel_trainer import MelTrainer
from gsv_core.training.recipes import Recipe, choose_recipe
from gsv_core.training.schedules import PhasePlan
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.updates import TRAINER_VERSION
from gsv_core.training.wave_trainer import WaveTrainer
from jobs.config import JobConfig
from jobs.prepare import PreparedVoice
from jobs.workspace import Workspace
from pipelines.rows import RATE_HZ, SelectionRow
from pipelines.selection import Selection
from pipelines.shard_reader import StoredExample, read_examples
from pipelines.stage import digest_of
from pipelines.storage import LocalStorage

PHASES = ("semantic", "wave")


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

    @property
    def cost(self) -> float:
        """Grows with the time the voice will take: steps times clips in a batch."""
        return sum(plan.steps * plan.batch_size for plan in (self.recipe.semantic, self.recipe.wave))

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
    recipe = choose_recipe(
        seconds,
        base.release,
        name=training.recipe,
        seed=training.seed,
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
    identity = {
        key: record[key] for key in ("voice", "base_digest", "selection_digest", "seed", "trainer_version", "recipe")
    }
    run_id = digest_of(identity)[:16]
    # The corpus may grow for other voices without touching this one, so its digest names the run's origin only.
    return VoiceTask(
        voice=voice.card.voice,
        run_id=run_id,
        run_dir=str(workspace.run(voice.card.voice, run_id)),
        corpus=str(workspace.corpus),
        rows=selection.rows,
        recipe=recipe,
        record={"run_id": run_id, "corpus_digest": corpus_digest, **record},
    )


def _polyphones_of(workspace: Workspace) -> str | None:
    """The digest of the g2pW that the corpus was made with: the voice has to be spoken to with the same."""
    path = workspace.corpus / "corpus.json"
    if not path.is_file():
        return None
    digest: str | None = json.loads(path.read_text(encoding="utf-8")).get("text", {}).get("g2pW")
    return digest


def is_trained(task: VoiceTask) -> bool:
    return (Path(task.run_dir) / "trained.json").is_file()


def train_voice(
    task: VoiceTask,
    base: BaseModel,
    *,
    device: str = "cpu",
    on_step: Callable[[Step], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train both phases of one voice, going on from whatever its run folder holds. False: stopped before the end.

    Raises:
        ValueError: the corpus is damaged, or belongs to another base.
        DivergedError: training gave no finite numbers.
    """
    started = time.monotonic()
    run_dir = Path(task.run_dir)
    corpus = LocalStorage(task.corpus)
    kept = [row for row in task.rows if row.keep]
    examples = {example.utterance.clip_id: example for example in read_examples(task.voice, kept, corpus)}
    _check_tokens(task, examples)
    items = [examples[row.clip_id].training_item() for row in kept if row.split == "train"]
    held_out = [examples[row.clip_id].training_item() for row in kept if row.split == "held_out"]
    write_json(run_dir / "run.json", task.record)
    records: list[Record] = []
    for phase in PHASES:
        plan: PhasePlan = getattr(task.recipe, phase)
        trainer = trainer_class(base, phase)(base, plan, voice=task.voice, device=device)
        before = 0 if phase == "semantic" else task.recipe.semantic.steps
        if not plan.steps:
            _save(run_dir, Save(phase=phase, step=0, weights={}, metadata=trainer.metadata()))
            continue

        def note(record: Record, before: int = before) -> None:
            if record.kind == "train":
                on_step(Step(voice=task.voice, phase=record.phase, done=before + record.step, total=task.steps))

        result = fit(
            trainer,
            items,
            held_out,
            plan,
            resume=run_dir / "checkpoints" / phase,
            on_step=note,
            on_save=lambda save: _save(run_dir, save),
            should_stop=should_stop,
        )
        records += result.records
        _write_curves(run_dir, records)
        if not result.finished:
            _add_cost(task, time.monotonic() - started, device)
            return False
    chosen = choose_prompt(kept, examples)
    prompt_of(chosen).save(run_dir)
    write_atomically(run_dir / "prompt.flac", lambda path: _write_bytes(path, chosen.flac))
    _add_cost(task, time.monotonic() - started, device)
    write_json(run_dir / "trained.json", {"run_id": task.run_id, "weights": saved_weights(run_dir)})
    # Only needed to go on; a finished run is never gone on from.
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    return True


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
    save_weights(run_dir / "weights" / f"{save.phase}-s{save.step:06d}.safetensors", save.weights, save.metadata)


def _add_cost(task: VoiceTask, seconds: float, device: str) -> None:
    """Add to what earlier attempts of the run took. One that was killed could not say, and is not in it."""
    path = Path(task.run_dir) / "cost.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {"train_seconds": 0.0, "gpu_seconds": 0.0}
    on_gpu = seconds if device != "cpu" else 0.0
    cost = {
        "train_seconds": round(earlier["train_seconds"] + seconds, 3),
        "gpu_seconds": round(earlier["gpu_seconds"] + on_gpu, 3),
        "steps": task.steps,
    }
    write_json(path, cost)


def _write_curves(run_dir: Path, records: list[Record]) -> None:
    lines = "".join(json.dumps(asdict(record), sort_keys=True) + "\n" for record in records)
    write_atomically(run_dir / "curves.jsonl", lambda path: _write_text(path, lines))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _check_tokens(task: VoiceTask, examples: dict[str, StoredExample]) -> None:
    for example in examples.values():
        made_by = example.description["derived_from"]["semantic"]
        if made_by != task.record["token_digest"]:
            raise ValueError(
                f"voice {task.voice}: the corpus holds tokens of another base ({made_by[:12]}, expected "
                f"{task.record['token_digest'][:12]}); prepare it again with --base {task.record['release']}"
            )
