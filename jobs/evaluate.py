"""Evaluate: every saved GPT x SoVITS pair of a voice speaks, and is measured; the best one and its Prompts are chosen.

Spoken are the texts of held-out clips and fixed sentences of the language, which two versions of a voice have in
common. The same numbers are taken from the held-out recordings themselves (the ceiling) and from the base before
training; both stay the same from run to run, so they are kept beside the runs and taken from there. Pairs of many
voices are scored side by side, engines loaded once per worker.
"""

import json
import logging
import os
import shutil
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray.util import ActorPool

from gsv_core.audio.wav import wav_bytes
from gsv_core.checkpoints.weights import write_atomically, write_json
from gsv_core.synthesis.synthesiser import Synthesiser
from gsv_core.text.lexicon import Lexicon
from jobs.cluster import Cluster
from jobs.config import JobConfig
from jobs.evaluation_page import write_evaluation_page
from jobs.progress import Progress
from jobs.prompts import Candidate, candidates_of, choose_prompts, write_prompts
from jobs.scoring import (
    ENGINE_OF,
    NUMBERS,
    Models,
    Sentence,
    fixed_sentences,
    likeness_engine,
    load_models,
    measure,
    speak_and_measure,
    summarise,
)
from jobs.timbre import choose_timbre, timbre_of, write_timbres
from jobs.train import PHASES, VoiceTask, prompt_of, saved_weights
from pipelines.engines.choose import engine_versions
from pipelines.rows import SelectionRow
from pipelines.runner import first_cause
from pipelines.shard_reader import StoredExample, read_examples
from pipelines.stage import digest_of
from pipelines.storage import Storage, open_storage
from pipelines.voice_card import stored_lexicon

logger = logging.getLogger(__name__)

EVALUATOR_VERSION = "3"
RULE = (
    "highest mean of 1 − character error rate, likeness and quality / 5, each within 0 and 1, over those that could be "
    "measured; among equals the earlier save"
)
_MOST_EMBEDDED = 20
"""Clips that make up the voice's centre where their stored vectors are another engine's."""


@dataclass(frozen=True, kw_only=True)
class PairTask:
    """Some weights (None: the base's own) of one voice, and what they are to say. Without either, the recordings."""

    voice: str
    run_dir: str
    corpus: str
    kind: str
    """`pair`, `base` or `ceiling`."""
    sentences: tuple[Sentence, ...]
    centroid: tuple[float, ...]
    seed: int
    prompt: SelectionRow | None = None
    semantic: str | None = None
    wave: str | None = None


@dataclass(frozen=True, kw_only=True)
class PairResult:
    task: PairTask
    utterances: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class VoicePlan:
    """What is to be done for one voice: its sentences, its centre, and the clips that may be its Prompt."""

    task: VoiceTask
    sentences: tuple[Sentence, ...] = ()
    centroid: tuple[float, ...] = ()
    language: str = ""
    candidates: tuple[Candidate, ...] = ()
    screened_by: str = ""
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Finish:
    """A voice whose Prompts are chosen and whose scores are written."""

    voice: str
    seconds: float = 0.0
    error: str | None = None


_Answer = TypeVar("_Answer", VoicePlan, PairResult, Finish)


def evaluate_runs(
    tasks: Sequence[VoiceTask], config: JobConfig, cluster: Cluster, progress: Progress
) -> dict[str, str]:
    """Score every pair of every given run that is not scored yet; voice → error of those that failed."""
    waiting = [task for task in tasks if not is_evaluated(task, config)]
    if not waiting:
        return {}
    cluster.start()
    engines = engine_versions(config.flow.engines)
    total = sum(4 + _pairs(task) for task in waiting)  # a plan, the pairs, base and recordings, the Prompt
    workers = _Workers(config, min(cluster.workers, total - 3 * len(waiting)))
    done = 0
    errors: dict[str, str] = {}
    plans: dict[str, VoicePlan] = {}
    results: dict[str, list[PairResult]] = defaultdict(list)
    with progress.bar("evaluate") as bar, first_cause(), workers:
        bar.update(0, total, "loading engines")

        def each(method: str, inputs: Sequence[Any]) -> Iterator[Any]:
            """The answers that came out well; the others are noted as their voice's error."""
            nonlocal done
            for answer in workers.map(method, inputs):
                done += 1
                bar.update(done, total, _voice_of(answer))
                if answer.error:
                    errors.setdefault(_voice_of(answer), answer.error)
                else:
                    yield answer

        for plan in each("plan", waiting):
            plans[plan.task.voice] = plan
        pairs: list[PairTask] = []
        for plan in plans.values():
            for pair in pair_tasks_of(plan, config):
                kept = recall(pair, plan.task, config, engines)
                if kept is None:
                    pairs.append(pair)
                else:
                    results[pair.voice].append(kept)
                    done += 1
        # The longest voices first, so that no worker sits idle at the end.
        for result in each("score", sorted(pairs, key=lambda pair: -len(pair.sentences))):
            voice = result.task.voice
            results[voice].append(result)
            remember(result, plans[voice].task, config, engines)
        left = [(plan, results[voice]) for voice, plan in plans.items() if voice not in errors]
        for finished in each("finish", left):
            bar.update(done, total, finished.voice)
    return errors


