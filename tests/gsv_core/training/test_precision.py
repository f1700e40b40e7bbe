import copy
import math
from dataclasses import replace

import pytest
import torch

from gsv_core.training import precision as of_precision
from gsv_core.training.loop import DivergedError, fit
from gsv_core.training.mel_trainer import MelTrainer
from gsv_core.training.precision import LossScale, Precision, autocast, resolved
from gsv_core.training.schedules import PhasePlan, Schedule
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.wave_trainer import WaveTrainer
from tests.gsv_core.training.made_ranks import gradients_of, in_ranks

PLAN = PhasePlan(
    steps=4, batch_size=2, learning_rate=1e-3, warm_up_steps=1, save_every=2, evaluate_every=2, longest_frames=48
)
CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", [SemanticTrainer, WaveTrainer, MelTrainer])
ROUNDED = pytest.mark.parametrize("precision", [Precision.BFLOAT16, Precision.FLOAT16])


@pytest.fixture
def trainer_of(base, mel_base):
    def made(kind, plan=PLAN, **values):
        own = mel_base if kind is MelTrainer else base
        given = {name: values.pop(name) for name in ("reducer",) if name in values}
        return kind(own, replace(plan, **values), voice="anna", **given)

    return made


@pytest.fixture(scope="module")
def begun(base, mel_base, items):
    """The state of each trainer after some steps: what a new network makes is so quiet that rounding is heard in it."""
    plan = replace(PLAN, learning_rate=2e-3)

    def state(kind):
        trainer = kind(mel_base if kind is MelTrainer else base, plan, voice="anna")
        for _ in range(8):
            trainer.step(trainer.collate(items))
        return trainer.state()

    return {kind: state(kind) for kind in (SemanticTrainer, WaveTrainer, MelTrainer)}


def going_on(trainer, begun):
    """`trainer` after some steps, its scales as if searched."""
    trainer.load_state(begun[type(trainer)])
    for scale in scales_of(trainer):
        scale.value = 2.0**5 if scale.searches else 1.0
    return trainer


def scales_of(trainer):
    return [trainer.judge_scale, trainer.scale] if isinstance(trainer, WaveTrainer) else [trainer.scale]


