import copy
from dataclasses import replace

import pytest
import torch

from gsv_core.networks.lora import fold_factors
from gsv_core.training.schedules import PhasePlan, Schedule, Trains
from gsv_core.training.semantic_trainer import SemanticTrainer, trained_modules
from tests.gsv_core.training.made_ranks import assert_alike, gradients_of, in_ranks

PLAN = PhasePlan(steps=8, batch_size=4, learning_rate=2e-3, warm_up_steps=1)


def trained(base, items, plan=PLAN, steps=8):
    trainer = SemanticTrainer(base, plan, voice="anna")
    for _ in range(steps):
        numbers = trainer.step(trainer.collate(items))
    return trainer, numbers


def test_cross_entropy_of_held_out_clips_falls(base, items):
    trainer = SemanticTrainer(base, PLAN, voice="anna")
    before = trainer.evaluate(items[:1])
    assert before["cross_entropy"] == pytest.approx(7.0, abs=0.4)  # ln 1025 = 6.93
    for _ in range(8):
        trainer.step(trainer.collate(items[1:]))
    after = trainer.evaluate(items[:1])
    assert after["cross_entropy"] < before["cross_entropy"] - 0.3
    assert after["accuracy"] > before["accuracy"]


def test_evaluating_does_not_depend_on_batches_and_changes_nothing(base, items):
    alone = SemanticTrainer(base, replace(PLAN, batch_size=1), voice="anna")
    together = SemanticTrainer(base, replace(PLAN, batch_size=5), voice="anna")
    assert alone.evaluate(items) == pytest.approx(together.evaluate(items), rel=1e-5)
    assert together.weights() == {}


def test_the_base_and_torchs_random_state_stay_as_they_are(base, items):
    before = {name: tensor.clone() for name, tensor in base.text_to_semantic.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trainer, _ = trained(base, items, steps=2)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.text_to_semantic.state_dict().items())
    assert trainer.weights().keys() <= before.keys()
    assert "ar_predict_layer.weight" in trainer.weights()


def test_two_runs_give_the_same_weights_whatever_happened_before(base, items):
    first, _ = trained(base, items, steps=3)
    torch.rand(17)
    second, _ = trained(base, items, steps=3)
    assert first.weights().keys() == second.weights().keys()
    assert all(torch.equal(tensor, second.weights()[name]) for name, tensor in first.weights().items())


def test_dropout_follows_from_the_step(base, items):
    """With dropout on, a step gives the same loss again, and another step another one."""
    config = replace(base.text_to_semantic.config, dropout=0.3)
    network = type(base.text_to_semantic)(config)
    network.load_state_dict(base.text_to_semantic.state_dict())
    dropping = replace(base, text_to_semantic=network.eval())
    losses = []
    for steps_done in (0, 0, 1):
        trainer = SemanticTrainer(dropping, PLAN, voice="anna")
        trainer.steps_done = steps_done
        losses.append(trainer.step(trainer.collate(items))["cross_entropy"])
    assert losses[0] == losses[1] != losses[2]


def test_parts_that_do_not_train_stay_the_bases(base, items):
    plan = replace(PLAN, trains=Trains.UPPER_LAYERS)
    trainer, _ = trained(base, items, plan, steps=2)
    assert {name.rsplit(".", 2)[0] if "layers" in name else name for name in trainer.weights()} >= {
        "ar_predict_layer.weight"
    }
    assert all(name.startswith(("h.layers.2.", "ar_predict_layer")) for name in trainer.weights())


def test_a_part_that_gpt_does_not_have_is_refused(base):
    with pytest.raises(ValueError, match="acoustic_side"):
        SemanticTrainer(base, replace(PLAN, trains=Trains.ACOUSTIC_SIDE), voice="anna")
    assert trained_modules(Trains.UPPER_LAYERS, 24)[0] == "h.layers.16"


def test_a_step_without_a_finite_gradient_leaves_the_weights(base, items):
    trainer, _ = trained(base, items, steps=1)
    before = trainer.weights()
    broken = replace(items[0], text_vectors=torch.full((len(items[0].phoneme_ids), 8), torch.nan))
    numbers = trainer.step(trainer.collate([broken, items[1]]))
    assert numbers["gradient_norm"] != numbers["gradient_norm"]
    assert (trainer.steps_done, trainer.skipped) == (2, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.weights().items())