def evaluation_digest(task: VoiceTask, config: JobConfig) -> str:
    """What decides the scores of a run."""
    return digest_of([task.run_id, asdict(config.evaluation), _engines(config), EVALUATOR_VERSION])[:32]


def is_evaluated(task: VoiceTask, config: JobConfig) -> bool:
    mark = Path(task.run_dir) / "done.json"
    return mark.is_file() and json.loads(mark.read_text())["evaluation_digest"] == evaluation_digest(task, config)


def plan_voice(task: VoiceTask, config: JobConfig, models: Models, likeness: str) -> VoicePlan:
    """Sentences, centre and Prompt candidates of a voice; stores its timbre as each candidate hears it.

    The centre is the mean of the vectors stored for its training clips or, where another engine than the one that made
    them measures likeness, of some that are made now.

    Raises:
        ValueError: the corpus is damaged, or no sentence is known in the language.
    """
    kept = [row for row in task.rows if row.keep]
    examples = {
        example.utterance.clip_id: example for example in read_examples(task.voice, kept, open_storage(task.corpus))
    }
    train = [examples[row.clip_id] for row in kept if row.split == "train"]
    screened_by = str(train[0].description["derived_from"]["speaker"]) if train else ""
    candidates = candidates_of(kept, examples)
    if likeness == screened_by:
        vectors = [example.arrays["speaker"] for example in train]
    else:
        spread = np.unique(np.linspace(0, len(train) - 1, min(len(train), _MOST_EMBEDDED)).round().astype(int))
        vectors = [models.verifier.embed(train[place].wave, train[place].rate_hz) for place in spread]
    mean = np.mean(vectors, axis=0)
    run_dir = Path(task.run_dir)
    write_timbres(run_dir, models.base, saved_weights(run_dir)["wave"], train)
    language = language_of(examples.values())
    return VoicePlan(
        task=task,
        sentences=sentences_of(task, config, examples, language),
        language=language,
        centroid=tuple(float(value) for value in mean / np.linalg.norm(mean)),
        candidates=tuple(candidates),
        screened_by=screened_by,
    )


def language_of(examples: Iterable[StoredExample]) -> str:
    """The language that most of the speech is in."""
    samples: Counter[str] = Counter()
    for example in examples:
        samples[example.utterance.language] += len(example.wave)
    return max(sorted(samples), key=samples.__getitem__)


def sentences_of(
    task: VoiceTask, config: JobConfig, examples: Mapping[str, StoredExample], language: str
) -> tuple[Sentence, ...]:
    """Some held-out texts, and some fixed sentences of `language`; a voice that holds none out says more of those."""
    most = config.evaluation.utterances
    held_out = [row for row in task.rows if row.keep and row.split == "held_out"][:most]
    fixed = config.evaluation.sentences if held_out else max(config.evaluation.sentences, most)
    spoken = [(row, examples[row.clip_id].utterance) for row in held_out]
    return (
        *(Sentence(name=row.clip_id, text=said.text, language=said.language, row=row) for row, said in spoken),
        *(fixed_sentences(language)[:fixed] if fixed else ()),
    )


