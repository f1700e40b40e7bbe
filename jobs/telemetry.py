"""Telemetry: what a worker notes while it trains a voice, to the tracker, without ever waiting for it.

Everything noted is first a line of the spool in the run's folder (`jobs.tracking.spool`). A thread of its own sends
what the tracker has not got yet, in batches; a tracker that is slow, gone or not there yet only leaves lines unsent,
which the next start of the run or its registration sends. The steps of a run that goes on from a checkpoint are taken
a second time: what was noted of them stays, so that every number is there once.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from gsv_core.checkpoints.weights import write_json
from gsv_core.training.loop import Record
from jobs.config import JobConfig
from jobs.run_folder import points_of
from jobs.tracking import ENVIRONMENT_NAME, Address, Line, Spool, Tracker, TrackingError, environment
from jobs.workspace import Workspace

logger = logging.getLogger(__name__)

_SEND_EVERY_S = 2.0
_LONGEST_PAUSE_S = 60.0
_MEASURE_EVERY_S = 2.0
"""Throughput and memory: often enough to be a curve, and not another number for each step."""


@dataclass(frozen=True, kw_only=True)
class TelemetryPlan:
    """What is told of a run, and to whom; without an address it stays in the run's folder until it is registered."""

    address: Address | None = None
    sentences: int = 1
    """How many of the fixed sentences of its language a voice says at every save."""


def telemetry_plan(config: JobConfig, workspace: Workspace) -> TelemetryPlan:
    """What the jobs of this workspace tell, and to whom."""
    return TelemetryPlan(address=address_of(config, workspace), sentences=config.registry.sentences_at_saves)


def address_of(config: JobConfig, workspace: Workspace) -> Address:
    """The store and experiment of this workspace, and where a store that does not decide it itself keeps files."""
    uri = config.registry.tracking_uri or workspace.default_tracking_uri
    return Address(
        uri=uri,
        experiment=config.registry.experiment or f"gsv-fleet/{workspace.root.name}",
        # A bare database has nowhere to keep files.
        artifact_root=None if uri.startswith(("http://", "https://")) else (workspace.root / "mlartifacts").as_uri(),
    )


class Telemetry:
    """What is told of the run in `run_dir` while it is trained; a context manager around the training.

    Args:
        run_dir: the run's folder; `run.json` must be there.
        address: where to send; None only writes down.
        clips: phase → clips in a step, for the throughput.
        memory: more numbers to measure from time to time, such as the memory of an accelerator.
    """

    def __init__(
        self,
        run_dir: Path,
        address: Address | None,
        *,
        clips: Mapping[str, int] | None = None,
        memory: Callable[[], Mapping[str, float]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.finished = False
        """Set to True when the training came to its end; else the run counts as stopped."""
        self._spool = Spool(run_dir)
        self._noted = self._spool.open()
        self._clips = clips or {}
        self._memory = memory
        self._clock = clock
        self._pace: dict[str, tuple[float, int]] = {}
        self._wake, self._closed = threading.Event(), threading.Event()
        write_json(run_dir / ENVIRONMENT_NAME, environment())
        self._status("RUNNING")
        if address is not None:
            threading.Thread(target=self._send, args=(address,), name="telemetry", daemon=True).start()

    def note(self, record: Record) -> None:
        """Write down the numbers of one step. Touches the disk, never the network."""
        points = {(point.name, point.step): point.value for point in points_of(asdict(record))}
        if record.kind == "train":
            points |= {(name, record.step): value for name, value in self._measured(record).items()}
        new = {name: value for (name, step), value in points.items() if (name, step) not in self._noted}
        if not new:
            return
        self._noted |= {(name, record.step) for name in new}
        self._spool.append(Line(time_ms=_now_ms(), step=record.step, metrics=new))

    def add_file(self, name: str, data: bytes) -> None:
        """Keep a file for the tracker, `name` being its path among the run's artefacts."""
        path = self._spool.folder / name
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._spool.append(Line(time_ms=_now_ms(), file=name))
        self._wake.set()

    def close(self, status: str) -> None:
        """End with MLflow's `status`; what is unsent by then is tried once more, behind the caller's back."""
        self._status(status)
        self._closed.set()
        self._wake.set()

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close("FAILED" if kind else "FINISHED" if self.finished else "KILLED")

    def _status(self, status: str) -> None:
        self._spool.append(Line(time_ms=_now_ms(), status=status))

    def _measured(self, record: Record) -> dict[str, float]:
        """Throughput since the last measurement, and memory, if it is time for them."""
        now = self._clock()
        began, first = self._pace.setdefault(record.phase, (now, record.step))
        if now - began < _MEASURE_EVERY_S or record.step <= first:
            return {}
        self._pace[record.phase] = (now, record.step)
        pace = (record.step - first) / (now - began)
        numbers = {
            "throughput/steps_per_second": pace,
            "throughput/clips_per_second": pace * self._clips.get(record.phase, 0),
            "memory/process_mb": _resident_mb(),
            **{f"memory/{name}": value for name, value in self._memory().items()},
        }
        return {f"{record.phase}/{name}": value for name, value in numbers.items()}

    def _send(self, address: Address) -> None:
        """The sending thread: from time to time, and longer and longer apart where the tracker fails."""
        pause = _SEND_EVERY_S
        tracker: Tracker | None = None
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            last = self._closed.is_set()
            try:
                tracker = tracker or Tracker(
                    address.uri, address.experiment, artifact_root=address.artifact_root, create=False
                )
                if self._spool.unsent(tracker.target):
                    tracker.send(self._spool)
                pause = _SEND_EVERY_S
            except (TrackingError, ValueError) as error:
                logger.warning("telemetry of %s is kept for later: %s", self._spool.run_dir.name, error)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            if last:
                return


def accelerator_memory(device: str) -> Callable[[], Mapping[str, float]]:
    """What measures the memory of `device`; nothing for a CPU, whose memory is the process's."""
    import torch

    if not device.startswith("cuda"):
        return dict
    return lambda: {
        "gpu_mb": torch.cuda.memory_allocated(device) / 2**20,
        "gpu_peak_mb": torch.cuda.max_memory_allocated(device) / 2**20,
    }


def _now_ms() -> int:
    return round(time.time() * 1000)


def _resident_mb() -> float:
    """Memory of this process in MiB, as Linux says."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
