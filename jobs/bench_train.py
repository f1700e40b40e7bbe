"""Bench of training: steps at full size, and what a fleet adds to them, as rows of figures.

Networks are built from a seed at a release's own sizes. The batches are those that GPT-SoVITS's own code was measured
with: eight clips of 480 phonemes and 1,468 tokens in all, of unequal length as a voice's are; four segments of 0.64 s.
A small voice is one of nano, trained from a shard on disk as `gsv train` does it.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gsv_core.checkpoints.base import BaseModel, build_nano
from gsv_core.checkpoints.releases import RELEASES, Release, ReleaseSpec
from gsv_core.features import extract_features
from gsv_core.networks.content_encoder import MelContentEncoder
from gsv_core.networks.discriminators import Discriminators
from gsv_core.networks.semantic_to_wave import SemanticToWave
from gsv_core.networks.text_to_semantic import TextToSemantic
from gsv_core.synthesis.sampling import TOKENS_PER_SECOND
from gsv_core.training.batches import TrainingItem, collate_semantic
from gsv_core.training.precision import Precision, autocast, resolved
from gsv_core.training.recipes import choose_recipe
from gsv_core.training.schedules import PhasePlan
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.wave_trainer import WaveTrainer
from jobs.bench import Bench, Figure, figure_of
from jobs.bench_adapters import AdapterBench, measure_adapters
from jobs.train import VoiceTask, train_voice
from pipelines.engines.flac import encode_flac
from pipelines.rows import RATE_HZ, Example, SelectionRow, Utterance
from pipelines.shard_reader import read_examples
from pipelines.stages.shard import ShardWriter
from pipelines.storage import LocalStorage

PHONEMES = (30, 40, 45, 50, 60, 65, 70, 120)
TOKENS = (50, 140, 170, 190, 208, 220, 240, 250)
FRAMES = (200, 200, 200, 200)

_FRAMES_PER_SECOND = 50
_UNIT = "bench"
_SMALL_VOICE_CLIPS, _SMALL_VOICE_CLIP_S = 10, 3.0


def measure_training(bench: Bench, only: Sequence[str] = ()) -> Iterator[Figure]:
    """The figures of each measurement, or of `only` the named ones, as they come.

    Raises:
        ValueError: an unknown name.
    """
    unknown = sorted(set(only) - MEASUREMENTS.keys())
    if unknown:
        raise ValueError(f"bench: no measurement {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}")
    for name, measure in MEASUREMENTS.items():
        if not only or name in only:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                yield from measure(bench)


def measure_semantic(bench: Bench) -> Iterator[Figure]:
    """Text to semantic: forward and backward, the whole step of a trainer, and what making its batch adds to that."""
    config = bench.spec.text_to_semantic
    items = [
        _item(
            f"{row:020x}",
            phoneme_ids=torch.randint(config.phoneme_count, (phonemes,)),
            tokens=torch.randint(config.end_token, (tokens,)),
            text_vectors=torch.randn(phonemes, config.text_vector_width),
        )
        for row, (phonemes, tokens) in enumerate(zip(PHONEMES, TOKENS, strict=True))
    ]
    shape = f"batch {len(items)}, {sum(PHONEMES)} phonemes, {sum(TOKENS):,} tokens"
    network = TextToSemantic(config).train().to(bench.device)
    batch = collate_semantic(items).to(bench.device)

    def learn(precision: Precision) -> None:
        network.zero_grad(set_to_none=True)
        with autocast(bench.device, precision):
            forward = network(
                batch.phoneme_ids, batch.phoneme_lengths, batch.tokens, batch.token_lengths, batch.text_vectors
            )
        forward.loss_sum.backward()

    name, tokens, unit = "text to semantic", sum(TOKENS), "tokens/s"
    for precision in precisions_of(bench.device):
        own = f"{shape}, {precision}"
        learning = f"{name}, forward and backward"
        yield bench.time(partial(learn, precision), what=learning, shape=own, amount=tokens, unit=unit)
        network.zero_grad(set_to_none=True)
        plan = PhasePlan(steps=bench.repeats + 1, batch_size=len(items), learning_rate=1e-5, precision=precision)
        trainer = SemanticTrainer(_base(bench.spec, network), plan, voice="bench", device=bench.device)
        made = trainer.collate(items)
        whole = f"{name}, training step"
        step = bench.time(partial(trainer.step, made), what=whole, shape=own, amount=tokens, unit=unit)
        yield step
    yield _share(bench, lambda: trainer.collate(items), step)


def measure_wave(bench: Bench) -> Iterator[Figure]:
    """Semantic to wave: a whole step, discriminators and generator, and what making its batch adds to that."""
    config = bench.wave_config
    width = config.speaker_vector_width
    items = [
        _item(
            f"{row:020x}",
            phoneme_ids=torch.randint(config.phoneme_count, (40,)),
            content=torch.randn(frames, config.content_width),
            wave=0.1 * torch.randn(frames * bench.spec.spectrogram.hop),
            speaker_vector=None if width is None else torch.randn(width),
        )
        for row, frames in enumerate(FRAMES)
    ]
    with torch.device("meta"):
        unused = TextToSemantic(bench.spec.text_to_semantic)
    base = _base(bench.spec, unused)
    samples = config.segment_frames * config.hop
    for precision in precisions_of(bench.device):
        plan = PhasePlan(steps=bench.repeats + 1, batch_size=len(items), learning_rate=1e-4, precision=precision)
        trainer = WaveTrainer(base, plan, voice="bench", device=bench.device)
        made = trainer.collate(items)
        step = bench.time(
            partial(trainer.step, made),
            what="semantic to wave, training step",
            shape=f"batch {len(items)}, {FRAMES[0]} frames, segments of {samples:,} samples, {precision}",
            amount=1,
            unit="steps/s",
        )
        yield step
    yield _share(bench, lambda: trainer.collate(items), step)


def precisions_of(device: torch.device) -> list[Precision]:
    """Those that a person would choose between on this device: float32, and what is faster there."""
    if device.type == "cuda":
        return [Precision.FLOAT32, resolved(Precision.AUTO, device)]
    # Without AMX bfloat16 is float32 with more work.
    return [Precision.FLOAT32, *([Precision.BFLOAT16] if torch.cpu._is_amx_tile_supported() else [])]


def measure_loading(bench: Bench) -> Iterator[Figure]:
    """Reading a voice's shards, once per training: audio decoded and all arrays in memory, in x real time."""
    seconds = 5.0
    with tempfile.TemporaryDirectory() as folder:
        corpus = LocalStorage(folder)
        width = bench.wave_config.content_width
        examples = [
            _example(
                number,
                wave=(0.1 * torch.randn(round(seconds * RATE_HZ))).clamp(-1, 1).numpy(),
                content=np.zeros((round(seconds * _FRAMES_PER_SECOND), width), np.float16),
                tokens=np.zeros(round(seconds * TOKENS_PER_SECOND), np.int16),
            )
            for number in range(20)
        ]
        rows = _write(corpus, "bench", examples, "random")
        yield bench.time(
            lambda: [example.training_item() for example in read_examples("bench", rows, corpus)],
            what="reading a voice's shards, once",
            shape=f"{len(examples)} clips of {seconds:g} s",
            amount=len(examples) * seconds,
            unit="x real time",
        )