def pair_tasks_of(plan: VoicePlan, config: JobConfig) -> list[PairTask]:
    """Every saved pair of a run, the base before training, and the recordings themselves."""
    common: dict[str, Any] = {
        "voice": plan.task.voice,
        "run_dir": plan.task.run_dir,
        "corpus": plan.task.corpus,
        "centroid": plan.centroid,
        "seed": config.evaluation.seed,
    }
    spoken = {"sentences": plan.sentences, "prompt": plan.candidates[0].row, **common}
    recorded = tuple(sentence for sentence in plan.sentences if sentence.row)
    saved = saved_weights(Path(plan.task.run_dir))
    return [
        *(
            PairTask(kind="pair", semantic=semantic, wave=wave, **spoken)
            for semantic in saved["semantic"]
            for wave in saved["wave"]
        ),
        PairTask(kind="base", **spoken),
        *([PairTask(kind="ceiling", sentences=recorded, **common)] if recorded else []),
    ]


def finish_voice(plan: VoicePlan, results: Sequence[PairResult], config: JobConfig, models: Models) -> Finish:
    """Choose the pair and, by speaking with it, the Prompts; write them and the scores.

    Pairs are compared as all speak with one Prompt. Where the chosen pair gets another, its numbers are taken again.
    """
    began = time.monotonic()
    best = best_result(results)
    task = best.task
    rows = [candidate.row for candidate in plan.candidates]
    examples = {example.utterance.clip_id: example for example in read_examples(task.voice, rows, _corpus(task))}
    synthesiser = _synthesiser(task, models)
    trial = fixed_sentences(plan.language)[:1]

    said = {record["name"]: record for record in best.utterances}

    def spoken(candidate: Candidate) -> float:
        if task.prompt and candidate.clip_id == task.prompt.clip_id and all(entry.name in said for entry in trial):
            return float(summarise([said[entry.name] for entry in trial])["score"])  # it was said with this one
        records = speak_and_measure(
            synthesiser,
            prompt_of(examples[candidate.clip_id]),
            trial,
            models,
            timbre=timbre_of(Path(task.run_dir), task.wave),
            centre=_centre(task),
            seed=task.seed,
            lexicon=_lexicon(task),
        )
        return float(summarise(records)["score"])

    prompts = choose_prompts(plan.candidates, spoken, most=config.evaluation.prompts)
    final = best
    if task.prompt is None or prompts.default.clip_id != task.prompt.clip_id:
        again = replace(task, prompt=prompts.default.row)
        final = PairResult(task=again, utterances=tuple(score_pair(again, models)))
    more = common_sentences(plan, final, config)
    common = score_pair(replace(final.task, sentences=more), models) if more else []
    write_prompts(Path(task.run_dir), prompts, examples)
    choose_timbre(Path(task.run_dir), task.wave)
    spent = plan.seconds + sum(result.seconds for result in results) + time.monotonic() - began
    shown = [final if result is best else result for result in results]
    write_scores(plan, shown, models.names, config, best=final.task, common=common, seconds=spent)
    return Finish(voice=task.voice)


def common_sentences(plan: VoicePlan, said: PairResult, config: JobConfig) -> tuple[Sentence, ...]:
    """The fixed sentences that versions are compared on and the chosen pair has not said yet.

    It alone says them: the gate then finds them in the scores, and need not let two versions speak again.
    """
    known = {record["name"] for record in said.utterances}
    fixed = fixed_sentences(plan.language)[: config.evaluation.common]
    return tuple(sentence for sentence in fixed if sentence.name not in known)


def score_pair(task: PairTask, models: Models) -> list[dict[str, Any]]:
    """Let one pair say every sentence, or take the recordings as they are; keep the audio, and measure it."""
    rows = [sentence.row for sentence in task.sentences if sentence.row]
    wanted = [*rows, *([task.prompt] if task.prompt else [])]
    examples = {example.utterance.clip_id: example for example in read_examples(task.voice, wanted, _corpus(task))}
    recordings = {row.clip_id: examples[row.clip_id] for row in rows}

    def keep(sentence: Sentence, wave: np.ndarray, rate_hz: int) -> str:
        return _keep_audio(task, sentence, wave, rate_hz)

    if task.prompt is not None:
        return speak_and_measure(
            _synthesiser(task, models),
            prompt_of(examples[task.prompt.clip_id]),
            task.sentences,
            models,
            timbre=timbre_of(Path(task.run_dir), task.wave),
            centre=_centre(task),
            seed=task.seed,
            lexicon=_lexicon(task),
            recordings=recordings,
            keep=keep,
        )
    records = []
    for sentence in task.sentences:
        heard = recordings[sentence.name]
        record = measure(heard.wave, heard.rate_hz, sentence, _centre(task), models)
        records.append({**record, "audio": keep(sentence, heard.wave, heard.rate_hz)})
    return records


@ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)
class _Evaluator:
    """One worker with its engines; speaks and measures. What is done twice gives the same, so a worker that is lost is
    started again."""

    def __init__(self, config: JobConfig, likeness: str) -> None:
        import torch

        torch.set_num_threads(1)
        flow = config.flow
        self._config, self._likeness = config, likeness
        self._models = load_models(flow.engines, flow.release, flow.base_folder, flow.polyphones, likeness=likeness)

    def plan(self, task: VoiceTask) -> VoicePlan:
        return _timed(
            lambda: plan_voice(task, self._config, self._models, self._likeness),
            lambda error: VoicePlan(task=task, error=error),
        )

    def score(self, task: PairTask) -> PairResult:
        return _timed(
            lambda: PairResult(task=task, utterances=tuple(score_pair(task, self._models))),
            lambda error: PairResult(task=task, error=error),
        )

    def finish(self, scored: tuple[VoicePlan, list[PairResult]]) -> Finish:
        plan, results = scored
        return _timed(
            lambda: finish_voice(plan, results, self._config, self._models),
            lambda error: Finish(voice=plan.task.voice, error=error),
        )


class _Workers:
    """The evaluating workers of a job; they end with the block."""

    def __init__(self, config: JobConfig, count: int) -> None:
        likeness = likeness_engine(config.flow.engines, config.evaluation.likeness)
        self._actors = [
            _Evaluator.remote(config, likeness)  # type: ignore[attr-defined]
            for _ in range(count)
        ]

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def map(self, method: str, inputs: Sequence[Any]) -> Iterator[Any]:
        """The answers of `method` to each of `inputs`, as they come."""
        return ActorPool(self._actors).map_unordered(
            lambda actor, given: getattr(actor, method).remote(given), list(inputs)
        )


def _timed(work: Callable[[], _Answer], failed: Callable[[str], _Answer]) -> _Answer:
    started = time.monotonic()
    try:
        answer = work()
    except Exception as error:  # whatever it is, it is this voice's result, and the others go on
        logger.exception("evaluating failed")
        return failed(traceback.format_exception_only(error)[-1].strip())
    return replace(answer, seconds=time.monotonic() - started)


def best_result(results: Sequence[PairResult]) -> PairResult:
    """The pair that `RULE` chooses."""
    pairs = sorted((result for result in results if result.task.kind == "pair"), key=_saved_in_order)
    return max(pairs, key=lambda result: summarise(result.utterances)["score"])  # the first of equals: the earlier save


def write_scores(
    plan: VoicePlan,
    results: Sequence[PairResult],
    names: dict[str, str],
    config: JobConfig,
    *,
    best: PairTask,
    common: Sequence[dict[str, Any]] = (),
    seconds: float,
) -> None:
    """`scores.json`, the page about it, and `done.json` behind them; `best` is the chosen one among the results.

    `common` are the records of what it alone said, for versions to be compared on; no mean counts them.
    """
    run_dir = Path(plan.task.run_dir)
    summaries = [(result, _summary(result)) for result in sorted(results, key=_saved_in_order)]
    compared = {result.task.kind: summary for result, summary in summaries if result.task.kind != "pair"}
    scores = {
        "schema_version": 1,
        "engines": names,
        "independent": _independent(plan, config)["likeness"],
        "measures": {
            name: {"engine": names.get(ENGINE_OF.get(name, "")), "independent": independent}
            for name, independent in _independent(plan, config).items()
        },
        "speech": plan.task.record["speech"],
        "pairs": [summary for result, summary in summaries if result.task.kind == "pair"],
        "ceiling": compared.get("ceiling"),
        "base": compared.get("base"),
        "best": {**{phase: getattr(best, phase) for phase in PHASES}, "rule": RULE},
        "common": summarise(common)["utterances"],
        "prompt": best.prompt.clip_id if best.prompt else None,
    }
    write_json(run_dir / "scores.json", scores)
    cost_path = run_dir / "cost.json"
    cost = {**json.loads(cost_path.read_text()), "evaluate_seconds": round(seconds, 3)}
    write_json(cost_path, cost)
    write_evaluation_page(run_dir, plan.task.record, scores, cost)
    digest = evaluation_digest(plan.task, config)
    write_json(run_dir / "done.json", {"run_id": plan.task.run_id, "evaluation_digest": digest})


