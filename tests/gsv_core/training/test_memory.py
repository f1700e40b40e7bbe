"""What is counted is compared with what a fresh process really grows by."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gsv_core.audio.spectrogram import mel_filterbank
from gsv_core.checkpoints.base import load_base
from gsv_core.training import memory
from gsv_core.training.memory import Estimate, estimate, fit_to, is_shortage
from gsv_core.training.schedules import PhasePlan, Schedule, Trains
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.wave_trainer import WaveTrainer
from tests.gsv_core.made_items import made_items

PLAN = PhasePlan(steps=10, batch_size=8, learning_rate=1e-4)

GROWTH = """
import gc, json, sys
import torch
from pathlib import Path
from gsv_core.training import memory
from gsv_core.training.loop import fit
from gsv_core.training.schedules import PhasePlan
from tests.gsv_core.training.test_memory import base_of

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

release, phase, lengths, settings = json.loads(sys.argv[1])
base, plan = base_of(release), PhasePlan(**settings)
estimated = memory.estimate(base, phase, plan, lengths)
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size so far
before = resident("VmRSS")
trainer = memory._trainer(base, phase, plan, torch.device("cpu"))
fit(trainer, memory._items(base, phase, lengths), [], plan, should_stop=lambda: trainer.steps_done == 2)
print(json.dumps([estimated.total, resident("VmHWM") - before]))
"""


@pytest.fixture(scope="module")
def nano():
    return load_base("nano")


def base_of(release):
    """Nano, or a release at its own size with random weights; v4's flow has a third of its depth."""
    from gsv_core.checkpoints.base import BaseModel
    from gsv_core.checkpoints.releases import RELEASES, Release
    from gsv_core.networks.content_encoder import MelContentEncoder
    from gsv_core.networks.discriminators import Discriminators
    from gsv_core.networks.semantic_to_mel import SemanticToMel
    from gsv_core.networks.semantic_to_wave import SemanticToWave
    from gsv_core.networks.text_to_semantic import TextToSemantic
    from gsv_core.networks.vocoder import HifiGanVocoder, VocoderConfig

    if release == "nano":
        return load_base("nano")
    spec = RELEASES[Release(release)]
    if spec.semantic_to_mel is not None:
        config = replace(spec.semantic_to_mel, flow_layers=8)
        acoustic = {
            "semantic_to_mel": SemanticToMel(config),
            "vocoder": HifiGanVocoder(VocoderConfig(channels=32, block_kernels=(3,), block_dilations=((1,),))),
        }
    else:
        assert spec.semantic_to_wave is not None
        assert spec.discriminators is not None
        acoustic = {
            "semantic_to_wave": SemanticToWave(spec.semantic_to_wave),
            "discriminators": Discriminators(spec.discriminators),
        }
    return BaseModel(
        release=spec.release,
        digest="random",
        token_digest="random",
        text_to_semantic=TextToSemantic(spec.text_to_semantic),
        content_encoder=MelContentEncoder(),
        **acoustic,
    )


def growth(release, phase, lengths, **settings):
    """Estimated bytes, and by how much two real steps in a fresh process let it grow."""
    case = json.dumps([release, phase, lengths, {"steps": 10, "learning_rate": 1e-4, **settings}])
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, case],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    estimated, grown = json.loads(done.stdout.splitlines()[-1])
    return estimated, grown


def test_an_estimate_is_what_a_process_grows_by():
    estimated, grown = growth("nano", "semantic", [900] * 8, batch_size=8)
    assert estimated == pytest.approx(grown, rel=0.15)


def test_layers_that_are_computed_again_leave_no_holes():
    estimated, grown = growth("nano", "semantic", [900] * 8, batch_size=8, checkpoint_layers=True)
    assert estimated == pytest.approx(grown, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("release", "phase", "lengths", "settings"),
    [
        ("v2", "semantic", [80, 180, 215, 240, 268, 285, 310, 370], {}),
        ("v2", "semantic", [370] * 8, {"most_frames": 800}),
        ("v2", "semantic", [370] * 8, {"checkpoint_layers": True}),
        ("v2", "wave", [200] * 4, {}),
        ("v2", "wave", [200] * 4, {"checkpoint_layers": True}),
        ("v2", "wave", [400] * 2, {"trains": "acoustic_side"}),
        ("v4", "wave", [200] * 2, {"trains": "low_rank"}),
        ("v4", "wave", [200] * 2, {"trains": "low_rank", "checkpoint_layers": True}),
    ],
)
def test_an_estimate_at_full_size_is_what_a_process_grows_by(release, phase, lengths, settings):
    estimated, grown = growth(release, phase, lengths, batch_size=len(lengths), **settings)
    assert estimated == pytest.approx(grown, rel=0.15)