AS_UPSTREAM = PhasePlan(
    steps=20, batch_size=4, learning_rate=0.002, schedule=Schedule.UPSTREAM_SEMANTIC, batches_per_pass=6
)


def test_upstreams_way_sums_batches_before_a_step_and_carries_over(base, items):
    trainer = SemanticTrainer(base, AS_UPSTREAM, voice="anna")
    changes, rates = [], []
    for _ in range(11):
        before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
        rates.append(trainer.step(trainer.collate(items))["learning_rate"])
        after = trainer.network.state_dict()
        changes.append(any(not torch.equal(value, after[name]) for name, value in before.items()))
    # A pass has six batches: a step after the fifth, and the sixth's gradients wait for the next pass's fifth.
    assert [index for index, changed in enumerate(changes) if changed] == [4, 10]
    assert trainer.updates == 2
    assert rates == pytest.approx([0.01] * 5 + [0.002] * 6)


def test_upstreams_loss_has_its_mask_and_counts_padding(base, items):
    trainer = SemanticTrainer(base, AS_UPSTREAM, voice="anna")
    batch = trainer.collate(items)
    assert batch.phoneme_ids.shape[1] == max(len(item.phoneme_ids) for item in items)
    assert batch.tokens.shape[1] == max(len(item.tokens) for item in items)
    trainer.step(batch)
    network = SemanticTrainer(base, AS_UPSTREAM, voice="anna").network.train()
    given = (batch.phoneme_ids, batch.phoneme_lengths, batch.tokens, batch.token_lengths, batch.text_vectors)
    network(*given, upstream_padding_mask=True, count_padding=True).loss_sum.backward()
    for ours, expected in zip(trainer.network.parameters(), network.parameters(), strict=True):
        assert (ours.grad is None) == (expected.grad is None)
        assert ours.grad is None or torch.allclose(ours.grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("plan", [PLAN, AS_UPSTREAM])
def test_only_upstreams_way_drops_attention_weights(base, items, plan):
    losses = []
    for dropout in (0.0, 0.5):
        trainer = SemanticTrainer(base, plan, voice="anna")
        for layer in trainer.network.h.blocks():
            layer.self_attn.dropout = dropout
        losses.append(trainer.step(trainer.collate(items))["cross_entropy"])
    assert (losses[0] != losses[1]) == (plan is AS_UPSTREAM)


def test_upstreams_way_goes_on_from_a_state_between_two_steps(base, items):
    whole, first, second = (SemanticTrainer(base, AS_UPSTREAM, voice="anna") for _ in range(3))
    for _ in range(12):
        whole.step(whole.collate(items))
    for _ in range(7):
        first.step(first.collate(items))
    second.load_state(copy.deepcopy(first.state()))
    for _ in range(5):
        second.step(second.collate(items))
    assert all(torch.equal(value, second.weights()[name]) for name, value in whole.weights().items())


def merged(network, weights):
    return network.state_dict() | fold_factors(weights, network.state_dict())


def some_with_vectors(items):
    """One clip has text vectors, so that a part without any meets one with."""
    draw = torch.Generator().manual_seed(5)
    vectors = torch.randn(len(items[1].phoneme_ids), 8, generator=draw)
    return [items[0], replace(items[1], text_vectors=vectors), *items[2:]]


@pytest.mark.parametrize(
    "values", [{}, {"preference": True}, {"trains": Trains.LOW_RANK, "rank": 2, "checkpoint_layers": True}]
)
def test_a_step_in_parts_or_on_ranks_is_the_whole_step(base, items, values):
    plan, items = replace(PLAN, **values), some_with_vectors(items)
    trainer = SemanticTrainer(base, plan, voice="anna")
    whole = gradients_of(trainer, trainer.collate(items))

    def in_parts(reducer=None, chosen=(items[:3], items[3:4], items[4:])):
        trainer = SemanticTrainer(base, plan, voice="anna", reducer=reducer)
        return gradients_of(trainer, [trainer.collate(part) for part in chosen])

    assert_alike(whole, in_parts())
    first, second = in_ranks(2, lambda reducer: in_parts(reducer, ((), (items[:4], items[4:]))[reducer.rank]))
    assert_alike(whole, first)
    assert_alike(whole, second)


def test_upstreams_padding_counts_the_same_in_parts(base, items):
    def at(batches):
        trainer = SemanticTrainer(base, AS_UPSTREAM, voice="anna")
        for layer in trainer.network.h.blocks():
            layer.self_attn.dropout = 0.0  # drawn for a whole batch, in upstream's way alone
        numbers = trainer.step([trainer.collate(some) for some in batches])
        return numbers, [p.grad for p in trainer.parameters if p.grad is not None]

    assert_alike(at([items]), at([items[:2], items[2:]]))


def test_upstreams_way_is_not_divided_among_workers(base):
    def two(reducer):
        with pytest.raises(ValueError, match="cannot be divided among 2 workers; train it on one"):
            SemanticTrainer(base, AS_UPSTREAM, voice="anna", reducer=reducer)

    in_ranks(2, two)


def test_layers_computed_again_give_the_same_bits(base, items):
    plain, _ = trained(base, items, steps=2)
    again, _ = trained(base, items, replace(PLAN, checkpoint_layers=True), steps=2)
    assert all(torch.equal(tensor, again.weights()[name]) for name, tensor in plain.weights().items())


def test_layers_of_two_passes_computed_again_give_the_same_bits(base, items):
    """Each loses what it lost: real tokens and damaged ones are passes of their own."""
    network = type(base.text_to_semantic)(replace(base.text_to_semantic.config, dropout=0.3))
    network.load_state_dict(base.text_to_semantic.state_dict())
    dropping = replace(base, text_to_semantic=network.requires_grad_(False))

    def step(**values):
        trainer = SemanticTrainer(dropping, replace(PLAN, preference=True, **values), voice="anna")
        return gradients_of(trainer, [trainer.collate(items[:3]), trainer.collate(items[3:])])

    (numbers, wanted), (others, found) = step(), step(checkpoint_layers=True)
    assert numbers == others
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


def test_adapters_start_at_the_base_and_are_all_that_trains(base, items):
    plan = replace(PLAN, trains=Trains.LOW_RANK, rank=2)
    trainer = SemanticTrainer(base, plan, voice="anna")
    assert trainer.evaluate(items) == SemanticTrainer(base, PLAN, voice="anna").evaluate(items)
    assert trainer.weights() == {}
    for _ in range(3):
        trainer.step(trainer.collate(items))
    names = trainer.weights().keys()
    assert len(names) == 2 * 4 * base.text_to_semantic.config.layers
    assert {"h.layers.0.self_attn.in_proj_weight.lora_A", "h.layers.0.linear1.lora_B"} <= names
    assert all(".lora_" in name for name in names)
    assert trainer.metadata()["lora_rank"] == "2"


def test_adapters_folded_in_are_the_adapted_network(base, items):
    trainer, _ = trained(base, items, replace(PLAN, trains=Trains.LOW_RANK, rank=2, learning_rate=1e-2), steps=3)
    whole = SemanticTrainer(base, PLAN, voice="anna")
    whole.network.load_state_dict(merged(base.text_to_semantic, trainer.weights()))
    ours, untrained = trainer.evaluate(items), SemanticTrainer(base, PLAN, voice="anna").evaluate(items)
    assert whole.evaluate(items) == pytest.approx(ours, rel=1e-4)
    assert ours["cross_entropy"] < untrained["cross_entropy"] - 0.01


def test_adapters_go_on_from_a_state(base, items):
    plan = replace(PLAN, trains=Trains.LOW_RANK, rank=2)
    whole, _ = trained(base, items, plan, steps=4)
    first, _ = trained(base, items, plan, steps=2)
    second = SemanticTrainer(base, plan, voice="anna")
    second.load_state(copy.deepcopy(first.state()))
    for _ in range(2):
        second.step(second.collate(items))
    assert all(torch.equal(value, second.weights()[name]) for name, value in whole.weights().items())


def test_real_tokens_come_to_be_preferred(base, items):
    trainer = SemanticTrainer(base, replace(PLAN, preference=True), voice="anna")
    numbers = [trainer.step(trainer.collate(items)) for _ in range(8)]
    assert numbers[-1]["preference"] < numbers[0]["preference"]
    assert 0 <= numbers[-1]["preferred"] <= 1
