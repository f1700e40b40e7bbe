"""The amount of speech to what is trained, and for how long.

Little data moves few weights a little; more moves all of them. `nano` has no published base to be careful with: it
trains everything from its seed, for a number of steps that a laptop affords.

Between two minutes and half an hour GPT trains through LoRA, although all of it could: its 77 million weights meet some
thousand to some ten thousand tokens there, a candidate is 25 MB instead of 310, and adapters of many voices can train
in one batch. `--set training.semantic.trains=everything` has the other way.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.networks.lora import FLOW_TARGETS, SEMANTIC_TARGETS, WRAPPED, lora_size
from gsv_core.networks.semantic_to_mel import SemanticToMel
from gsv_core.networks.semantic_to_wave import SemanticToWave
from gsv_core.networks.text_to_semantic import TextToSemantic
from gsv_core.training import mel_trainer, semantic_trainer, wave_trainer
from gsv_core.training.precision import Precision
from gsv_core.training.schedules import UPSTREAM_RATE, PhasePlan, Schedule, Trains
from gsv_core.training.updates import under

CLIP_S = 5.0
"""Typical length of a clip, to turn seconds into clips."""
UPSTREAM = "upstream"
LONG_S = 30 * 60
"""From here on there is enough to train a flow as a whole."""
LEAST_CLIPS = 100
"""A pass over less data is counted as a pass over this many clips: small voices need the steps, too."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a voice's training does: GPT (`semantic`) and SoVITS (`wave`), and why, for people."""

    name: str
    semantic: PhasePlan
    wave: PhasePlan
    note: str

    def record(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return {
            "name": self.name,
            "note": self.note,
            "semantic": self.semantic.record(),
            "wave": self.wave.record(),
        }


def choose_recipe(
    seconds_train: float,
    release: Release,
    *,
    name: str | None = None,
    seed: int = 0,
    precision: Precision = Precision.FLOAT32,
    semantic: dict[str, Any] | None = None,
    wave: dict[str, Any] | None = None,
) -> Recipe:
    """The recipe for `seconds_train` seconds of kept speech; `semantic` and `wave` override fields of its plans.

    `name`: "upstream" for GPT-SoVITS's own settings whatever the amount; None for the one that the amount decides.
    `precision` is that of both phases.

    Raises:
        ValueError: no speech, no recipe of that name, or an override that is no field of a plan or out of its range.
    """
    if name not in (None, UPSTREAM):
        raise ValueError(f"no recipe is called {name!r}; leave it out, or say {UPSTREAM}")
    if not seconds_train > 0:
        raise ValueError(f"a recipe needs some speech to train on, got {seconds_train} s")
    if name == UPSTREAM:
        recipe = _upstream(seconds_train, release, seed)
    elif release is Release.NANO:
        recipe = _nano(seed)
    else:
        recipe = _published(seconds_train, seed, flow_matching=RELEASES[release].semantic_to_mel is not None)
    return replace(
        recipe,
        semantic=replace(_overridden(recipe.semantic, "semantic", semantic or {}), precision=precision),
        wave=replace(_overridden(recipe.wave, "wave", wave or {}), precision=precision),
    )


def _overridden(plan: PhasePlan, phase: str, values: dict[str, Any]) -> PhasePlan:
    unknown = sorted(values.keys() - plan.record().keys())
    if unknown:
        raise ValueError(
            f"recipe.{phase} has no field {', '.join(unknown)}; there are {', '.join(sorted(plan.record()))}"
        )
    for name, value in values.items():
        expected = type(plan.record()[name])
        fits = isinstance(value, (int, float) if expected is float else expected)
        fits = fits and (expected is bool or not isinstance(value, bool))
        if not fits:
            raise ValueError(f"recipe.{phase}.{name} is {value!r}, expected {expected.__name__}")
    return replace(plan, **values)


def _nano(seed: int) -> Recipe:
    return Recipe(
        name="nano",
        semantic=PhasePlan(
            steps=60, batch_size=8, learning_rate=1e-3, warm_up_steps=5, save_every=30, evaluate_every=10, seed=seed
        ),
        wave=PhasePlan(
            steps=80,
            batch_size=4,
            learning_rate=1e-3,
            warm_up_steps=5,
            save_every=40,
            evaluate_every=20,
            longest_frames=192,
            seed=seed,
        ),
        note="toy networks trained from a seed: their speech is not speech",
    )


def _published(seconds: float, seed: int, *, flow_matching: bool) -> Recipe:
    """The table of the design. Published rates: 1e-5 to 5e-5 where part of a network trains.

    `flow_matching` (v3, v4): what would be most of SoVITS, or all of it up to half an hour, is LoRA.
    """
    clips = max(LEAST_CLIPS, round(seconds / CLIP_S))
    if seconds < 30:
        return Recipe(
            name="projections",
            semantic=_gpt(clips, passes=0, rate=1e-5, trains=Trains.NOTHING, seed=seed),
            wave=_sovits(clips, passes=4, rate=5e-5, trains=Trains.PROJECTIONS, seed=seed, augment=True),
            note=f"only {seconds:.0f} s of speech: GPT stays the base's, of SoVITS only the projections train, on "
            "clips varied in speed, level and noise; expect the timbre, not the manner; record 30 s or more",
        )
    if seconds < 120:
        trains = Trains.LOW_RANK if flow_matching else Trains.ACOUSTIC_SIDE
        return Recipe(
            name="acoustic-side",
            semantic=_gpt(clips, passes=8, rate=5e-5, trains=Trains.LOW_RANK, seed=seed, rank=16),
            wave=_sovits(clips, passes=8, rate=5e-5, trains=trains, seed=seed, augment=True),
            note=f"{seconds:.0f} s of speech: GPT trains by LoRA, and of SoVITS "
            + ("LoRA and what makes its condition" if flow_matching else "all but its text side")
            + ", on clips varied in speed, level and noise",
        )
    if seconds < LONG_S:
        trains = Trains.LOW_RANK if flow_matching else Trains.EVERYTHING
        return Recipe(
            name="lora",
            semantic=_gpt(clips, passes=15, rate=5e-5, trains=Trains.LOW_RANK, seed=seed),
            wave=_sovits(clips, passes=8, rate=5e-5 if flow_matching else 1e-4, trains=trains, seed=seed),
            note=f"{seconds / 60:.0f} min of speech: GPT trains by LoRA, of SoVITS "
            + ("LoRA and what makes its condition" if flow_matching else "everything, the text side at 0.4 x the rate"),
        )
    return Recipe(
        name="full",
        semantic=_gpt(clips, passes=15, rate=5e-5, trains=Trains.EVERYTHING, seed=seed),
        wave=_sovits(clips, passes=8, rate=1e-4, trains=Trains.EVERYTHING, seed=seed),
        note=f"{seconds / 60:.0f} min of speech: everything trains, "
        + ("but for the text side of SoVITS" if flow_matching else "the text side of SoVITS at 0.4 x the rate"),
    )


def _upstream(seconds: float, release: Release, seed: int) -> Recipe:
    """GPT-SoVITS's optimisers, rates and epochs. Its batch sizes follow the GPU; these are our other recipes'."""
    clips = max(LEAST_CLIPS, round(seconds / CLIP_S))
    semantic_batches, wave_batches = -(-clips // 8), -(-clips // 4)
    flow_matching = RELEASES[release].semantic_to_mel is not None
    epochs, saved = (2, 1) if flow_matching else (8, 4)
    return Recipe(
        name=UPSTREAM,
        semantic=PhasePlan(
            steps=15 * semantic_batches,
            batch_size=8,
            learning_rate=UPSTREAM_RATE,
            schedule=Schedule.UPSTREAM_SEMANTIC,
            batches_per_pass=semantic_batches,
            save_every=5 * semantic_batches,
            evaluate_every=semantic_batches,
            seed=seed,
        ),
        wave=PhasePlan(
            steps=epochs * wave_batches,
            batch_size=4,
            learning_rate=1e-4,
            trains=Trains.LOW_RANK if flow_matching else Trains.EVERYTHING,
            schedule=Schedule.UPSTREAM_WAVE,
            batches_per_pass=wave_batches,
            save_every=saved * wave_batches,
            evaluate_every=wave_batches,
            longest_frames=1000 if flow_matching else 1900,
            seed=seed,
        ),
        note="GPT-SoVITS's own settings: ScaledAdam, its padding mask and its rates",
    )


def _gpt(clips: int, *, passes: int, rate: float, trains: Trains, seed: int, rank: int = 32) -> PhasePlan:
    """Saves at a third, two thirds and the end, as 15 passes saved every 5 would.

    Twenty evaluations; the patience is a third of them, so that a phase never ends without its first candidate.
    """
    steps = passes * -(-clips // 8)
    return PhasePlan(
        steps=steps,
        batch_size=8,
        learning_rate=rate,
        trains=trains,
        warm_up_steps=steps // 20,
        save_every=max(1, -(-steps // 3)),
        evaluate_every=max(1, steps // 20),
        rank=rank,
        patience=7,
        seed=seed,
    )


def _sovits(clips: int, *, passes: int, rate: float, trains: Trains, seed: int, augment: bool = False) -> PhasePlan:
    """Saves at half and the end, as 8 passes saved every 4 would; the patience is half of the twenty evaluations."""
    steps = passes * -(-clips // 4)
    return PhasePlan(
        steps=steps,
        batch_size=4,
        learning_rate=rate,
        trains=trains,
        warm_up_steps=steps // 20,
        save_every=-(-steps // 2),
        evaluate_every=max(1, steps // 20),
        patience=10,
        augment=augment,
        seed=seed,
    )


@dataclass(frozen=True, kw_only=True)
class TrainedParts:
    """What a phase trains of a release: whole modules, matrices that get adapters, and how many numbers that is."""

    modules: tuple[str, ...]
    """Prefixes of the parameters that train whole."""
    adapted: tuple[str, ...]
    """Ends of the names of matrices that get LoRA adapters; empty without."""
    parameters: int


def trained_parts(release: Release, phase: str, trains: Trains, *, rank: int = 32) -> TrainedParts:
    """The parts of `release` that `trains` stands for in `phase`, from the networks themselves.

    Raises:
        ValueError: the network of that phase has no such part.
    """
    semantic, acoustic = _outlines(release)
    network: nn.Module = semantic if phase == "semantic" else acoustic
    targets: tuple[str, ...]
    if phase == "semantic":
        modules = semantic_trainer.trained_modules(trains, semantic.config.layers)
        targets, inside = SEMANTIC_TARGETS, "h."
    elif isinstance(acoustic, SemanticToWave):
        modules, targets, inside = wave_trainer.trained_modules(trains, acoustic), (), ""
    else:
        modules, targets, inside = mel_trainer.trained_modules(trains), FLOW_TARGETS, f"{WRAPPED}."
    adapted = targets if trains is Trains.LOW_RANK else ()
    whole = sum(p.numel() for name, p in network.named_parameters() if under(name, modules))
    return TrainedParts(
        modules=tuple(modules),
        adapted=tuple(adapted),
        parameters=whole + lora_size(network, adapted, rank=rank, inside=inside),
    )


@lru_cache
def _outlines(release: Release) -> tuple[TextToSemantic, SemanticToWave | SemanticToMel]:
    """The networks of a release without any numbers in them."""
    spec = RELEASES[release]
    with torch.device("meta"):
        semantic = TextToSemantic(spec.text_to_semantic)
        if spec.semantic_to_wave is not None:
            return semantic, SemanticToWave(spec.semantic_to_wave)
        assert spec.semantic_to_mel is not None
        return semantic, SemanticToMel(spec.semantic_to_mel)
