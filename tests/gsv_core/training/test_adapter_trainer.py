"""Each voice of a pack is trained as it is alone."""

import threading
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import pytest
import torch

from gsv_core.training import adapter_trainer
from gsv_core.training.adapter_trainer import Pack, packable
from gsv_core.training.mel_trainer import MelTrainer
from gsv_core.training.schedules import PhasePlan, Schedule, Trains
from gsv_core.training.semantic_trainer import SemanticTrainer

PLAN = PhasePlan(
    steps=8, batch_size=2, learning_rate=2e-3, trains=Trains.LOW_RANK, rank=4, longest_frames=48, warm_up_steps=2
)
VOICES = ("anna", "bert", "cleo")
STEPS = 5


def plan_of(number, **values):
    return replace(PLAN, seed=number, learning_rate=PLAN.learning_rate / (number + 1), **values)


def batches_of(trainer, items, number):
    """Batches of one, two and three clips for the voices, those of one step in two parts."""
    for step in range(STEPS):
        chosen = [items[(number + step + place) % len(items)] for place in range(number + 1)]
        parts = [chosen[:1], chosen[1:]] if step == 2 and number else [chosen]
        yield [trainer.collate(part) for part in parts]


def trained_alone(make, items, number):
    trainer = make(plan_of(number), voice=VOICES[number])
    return trainer, [trainer.step(batch) for batch in batches_of(trainer, items, number)]


