"""What a voice's training will take, before it begins: seconds per phase, from what this base took here before.

Work is counted in seconds of speech that go forward and backward through a network: steps times what is in a batch,
and a third of that for held-out clips, which only go forward. A rate is seconds of a worker per second of speech; it
depends on release, phase, what trains and the kind of device, and is measured on every voice that is trained
(`<workspace>/training_rates.json`). Until then it is what 2 CPU cores took. Voices that a worker trains at once share
its seconds, so that costs and rates of all add up to the time that it took.
"""

import heapq
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gsv_core.checkpoints.releases import Release
from gsv_core.checkpoints.weights import write_json
from gsv_core.training.precision import Precision
from gsv_core.training.schedules import PhasePlan
from pipelines.rows import RATE_HZ, SelectionRow

PHASES = ("semantic", "wave")
FRAMES_PER_SECOND = 50
_HELD_OUT_SHARE = 1 / 3
_MOST_REMEMBERED_S = 3_600.0
"""What was measured longer ago than this much work counts half: machines change."""
_FIRST_RATES = {
    # nano: a step of 8 clips in 0.08 s, of 4 windows of 3.84 s in 0.21 s; the others: docs/performance.md, full size
    (True, "semantic"): 0.002,
    (True, "wave"): 0.014,
    (False, "semantic"): 0.09,
    (False, "wave"): 0.56,
}
_GPU_SPEED = 40.0
_TOGETHER_S = 2 * 3_600.0
_MOST_TOGETHER = 4


def work_of(plan: PhasePlan, rows: Iterable[SelectionRow], phase: str) -> float:
    """Seconds of speech that `plan` sends through its network over all its steps."""
    longest = plan.longest_frames / FRAMES_PER_SECOND if phase == "wave" else float("inf")
    kept = [(row.split, min(row.num_samples / RATE_HZ, longest)) for row in rows if row.keep]
    train = [seconds for split, seconds in kept if split == "train"]
    held_out = sum(seconds for split, seconds in kept if split == "held_out")
    if not train or not plan.steps:
        return 0.0
    per_step = sum(train) / -(-len(train) // plan.batch_size)
    evaluations = 1 + plan.steps // plan.evaluate_every
    return plan.steps * per_step + evaluations * held_out * _HELD_OUT_SHARE


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A worker's seconds for so much work."""

    key: str
    seconds: float
    work: float


def rate_key(release: Release | str, phase: str, plan: PhasePlan, device: str) -> str:
    """What a rate holds for; `device` as torch writes it."""
    precision = "" if plan.precision is Precision.FLOAT32 else f"/{plan.precision}"
    return f"{release}/{phase}/{plan.trains}/{device.partition(':')[0]}{precision}"


class SharedClock:
    """A worker's seconds as voices count them that it trains at once: with n in hand, each second is 1/n for each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turn = threading.Lock()
        self._voices = 0
        self._counted, self._at = 0.0, clock()

    def __call__(self) -> float:
        with self._turn:
            return self._count()

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """One voice more inside the block."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def _change(self, voices: int) -> None:
        with self._turn:
            self._count()
            self._voices += voices

    def _count(self) -> float:
        now = self._clock()
        self._counted += (now - self._at) / max(1, self._voices)
        self._at = now
        return self._counted


class Rates:
    """Seconds of a worker per second of speech, measured where there was something to measure."""

    def __init__(self, measured: Mapping[str, tuple[float, float]] | None = None) -> None:
        self._sums = dict(measured or {})

    @classmethod
    def read(cls, path: Path) -> "Rates":
        """What earlier runs measured; nothing where `path` is missing or damaged: it only makes guesses better."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return cls({key: (float(entry["seconds"]), float(entry["work"])) for key, entry in stored.items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        write_json(path, {key: {"seconds": seconds, "work": work} for key, (seconds, work) in self._sums.items()})

    def add(self, measured: Measured) -> None:
        """Remember one more measurement."""
        if not measured.work > 0 or not measured.seconds > 0:
            return
        seconds, work = self._sums.get(measured.key, (0.0, 0.0))
        if seconds > _MOST_REMEMBERED_S:
            seconds, work = seconds / 2, work / 2
        self._sums[measured.key] = (seconds + measured.seconds, work + measured.work)

    def seconds(self, release: Release, phase: str, plan: PhasePlan, device: str, work: float) -> float:
        """How long `work` will take."""
        seconds, known = self._sums.get(rate_key(release, phase, plan, device), (0.0, 0.0))
        if known > 0:
            return work * seconds / known
        first = _FIRST_RATES[release is Release.NANO, phase]
        return work * first / (_GPU_SPEED if device.startswith("cuda") else 1.0)


def workers_for(seconds_train: float, wanted: int | None, *, gpus: bool) -> int:
    """How many workers train a voice with so much speech together, where nobody says how many.

    On CPUs one: several would give other bits, and a fleet has other voices for them.
    """
    if wanted is not None:
        return wanted
    return min(_MOST_TOGETHER, 1 + int(seconds_train // _TOGETHER_S)) if gpus else 1


def makespan(seconds: Iterable[float], workers: int) -> float:
    """How long `workers` take for pieces of so many seconds each, when each takes the longest that is left."""
    ends = [0.0] * max(1, workers)
    for piece in sorted(seconds, reverse=True):
        heapq.heappush(ends, heapq.heappop(ends) + piece)
    return max(ends)
