"""Run units through the stages with Ray Data: the only caller of `ray.data`.

A row is a unit. Neighbouring stages that ask for the same resources share one pool of actors, so that on a machine
without a GPU a unit stays in one process from its files to its shard, and with a GPU only the model stages occupy it.
What a unit could not do is its result, not an exception: the other units go on. Only where the corpus itself cannot be
written (a full disk, a store that is gone) does the whole run end, since no other unit would fare better.

A worker that dies is started again by Ray with the unit it was at; `pipelines.board` finds the recordings that kill.
One that hangs is made to die by its own watchdog, so that a hang is a death, too.
"""

import faulthandler
import logging
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import ray
import ray.data
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.board import MOST_DEATHS, Board, Orders, Place
from pipelines.flow import Flow
from pipelines.ledger import Ledger
from pipelines.rows import (
    RATE_HZ,
    Example,
    LevelledRecording,
    Recording,
    Rejection,
    Source,
    SpokenClip,
    recording_id,
)
from pipelines.stage import Resources, Stage
from pipelines.storage import StorageError, open_storage
from pipelines.units import Committed, Unit, commit, done_path, estimated_seconds, file_digests, read_committed

logger = logging.getLogger(__name__)

_MOST_BLOCKS = 2_000
"""Rows that Ray Data keeps books on, however many units there are: beyond it several units share one."""
_BOARD_S = 10.0
NODE_IS_GONE = (
    "the Ray node that the job was started on is gone: one of its own processes was killed, or memory ran out; run the "
    "same command again: what is committed stays"
)
_NODE_ERRORS = (
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OwnerDiedError,
    ray.exceptions.RaySystemError,
)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long one recording (or clip of it) may stay in one stage before its worker is taken for hung and ended.

    Far beyond what any machine needs: a recording that was only slow would be rejected for it.
    """

    least_s: float = 600.0
    per_second: float = 10.0
    """Seconds more for each second of the recording, as its bytes suggest them."""

    def __post_init__(self) -> None:
        if self.least_s <= 0 or self.per_second < 0:
            raise ValueError(f"patience: need least_s > 0 and per_second >= 0, got {self.least_s}, {self.per_second}")


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """What became of a unit. `error` is the last line of what went wrong, `trace` the whole of it."""

    unit_id: str
    voice: str
    kept: int = 0
    rejected: int = 0
    recordings: int = 0
    audio_seconds: float = 0.0
    """Of the recordings that could be decoded."""
    seconds: float = 0.0
    """Of work, in all stages together."""
    error: str | None = None
    trace: str | None = None


@dataclass
class _Work:
    """A unit on its way through the stages."""

    unit: Unit
    rows: list[Any]
    rejections: list[Rejection] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    counts: dict[str, int] = field(default_factory=dict)
    clips_final: bool = False
    seconds: float = 0.0
    error: str | None = None
    trace: str | None = None
    no_storage: str | None = None
    """Why the corpus cannot be reached at all."""
    committed: Committed | None = None

    def advance(
        self,
        stage: Stage[Any, Any],
        model: Any,
        on_row: Callable[[str], None],
        at: Callable[[Place], None],
        *,
        one_by_one: bool = False,
    ) -> None:
        """Take every row through one stage; `at` is told of each before, `on_row` after.

        `one_by_one`: a worker died of this unit; among many rows at once nobody could tell which of them it was.
        """
        rows: list[Any] = []
        if self.rows and not one_by_one:
            at(Place(stage.name, -1, _uri_of(self.rows[0])))
            model = stage.look_ahead(self.rows, model)
        for number, row in enumerate(self.rows):
            at(Place(stage.name, number, _uri_of(row)))
            for result in stage.process(row, model):
                if isinstance(result, Rejection):
                    self.rejections.append(result)
                    if isinstance(row, Recording) and result.num_samples is not None:
                        # Decoded, and then rejected as a whole: its samples are in the books, too.
                        self.ledger.open(replace(row, duration_samples=result.num_samples))
                else:
                    rows.append(result)
                    if isinstance(result, LevelledRecording):
                        self.ledger.open(result.recording)
            on_row(stage.name)
        if not self.clips_final and not any(isinstance(row, Source | Recording | LevelledRecording) for row in rows):
            self.ledger.note_silence([row for row in rows if isinstance(row, SpokenClip)], self.rejections)
            self.clips_final = True
        self.counts[stage.name] = len(rows)
        self.rows = rows

    def leave_out(self, deadly: Place) -> None:
        """Reject the whole recording of a row that kills its workers."""
        for row in self.rows:
            if _uri_of(row) == deadly.uri:
                self.rejections.append(_rejection_of(row, deadly))
        self.rows = [row for row in self.rows if _uri_of(row) != deadly.uri]


class _StageActor:
    """One actor of a pool: some neighbouring stages with their models loaded; the last pool also commits."""

    def __init__(
        self, flow: Flow, stages: Sequence[Stage[Any, Any]], corpus: str, board: Any, patience: Patience, last: bool
    ) -> None:
        self._flow = flow
        self._stages = [(stage, stage.load()) for stage in stages]
        self._corpus = open_storage(corpus)
        self._board = board
        self._patience = patience
        self._last = last
        self._counted: dict[str, int] = {}
        self._told = time.monotonic()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        work = _work_of(batch)
        started = time.monotonic()
        if work.error is None and work.committed is None:
            name = (work.unit.unit_id, self._stages[0][0].name)
            orders: Orders = ray.get(self._board.begin.remote(name))
            try:
                self._run(work, name, orders)
            except Exception as error:  # noqa: BLE001 - recorded below; the other units go on
                work.no_storage = str(error) if isinstance(error, StorageError) else None
                work.error = f"{type(error).__name__}: {error}".splitlines()[0]
                work.trace = traceback.format_exc()
            ray.get(self._board.end.remote(name))
        work.seconds += time.monotonic() - started
        self._tell(force=True)
        if not self._last:
            return {"unit": [work.unit.unit_id], "work": _objects(work)}
        committed = work.committed
        accounts = committed.accounts if committed else ()
        return {
            "unit_id": [work.unit.unit_id],
            "voice": [work.unit.voice],
            "kept": [committed.kept if committed else 0],
            "rejected": [committed.rejected if committed else len(work.rejections)],
            "recordings": [len(work.unit.sources)],
            "audio_seconds": [sum(account.duration_samples for account in accounts) / RATE_HZ],
            "seconds": [work.seconds],
            "error": [work.error or ""],
            "trace": [work.trace or ""],
            "no_storage": [work.no_storage or ""],
        }

    def _run(self, work: _Work, name: tuple[str, str], orders: Orders) -> None:
        def at(place: Place) -> None:
            if orders.report_places:
                ray.get(self._board.at.remote(name, place))  # it must be known before the worker may die of it
            # In a thread of C: code that never gives Python its lock back is ended, too.
            seconds = limits[place.uri] if place.number >= 0 else sum(limits.values())
            faulthandler.dump_traceback_later(seconds, exit=True)

        if self._corpus.exists(done_path(work.unit)):
            # Made since it was planned: by another run, or by this one before its worker died with later units.
            work.committed = read_committed(work.unit, self._corpus)
            return
        for deadly in orders.deadly:
            work.leave_out(deadly)
        limits = {
            source.uri: self._patience.least_s + self._patience.per_second * estimated_seconds(source)
            for source in work.unit.sources
        }
        try:
            for stage, model in self._stages:
                work.advance(stage, model, self._count, at, one_by_one=orders.report_places)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if self._last:
            work.committed = self._commit(work)

    def _commit(self, work: _Work) -> Committed:
        examples = [row for row in work.rows if isinstance(row, Example)]
        unit = work.unit
        files = self._flow.writer.files(unit.voice, unit.unit_id, examples, work.rejections, self._flow.derived_from)
        committed = Committed(
            unit_id=unit.unit_id,
            voice=unit.voice,
            config_digest=unit.config_digest,
            files=file_digests(files),
            accounts=tuple(work.ledger.settle(examples, work.rejections)),
            kept=len(examples),
            rejected=len(work.rejections),
            counts=work.counts,
        )
        commit(unit, files, committed, self._corpus)
        return committed

    def _count(self, stage: str) -> None:
        self._counted[stage] = self._counted.get(stage, 0) + 1
        self._tell(force=False)

    def _tell(self, *, force: bool) -> None:
        if force or time.monotonic() - self._told > 0.5:
            for stage, rows in self._counted.items():
                self._board.add.remote(stage, rows)
            self._counted.clear()
            self._told = time.monotonic()


def run_units(
    units: Sequence[Unit],
    flow: Flow,
    corpus: str,
    *,
    actors: int,
    patience: Patience | None = None,
    on_progress: Callable[[dict[str, int]], None] | None = None,
) -> Iterator[UnitResult]:
    """Run `units` and yield what became of each as it is done. Ray must be up.

    Raises:
        ValueError: the flow asks for more of a GPU than there is.
        StorageError: the corpus cannot be written; what is committed stays, a later run goes on from there.
        RuntimeError: a worker could not be set up; the message is the first cause.
    """
    if not units:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # On the driver's node: it must outlive every worker and every other node.
    board: Any = (
        ray.remote(Board).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1).remote()
    )
    dataset: Any = ray.data.from_items(
        [{"unit": _packed(unit)} for unit in units], override_num_blocks=min(len(units), _MOST_BLOCKS)
    )
    groups = stage_groups(flow.stages)
    sizes = pool_sizes([resources for resources, _ in groups], min(actors, len(units)), ray.cluster_resources())
    for number, (resources, stages) in enumerate(groups):
        dataset = dataset.map_batches(
            _StageActor,  # type: ignore[arg-type]
            fn_constructor_args=(flow, stages, corpus, board, patience or Patience(), number == len(groups) - 1),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=sizes[number]),
            # All pools are up at once and mostly wait for each other, so together they take what one would.
            num_cpus=resources.cpus / len(groups),
            num_gpus=resources.gpus or None,
        )
    with _watching(board, on_progress), first_cause():
        for row in dataset.iter_rows():
            if row["no_storage"]:
                raise StorageError(row["no_storage"])
            yield UnitResult(
                unit_id=row["unit_id"],
                voice=row["voice"],
                kept=int(row["kept"]),
                rejected=int(row["rejected"]),
                recordings=int(row["recordings"]),
                audio_seconds=float(row["audio_seconds"]),
                seconds=float(row["seconds"]),
                error=row["error"] or None,
                trace=row["trace"] or None,
            )


def stage_groups(stages: Sequence[Stage[Any, Any]]) -> list[tuple[Resources, list[Stage[Any, Any]]]]:
    """Neighbouring stages with equal resources, together."""
    return [(resources, list(group)) for resources, group in groupby(stages, key=lambda stage: stage.resources)]


def pool_sizes(groups: Sequence[Resources], actors: int, cluster: dict[str, float]) -> list[int]:
    """Actors per pool: as many as wanted, but no more than the cluster's GPUs hold, since all pools are up at once.

    Raises:
        ValueError: not even one actor of each pool fits on the GPUs.
    """
    wanted = sum(resources.gpus for resources in groups)
    if not wanted:
        return [actors] * len(groups)
    rounds = int(cluster.get("GPU", 0.0) / wanted + 1e-6)
    if rounds < 1:
        raise ValueError(
            f"flow.gpus: the stages together want {wanted:g} GPUs, the cluster has {cluster.get('GPU', 0.0):g}; lower "
            "flow.gpus, or leave it at 0"
        )
    return [min(actors, rounds) if resources.gpus else actors for resources in groups]


@contextmanager
def first_cause() -> Iterator[None]:
    """Ray wraps an error of a worker in pages of its own frames; what a reader needs is the last line."""
    try:
        yield
    except _NODE_ERRORS as error:
        raise RuntimeError(NODE_IS_GONE) from error
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else type(error).__name__) from error


class _watching:  # noqa: N801 - reads as a statement
    """Call back with the board's counts about twice a second while the block runs."""

    def __init__(self, board: Any, on_progress: Callable[[dict[str, int]], None] | None) -> None:
        self._board, self._on_progress = board, on_progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        if self._on_progress is not None:
            self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        assert self._on_progress is not None
        while not self._ended.wait(0.5):
            with suppress(ray.exceptions.RayError):  # the board is being started again, or the run is about to end
                self._on_progress(ray.get(self._board.read.remote(), timeout=_BOARD_S))


