"""Bench of the content features: CN-HuBERT at its full size, from random weights, so that nothing has to be fetched.

Two ways to use the same cores, taken in turns: ours, an actor of one thread on each of them as the flow starts it, and
upstream's, one process that takes clip by clip through transformers' network with all threads. Then the batched path
that a GPU takes, and how far its numbers are from those of a clip alone.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsv_core.networks.content_encoder import RATE_HZ, HubertContentEncoder, load_hubert, save_untrained
from jobs.bench import Figure, figure_of
from jobs.cluster import WORKER_ENVIRONMENT
from jobs.config import available_cpus

_CLIP_SECONDS = (2.3, 9.1, 4.4, 6.2, 3.1, 7.7, 5.0, 2.8, 8.3, 5.6)
_PATIENCE_S = 600.0

Encode = Callable[[np.ndarray], Tensor]
"""A wave (T,) at 16 kHz to content features (L, C)."""


@dataclass(frozen=True, kw_only=True)
class FeatureBench:
    """How much is measured."""

    repeats: int = 3
    cpus: int = 0
    """Cores to use; 0: two, or the one there is."""

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.cpus < 0:
            raise ValueError(f"bench features: need repeats >= 1 and cpus >= 0, got {self}")

    @property
    def cores(self) -> int:
        return self.cpus or min(2, available_cpus())


def measure_content(bench: FeatureBench, folder: Path) -> Iterator[Figure]:
    """CN-HuBERT over clips of 2 to 9 s, in times real time, and the batched path against it."""
    save_untrained(folder / "hubert")
    waves = made_waves(_CLIP_SECONDS)
    seconds = sum(_CLIP_SECONDS)
    ours = _Team(_our_encoder, folder / "hubert", [1] * bench.cores, WORKER_ENVIRONMENT)
    theirs = _Team(_upstream_encoder, folder / "hubert", [bench.cores], {})
    try:
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for number in range(bench.repeats + 1):
            for name, team in (("ours", ours), ("theirs", theirs)):
                spent = team.work()
                if number:  # the first round warms up
                    times[name].append(spent)
    finally:
        ours.end()
        theirs.end()
    theirs_figure = figure_of(
        "content features", f"clip at a time, {bench.cores} threads", times["theirs"], seconds, "x real time"
    )
    ours_figure = figure_of("content features", "", times["ours"], seconds, "x real time")
    against = f"{ours_figure.rate / theirs_figure.rate:.2f} x clip at a time with all threads"
    yield theirs_figure
    yield figure_of(
        "content features", f"{bench.cores} actors of 1 thread: {against}", times["ours"], seconds, "x real time"
    )
    yield _batched(folder / "hubert", waves, bench)


def _batched(folder: Path, waves: Sequence[np.ndarray], bench: FeatureBench) -> Figure:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = HubertContentEncoder(folder, device=device)
    alone = [encoder.encode(wave) for wave in waves]
    times = []
    for _ in range(bench.repeats):
        begin = time.perf_counter()
        together = encoder.encode_batch(waves)
        times.append(time.perf_counter() - begin)
    apart = max(float((one - other).abs().max()) for one, other in zip(alone, together, strict=True))
    shape = f"one padded batch, {device}: {apart:.1e} from a clip alone at most"
    return figure_of("content features", shape, times, sum(map(len, waves)) / RATE_HZ, "x real time")


def made_waves(seconds: Sequence[float]) -> list[np.ndarray]:
    """(T,) at 16 kHz each: noise that rises and falls about as often as syllables do."""
    random = np.random.default_rng(0)
    waves = []
    for length in seconds:
        time_s = np.arange(round(length * RATE_HZ)) / RATE_HZ
        noise = random.standard_normal(len(time_s)) * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * time_s))
        waves.append((0.1 * noise).astype(np.float32))
    return waves


def _our_encoder(folder: Path) -> Encode:
    return HubertContentEncoder(folder).encode


def _upstream_encoder(folder: Path) -> Encode:
    network = load_hubert(folder)  # spares it the weight norm that upstream computes anew for every clip

    @torch.no_grad()
    def encode(wave: np.ndarray) -> Tensor:
        return network(torch.from_numpy(wave).unsqueeze(0)).last_hidden_state[0]

    return encode


class _Team:
    """Processes that share the clips of a round, each with its own encoder and its own number of threads."""

    def __init__(
        self, load: Callable[[Path], Encode], folder: Path, threads: Sequence[int], environment: Mapping[str, str]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for count in threads:
            mine, its = context.Pipe()
            process = context.Process(target=_serve, args=(its, load, folder, count), daemon=True)
            with _environment({**environment, "OMP_NUM_THREADS": str(count)}):
                process.start()
            self._ends.append(mine)
            self._processes.append(process)
        for end in self._ends:
            self._answer(end)  # loaded

    def work(self) -> float:
        """Seconds until all clips are encoded; the longest first, each to whoever has least to do."""
        shares: list[list[int]] = [[] for _ in self._ends]
        for clip in sorted(range(len(_CLIP_SECONDS)), key=lambda clip: -_CLIP_SECONDS[clip]):
            min(shares, key=lambda share: sum(_CLIP_SECONDS[one] for one in share)).append(clip)
        begin = time.perf_counter()
        for end, share in zip(self._ends, shares, strict=True):
            end.send(share)
        for end in self._ends:
            self._answer(end)
        return time.perf_counter() - begin

    def end(self) -> None:
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join(_PATIENCE_S)

    def _answer(self, end: Connection) -> None:
        if not end.poll(_PATIENCE_S):
            raise RuntimeError("bench: a process that computes features does not answer")
        end.recv()


@contextmanager
def _environment(names: Mapping[str, str]) -> Iterator[None]:
    """The environment that a process started in the block is given."""
    before = dict(os.environ)
    os.environ.update(names)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(end: Connection, load: Callable[[Path], Encode], folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    encode, waves = load(folder), made_waves(_CLIP_SECONDS)
    end.send(True)
    while (share := end.recv()) is not None:
        for clip in share:
            encode(waves[clip])
        end.send(True)
