"""Onboard: recordings in, registered voices out. prepare → select → train → evaluate → register → report."""

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gsv_core.checkpoints.weights import write_json
from jobs.cluster import Cluster
from jobs.config import JobConfig
from jobs.evaluate import evaluate_runs, is_evaluated
from jobs.evaluation_page import FILE_NAME as EVALUATION_NAME
from jobs.fleet import train_fleet
from jobs.prepare import Prepared, PreparedVoice, left_out, open_prepared, prepare
from jobs.progress import Progress
from jobs.report import report, report_runs
from jobs.run_folder import HALVES, RunFolder, numbers_of
from jobs.scoring import likeness_engine
from jobs.select import left_out_by_selection, wanted_of
from jobs.telemetry import address_of
from jobs.tracking import without_password
from jobs.train import VoiceTask, is_trained, plan_run
from jobs.worker_group import Budget, FleetSettings
from jobs.workspace import Workspace
from pipelines.report.numbers import Outcome, record_outcomes, save_name
from pipelines.selection import Selection, select
from pipelines.voice_card import VoiceCard

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VoiceSummary:
    """What became of one voice. Scores are those of the best pair."""

    voice: str
    state: str
    reason: str = ""
    language: str | None = None
    seconds_in: float = 0.0
    seconds_kept: float = 0.0
    seconds_rejected: float = 0.0
    utterances: int = 0
    rejections: dict[str, int] = field(default_factory=dict)
    """Reason → rows left out for it."""
    details: dict[str, str] = field(default_factory=dict)
    """Reason → what is said of the first such row."""
    scores: dict[str, float | None] = field(default_factory=dict)
    model: str | None = None
    version: int | None = None
    new: bool = False
    """Registered by this very run."""
    champion: str = ""
    """What became of the new version at the gate, where `registry.promote` is `auto`."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run came to: for the terminal, and as it is for machines."""

    voices: tuple[VoiceSummary, ...]
    report: str
    tracking_uri: str
    engines: dict[str, str]
    """What measured the scores."""
    likeness_independent: bool
    """Whether likeness is measured by another engine than the one that screened the clips."""
    speech: str | None
    seconds: float
    did_nothing: bool
    rejected_share: float
    exit_code: int

    def record(self) -> dict[str, Any]:
        return asdict(self)


def onboard(
    recordings: Path, workspace: Workspace, config: JobConfig, progress: Progress, *, wait_s: float = 0.0
) -> Summary:
    """Everything, as far as it is not done yet, after waiting up to `wait_s` for another job on the corpus to end.

    Raises:
        ValueError: the input, the base, the workspace or an address cannot be used; nothing was begun.
    """
    started = time.monotonic()
    with workspace.lease(wait_s=wait_s), Cluster(config.cluster, workspace.root) as cluster:
        registrar = Registrar(workspace, config)
        registrar.check()
        cluster.check()
        prepared = prepare(recordings, workspace, config, cluster, progress)
        selections, tasks = choose(prepared, workspace, config)
        if prepared.units_made or not all(registrar.registered(task) for task in tasks.values()):
            registrar.prepare_early()
        to_train = [task for task in tasks.values() if not is_trained(task)]
        failures = train_fleet(to_train, fleet_settings(config), cluster, workspace.root, progress)
        trained = [task for task in tasks.values() if task.voice not in failures]
        to_evaluate = [task for task in trained if not is_evaluated(task, config)]
        failures |= evaluate_runs(to_evaluate, config, cluster, progress)
        evaluated = [task for task in trained if task.voice not in failures]
        new = registrar.register(evaluated, prepared, failures, progress)
        voices = summaries(prepared, selections, tasks, registrar, failures, new, config, workspace)
        did_nothing = not (prepared.units_made or to_train or to_evaluate or new)
        page = workspace.report
        if not did_nothing or prepared.changed or not page.exists():
            record_outcomes(workspace.storage, {voice.voice: _outcome(voice, tasks) for voice in voices})
            page = report(workspace.storage, workspace.report)
            registrar.log_report(page)
    return summarise(voices, prepared, registrar, page, config, time.monotonic() - started, did_nothing)