def _work_of(batch: dict[str, np.ndarray]) -> _Work:
    if "work" in batch:
        return batch["work"][0]
    unit = Unit.from_json(zlib.decompress(batch["unit"][0]))
    return _Work(unit=unit, rows=list(unit.sources))


def _packed(unit: Unit) -> bytes:
    """A unit as it waits in the driver, of whose memory all units together must stay a small part."""
    return zlib.compress(unit.to_json().encode())


def _objects(work: _Work) -> np.ndarray:
    column = np.empty(1, dtype=object)
    column[0] = work
    return column


def _uri_of(row: Any) -> str:
    return row.recording.uri if isinstance(row, LevelledRecording) else row.uri


def _rejection_of(row: Any, deadly: Place) -> Rejection:
    """A row as a Rejection that claims whatever samples of its recording the row stands for."""
    start: int | None = None
    length: int | None = None
    if isinstance(row, LevelledRecording):
        row_id, voice = row.recording.recording_id, row.recording.voice
        start, length = 0, row.recording.duration_samples
    elif isinstance(row, SpokenClip | Example):
        utterance = row.utterance
        row_id, voice = utterance.clip_id, utterance.voice
        start, length = utterance.start_sample, utterance.num_samples
    else:
        row_id, voice = recording_id(row.voice, row.digest), row.voice
    return Rejection(
        row_id=row_id,
        voice=voice,
        uri=deadly.uri,
        stage=deadly.stage,
        reason="kills_worker",
        detail=(
            f"its worker died or hung {MOST_DEATHS} times in the same place of stage {deadly.stage}; "
            "is the file damaged?"
        ),
        start_sample=start,
        num_samples=length,
    )
