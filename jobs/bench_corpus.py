"""Bench of the corpus pipeline: how fast recordings become shards here, as rows of figures.

The recordings are made on the spot: sentences of the demonstration voices, joined and encoded in several ways. Work is
counted in core-seconds (CPU time of one thread), so that figures hold on a machine that does other things, too.
"""

import hashlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gsv_core.audio.resample import resample
from gsv_core.checkpoints.base import load_base
from jobs.bench import Figure, figure_of
from jobs.bench_features import FeatureBench, measure_content
from jobs.cluster import Cluster
from jobs.config import ClusterConfig, JobConfig
from jobs.demo import make_demo_voices
from pipelines.engines.audio_writer import encode_audio
from pipelines.engines.decoder import decode
from pipelines.engines.flac import encode_flac
from pipelines.flow import Flow
from pipelines.rows import RATE_HZ, Example, LevelledRecording, Recording, Rejection, Source, SpokenClip, Utterance
from pipelines.stage import Stage
from pipelines.stages.ingest import IngestSources
from pipelines.stages.normalise import NormaliseRecordings
from pipelines.stages.shard import ShardWriter
from pipelines.stages.slice import SliceRecordings
from pipelines.storage import LocalStorage
from pipelines.units import UNIT_BYTES, Unit, file_digests, plan

# suffix: rate of the file in Hz, channels
CODECS = {
    ".wav": (44_100, 2),
    ".flac": (48_000, 1),
    ".mp3": (44_100, 2),
    ".opus": (48_000, 1),
    ".m4a": (44_100, 2),
    ".wma": (44_100, 2),
    ".webm": (48_000, 1),
}
_BYTES_PER_RECORDING = UNIT_BYTES // 2_000
"""Of simulated recordings, as WAV: 200 recordings to a unit of the plan's default size."""


@dataclass(frozen=True, kw_only=True)
class CorpusBench:
    """How much is measured. `recordings` bounds the simulated ones of the plan and of the driver's memory."""

    seconds: float = 120.0
    """Length of a recording."""
    repeats: int = 3
    units: int = 12
    """Recordings that one and two actors work on, each a unit of its own."""
    recordings: int = 100_000

    def __post_init__(self) -> None:
        if self.seconds < 10 or self.repeats < 1 or self.units < 4 or self.recordings < 100:
            raise ValueError(
                f"bench corpus: need seconds >= 10, repeats >= 1, units >= 4 and recordings >= 100, got {self}"
            )


def measure_corpus(bench: CorpusBench, only: Sequence[str] = ()) -> Iterator[Figure]:
    """The figures of each measurement, or of `only` the named ones, as they come.

    Raises:
        ValueError: an unknown name.
    """
    unknown = sorted(set(only) - set(CORPUS_MEASUREMENTS))
    if unknown:
        raise ValueError(f"bench: no measurement {', '.join(unknown)}; there are {', '.join(CORPUS_MEASUREMENTS)}")
    for name, measure in CORPUS_MEASUREMENTS.items():
        if not only or name in only:
            with tempfile.TemporaryDirectory(prefix="gsv-bench-") as folder:
                yield from measure(bench, Path(folder))


def measure_codecs(bench: CorpusBench, folder: Path) -> Iterator[Figure]:
    """Decode → normalise → slice → shard, one core, by codec and part. No model but voice activity takes part."""
    speech = speech_of(folder / "demo", bench.seconds)
    voice_activity = SliceRecordings().load()
    corpus = LocalStorage(folder / "corpus")
    for suffix, (rate_hz, channels) in CODECS.items():
        path = encoded(speech, folder / f"bench{suffix}", rate_hz, channels)
        source = source_of(path)
        parts: dict[str, list[float]] = {}
        for _ in range(bench.repeats + 1):
            clock = _Clock(parts)
            hashlib.sha256(path.read_bytes()).digest()
            (recording,) = IngestSources().process(source, None)
            clock.part("digest and probe")
            decode(path)
            clock.part("decode")
            (levelled,) = NormaliseRecordings().process(_only(recording, Recording), None)
            clock.part("decode and normalise")
            (sliced,) = SliceRecordings().process(_only(levelled, LevelledRecording), voice_activity)
            clock.part("slice")
            examples = [_bare(clip) for clip in _unheard(_only(sliced, LevelledRecording))]
            files = ShardWriter().files(source.voice, "bench", examples, [], {})
            file_digests(files)
            for name, data in files.items():
                corpus.write(name, data)
            clock.part("shard")
        yield from _part_figures(f"{suffix[1:]}, {rate_hz} Hz x {channels}", parts, bench)