def run_step(
    step: str, workspace: Workspace, config: JobConfig, progress: Progress, *, only: list[str] | None = None
) -> list[dict[str, Any]]:
    """One of `train`, `evaluate`, `register` over the corpus that is there; a line per voice, in order of name.

    Raises:
        ValueError: no corpus, or a voice in `only` that it does not have.
    """
    with workspace.lease(), Cluster(config.cluster, workspace.root) as cluster:
        prepared = open_prepared(workspace, config)
        if unknown := sorted(set(only or ()) - set(prepared.voices)):
            raise ValueError(f"--voice {unknown[0]}: not in the corpus; there are {', '.join(sorted(prepared.voices))}")
        selections, tasks = choose(prepared, workspace, config)
        chosen = [task for name, task in tasks.items() if not only or name in only]
        registrar = Registrar(workspace, config)
        if step == "register":
            registrar.check()
        failures: dict[str, str] = {}
        if step == "train":
            waiting = [task for task in chosen if not is_trained(task)]
            failures = train_fleet(waiting, fleet_settings(config), cluster, workspace.root, progress)
            done = [task for task in chosen if is_trained(task)]
        elif step == "evaluate":
            waiting = [task for task in chosen if is_trained(task) and not is_evaluated(task, config)]
            failures = evaluate_runs(waiting, config, cluster, progress)
            done = [task for task in chosen if is_evaluated(task, config)]
        else:
            evaluated = [task for task in chosen if is_evaluated(task, config)]
            registrar.register(evaluated, prepared, failures, progress)
            done = [task for task in evaluated if registrar.registered(task)]
    finished = {task.voice for task in done}
    too_little = [
        {"voice": name, "run_id": "", "outcome": _too_little(selections[name], config), "failed": False}
        for name in prepared.voices
        if name not in tasks and (not only or name in only)
    ]
    before = {"train": "", "evaluate": "not trained yet", "register": "not evaluated yet"}[step]
    lines = [
        {
            "voice": task.voice,
            "run_id": task.run_id,
            "outcome": failures.get(task.voice) or ("done" if task.voice in finished else before),
            "failed": task.voice in failures,
            **(_made(step, task, registrar) if task.voice in finished else {}),
        }
        for task in chosen
    ]
    return sorted([*lines, *too_little], key=lambda line: str(line["voice"]))


def _made(step: str, task: VoiceTask, registrar: "Registrar") -> dict[str, Any]:
    """What came of a step that is done, beside being done."""
    if step == "evaluate":
        return _measured(Path(task.run_dir))
    version = registrar.registered(task) if step == "register" else None
    return {"model": version["name"], "version": version["version"]} if version else {}


def _measured(run_dir: Path) -> dict[str, Any]:
    """The scores of every pair of a run, of the base and of the recordings, and the page about them."""
    folder = RunFolder.read(run_dir)
    pairs = [{"what": pair_name(pair), **numbers_of(pair)} for pair in folder.scores["pairs"]]
    beside = {"base, untuned": folder.scores.get("base"), "recordings": folder.scores.get("ceiling")}
    return {
        "chosen": pair_name(folder.scores["best"]),
        "scores": [*pairs, *({"what": name, **numbers_of(record)} for name, record in beside.items() if record)],
        "page": str(run_dir / EVALUATION_NAME),
    }


def pair_name(pair: Mapping[str, Any]) -> str:
    """`GPT 60 + SoVITS 80`: what was saved after how many steps."""
    return " + ".join(save_name(str(pair[half])) for half in HALVES)


def choose(
    prepared: Prepared, workspace: Workspace, config: JobConfig
) -> tuple[dict[str, Selection], dict[str, VoiceTask]]:
    """The selection of every voice, and the run of each that has enough speech."""
    corpus = workspace.storage
    selections, tasks = {}, {}
    for name, voice in prepared.voices.items():
        selection = selections[name] = select(
            name, voice.units, corpus, config.selection, wanted_of(voice.card, corpus, config)
        )
        if selection.enough(config.selection):
            tasks[name] = plan_run(voice, selection, prepared.base, prepared.corpus_digest, config, workspace)
    return selections, tasks


def fleet_settings(config: JobConfig) -> FleetSettings:
    return FleetSettings(
        release=config.flow.release,
        base_folder=config.flow.base_folder,
        attempts=config.training.attempts,
        gpus_per_worker=config.cluster.gpus_per_worker,
        pack=config.training.pack,
        budget=Budget(hours=config.cluster.max_hours, gpu_hours=config.cluster.max_gpu_hours),
    )


