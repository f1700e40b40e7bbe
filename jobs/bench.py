"""Bench: how fast this machine is, as rows of figures at fixed shapes.

Networks are built from a seed at a release's own sizes, so that nothing has to be fetched. A measurement is a function
that gives rows; `MEASUREMENTS` names them.
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gsv_core.audio.spectrogram import linear_spectrogram
from gsv_core.checkpoints.releases import RELEASES, Release, ReleaseSpec
from gsv_core.networks.layers import fold_weight_norm
from gsv_core.networks.semantic_to_wave import SemanticToWave, SemanticToWaveConfig
from gsv_core.networks.text_to_semantic import TextToSemantic
from gsv_core.synthesis.sampling import TOKENS_PER_SECOND, Sampling, Sentence, clocks_of, sample_sentences
from jobs.config import available_cpus

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_INPUT_RATE_HZ = 32_000


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What figures were measured on."""

    name: str
    processor: str
    cpus: int
    threads: int
    device: str
    torch: str
    python: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number. `seconds` is the median over `repeats`, `best_seconds` the least disturbed of them."""

    what: str
    shape: str
    repeats: int
    seconds: float
    best_seconds: float
    rate: float
    """by the median"""
    unit: str
    """of `rate`; more is faster"""


def figure_of(what: str, shape: str, times: Sequence[float], amount: float, unit: str) -> Figure:
    """The figure of one piece of work, done in each of `times` seconds; `amount` of what `unit` counts is done."""
    seconds = statistics.median(times)
    return Figure(
        what=what,
        shape=shape,
        repeats=len(times),
        seconds=seconds,
        best_seconds=min(times),
        rate=amount / max(1e-9, seconds),
        unit=unit,
    )


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured, and how often. Text-to-semantic inference alone heeds `precision`."""

    spec: ReleaseSpec = RELEASES[Release.V2]
    repeats: int = 5
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"bench: repeats must be at least 1, got {self.repeats}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"bench: precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("bench: torch sees no CUDA device; give --device cpu")
        if self.spec.semantic_to_wave is None:
            raise ValueError(
                f"bench measures releases that predict a wave (v1, v2, v2Pro, v2ProPlus), got {self.spec.release}"
            )

    @property
    def wave_config(self) -> SemanticToWaveConfig:
        assert self.spec.semantic_to_wave is not None, "checked when made"
        return self.spec.semantic_to_wave

    def time(self, work: Callable[[], object], *, what: str, shape: str, amount: float, unit: str) -> Figure:
        """How long `work` takes, after once in vain; `amount` of what `unit` counts is done each time."""
        times = []
        for _ in range(self.repeats + 1):
            self._wait()
            begin = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - begin)
        return figure_of(what, shape, times[1:], amount, unit)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def machine(device: torch.device) -> Machine:
    """What the figures of this process are measured on."""
    on_gpu = device.type == "cuda"
    return Machine(
        name=platform.node(),
        processor=_processor(),
        cpus=available_cpus(),
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        torch=torch.__version__,
        python=platform.python_version(),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def measure_networks(bench: Bench, only: Sequence[str] = ()) -> Iterator[Figure]:
    """The figures of each measurement, or of `only` the named ones, as they come.

    Raises:
        ValueError: an unknown name.
    """
    unknown = sorted(set(only) - set(MEASUREMENTS))
    if unknown:
        raise ValueError(f"bench: no measurement {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}")
    for name, measure in MEASUREMENTS.items():
        if not only or name in only:
            with _seeded():
                yield from measure(bench)


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def measure_inference(bench: Bench) -> Iterator[Figure]:
    """Text to semantic, greedy: a prompt of 60 phonemes and 75 tokens, 150 new tokens, one row and eight."""
    phonemes, prompt, new = 60, 75, 150
    config = bench.spec.text_to_semantic
    network = TextToSemantic(config).eval()
    with torch.no_grad():
        # Nothing ends by itself: the end mark is always less likely than some token.
        network.ar_predict_layer.weight[config.end_token].zero_()
    network.to(bench.device, PRECISIONS[bench.precision])
    for batch in (1, 8):
        sentences = [
            Sentence(
                phoneme_ids=torch.randint(config.phoneme_count, (phonemes,)),
                text_vectors=torch.randn(phonemes, config.text_vector_width),
                prompt_tokens=torch.randint(config.end_token, (prompt,)),
                clocks=clocks_of(torch.Generator().manual_seed(row)),
                most_tokens=new,
            )
            for row in range(batch)
        ]

        def speak(sentences: Sequence[Sentence] = sentences) -> None:
            spoken = sample_sentences(network, sentences, Sampling(top_k=1))
            assert all(len(tokens) == new for tokens in spoken), "a sentence ended early"

        yield bench.time(
            speak,
            what="text to semantic, inference",
            shape=f"batch {batch}, {phonemes} phonemes, {prompt} + {new} tokens, {bench.precision}",
            amount=batch * new,
            unit="tokens/s",
        )


def measure_wave_decoding(bench: Bench) -> Iterator[Figure]:
    """Semantic to wave: 150 tokens, 6 s, in the timbre of 3 s; weight norm is folded as synthesis does."""
    tokens, phonemes, reference_s = 150, 60, 3
    config = bench.wave_config
    network = SemanticToWave(config).eval()
    fold_weight_norm(network)
    network.to(bench.device)
    width = config.speaker_vector_width
    wave = 0.1 * torch.randn(1, reference_s * _INPUT_RATE_HZ)
    with torch.no_grad():
        timbre = network.timbre(
            linear_spectrogram(wave, bench.spec.spectrogram).to(bench.device),
            None,
            None if width is None else torch.randn(1, width, device=bench.device),
        )
    spoken = torch.randint(1024, (1, tokens), device=bench.device)
    text = torch.randint(config.phoneme_count, (1, phonemes), device=bench.device)
    yield bench.time(
        lambda: network.decode(spoken, text, timbre=timbre),
        what="semantic to wave, decoding",
        shape=f"batch 1, {tokens} tokens, weight norm folded",
        amount=tokens / TOKENS_PER_SECOND,
        unit="x real time",
    )


MEASUREMENTS: Mapping[str, Callable[[Bench], Iterator[Figure]]] = {
    "inference": measure_inference,
    "wave-decoding": measure_wave_decoding,
}