def measure_voice(bench: Bench) -> Iterator[Figure]:
    """What one more small voice costs a warm worker beside its steps: reading, held-out clips, saves, audio."""
    base = build_nano(RELEASES[Release.NANO])
    with tempfile.TemporaryDirectory() as folder:
        tasks = [_small_voice(Path(folder), f"voice{number}", base) for number in range(bench.repeats + 1)]
        spent = []
        for task in tasks:
            began = time.perf_counter()
            assert train_voice(task, base, device=str(bench.device)), "nobody asked to stop"
            seconds = time.perf_counter() - began
            cost = json.loads((Path(task.run_dir) / "cost.json").read_text(encoding="utf-8"))
            spent.append((seconds - cost["step_seconds"], cost["step_seconds"]))
    shape = f"nano, {_SMALL_VOICE_CLIPS} clips, {tasks[0].steps} steps"
    yield figure_of("one more small voice, all but its steps", shape, [rest for rest, _ in spent[1:]], 1, "voices/s")
    yield figure_of("one more small voice, its steps", shape, [steps for _, steps in spent[1:]], 1, "voices/s")


def measure_shared_adapters(bench: Bench) -> Iterator[Figure]:
    """Eight voices' adapters in one batch against one after the other, with small networks."""
    yield from measure_adapters(AdapterBench(repeats=bench.repeats), ["nano", "flow"])


MEASUREMENTS: Mapping[str, Callable[[Bench], Iterator[Figure]]] = {
    "semantic": measure_semantic,
    "wave": measure_wave,
    "loading": measure_loading,
    "voice": measure_voice,
    "adapters": measure_shared_adapters,
}