def _independent(plan: VoicePlan, config: JobConfig) -> dict[str, bool]:
    """Measure → whether what measures it had no word in which clips were kept and what their texts are."""
    likeness = likeness_engine(config.flow.engines, config.evaluation.likeness)
    by_engine = {
        "recogniser": False,  # it wrote the texts of the clips, or judged those that came along
        "speaker_verifier": likeness != plan.screened_by,
        "quality": config.selection.bounds.least_quality is None,
    }
    return {name: by_engine.get(ENGINE_OF.get(name, ""), True) for name in NUMBERS}


def _summary(result: PairResult) -> dict[str, Any]:
    task = result.task
    return {
        "semantic": task.semantic,
        "wave": task.wave,
        "prompt": task.prompt.clip_id if task.prompt else None,
        **summarise(result.utterances, seed=task.seed),
    }


def _saved_in_order(result: PairResult) -> tuple[str, str]:
    return result.task.semantic or "", result.task.wave or ""


def _comparison_folder(task: PairTask, of: VoiceTask, config: JobConfig, engines: Mapping[str, str]) -> Path:
    """Where the numbers of a base or of recordings are kept, by everything that decides them."""
    decides: list[Any] = [
        EVALUATOR_VERSION,
        task.kind,
        [(sentence.name, sentence.text, sentence.language) for sentence in task.sentences],
        task.centroid,
        _engines(config),
        likeness_engine(config.flow.engines, config.evaluation.likeness),
        dict(engines),
    ]
    if task.prompt is not None:
        words = _lexicon(task).digest
        decides += [task.prompt.clip_id, task.seed, of.record["base_digest"], of.record.get("polyphones"), words]
    return Path(task.run_dir).parents[1] / "evaluations" / digest_of(decides)[:20]


def recall(task: PairTask, of: VoiceTask, config: JobConfig, engines: Mapping[str, str]) -> PairResult | None:
    """The base's or the recordings' numbers of an earlier run, with their audio put beside this run's."""
    if task.kind == "pair":
        return None
    folder = _comparison_folder(task, of, config, engines)
    if not (folder / "utterances.json").is_file():
        return None
    records = json.loads((folder / "utterances.json").read_text(encoding="utf-8"))
    if not all((folder / record["audio"]).is_file() for record in records):
        return None
    for record in records:
        _place(folder / record["audio"], Path(task.run_dir) / record["audio"])
    return PairResult(task=task, utterances=tuple(records))


def remember(result: PairResult, of: VoiceTask, config: JobConfig, engines: Mapping[str, str]) -> None:
    if result.task.kind == "pair":
        return
    folder = _comparison_folder(result.task, of, config, engines)
    for record in result.utterances:
        _place(Path(result.task.run_dir) / record["audio"], folder / record["audio"])
    write_json(folder / "utterances.json", list(result.utterances))


def _place(source: Path, target: Path) -> None:
    """The same file in a second place, without its bytes a second time where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _engines(config: JobConfig) -> dict[str, Any]:
    return {**asdict(config.flow.engines), "align_models": dict(config.flow.engines.align_models)}


def _synthesiser(task: PairTask, models: Models) -> Synthesiser:
    return Synthesiser(
        models.base,
        _weights_path(task, task.semantic),
        _weights_path(task, task.wave),
        polyphones=models.polyphones,
    )


def _weights_path(task: PairTask, name: str | None) -> Path | None:
    return Path(task.run_dir) / "weights" / f"{name}.safetensors" if name else None


def _corpus(task: PairTask) -> Storage:
    return open_storage(task.corpus)


def _centre(task: PairTask) -> np.ndarray:
    return np.asarray(task.centroid, dtype=np.float32)


def _lexicon(task: PairTask) -> Lexicon:
    return stored_lexicon(_corpus(task), task.voice)


def _pairs(task: VoiceTask) -> int:
    saved = saved_weights(Path(task.run_dir))
    return len(saved["semantic"]) * len(saved["wave"])


def _voice_of(answer: VoicePlan | PairResult | Finish) -> str:
    return answer.voice if isinstance(answer, Finish) else answer.task.voice


def _keep_audio(task: PairTask, sentence: Sentence, wave: np.ndarray, rate_hz: int) -> str:
    folder = f"{task.semantic}+{task.wave}" if task.kind == "pair" else task.kind
    relative = f"audio/{folder}/{sentence.name}.wav"
    data = wav_bytes(wave, rate_hz)
    write_atomically(Path(task.run_dir) / relative, lambda path: _write_bytes(path, data))
    return relative


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
