"""Evaluate: every saved GPT x SoVITS pair of a voice speaks held-out texts, and is measured.

Measured are what a recogniser makes of the speech (character and word error rate), how like the voice it sounds (cosine
to the mean of its training clips), its predicted quality, and its distance from the held-out recording. The same
numbers are taken from the held-out recordings themselves (the ceiling) and from the base before training. Where an
engine cannot judge, the number is null. Pairs of many voices are scored side by side, engines loaded once per worker.
"""

import json
import logging
import math
import statistics
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import ray
import yaml
from ray.util import ActorPool

from gsv_core.audio.resample import resample
from gsv_core.audio.wav import wav_bytes
from gsv_core.checkpoints.base import load_base
from gsv_core.checkpoints.releases import Release
from gsv_core.checkpoints.weights import write_atomically, write_json
from gsv_core.metrics.recognition import character_error_rate, word_error_rate
from gsv_core.metrics.signal import mel_cepstral_distance
from gsv_core.metrics.speaker import cosine
from gsv_core.synthesis.synthesiser import Prompt, Synthesiser
from gsv_core.text.mandarin_polyphones import load_polyphones
from jobs.cluster import Cluster
from jobs.config import JobConfig
from jobs.progress import Progress
from jobs.train import PHASES, VoiceTask, saved_weights
from pipelines.engines.choose import EngineConfig, load_quality, load_recogniser, load_speaker_verifier
from pipelines.rows import SelectionRow
from pipelines.runner import first_cause
from pipelines.shard_reader import StoredExample, read_examples
from pipelines.sources import read_lexicon
from pipelines.stage import digest_of
from pipelines.storage import LocalStorage

logger = logging.getLogger(__name__)

