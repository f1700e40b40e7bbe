"""Bench of adapters: K voices in one batch against the same K one after the other, as steps per second and their ratio.

Both ways make the steps that a fleet makes: gradients, clipping, AdamW, numbers, with memory kept as workers keep it.
Batches are made before. `nano`, GPT at that size, and `flow`, that of v4 at a toy width, show what many small products
cost; `wide`, GPT at its full width with two layers, what is left of that where products are large.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from gsv_core.checkpoints.base import BaseModel, build_nano
from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.networks.semantic_to_mel import SemanticToMel, SemanticToMelConfig
from gsv_core.networks.vocoder import HifiGanVocoder, VocoderConfig
from gsv_core.training.adapter_trainer import Pack, Seat
from gsv_core.training.batches import TrainingItem
from gsv_core.training.mel_trainer import MelTrainer
from gsv_core.training.pages import keep_large_blocks
from gsv_core.training.schedules import PhasePlan, Trains
from gsv_core.training.semantic_trainer import SemanticTrainer
from jobs.bench import Figure, figure_of

_CLIP_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class AdapterBench:
    """What is measured: `voices` of `clips` each per step, `steps` steps at a time, `repeats` times after one that is
    not counted."""

    voices: int = 8
    clips: int = 1
    steps: int = 4
    rank: int = 8
    repeats: int = 5


def measure_adapters(bench: AdapterBench, only: Sequence[str] = ()) -> Iterator[Figure]:
    """Per network: steps of one voice per second in sequence, in one batch, and how many times faster that is.

    Raises:
        ValueError: an unknown name.
    """
    unknown = sorted(set(only) - NETWORKS.keys())
    if unknown:
        raise ValueError(f"bench: no adapters of {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    keep_large_blocks()
    for name, make in NETWORKS.items():
        if not only or name in only:
            yield from _measure(bench, name, *make(bench))


def _measure(bench: AdapterBench, name: str, base: BaseModel, kind: Any) -> Iterator[Figure]:
    trained = [_Voice(bench, base, number) for number in range(bench.voices)]
    alone = [voice.trainer(kind(base, voice.plan, voice=voice.name)) for voice in trained]
    with Pack(base) as pack:
        seats = [pack.seat() for _ in trained]
        packed = [
            voice.trainer(
                seat.mel_trainer(voice.plan, voice=voice.name)
                if kind is MelTrainer
                else seat.semantic_trainer(voice.plan, voice=voice.name)
            )
            for voice, seat in zip(trained, seats, strict=True)
        ]
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(bench.repeats + 1):
            # In turn, so that whatever else the machine does meets both.
            times[0].append(_seconds(lambda: _one_by_one(alone)))
            times[1].append(_seconds(lambda: _side_by_side(packed, seats)))
    shape = f"{bench.voices} voices x {bench.clips} clips, rank {bench.rank}"
    steps = float(bench.voices * bench.steps)
    figures = [
        figure_of(f"adapters of {name}, {way}", shape, own[1:], steps, "steps/s")
        for way, own in zip(("one after the other", "in one batch"), times, strict=True)
    ]
    yield from figures
    first, second = figures
    yield replace(second, what=f"adapters of {name}, gain", rate=first.seconds / second.seconds, unit="times")


class _Voice:
    """Invented clips of one voice and how it trains."""

    def __init__(self, bench: AdapterBench, base: BaseModel, number: int) -> None:
        self.name = f"voice{number}"
        self.steps = bench.steps
        self.plan = PhasePlan(
            steps=10_000,
            batch_size=bench.clips,
            learning_rate=1e-5,
            trains=Trains.LOW_RANK,
            rank=bench.rank,
            longest_frames=200,
            seed=number,
        )
        draw = torch.Generator().manual_seed(number)
        self.items = [_item(base, f"{self.name}-{clip}", draw) for clip in range(bench.clips)]

    def trainer(self, trainer: Any) -> Callable[[], None]:
        """Steps of `trainer` on this voice's clips."""
        batch = trainer.collate(self.items)

        def train() -> None:
            for _ in range(self.steps):
                trainer.step(batch)

        return train


def _item(base: BaseModel, clip_id: str, draw: torch.Generator) -> TrainingItem:
    frames = round(_CLIP_SECONDS * 50 * float(torch.rand((), generator=draw) * 0.5 + 0.75)) // 2 * 2
    return TrainingItem(
        clip_id=clip_id,
        phoneme_ids=torch.randint(1, 300, (frames // 4,), generator=draw),
        tokens=torch.randint(0, 1024, (frames // 2,), generator=draw),
        content=torch.randn(frames, base.content_encoder.width, generator=draw),
        wave=0.1 * torch.randn(frames * base.spec.spectrogram.hop, generator=draw),
    )


def _one_by_one(voices: Sequence[Callable[[], None]]) -> None:
    for train in voices:
        train()


def _side_by_side(voices: Sequence[Callable[[], None]], seats: Sequence[Seat]) -> None:
    def work(train: Callable[[], None], seat: Seat) -> None:
        try:
            train()
        except BaseException:
            seat.stand()  # or the others would wait for ever
            raise

    with ThreadPoolExecutor(len(voices)) as threads:
        for done in [threads.submit(work, *pair) for pair in zip(voices, seats, strict=True)]:
            done.result()


def _seconds(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _nano(_bench: AdapterBench) -> tuple[BaseModel, Any]:
    return build_nano(RELEASES[Release.NANO]), SemanticTrainer


def _full_width(_bench: AdapterBench) -> tuple[BaseModel, Any]:
    spec = RELEASES[Release.NANO]
    wide = replace(RELEASES[Release.V2].text_to_semantic, layers=2)
    return build_nano(replace(spec, text_to_semantic=wide)), SemanticTrainer


def _small_flow(_bench: AdapterBench) -> tuple[BaseModel, Any]:
    """v4 at a toy width, around nano's text to semantic."""
    nano = build_nano(RELEASES[Release.NANO])
    assert nano.semantic_to_wave is not None
    config = SemanticToMelConfig(
        content_width=nano.semantic_to_wave.config.content_width,
        latent=8,
        width=8,
        filter_width=12,
        layers=2,
        dropout=0.0,
        join_width=12,
        join_heads=2,
        timbre_width=12,
        reference_width=8,
        condition_width=16,
        condition_layers=2,
        flow_width=32,
        flow_heads=2,
        flow_head_width=8,
        flow_layers=2,
        flow_filter_width=48,
        flow_condition_layers=1,
        flow_position_kernel=5,
        flow_position_groups=4,
        stretch=2.0,
        most_frames_per_token=4.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SemanticToMel(config).eval().requires_grad_(False)
        vocoder = HifiGanVocoder(VocoderConfig(channels=32, block_kernels=(3,), block_dilations=((1,),))).eval()
    return (
        replace(
            nano,
            release=Release.V4,
            semantic_to_wave=None,
            discriminators=None,
            semantic_to_mel=network,
            vocoder=vocoder.requires_grad_(False),
        ),
        MelTrainer,
    )


NETWORKS: dict[str, Callable[[AdapterBench], tuple[BaseModel, Any]]] = {
    "nano": _nano,
    "flow": _small_flow,
    "wide": _full_width,
}