def trained_together(base, phase, plans, items, batches=batches_of, device="cpu", watched=nullcontext):
    """Voice → its trainer and the numbers of its steps. Each thread is `watched`."""
    results = {}

    def train(seat, number):
        try:
            with watched():
                make = seat.semantic_trainer if phase == "semantic" else seat.mel_trainer
                trainer = make(plans[number], voice=VOICES[number])
                results[VOICES[number]] = trainer, [trainer.step(batch) for batch in batches(trainer, items, number)]
        finally:
            seat.clear()
            seat.stand()

    with Pack(base, device) as pack:
        engine = ExitStack()
        pack.compute(lambda: engine.enter_context(watched()))
        seats = [pack.seat() for _ in plans]
        threads = [threading.Thread(target=train, args=pair) for pair in zip(seats, range(len(plans)), strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
        pack.compute(engine.close)
    return results, pack


@pytest.mark.parametrize("phase", ["semantic", "wave"])
def test_each_voices_update_equals_its_update_alone(base, mel_base, items, phase):
    """Losses and norms to 1e-5 of themselves; weights to a tenth of one step's length.

    AdamW divides by the size of a gradient: where that is nearly zero, its rounding becomes a visible part of a step.
    """
    used = base if phase == "semantic" else mel_base
    kind = SemanticTrainer if phase == "semantic" else MelTrainer
    together, pack = trained_together(used, phase, [plan_of(number) for number in range(3)], items)
    assert pack.joint_steps == STEPS + 1  # one has two parts; in some of the flow some voices train a shortcut
    for number, voice in enumerate(VOICES):
        wanted, numbers = trained_alone(lambda plan, voice: kind(used, plan, voice=voice), items, number)
        trainer, found = together[voice]
        for ours, theirs in zip(found, numbers, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
        weights, alone = trainer.weights(), wanted.weights()
        assert weights.keys() == alone.keys()
        assert len(weights) > 0
        for name, tensor in alone.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=0.1 * wanted.plan.learning_rate)
        assert trainer.metadata() == wanted.metadata()
        assert trainer.identity == wanted.identity
        assert trainer.state().keys() == wanted.state().keys()
        assert (trainer.steps_done, trainer.skipped) == (STEPS, 0)
        shared = {
            one.data_ptr() for one in (used.text_to_semantic if phase == "semantic" else used.acoustic).parameters()
        }
        frozen = [one for one in trainer.network.parameters() if not one.requires_grad]
        assert frozen
        assert all(one.data_ptr() in shared for one in frozen)


def part_of_vector(vector, parameter):
    """Of the gradient of all that a voice trains what belongs to `parameter`, which is a view of it."""
    start = (parameter.data_ptr() - vector.data_ptr()) // vector.element_size()
    return vector.grad[start : start + parameter.numel()].view_as(parameter)


@pytest.mark.parametrize("phase", ["semantic", "wave"])
def test_gradients_equal_those_alone_up_to_rounding(base, mel_base, items, phase):
    """Before AdamW magnifies anything: 1e-5 of the largest of a tensor."""
    used = base if phase == "semantic" else mel_base
    kind = SemanticTrainer if phase == "semantic" else MelTrainer
    found = {}

    def gradients(trainer, items, number):
        taken = found.setdefault((type(trainer) is kind, trainer.voice), {})

        def take(*_):
            for name, one in trainer.trained.items():
                gradient = one.grad if type(trainer) is kind else part_of_vector(trainer.own.vector, one)
                taken[name] = gradient.clone()

        trainer.optimiser.register_step_pre_hook(take)
        with torch.no_grad():
            for name, one in trainer.trained.items():
                if name.endswith("lora_B"):  # zero at first, and then A has no gradient
                    one.copy_(torch.randn(one.shape, generator=torch.Generator().manual_seed(number)) / 10)
        yield next(batches_of(trainer, items, number))

    trained_together(used, phase, [plan_of(number, gradient_clip=1e9) for number in range(3)], items, gradients)
    for number, voice in enumerate(VOICES):
        trainer = kind(used, plan_of(number, gradient_clip=1e9), voice=voice)
        for batch in gradients(trainer, items, number):
            trainer.step(batch)
        alone, together = found[True, voice], found[False, voice]
        assert alone.keys() == together.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-5 * float(tensor.abs().max()) + 1e-9)


def test_dropout_follows_the_clip_in_a_pack_too(base, items):
    from gsv_core.networks.text_to_semantic import TextToSemantic

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropping = TextToSemantic(replace(base.text_to_semantic.config, dropout=0.2)).requires_grad_(False)
    used = replace(base, text_to_semantic=dropping)
    together, _ = trained_together(used, "semantic", [plan_of(number) for number in range(3)], items)
    for number, voice in enumerate(VOICES):
        _, numbers = trained_alone(lambda plan, voice: SemanticTrainer(used, plan, voice=voice), items, number)
        for ours, theirs in zip(together[voice][1], numbers, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("phase", ["semantic", "wave"])
def test_a_voice_without_finite_numbers_harms_no_other(base, mel_base, items, phase):
    used = base if phase == "semantic" else mel_base
    poison = (
        {"text_vectors": torch.full((10, 8), torch.nan)}
        if phase == "semantic"
        else {"wave": torch.full_like(items[0].wave, torch.inf)}
    )
    broken = replace(items[0], **poison)

    def batches(trainer, items, number):
        for step, batch in enumerate(batches_of(trainer, items, number)):
            yield [trainer.collate([broken])] if number == 1 and step == 1 else batch

    together, _ = trained_together(used, phase, [plan_of(number) for number in range(3)], items, batches)
    undisturbed, _ = trained_together(used, phase, [plan_of(number) for number in range(3)], items)
    assert [together[voice][0].skipped for voice in VOICES] == [0, 1, 0]
    for voice in ("anna", "cleo"):
        for ours, theirs in zip(together[voice][1], undisturbed[voice][1], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
    assert all(tensor.isfinite().all() for tensor in together["bert"][0].weights().values())


def test_an_error_in_a_joint_step_is_the_guilty_voices_alone(base, items):
    """The others make the step by themselves."""
    bad = replace(items[0], phoneme_ids=torch.full((5,), 10_000))
    errors = []

    def batches(trainer, items, number):
        yield from list(batches_of(trainer, items, number))[:2]
        if number == 1:
            for _ in range(3):  # more often is the fault of the whole, where nobody is to blame
                with pytest.raises(IndexError) as caught:
                    trainer.step([trainer.collate([bad])])
                errors.append(caught.value)
            return
        yield from list(batches_of(trainer, items, number))[2:]

    together, _ = trained_together(base, "semantic", [plan_of(number) for number in range(3)], items, batches)
    assert len(errors) == 3
    for number, voice in ((0, "anna"), (2, "cleo")):
        _, numbers = trained_alone(lambda plan, voice: SemanticTrainer(base, plan, voice=voice), items, number)
        assert [one["cross_entropy"] for one in together[voice][1]] == pytest.approx(
            [one["cross_entropy"] for one in numbers], rel=1e-5
        )


def never_together(monkeypatch, error):
    def fail(_parts):
        raise error

    monkeypatch.setattr(adapter_trainer, "_add_gradients", fail)


def test_where_memory_is_short_each_voice_goes_on_alone(base, items, monkeypatch):
    never_together(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    together, _ = trained_together(base, "semantic", [plan_of(number) for number in range(2)], items)
    for number in range(2):
        _, numbers = trained_alone(lambda plan, voice: SemanticTrainer(base, plan, voice=voice), items, number)
        for ours, theirs in zip(together[VOICES[number]][1], numbers, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("phase", ["semantic", "wave"])
def test_what_fails_together_and_never_alone_ends_the_voices(base, mel_base, items, monkeypatch, phase):
    used, made = base if phase == "semantic" else mel_base, {}
    never_together(monkeypatch, RuntimeError("shapes do not match"))

    def learn(trainer, items):
        while trainer.steps_done < 20:
            trainer.step(trainer.collate(items[:1]))

    def batches(trainer, items, number):
        with pytest.raises(RuntimeError, match=r"joint steps fail and .*: shapes do not match"):
            learn(trainer, items)
        made[number] = trainer.steps_done
        return ()

    trained_together(used, phase, [plan_of(number) for number in range(2)], items, batches)
    assert made.keys() == {0, 1}
    assert max(made.values()) <= 2, made


@pytest.mark.parametrize("together", [True, False])
def test_an_update_that_fails_is_the_guilty_voices_alone(base, items, monkeypatch, together):
    """Also where the voices make the step alone."""
    if not together:
        never_together(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    errors = []

    def batches(trainer, items, number):
        for step, batch in enumerate(batches_of(trainer, items, number)):
            if (number, step) == (0, 2):  # the first to be updated
                monkeypatch.setattr(trainer.own.optimiser, "step", lambda: torch.ones(2) + torch.ones(3))
                with pytest.raises(RuntimeError, match="must match the size"):
                    trainer.step(batch)
                errors.append(number)
                return
            yield batch

    trained, _ = trained_together(base, "semantic", [plan_of(number) for number in range(3)], items, batches)
    assert errors == [0]
    for number in (1, 2):
        _, numbers = trained_alone(lambda plan, voice: SemanticTrainer(base, plan, voice=voice), items, number)
        assert [one["cross_entropy"] for one in trained[VOICES[number]][1]] == pytest.approx(
            [one["cross_entropy"] for one in numbers], rel=1e-5
        )


def test_the_same_company_gives_the_same_bits(mel_base, items):
    plans = [plan_of(number) for number in range(3)]
    first, _ = trained_together(mel_base, "wave", plans, items)
    second, _ = trained_together(mel_base, "wave", plans, items)
    for voice in VOICES:
        weights = first[voice][0].weights()
        assert all(torch.equal(tensor, second[voice][0].weights()[name]) for name, tensor in weights.items())


def test_a_trainer_apart_keeps_nobody_waiting(base, items):
    """Whole weights beside two voices with adapters."""
    done = {}

    def train(seat, number):
        try:
            if number == 2:
                plan = replace(PLAN, trains=Trains.EVERYTHING)
                trainer = seat.apart(lambda: SemanticTrainer(base, plan, voice="whole"))
            else:
                trainer = seat.semantic_trainer(plan_of(number), voice=VOICES[number])
            for batch in list(batches_of(trainer, items, number))[: 1 if number == 2 else STEPS]:
                trainer.step(batch)
            done[number] = trainer.evaluate(items[:1])["cross_entropy"]
        finally:
            seat.clear()
            seat.stand()

    with Pack(base) as pack:
        threads = [threading.Thread(target=train, args=(pack.seat(), number)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    whole = SemanticTrainer(base, replace(PLAN, trains=Trains.EVERYTHING), voice="whole")
    whole.step(next(batches_of(whole, items, 2)))
    assert done.keys() == {0, 1, 2}
    assert done[2] == whole.evaluate(items[:1])["cross_entropy"]


@pytest.mark.parametrize(
    ("phase", "values"),
    [
        ("semantic", {}),
        ("semantic", {"checkpoint_layers": True, "precision": "bfloat16"}),
        ("semantic", {"precision": "float16"}),
        ("wave", {"augment": True}),
        ("wave", {"checkpoint_layers": True, "precision": "float16"}),
    ],
)
def test_a_pack_on_a_gpu_learns_what_it_learns_on_a_cpu(base, mel_base, items, gpu, caplog, phase, values):
    """On one that is pretended (`made_gpu`): every tensor has to be where it belongs."""
    used, plans = base if phase == "semantic" else mel_base, [plan_of(number, **values) for number in range(2)]

    def batches(trainer, items, number):
        trainer.evaluate(items[:1])
        trainer.scale.value = 8.0 if trainer.scale.searches else 1.0
        yield from list(batches_of(trainer, items, number))[1:3]

    wanted, _ = trained_together(used, phase, plans, items, batches)
    found, pack = trained_together(used, phase, plans, items, batches, "cuda", gpu.watched)
    assert pack.joint_steps >= 3
    assert not caplog.records  # of a joint step that failed, and that the voices made alone
    for voice, (_, numbers) in wanted.items():
        trainer, ours = found[voice]
        (state,) = trainer.optimiser.state.values()
        assert all(map(gpu.holds, [*trainer.network.state_dict().values(), *state.values()]))
        for one, other in zip(ours, numbers, strict=True):
            assert one == pytest.approx(other, rel=0.05 if "precision" in values else 1e-4)


def test_which_plans_can_share_a_batch():
    assert packable(PLAN)
    for values in (
        {"trains": Trains.EVERYTHING},
        {"steps": 0},
        {"preference": True},
        {"schedule": Schedule.UPSTREAM_SEMANTIC, "batches_per_pass": 4},
    ):
        assert not packable(replace(PLAN, **values))
    assert packable(replace(PLAN, schedule=Schedule.UPSTREAM_WAVE, batches_per_pass=4))
