from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from gsv_core.networks.text_to_semantic import TextToSemantic
from gsv_core.training.mel_trainer import MelTrainer
from gsv_core.training.precision import LossScale
from gsv_core.training.schedules import PhasePlan, Schedule, Trains
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.updates import (
    changed_parameters,
    gradient_norm,
    restore_parameters,
    set_rates,
    trainable_copy,
    trained_parameters,
    under,
)
from gsv_core.training.wave_trainer import WaveTrainer

CPU = torch.device("cpu")


def test_a_prefix_is_whole_parts_of_a_name():
    assert under("enc_p.proj.weight", ["enc_p.proj"])
    assert under("prelu.weight", ["prelu.weight"])
    assert not under("enc_p.projection.weight", ["enc_p.proj"])
    assert under("anything", [""])


def test_only_the_named_parts_of_the_copy_train():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    copy = trainable_copy(network, ["1"], CPU)
    assert {name for name, parameter in copy.named_parameters() if parameter.requires_grad} == {"1.weight", "1.bias"}
    assert copy[0].weight.data_ptr() != network[0].weight.data_ptr()
    with pytest.raises(ValueError, match="nothing in the network is called decoder"):
        trainable_copy(network, ["decoder"], CPU)


def test_changed_parameters_are_whole_and_own_their_memory():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    copy = trainable_copy(network, [""], CPU)
    with torch.no_grad():
        copy[1].bias[0] += 1
    changed = changed_parameters(trained_parameters(copy), network)
    assert changed.keys() == {"1.bias"}
    with torch.no_grad():
        copy[1].bias.zero_()
    assert changed["1.bias"].any()


def test_saved_parameters_of_another_shape_are_named():
    parameters = trained_parameters(nn.Linear(2, 3))
    restore_parameters(parameters, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)})
    assert bool(parameters["weight"].eq(1).all())
    with pytest.raises(ValueError, match=r"weight is \(2, 2\) there and \(3, 2\) here \(1 such tensors\)"):
        restore_parameters(parameters, {"weight": torch.ones(2, 2), "bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="bias is nothing there"):
        restore_parameters(parameters, {"weight": torch.ones(3, 2)})


def test_groups_keep_their_share_of_the_rate():
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimiser = torch.optim.AdamW(
        [{"params": parameters[:1], "share": 1.0}, {"params": parameters[1:], "share": 0.4}], lr=1.0
    )
    rate = set_rates(optimiser, 0, PhasePlan(steps=10, batch_size=1, learning_rate=2.0, warm_up_steps=1))
    assert rate == pytest.approx(1.0)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([1.0, 0.4])


def test_the_norm_is_over_all_gradients():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))]
    parameters[0].grad = torch.tensor([3.0, 0.0])
    assert gradient_norm(parameters).item() == pytest.approx(3.0)
    parameters[1].grad = torch.tensor([4.0])
    assert gradient_norm(parameters).item() == pytest.approx(5.0)


# What follows is made on a GPU that is pretended (`made_gpu`): every tensor has to be where it belongs.
PLAN = PhasePlan(steps=8, batch_size=2, learning_rate=1e-3, longest_frames=48)
LOW_RANK = {"trains": Trains.LOW_RANK, "rank": 4}


@pytest.fixture(scope="module")
def bases(base, mel_base):
    """With dropout, as the published ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropping = TextToSemantic(replace(base.text_to_semantic.config, dropout=0.1)).requires_grad_(False)
    base = replace(base, text_to_semantic=dropping)
    return {SemanticTrainer: base, WaveTrainer: base, MelTrainer: mel_base}


def optimisers_of(trainer):
    return [value for value in vars(trainer).values() if isinstance(value, torch.optim.Optimizer)]


def trained(trainer, items):
    """The numbers of two steps, the first in two parts, and of the held-out clips."""
    steps = [
        trainer.step([trainer.collate(items[:2]), trainer.collate(items[2:3])]),
        trainer.step(trainer.collate(items[1:3])),
    ]
    return [*steps, trainer.evaluate(items[3:4]), trainer.speak(items[3:4])]


def assert_there(trainer, gpu):
    assert all(gpu.holds(one) for one in trainer.network.state_dict().values())
    states = [value for one in optimisers_of(trainer) for state in one.state.values() for value in state.values()]
    assert states
    assert all(gpu.holds(value) for value in states if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (SemanticTrainer, {}),
        (SemanticTrainer, {"preference": True}),
        (SemanticTrainer, {"checkpoint_layers": True, **LOW_RANK}),
        (WaveTrainer, {"augment": True, "checkpoint_layers": True}),
        (MelTrainer, {}),
        (MelTrainer, {"augment": True, "checkpoint_layers": True, **LOW_RANK}),
    ],
)
def test_a_gpus_steps_are_those_of_a_cpu(bases, items, gpu, kind, values):
    plan = replace(PLAN, **values)
    wanted = trained(kind(bases[kind], plan, voice="anna"), items)
    with gpu.watched():
        trainer = kind(bases[kind], plan, voice="anna", device="cuda")
        found = trained(trainer, items)
        assert_there(trainer, gpu)
        weights = trainer.weights()
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert weights
    assert not any(map(gpu.holds, weights.values()))


def test_a_gpus_steps_in_upstreams_way_are_those_of_a_cpu(bases, items, gpu):
    """Attention weights are dropped by torch's own draws, and the optimiser has more to keep."""
    plan = replace(PLAN, schedule=Schedule.UPSTREAM_SEMANTIC, batches_per_pass=5)

    def trained(**given):
        trainer = SemanticTrainer(bases[SemanticTrainer], plan, voice="anna", **given)
        return trainer, [trainer.step(trainer.collate(items[:3])) for _ in range(7)]

    wanted = trained()[1]
    with gpu.watched():
        trainer, found = trained(device="cuda")
        assert_there(trainer, gpu)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(SemanticTrainer, "float16"), (SemanticTrainer, "auto"), (WaveTrainer, "auto"), (MelTrainer, "float16")],
)
def test_a_run_on_a_gpu_goes_on_from_its_checkpoint(bases, items, gpu, kind, precision):
    plan = replace(PLAN, precision=precision)
    with gpu.watched():
        trainer, resumed = (kind(bases[kind], plan, voice="anna", device="cuda") for _ in range(2))
        for scale in (one for one in vars(trainer).values() if isinstance(one, LossScale)):
            scale.value = 8.0 if scale.searches else 1.0
        trainer.step(trainer.collate(items[:2]))
        # As it is read from a file.
        state = tree_map_only(torch.Tensor, lambda one: one.cpu().clone(), trainer.state())
        wanted = trainer.step(trainer.collate(items[:2]))
        resumed.load_state(state)
        found = resumed.step(resumed.collate(items[:2]))
        assert_there(resumed, gpu)
    assert trainer.precision == ("bfloat16" if precision == "auto" else precision)
    assert trainer.skipped == 0
    assert found == wanted