def _part_figures(codec: str, parts: dict[str, list[float]], bench: CorpusBench) -> Iterator[Figure]:
    # The first round warms up. `decode` is measured by itself and part of what follows it.
    rounds = {name: times[1:] for name, times in parts.items()}
    normalise = zip(rounds.pop("decode and normalise"), rounds["decode"], strict=True)
    rounds["normalise"] = [max(1e-6, both - alone) for both, alone in normalise]
    order = ("digest and probe", "decode", "normalise", "slice", "shard")
    totals = [sum(times) for times in zip(*rounds.values(), strict=True)]
    for name, times in (*((name, rounds[name]) for name in order), ("all, recording to shard", totals)):
        yield figure_of(name, codec, times, bench.seconds, "x real time")


def measure_stages(bench: CorpusBench, folder: Path) -> Iterator[Figure]:  # noqa: ARG001
    """The whole flow over the demonstration voice of six recordings, stage by stage, with base nano."""
    voices = make_demo_voices(folder / "demo")
    flow = _flow()
    rows: list[Any] = [
        source_of(path, language="en", transcript=path.with_suffix(".txt").read_text(encoding="utf-8"))
        for path in sorted((voices / "ada").iterdir())
        if path.suffix in (".wav", ".flac")
    ]
    models = [stage.load() for stage in flow.stages]
    warm = rows[:1]
    for stage, model in zip(flow.stages, models, strict=True):
        warm = [row for given in warm for row in stage.process(given, model) if not isinstance(row, Rejection)]
    seconds = 0.0
    for stage, model in zip(flow.stages, models, strict=True):
        begin = time.process_time()
        results = [result for row in rows for result in stage.process(row, model)]
        spent = time.process_time() - begin
        rows = [row for row in results if not isinstance(row, Rejection)]
        if stage.name == "normalise":
            seconds = sum(len(row.wave) for row in rows) / RATE_HZ
        if seconds:
            yield _stage_figure(stage.name, spent, seconds)
    begin = time.process_time()
    flow.writer.files("ada", "bench", rows, [], flow.derived_from)
    spent = time.process_time() - begin
    yield _stage_figure("shard", spent, seconds)


def _stage_figure(stage: str, spent: float, seconds: float) -> Figure:
    hourly = f"{spent / seconds * 3600:.0f} core-seconds per hour"
    return figure_of(f"stage {stage}", hourly, [spent], seconds, "x real time")


def measure_features(bench: CorpusBench, folder: Path) -> Iterator[Figure]:
    """Content features at full size: an actor on each core against all threads on one clip."""
    yield from measure_content(FeatureBench(repeats=bench.repeats), folder)