def test_auto_follows_the_device(monkeypatch):
    # An A100 beside a V100, which multiplies bfloat16 as well, by other means and slowly.
    beside = {torch.device("cuda", 0): (8, 0), torch.device("cuda", 1): (7, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", beside.__getitem__)
    assert resolved(Precision.AUTO, CPU) is Precision.FLOAT32
    for cuda, expected in zip(beside, (Precision.BFLOAT16, Precision.FLOAT16), strict=True):
        assert resolved(Precision.AUTO, cuda) is expected
        assert resolved(Precision.FLOAT32, cuda) is Precision.FLOAT32


def test_products_are_rounded_inside_the_block():
    x = torch.randn(2, 2)
    for precision, dtype in (("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        with autocast(CPU, Precision(precision)):
            assert (x @ x).dtype is dtype


def test_a_pass_without_gradients_takes_none_from_the_next():
    layer, x = torch.nn.Linear(3, 3), torch.randn(2, 3)
    with autocast(CPU, Precision.BFLOAT16):
        with torch.no_grad():
            layer(x)
        loss = layer(x).float().sum()
    assert loss.requires_grad
    loss.backward()
    assert layer.weight.grad is not None


def test_a_scale_halves_after_an_overflow_and_doubles_after_many_steps_without(monkeypatch):
    monkeypatch.setattr(of_precision, "_STEADY_STEPS", 3)
    scale = LossScale(Precision.FLOAT16)
    first = scale.value
    assert scale.settle(finite=False, loss=1.0)
    assert scale.value == first / 2
    found = [scale.value for _ in range(4) if not scale.settle(finite=True, loss=1.0)]
    assert found == [first / 2, first / 2, first, first]
    # No scale mends a loss that is none, and below 1 there is nothing to find.
    assert not scale.settle(finite=False, loss=math.nan)
    assert scale.value == first
    scale.value = 1.0
    assert not scale.settle(finite=False, loss=1.0)
    assert scale.value == 1


def test_scaling_and_back_changes_nothing():
    weight = torch.nn.Parameter(torch.randn(5))
    wanted = torch.autograd.grad(weight.square().sum(), weight)[0]
    scale = LossScale(Precision.FLOAT16)
    scale.up(weight.square().sum()).backward()
    assert torch.equal(weight.grad, wanted * scale.value)
    scale.down([weight, torch.nn.Parameter(torch.zeros(1))])
    assert torch.equal(weight.grad, wanted)
    scale.down([])


def test_without_float16_nothing_is_scaled():
    loss = torch.ones(1)
    for precision in (Precision.FLOAT32, Precision.BFLOAT16):
        scale = LossScale(precision)
        assert scale.up(loss) is loss
        assert not scale.settle(finite=False, loss=1.0)
        assert (scale.value, scale.numbers()) == (1, {})


@KINDS
@ROUNDED
def test_rounded_steps_are_near_those_of_float32(trainer_of, begun, items, kind, precision):
    exact, rounded = (going_on(trainer_of(kind, precision=one), begun) for one in ("float32", precision))
    batch = exact.collate(items)
    (numbers, wanted), (found, gradients) = gradients_of(exact, batch), gradients_of(rounded, batch)
    assert found["gradient_norm"] == pytest.approx(numbers["gradient_norm"], rel=0.1)
    assert found[kind.score] == pytest.approx(numbers[kind.score], rel=0.02)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    one, other = (torch.cat([gradient.flatten() for gradient in own]) for own in (wanted, gradients))
    assert torch.cosine_similarity(one, other, dim=0) > (0.99 if precision is Precision.FLOAT16 else 0.94)
    assert not torch.equal(one, other)


@KINDS
def test_overflow_while_the_scale_is_searched_is_no_failure(trainer_of, begun, items, kind):
    trainer = going_on(trainer_of(kind, precision="float16"), begun)
    done = trainer.steps_done
    for scale in scales_of(trainer):
        scale.value = 2.0**100
    before = {name: tensor.detach().clone() for name, tensor in trainer.trained.items()}
    numbers = trainer.step(trainer.collate(items))
    assert not math.isfinite(numbers["gradient_norm"])
    assert numbers["loss_scale"] == 2.0**99
    assert (trainer.steps_done, trainer.skipped) == (done + 1, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.trained.items())
    for scale in scales_of(trainer):
        scale.value = 2.0**5
    numbers = trainer.step(trainer.collate(items))
    assert math.isfinite(numbers["gradient_norm"])
    assert not all(torch.equal(tensor, before[name]) for name, tensor in trainer.trained.items())
    assert [scale.value for scale in scales_of(trainer)] == [2.0**5] * len(scales_of(trainer))


def test_each_optimiser_of_sovits_has_a_scale_of_its_own(trainer_of, begun, items):
    trainer = going_on(trainer_of(WaveTrainer, precision="float16"), begun)
    trainer.judge_scale.value = 2.0**100
    judges = {name: tensor.detach().clone() for name, tensor in trainer.trained_judges.items()}
    numbers = trainer.step(trainer.collate(items))
    assert (numbers["loss_scale"], numbers["discriminator_loss_scale"]) == (2.0**5, 2.0**99)
    assert math.isfinite(numbers["gradient_norm"])
    assert all(torch.equal(tensor, judges[name]) for name, tensor in trainer.trained_judges.items())
    assert trainer.weights()
    assert trainer.skipped == 0


def test_a_loss_that_is_none_counts_and_ends_the_run(trainer_of, items):
    nowhere = [replace(item, text_vectors=torch.full((len(item.phoneme_ids), 8), torch.nan)) for item in items]
    plan = replace(PLAN, precision="float16", most_skipped=1, steps=9)
    trainer = trainer_of(SemanticTrainer, plan)
    first = trainer.scale.value
    with pytest.raises(DivergedError, match="2 of 2 steps had no finite gradient"):
        fit(trainer, nowhere, [], plan)
    assert trainer.scale.value == first


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        (SemanticTrainer, Precision.FLOAT16),
        (WaveTrainer, Precision.BFLOAT16),
        pytest.param(WaveTrainer, Precision.FLOAT16, marks=pytest.mark.slow),
        (MelTrainer, Precision.BFLOAT16),
    ],
)
def test_a_killed_and_resumed_run_gives_the_same_bits(trainer_of, items, tmp_path, monkeypatch, kind, precision):
    # Near where gradients overflow, so that the scale goes up and down within these few steps.
    monkeypatch.setattr(of_precision, "_FIRST_SCALE", 2.0 ** (18 if kind is SemanticTrainer else 5))
    monkeypatch.setattr(of_precision, "_STEADY_STEPS", 2)
    plan = replace(PLAN, precision=precision)

    def run(steps, **given):
        trainer, asked = trainer_of(kind, plan), iter(range(steps + 1))
        return trainer, fit(trainer, items, [], plan, should_stop=lambda: next(asked) >= steps, **given)

    through, whole = run(9)
    run(3, resume=tmp_path)
    resumed, second = run(9, resume=tmp_path)
    assert second.finished
    assert second.records == whole.records
    assert through.weights()
    assert all(torch.equal(tensor, resumed.trained[name]) for name, tensor in through.trained.items())
    assert [scale.state() for scale in scales_of(resumed)] == [scale.state() for scale in scales_of(through)]
    if precision is Precision.FLOAT16:
        assert len({record.metrics["loss_scale"] for record in whole.records}) > 1
        assert whole.skipped == 0


def test_parts_and_ranks_have_one_scale(trainer_of, items):
    def step(reducer=None, overflowing=False):
        trainer = trainer_of(SemanticTrainer, precision="float16", reducer=reducer)
        if overflowing:
            # On one rank alone the gradients leave the range.
            trainer.network.ar_predict_layer.weight.register_hook(lambda grad: grad * torch.inf)
        own = items if reducer is None else items[reducer.rank :: reducer.world]
        parts = [trainer.collate(own[:1]), trainer.collate(own[1:])]
        numbers, gradients = gradients_of(trainer, parts)
        return trainer.scale.value, trainer.skipped, numbers["gradient_norm"], gradients

    first, skipped, norm, gradients = step()
    assert skipped == 0
    for value, _, other, found in in_ranks(2, step):
        assert value == first
        assert other == pytest.approx(norm, rel=1e-2)
        one, two = (torch.cat([gradient.flatten() for gradient in own]) for own in (gradients, found))
        assert torch.cosine_similarity(one, two, dim=0) > 0.999
    for value, skipped, norm, found in in_ranks(2, lambda reducer: step(reducer, overflowing=reducer.rank == 1)):
        assert (value, skipped, found) == (first / 2, 0, [])
        assert not math.isfinite(norm)


def test_gradients_that_add_up_over_batches_keep_one_scale(trainer_of, items):
    plan = replace(PLAN, schedule=Schedule.UPSTREAM_SEMANTIC, batches_per_pass=6, learning_rate=2e-3, steps=20)
    exact, rounded = trainer_of(SemanticTrainer, plan), trainer_of(SemanticTrainer, plan, precision="float16")
    rounded.scale.value = 2.0**8
    for _ in range(4):
        norms = [trainer.step(trainer.collate(items))["gradient_norm"] for trainer in (exact, rounded)]
        assert norms[1] == pytest.approx(norms[0], rel=0.02)
    resumed = trainer_of(SemanticTrainer, plan, precision="float16")
    resumed.load_state(copy.deepcopy(rounded.state()))
    gradients = [gradients_of(trainer, trainer.collate(items))[1] for trainer in (exact, rounded, resumed)]
    one, other, third = (torch.cat([gradient.flatten() for gradient in own]) for own in gradients)
    assert torch.cosine_similarity(one, other, dim=0) > 0.99
    assert float(other.norm() / one.norm()) == pytest.approx(1, rel=0.02)
    assert torch.equal(other, third)
    # What would have been added to what overflowed is dropped with it.
    rounded.step(rounded.collate(items))
    rounded.scale.value = 2.0**100
    rounded.step(rounded.collate(items))
    assert (rounded.scale.value, rounded.skipped) == (2.0**99, 0)
    assert all(parameter.grad is None for parameter in rounded.parameters)


def test_a_checkpoint_of_another_precision_is_another_runs(trainer_of, items, tmp_path):
    fit(trainer_of(SemanticTrainer), items, [], PLAN, resume=tmp_path)
    rounded = replace(PLAN, precision="bfloat16")
    with pytest.raises(ValueError, match=r"belongs to another run \(differs in plan\)"):
        fit(trainer_of(SemanticTrainer, rounded), items, [], rounded, resume=tmp_path)
    # On a CPU `auto` is float32.
    auto = replace(PLAN, precision="auto")
    assert fit(trainer_of(SemanticTrainer, auto), items, [], auto, resume=tmp_path).steps == PLAN.steps


def test_float32_leaves_records_as_they_were():
    assert "precision" not in PLAN.record()
    assert PhasePlan(**PLAN.record()) == PLAN
    rounded = replace(PLAN, precision="bfloat16")
    assert PhasePlan(**rounded.record()) == rounded
    assert rounded.decisive() == {**PLAN.decisive(), "precision": "bfloat16"}
    with pytest.raises(ValueError, match="'float64' is not a valid Precision"):
        replace(PLAN, precision="float64")


@pytest.mark.parametrize("kind", [WaveTrainer, MelTrainer])
def test_tokens_are_not_rounded(trainer_of, items, kind):
    network = trainer_of(kind).network
    content = torch.randn(1, network.config.content_width, 400)
    expected = network.encode_tokens(content)
    with autocast(CPU, Precision.BFLOAT16):
        assert torch.equal(network.encode_tokens(content), expected)