class Registrar:
    """Registers finished runs; remembers in each run's folder that it did, so that a second look needs no MLflow."""

    def __init__(self, workspace: Workspace, config: JobConfig) -> None:
        self._address = address_of(config, workspace)
        self.uri = self._address.uri
        self.place = without_password(self.uri)
        """The address as it may be written down."""
        self.promotions: dict[str, str] = {}
        """Voice → what became of its new version at the gate."""
        self._config = config
        self._workspace = workspace
        self._tracker: Any = None
        self._parent: str | None = None
        self._early: threading.Thread | None = None
        self._early_error: BaseException | None = None

    def check(self) -> None:
        """See that a server or database answers, before any work. Raises ValueError where none does."""
        if not self.uri.startswith("sqlite:"):
            from jobs.tracking import Store, check_reachable

            check_reachable(Store(self.uri))

    def prepare_early(self) -> None:
        """Make the store in the background: a new SQLite file takes seconds of migrations."""

        def make() -> None:
            try:
                self._open()
            except (ValueError, RuntimeError) as error:
                self._early_error = error

        self._early = threading.Thread(target=make, name="prepare-tracking")
        self._early.start()

    def registered(self, task: VoiceTask) -> dict[str, Any] | None:
        """The version made of this run in this store, if it was."""
        path = Path(task.run_dir) / "registered.json"
        if not path.is_file():
            return None
        known = json.loads(path.read_text())
        if self.uri == self._workspace.default_tracking_uri and not (self._workspace.root / "mlflow.db").is_file():
            return None  # the store was thrown away; what it held is registered again
        return known if known["tracking_uri"] == self.place else None

    def register(
        self, tasks: list[VoiceTask], prepared: Prepared, failures: dict[str, str], progress: Progress
    ) -> set[str]:
        """Make a version of every run that has none yet; the voices that got a new one."""
        waiting = [task for task in tasks if self.registered(task) is None]
        if not waiting:
            self._join()
            return set()
        self._join()
        from jobs.register import register_voice

        tracker = self._open()
        report_runs(self._workspace.storage, {task.voice: Path(task.run_dir) for task in waiting})
        new = set()
        with (
            progress.bar("register") as bar,
            tracker.parent_run(
                f"onboard {len(prepared.voices)} voices",
                {"corpus_digest": prepared.corpus_digest, "release": str(prepared.base.release)},
                {"voices": len(prepared.voices), "seed": self._config.training.seed},
            ) as parent,
        ):
            self._parent = parent
            for number, task in enumerate(waiting):
                bar.update(number, len(waiting), task.voice)
                run_dir = Path(task.run_dir)
                card = prepared.voices[task.voice].card
                try:
                    tracker.log_voice(parent, run_dir)
                    version = register_voice(
                        tracker,
                        run_dir,
                        consent=card.consent,
                        require_consent=self._config.registry.require_consent,
                    )
                except (ValueError, RuntimeError) as error:
                    logger.exception("registering %s failed", task.voice)
                    failures[task.voice] = f"not registered: {error}"
                    continue
                record = {"tracking_uri": self.place, "name": version.name, "version": version.version}
                write_json(run_dir / "registered.json", record)
                new.add(task.voice)
                if self._config.registry.promote == "auto":
                    self.promotions[task.voice] = self._promote(tracker, card, version.version)
            bar.update(len(waiting), len(waiting), f"{len(new)} versions")
        return new

    def _promote(self, tracker: Any, card: VoiceCard, version: int) -> str:
        """Let a new version through the gate, if it passes; in words, how it went."""
        from jobs.promote import promote

        try:
            verdict = promote(tracker.registry, card.voice, self._config, version=version, consent=card.consent or {})
        except (ValueError, RuntimeError) as error:
            logger.exception("promoting %s failed", card.voice)
            return f"was not promoted: {error}"
        return "is champion" if verdict.is_champion else f"is not champion: {'; '.join(verdict.refusals)}"

    def log_report(self, page: Path) -> None:
        """The report as an artefact of the run that made it."""
        if self._parent is not None:
            self._open().log_files(self._parent, page, "report")

    def _open(self) -> Any:
        if self._tracker is None:
            from jobs.tracking import Tracker

            address = self._address
            tracker = Tracker(
                address.uri,
                address.experiment,
                prefix=self._config.registry.prefix,
                artifact_root=address.artifact_root,
            )
            tracker.prepare()
            self._tracker = tracker
        return self._tracker

    def _join(self) -> None:
        if self._early is not None:
            self._early.join()
            self._early = None
        if self._early_error is not None:
            raise self._early_error