def measure_actors(bench: CorpusBench, folder: Path) -> Iterator[Figure]:
    """The same units with one actor and with two, by the clock, from recordings to committed shards."""
    speech = speech_of(folder / "demo", bench.seconds)
    sources = [
        # Another last sample, another recording.
        source_of(encoded(np.append(speech, number / 100), folder / f"{number}.flac", 48_000, 1))
        for number in range(bench.units)
    ]
    flow = replace(_flow(), stages=(*_flow().stages[:3], SpeakNothing(), LeaveFeaturesOut()))
    rates = []
    with Cluster(ClusterConfig(cpus=2), folder / "scratch") as cluster:
        cluster.start()
        for actors in (1, 2):
            units = [Unit.of([source], f"{actors}") for source in sources]
            arrivals = _arrivals(units, flow, folder / f"corpus-{actors}", actors)
            # Starting Ray and the actors is no part of it: the clock runs from when each has made one unit.
            spent = max(1e-6, arrivals[-1] - arrivals[actors - 1])
            audio = bench.seconds * (len(units) - actors)
            rates.append(audio / spent)
            against = f", {rates[-1] / rates[0]:.2f} x one" if actors > 1 else ""
            yield figure_of("units through Ray", f"{actors} actor(s){against}", [spent], audio, "x real time")


def measure_memory(bench: CorpusBench, folder: Path) -> Iterator[Figure]:
    """Memory of the driver as simulated recordings grow in number, and how fast they pass; nothing is decoded."""
    flow = replace(_flow(), stages=(RejectUnread(),))
    with Cluster(ClusterConfig(cpus=2), folder / "scratch") as cluster:
        cluster.start()
        number = 100
        while number <= bench.recordings:
            corpus = LocalStorage(folder / f"corpus-{number}")
            units = plan(simulated(number), "bench", corpus).to_do
            begin = time.perf_counter()
            _arrivals(units, flow, Path(corpus.root), 2)
            spent = time.perf_counter() - begin
            shape = f"{number:,} recordings, {len(units)} units: driver at {_resident_mb():.0f} MB"
            yield figure_of("simulated recordings through Ray", shape, [spent], number, "recordings/s")
            number *= 10


def measure_plan(bench: CorpusBench, folder: Path) -> Iterator[Figure]:
    """Planning `recordings`, the first time and again."""
    corpus = LocalStorage(folder / "corpus")
    for what in ("plan", "plan again"):
        before, begin = _peak_mb(), time.perf_counter()
        units = plan(simulated(bench.recordings), "bench", corpus).to_do
        spent = time.perf_counter() - begin
        shape = f"{bench.recordings:,} recordings, {len(units)} units: peak + {_peak_mb() - before:.0f} MB"
        yield figure_of(what, shape, [spent], bench.recordings, "recordings/s")


CORPUS_MEASUREMENTS: Mapping[str, Callable[[CorpusBench, Path], Iterator[Figure]]] = {
    # The plan first: its memory is told by the highest mark, which later work would hide.
    "plan": measure_plan,
    "codecs": measure_codecs,
    "stages": measure_stages,
    "features": measure_features,
    "actors": measure_actors,
    "memory": measure_memory,
}


# --- what is measured with --------------------------------------------------------------------------------------------


def speech_of(folder: Path, seconds: float) -> np.ndarray:
    """(T,) `seconds` of speech with pauses at 48 kHz: the demonstration voices, again and again."""
    voices = make_demo_voices(folder)
    waves = []
    for path in sorted((voices / "ada").iterdir()):
        if path.suffix in (".wav", ".flac"):
            decoded = decode(path)
            waves.append(resample(decoded.wave[:, 0], decoded.rate_hz, 48_000))
    return np.resize(np.concatenate(waves), round(seconds * 48_000))


def encoded(speech: np.ndarray, path: Path, rate_hz: int, channels: int) -> Path:
    """A file of `speech` (T,) at 48 kHz; a second channel is a little quieter and has noise of its own."""
    wave = resample(speech, 48_000, rate_hz)
    noise = 1e-3 * np.random.default_rng(0).standard_normal((len(wave), channels)).astype(np.float32)
    return encode_audio(path, wave[:, None] * np.array([1.0, 0.8][:channels], np.float32) + noise, rate_hz)


def source_of(path: Path, **said: Any) -> Source:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return Source(voice="bench", uri=str(path), digest=digest, size_bytes=len(data), **said)