def _share(bench: Bench, make: Callable[[], object], step: Figure) -> Figure:
    """How long a worker waits for its batch, as a share of the time between two steps."""
    made = bench.time(make, what=step.what.partition(",")[0] + ", making a batch", shape=step.shape, amount=0, unit="")
    share = 100 * made.seconds / (made.seconds + step.seconds)
    return dataclasses.replace(made, rate=share, unit="% of the time")


def _base(spec: ReleaseSpec, text_to_semantic: TextToSemantic) -> BaseModel:
    assert spec.semantic_to_wave is not None
    assert spec.discriminators is not None, "a release that predicts a wave has judges"
    return BaseModel(
        release=spec.release,
        digest="random",
        token_digest="random",
        text_to_semantic=text_to_semantic,
        content_encoder=MelContentEncoder(),
        semantic_to_wave=SemanticToWave(spec.semantic_to_wave),
        discriminators=Discriminators(spec.discriminators),
    )


def _item(clip_id: str, **arrays: torch.Tensor | None) -> TrainingItem:
    """A clip of which the arrays that are not given do not matter."""
    silent = {
        "tokens": torch.zeros(1, dtype=torch.int64),
        "content": torch.zeros(1, 1),
        "wave": torch.zeros(1),
    }
    return TrainingItem(clip_id=clip_id, **(silent | arrays))  # type: ignore[arg-type]


def _example(
    number: int,
    *,
    wave: np.ndarray,
    content: np.ndarray,
    tokens: np.ndarray,
    phonemes: int = 40,
    speaker_vector: np.ndarray | None = None,
) -> Example:
    utterance = Utterance(
        clip_id=f"{number:020x}",
        recording_id="bench",
        voice="bench",
        start_sample=0,
        num_samples=len(wave),
        text="hello",
        language="en",
        confidence=None,
        phoneme_ids=tuple(1 + place % 300 for place in range(phonemes)),
    )
    return Example(
        utterance=utterance,
        flac=encode_flac(wave, RATE_HZ),
        uri="bench",
        gain_db=0.0,
        content=content,
        tokens=tokens,
        speaker=np.ones(4, np.float32) / 2,
        speaker_vector=speaker_vector,
    )


def _write(
    corpus: LocalStorage, voice: str, examples: Sequence[Example], token_digest: str
) -> tuple[SelectionRow, ...]:
    """The examples as shards of `voice`, and the selection that takes all of them and holds out the last."""
    for name, data in ShardWriter().files(voice, _UNIT, examples, [], {"semantic": token_digest}).items():
        corpus.write(name, data)
    return tuple(
        SelectionRow(
            clip_id=example.utterance.clip_id,
            unit_id=_UNIT,
            keep=True,
            reason="",
            split="held_out" if example is examples[-1] else "train",
            prompt=False,
            num_samples=example.utterance.num_samples,
        )
        for example in examples
    )


def _small_voice(folder: Path, voice: str, base: BaseModel) -> VoiceTask:
    """Ten clips of noise that comes and goes, as shards in `folder`, and the training that they call for."""
    examples = []
    for number in range(_SMALL_VOICE_CLIPS):
        time_s = torch.arange(round(_SMALL_VOICE_CLIP_S * RATE_HZ)) / RATE_HZ
        loudness = 0.05 * (1 + torch.sin(2 * torch.pi * 3 * time_s))
        wave = (loudness * torch.randn(len(time_s))).clamp(-1, 1).numpy()
        features = extract_features(base, wave, None)
        vector = features.speaker_vector
        examples.append(
            _example(
                number,
                wave=wave,
                content=features.content.astype(np.float16),
                tokens=features.tokens.astype(np.int16),
                phonemes=30,
                speaker_vector=None if vector is None else vector.astype(np.float16),
            )
        )
    rows = _write(LocalStorage(str(folder)), voice, examples, base.token_digest)
    # As many evaluations and saves as the recipe has, with a fifth of its steps.
    recipe = choose_recipe(
        _SMALL_VOICE_CLIPS * _SMALL_VOICE_CLIP_S,
        base.release,
        semantic={"steps": 12, "save_every": 6, "evaluate_every": 2},
        wave={"steps": 16, "save_every": 8, "evaluate_every": 4},
    )
    record = {"run_id": "bench", "release": str(base.release), "token_digest": base.token_digest, "language": "en"}
    return VoiceTask(
        voice=voice,
        run_id="bench",
        run_dir=str(folder / "voices" / voice / "runs" / "bench"),
        corpus=str(folder),
        rows=rows,
        recipe=recipe,
        record=record | {"voice": voice},
    )