def summaries(
    prepared: Prepared,
    selections: dict[str, Selection],
    tasks: dict[str, VoiceTask],
    registrar: Registrar,
    failures: dict[str, str],
    new: set[str],
    config: JobConfig,
    workspace: Workspace,
) -> list[VoiceSummary]:
    """One line per voice, in order of name."""
    corpus = workspace.storage
    lines = []
    for name in sorted(prepared.voices):
        voice, selection, task = prepared.voices[name], selections[name], tasks.get(name)
        version = registrar.registered(task) if task and name not in failures else None
        state, reason = _state(voice, selection, failures.get(name), version, config)
        lost = [(entry.reason, entry.count, entry.detail) for entry in left_out(voice, corpus)]
        lost += left_out_by_selection(selection)
        lines.append(
            VoiceSummary(
                voice=name,
                state=state,
                reason=reason,
                language=voice.card.language,
                seconds_in=round(voice.seconds_in, 1),
                seconds_kept=round(voice.seconds_kept - selection.seconds_left_out, 1),
                seconds_rejected=round(voice.seconds_rejected + selection.seconds_left_out, 1),
                utterances=len(selection.kept()),
                rejections={reason: sum(count for other, count, _ in lost if other == reason) for reason, _, _ in lost},
                details={reason: detail for reason, _, detail in reversed(lost)},
                scores=best_scores(Path(task.run_dir)) if task and version else {},
                model=version["name"] if version else None,
                version=version["version"] if version else None,
                new=name in new,
                champion=registrar.promotions.get(name, ""),
            )
        )
    return lines


def best_scores(run_dir: Path) -> dict[str, float | None]:
    """The numbers of a run's chosen pair, and how its held-out losses moved."""
    scores = json.loads((run_dir / "scores.json").read_text())
    best = next(
        pair for pair in scores["pairs"] if all(pair[half] == scores["best"][half] for half in ("semantic", "wave"))
    )
    names = ("character_error_rate", "likeness", "quality", "mel_cepstral_distance")
    return {name: best[name] for name in names}


def summarise(
    voices: list[VoiceSummary],
    prepared: Prepared,
    registrar: Registrar,
    page: Path,
    config: JobConfig,
    seconds: float,
    did_nothing: bool,
) -> Summary:
    speech = sum(voice.seconds_kept + voice.seconds_rejected for voice in voices)
    rejected = sum(voice.seconds_rejected for voice in voices) / speech if speech else 0.0
    failed = any(voice.state == "failed" for voice in voices)
    none_usable = not any(voice.state == "registered" for voice in voices)
    troubled = failed or none_usable or rejected > config.most_rejected_share
    engines = config.flow.engines
    return Summary(
        voices=tuple(voices),
        report=str(page),
        tracking_uri=registrar.place,
        engines={
            "recogniser": engines.recogniser,
            "speaker_verifier": likeness_engine(engines, config.evaluation.likeness),
            "quality": engines.quality,
        },
        likeness_independent=likeness_engine(engines, config.evaluation.likeness) != engines.speaker_verifier,
        speech=prepared.base.spec.note,
        seconds=round(seconds, 1),
        did_nothing=did_nothing,
        rejected_share=round(rejected, 4),
        exit_code=3 if troubled else 0,
    )


def _state(
    voice: PreparedVoice,
    selection: Selection,
    failure: str | None,
    version: dict[str, Any] | None,
    config: JobConfig,
) -> tuple[str, str]:
    if failure is not None:
        return "failed", failure
    if version is not None:
        return "registered", ""
    if voice.failed_units:
        return "failed", voice.failed_units[0]
    if not voice.units and not voice.unread:
        return "too_little_data", "no recordings in its folder"
    return "too_little_data", _too_little(selection, config)


def _too_little(selection: Selection, config: JobConfig) -> str:
    policy = config.selection
    return (
        f"kept {len(selection.kept())} of at least {policy.fewest_utterances} Utterances, "
        f"{selection.seconds():.1f} of at least {policy.least_seconds:g} s"
    )


def _outcome(voice: VoiceSummary, tasks: dict[str, VoiceTask]) -> Outcome:
    task = tasks.get(voice.voice)
    return Outcome(
        state=voice.state,
        reason=voice.reason,
        run_id=task.run_id if task else None,
        model_name=voice.model,
        model_version=None if voice.version is None else str(voice.version),
        model_uri=f"models:/{voice.model}/{voice.version}" if voice.model else None,
    )