def test_parts_and_layers_that_are_computed_again_take_less(nano):
    def needed(**settings):
        return estimate(nano, "semantic", replace(PLAN, **settings), [400] * 8)

    whole = needed()
    assert whole.weights > sum(p.numel() for p in nano.text_to_semantic.parameters()) * 4
    assert whole.optimiser == sum(p.numel() for p in nano.text_to_semantic.parameters()) * 8
    assert needed(most_frames=800).activations < 0.4 * whole.activations
    assert needed(accumulate=4).activations < 0.4 * whole.activations
    assert needed(checkpoint_layers=True).activations < 0.7 * whole.activations
    assert needed(trains=Trains.LOW_RANK, rank=4).optimiser < 0.2 * whole.optimiser


def test_the_longest_clips_decide(nano):
    plan = replace(PLAN, batch_size=2)
    short, long = estimate(nano, "wave", plan, [60, 60]), estimate(nano, "wave", plan, [60, 60, 60, 200])
    assert long.total > short.total
    assert long == estimate(nano, "wave", plan, [200, 60])


def test_nothing_is_computed_and_the_base_stays(nano):
    before = {name: tensor.clone() for name, tensor in nano.text_to_semantic.state_dict().items()}
    state = torch.get_rng_state()
    estimate(nano, "semantic", PLAN, [100] * 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in nano.text_to_semantic.state_dict().items())


def test_training_goes_on_as_if_nothing_had_been_counted(nano):
    mel_filterbank.cache_clear()
    plan = replace(PLAN, batch_size=2)
    estimate(nano, "wave", plan, [60, 50])
    trainer = WaveTrainer(nano, plan, voice="anna")
    numbers = trainer.step(trainer.collate(made_items(nano, 2)))
    assert all(math.isfinite(value) for value in numbers.values())
    assert not mel_filterbank(nano.spec.spectrogram).is_meta


@pytest.mark.parametrize(
    ("phase", "values"),
    [
        ("semantic", {}),
        ("semantic", {"schedule": Schedule.UPSTREAM_SEMANTIC, "batches_per_pass": 5}),
        ("wave", {}),
    ],
)
def test_on_a_gpu_optimisers_are_measured_with_their_state(nano, monkeypatch, gpu, phase, values):
    """Of float16's first scales most are too large, and a step that is left out allocates nothing for its optimiser."""
    monkeypatch.setattr(memory, "_KNOWN", {})

    def reset(_device):
        if not gpu.is_used:
            raise RuntimeError("Invalid device argument 0: did you call init?")

    for name, value in (("memory_allocated", 0), ("max_memory_allocated", 10**9), ("empty_cache", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    with gpu.watched():
        found = estimate(nano, phase, replace(PLAN, precision="float16", **values), [64, 64], device="cuda:0")
    trainer = (SemanticTrainer if phase == "semantic" else WaveTrainer)(nano, PLAN, voice="anna")
    learnt = [one for state in trainer.state().values() if isinstance(state, dict) for one in state.values()]
    numbers = sum(one.numel() for one in learnt if isinstance(one, torch.Tensor))
    assert found.optimiser == pytest.approx(8 * numbers, rel=0.01)
    assert found.total == 10**9


def test_a_plan_without_steps_needs_nothing(nano):
    none = Estimate(weights=0, gradients=0, optimiser=0, activations=0, workspace=0, allocator=0)
    assert estimate(nano, "wave", replace(PLAN, steps=0), [100]) == none
    assert none.record()["total"] == 0.0


@pytest.mark.parametrize("phase", ["semantic", "wave"])
def test_a_plan_is_changed_as_little_as_it_takes(nano, phase):
    plan, lengths = replace(PLAN, batch_size=2), [200, 100, 60]
    needed = estimate(nano, phase, plan, lengths).total
    assert fit_to(needed, nano, phase, plan, lengths) == plan
    fitted = fit_to(needed - needed // 10, nano, phase, plan, lengths)
    assert fitted.most_frames > 0
    assert not fitted.checkpoint_layers
    assert fitted.longest_frames == plan.longest_frames
    assert estimate(nano, phase, fitted, lengths).total <= needed - needed // 10


def test_memory_that_holds_no_clip_is_an_error_that_names_both(nano):
    with pytest.raises(ValueError, match=r"semantic training of nano needs \d+ MB for one clip .* and there are 1 MB"):
        fit_to(1_000_000, nano, "semantic", replace(PLAN, batch_size=2), [300] * 2)


def test_a_shortage_of_memory_is_told_from_a_mistake():
    with pytest.raises(RuntimeError) as short:
        torch.empty(2**50)
    with pytest.raises(RuntimeError) as wrong:
        torch.ones(2) + torch.ones(3)
    assert is_shortage(short.value)
    assert is_shortage(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert not is_shortage(wrong.value)


def test_a_voice_without_clips_is_refused(nano):
    with pytest.raises(ValueError, match="without clips"):
        estimate(nano, "wave", PLAN, [])