def simulated(count: int) -> Iterator[Source]:
    """Sources of 1,000 voices, as many as wanted, of files that are not there."""
    for number in range(count):
        voice = f"voice{number % max(1, min(1_000, count // 100)):04d}"
        uri = f"/recordings/{voice}/session/{number:08d}.wav"
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        yield Source(voice=voice, uri=uri, digest=digest, size_bytes=_BYTES_PER_RECORDING)


@dataclass(frozen=True, kw_only=True)
class SpeakNothing(Stage[LevelledRecording, SpokenClip]):
    """Stands for transcribe, without a recogniser: every clip becomes an Utterance of one word."""

    name = "transcribe"

    def process(self, row: LevelledRecording, model: None) -> Iterator[SpokenClip]:  # noqa: ARG002
        yield from _unheard(row)


@dataclass(frozen=True, kw_only=True)
class LeaveFeaturesOut(Stage[SpokenClip, Example]):
    """Stands for features, without a network: every array is empty."""

    name = "features"

    def process(self, row: SpokenClip, model: None) -> Iterator[Example]:  # noqa: ARG002
        yield _bare(row)


@dataclass(frozen=True, kw_only=True)
class RejectUnread(Stage[Source, Recording]):
    """Stands for the whole flow where nothing is to be decoded."""

    name = "ingest"

    def process(self, row: Source, model: None) -> Iterator[Rejection]:  # noqa: ARG002
        yield Rejection(row_id=row.digest[:20], voice=row.voice, uri=row.uri, stage=self.name, reason="simulated")


def _unheard(row: LevelledRecording) -> Iterator[SpokenClip]:
    for clip in row.clips:
        wave = row.wave[clip.start_sample : clip.start_sample + clip.num_samples]
        utterance = Utterance(
            clip_id=clip.clip_id,
            recording_id=clip.recording_id,
            voice=clip.voice,
            start_sample=clip.start_sample,
            num_samples=clip.num_samples,
            text="speech",
            language="en",
            confidence=None,
        )
        flac = encode_flac(wave, RATE_HZ)
        yield SpokenClip(
            utterance=utterance, flac=flac, uri=row.recording.uri, gain_db=row.gain_db, treatment=row.treatment
        )


def _bare(row: SpokenClip) -> Example:
    return Example(
        utterance=row.utterance,
        flac=row.flac,
        uri=row.uri,
        gain_db=row.gain_db,
        treatment=row.treatment,
        content=np.zeros((0, 768), np.float16),
        tokens=np.zeros(0, np.int16),
        speaker=np.zeros(0, np.float32),
    )


def _flow() -> Flow:
    from jobs.prepare import flow_of

    config = JobConfig()
    return flow_of(config, load_base(config.flow.release, None))


def _arrivals(units: Sequence[Unit], flow: Flow, corpus: Path, actors: int) -> list[float]:
    """When the result of each unit arrived."""
    from pipelines.runner import run_units

    arrivals = []
    for result in run_units(units, flow, str(corpus), actors=actors):
        if result.error is not None:
            raise RuntimeError(f"unit {result.unit_id}: {result.error}")
        arrivals.append(time.perf_counter())
    assert all(one <= two for one, two in pairwise(arrivals))
    return arrivals


class _Clock:
    """CPU time since the last part ended, added to that part's list."""

    def __init__(self, parts: dict[str, list[float]]) -> None:
        self._parts, self._last = parts, time.process_time()

    def part(self, name: str) -> None:
        self._parts.setdefault(name, []).append(time.process_time() - self._last)
        self._last = time.process_time()


def _only(row: Any, kind: type[Any]) -> Any:
    if not isinstance(row, kind):
        raise RuntimeError(f"bench: a stage answered {row}")
    return row


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _resident_mb() -> float:
    """Memory of this process alone: what it shares with Ray's object store is that one's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("RssAnon:"))