EVALUATOR_VERSION = "1"
RULE = (
    "highest mean of 1 − character error rate, likeness and quality / 5, each within 0 and 1, over those that could be "
    "measured; among equals the earlier save"
)
_NUMBERS = (
    "character_error_rate",
    "word_error_rate",
    "likeness",
    "quality",
    "mel_cepstral_distance",
    "duration_ratio",
    "real_time_factor",
)


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A text to be spoken; `row` says which held-out clip it is the text of, if it is of one."""

    name: str
    text: str
    language: str
    row: SelectionRow | None = None


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
    semantic: str | None = None
    wave: str | None = None


@dataclass(frozen=True, kw_only=True)
class PairResult:
    task: PairTask
    utterances: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Models:
    """What an evaluating worker keeps loaded."""

    recogniser: Any
    verifier: Any
    quality: Any
    base: Any
    polyphones: Any = None
    names: dict[str, str] = field(default_factory=dict)


def evaluate_runs(
    tasks: Sequence[VoiceTask], config: JobConfig, cluster: Cluster, progress: Progress
) -> dict[str, str]:
    """Score every pair of every given run that is not scored yet; voice → error of those that failed."""
    waiting = [task for task in tasks if not is_evaluated(task, config)]
    if not waiting:
        return {}
    cluster.start()
    errors: dict[str, str] = {}
    pair_tasks: list[PairTask] = []
    for task in waiting:
        try:
            pair_tasks += pair_tasks_of(task, config)
        except ValueError as error:
            errors[task.voice] = str(error)
    if not pair_tasks:
        return errors
    # The longest voices first, so that no worker sits idle at the end.
    pair_tasks.sort(key=lambda pair: -len(pair.sentences))
    engines, release, folder = config.flow.engines, config.flow.release, config.flow.base_folder
    workers = [
        _Evaluator.remote(engines, release, folder, config.flow.polyphones)  # type: ignore[attr-defined]
        for _ in range(min(cluster.workers, len(pair_tasks)))
    ]
    results: list[PairResult] = []
    with progress.bar("evaluate") as bar, first_cause():
        bar.update(0, len(pair_tasks), "loading engines")
        for result in ActorPool(workers).map_unordered(lambda worker, pair: worker.score.remote(pair), pair_tasks):
            results.append(result)
            bar.update(len(results), len(pair_tasks), result.task.voice)
    names = ray.get(workers[0].names.remote())
    for worker in workers:
        ray.kill(worker)
    for task in waiting:
        if task.voice in errors:
            continue
        mine = [result for result in results if result.task.voice == task.voice]
        failed = [result.error for result in mine if result.error]
        if failed:
            errors[task.voice] = failed[0]
        else:
            write_scores(task, mine, names, config)
    return errors


def evaluation_digest(task: VoiceTask, config: JobConfig) -> str:
    """What decides the scores of a run."""
    engines = {**asdict(config.flow.engines), "align_models": dict(config.flow.engines.align_models)}
    return digest_of([task.run_id, asdict(config.evaluation), engines, EVALUATOR_VERSION])[:32]


def is_evaluated(task: VoiceTask, config: JobConfig) -> bool:
    mark = Path(task.run_dir) / "done.json"
    return mark.is_file() and json.loads(mark.read_text())["evaluation_digest"] == evaluation_digest(task, config)


def pair_tasks_of(task: VoiceTask, config: JobConfig) -> list[PairTask]:
    """Every saved pair of a run, the base before training, and the recordings themselves.

    Raises:
        ValueError: the corpus's speaker vectors are another engine's, or no sentence is known in the language.
    """
    sentences = sentences_of(task, config)
    corpus = LocalStorage(task.corpus)
    train = [row for row in task.rows if row.keep and row.split == "train"]
    examples = read_examples(task.voice, train, corpus)
    engine = examples[0].description["derived_from"]["speaker"]
    if engine != config.flow.engines.speaker_verifier:
        raise ValueError(
            f"voice {task.voice}: its clips were compared by {engine}, likeness would be by "
            f"{config.flow.engines.speaker_verifier}; prepare the corpus again, or evaluate with {engine}"
        )
    mean = np.mean([example.arrays["speaker"] for example in examples], axis=0)
    centroid = tuple(float(value) for value in mean / np.linalg.norm(mean))
    common: dict[str, Any] = {
        "voice": task.voice,
        "run_dir": task.run_dir,
        "corpus": task.corpus,
        "sentences": sentences,
        "centroid": centroid,
        "seed": config.evaluation.seed,
    }
    saved = saved_weights(Path(task.run_dir))
    pairs = [
        PairTask(kind="pair", semantic=semantic, wave=wave, **common)
        for semantic in saved["semantic"]
        for wave in saved["wave"]
    ]
    compared = [PairTask(kind="base", **common)]
    if any(sentence.row for sentence in sentences):
        compared.append(PairTask(kind="ceiling", **common))
    return pairs + compared


def sentences_of(task: VoiceTask, config: JobConfig) -> tuple[Sentence, ...]:
    """Held-out texts; for a voice that holds none out, the fixed sentences of its language."""
    most = config.evaluation.utterances
    held_out = [row for row in task.rows if row.keep and row.split == "held_out"][:most]
    kept = held_out or [row for row in task.rows if row.keep][:1]
    examples = read_examples(task.voice, kept, LocalStorage(task.corpus))
    if held_out:
        rows = {row.clip_id: row for row in held_out}
        return tuple(
            Sentence(
                name=example.utterance.clip_id,
                text=example.utterance.text,
                language=example.utterance.language,
                row=rows[example.utterance.clip_id],
            )
            for example in examples
        )
    language = examples[0].utterance.language
    return tuple(
        Sentence(name=f"{language}-{number}", text=text, language=language)
        for number, text in enumerate(fixed_sentences(language)[:most], start=1)
    )


def fixed_sentences(language: str) -> list[str]:
    """The sentences every voice of a language is compared on. Raises ValueError for a language without any."""
    known = yaml.safe_load(files("jobs.configs").joinpath("sentences.yaml").read_text(encoding="utf-8"))
    if language not in known:
        raise ValueError(f"no evaluation sentences for language {language!r}; there are {', '.join(sorted(known))}")
    return known[language]


@ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)
class _Evaluator:
    """One worker with its engines; speaks and measures whole pairs. A pair done twice gives the same, so a worker that
    is lost is started again."""

    def __init__(self, engines: EngineConfig, release: Release, folder: str | None, polyphones: str | None) -> None:
        import torch

        torch.set_num_threads(1)
        recogniser, verifier = load_recogniser(engines), load_speaker_verifier(engines)
        quality = load_quality(engines)
        self._models = Models(
            recogniser=recogniser,
            verifier=verifier,
            quality=quality,
            base=load_base(release, Path(folder) if folder else None),
            polyphones=load_polyphones(Path(polyphones)) if polyphones else None,
            names={
                "recogniser": recogniser.name,
                "speaker_verifier": verifier.name,
                **({"quality": quality.name} if quality else {}),
            },
        )

    def names(self) -> dict[str, str]:
        return self._models.names

    def score(self, task: PairTask) -> PairResult:
        started = time.monotonic()
        try:
            utterances = score_pair(task, self._models)
        except Exception as error:  # whatever it is, it is this voice's result, and the others go on
            logger.exception("evaluating %s failed", task.voice)
            return PairResult(task=task, error=traceback.format_exception_only(error)[-1].strip())
        return PairResult(task=task, utterances=tuple(utterances), seconds=time.monotonic() - started)


def score_pair(task: PairTask, models: Models) -> list[dict[str, Any]]:
    """Let one pair say every sentence, keep the audio, and measure it."""
    rows = [sentence.row for sentence in task.sentences if sentence.row]
    recordings = {
        example.utterance.clip_id: example for example in read_examples(task.voice, rows, LocalStorage(task.corpus))
    }
    synthesiser = prompt = None
    if task.kind != "ceiling":
        synthesiser = Synthesiser(
            models.base,
            _weights_path(task, task.semantic),
            _weights_path(task, task.wave),
            polyphones=models.polyphones,
        )
        prompt = Prompt.load(Path(task.run_dir))
    lexicon = read_lexicon(Path(task.corpus) / "voices" / task.voice)
    scored = []
    for sentence in task.sentences:
        recording = recordings.get(sentence.name)
        began = time.monotonic()
        if synthesiser is None or prompt is None:
            assert recording is not None
            wave, rate_hz, factor = recording.wave, recording.rate_hz, None
        else:
            speech = synthesiser.speak(sentence.text, sentence.language, prompt, seed=task.seed, lexicon=lexicon)
            wave, rate_hz = speech.wave, speech.rate_hz
            factor = (time.monotonic() - began) / max(len(wave) / rate_hz, 1e-3)
        numbers = measure(wave, rate_hz, sentence, task, models, recording)
        scored.append({**numbers, "real_time_factor": factor, "audio": _keep_audio(task, sentence, wave, rate_hz)})
    return scored


def measure(
    wave: np.ndarray,
    rate_hz: int,
    sentence: Sentence,
    task: PairTask,
    models: Models,
    recording: StoredExample | None,
) -> dict[str, Any]:
    """The numbers of one spoken sentence; null where no engine here can judge."""
    heard = None
    if models.recogniser.speaks(sentence.language):
        heard = models.recogniser.transcribe(wave, rate_hz, sentence.language).text
    against = recording if recording is not None and task.kind != "ceiling" else None
    spoken = wave if against is None else resample(wave, rate_hz, against.rate_hz)  # v3 and v4 speak at other rates
    return {
        "clip_id": sentence.name,
        "text": sentence.text,
        "recognised": heard,
        "seconds": round(len(wave) / rate_hz, 3),
        "character_error_rate": (
            None if heard is None else character_error_rate(sentence.text, heard, sentence.language)
        ),
        "word_error_rate": None if heard is None else word_error_rate(sentence.text, heard, sentence.language),
        "likeness": cosine(models.verifier.embed(wave, rate_hz), np.asarray(task.centroid, dtype=np.float32)),
        "quality": models.quality.predict(wave, rate_hz) if models.quality else None,
        "mel_cepstral_distance": mel_cepstral_distance(against.wave, spoken, against.rate_hz) if against else None,
        "duration_ratio": len(spoken) / len(against.wave) if against else None,
    }


def write_scores(task: VoiceTask, results: Sequence[PairResult], names: dict[str, str], config: JobConfig) -> None:
    """`scores.json` with the chosen pair, and `done.json` behind it."""
    run_dir = Path(task.run_dir)
    pairs = sorted(
        (_summary(result) for result in results if result.task.kind == "pair"),
        key=lambda pair: (pair["semantic"], pair["wave"]),
    )
    best = max(pairs, key=lambda pair: pair["score"])  # the first of equals: the earlier save
    compared = {result.task.kind: _summary(result) for result in results if result.task.kind != "pair"}
    write_json(
        run_dir / "scores.json",
        {
            "schema_version": 1,
            "engines": names,
            # `pair_tasks_of` insists on the engine that screened the clips, so its word is not an outsider's.
            "independent": False,
            "speech": task.record["speech"],
            "pairs": pairs,
            "ceiling": compared.get("ceiling"),
            "base": compared.get("base"),
            "best": {**{phase: best[phase] for phase in PHASES}, "rule": RULE},
        },
    )
    cost_path = run_dir / "cost.json"
    cost = json.loads(cost_path.read_text())
    write_json(cost_path, {**cost, "evaluate_seconds": round(sum(result.seconds for result in results), 3)})
    write_json(run_dir / "done.json", {"run_id": task.run_id, "evaluation_digest": evaluation_digest(task, config)})


def pair_score(numbers: dict[str, Any]) -> float:
    """One number to rank by, after `RULE`; higher is better."""
    parts = []
    if numbers["character_error_rate"] is not None:
        parts.append(1.0 - numbers["character_error_rate"])
    if numbers["likeness"] is not None:
        parts.append(numbers["likeness"])
    if numbers["quality"] is not None:
        parts.append(numbers["quality"] / 5.0)
    return statistics.fmean(min(1.0, max(0.0, part)) for part in parts) if parts else 0.0


def _summary(result: PairResult) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name in _NUMBERS:
        values = [entry[name] for entry in result.utterances if entry[name] is not None]
        numbers[name] = round(statistics.fmean(values), 6) if values else None
    return {
        "semantic": result.task.semantic,
        "wave": result.task.wave,
        **numbers,
        "score": round(pair_score(numbers), 6),
        "utterances": [_rounded(entry) for entry in result.utterances],
    }


def _rounded(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, 6) if isinstance(value, float) and math.isfinite(value) else value
        for name, value in entry.items()
    }


def _weights_path(task: PairTask, name: str | None) -> Path | None:
    return Path(task.run_dir) / "weights" / f"{name}.safetensors" if name else None


def _keep_audio(task: PairTask, sentence: Sentence, wave: np.ndarray, rate_hz: int) -> str:
    folder = f"{task.semantic}+{task.wave}" if task.kind == "pair" else task.kind
    relative = f"audio/{folder}/{sentence.name}.wav"
    data = wav_bytes(wave, rate_hz)
    write_atomically(Path(task.run_dir) / relative, lambda path: _write_bytes(path, data))
    return relative


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
