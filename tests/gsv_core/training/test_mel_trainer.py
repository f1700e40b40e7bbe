from dataclasses import replace

import pytest
import torch

from gsv_core.networks.lora import add_lora, merge_lora
from gsv_core.networks.semantic_to_mel import SemanticToMel
from gsv_core.training.loop import fit
from gsv_core.training.mel_trainer import MelTrainer, trained_modules
from gsv_core.training.schedules import PhasePlan, Trains
from gsv_core.training.updates import under
from tests.gsv_core.training.made_ranks import assert_alike, gradients_of, in_ranks

PLAN = PhasePlan(steps=5, batch_size=2, learning_rate=2e-3, save_every=2, evaluate_every=2, longest_frames=48, rank=2)
TRAINED = pytest.mark.parametrize("trains", [Trains.EVERYTHING, Trains.LOW_RANK])


def trainer_of(mel_base, **values):
    return MelTrainer(mel_base, replace(PLAN, **values), voice="anna")


@pytest.mark.parametrize(
    "trains, rate, share",
    # Around a base that has learnt nothing, adapters of two ranks reach less than whole weights.
    [(Trains.EVERYTHING, 2e-3, 0.97), (Trains.LOW_RANK, 1e-2, 0.99)],
)
def test_the_flow_of_held_out_clips_gets_closer(mel_base, items, trains, rate, share):
    trainer = trainer_of(mel_base, steps=12, trains=trains, learning_rate=rate)
    before = trainer.evaluate(items[:1])["flow"]
    for _ in range(12):
        numbers = trainer.step(trainer.collate(items[1:]))
    after = trainer.evaluate(items[:1])["flow"]
    assert after < share * before
    assert numbers.keys() == {"flow", "gradient_norm", "learning_rate"}
    assert all(value == value for value in numbers.values())


@TRAINED
def test_a_killed_and_resumed_run_gives_the_same_numbers_bit_by_bit(mel_base, items, tmp_path, trains):
    plan = replace(PLAN, trains=trains)
    through = MelTrainer(mel_base, plan, voice="anna")
    whole = fit(through, items[1:], items[:1], plan)
    asked = iter(range(100))
    fit(
        MelTrainer(mel_base, plan, voice="anna"),
        items[1:],
        items[:1],
        plan,
        resume=tmp_path,
        should_stop=lambda: next(asked) >= 3,
    )
    torch.rand(5)
    resumed = MelTrainer(mel_base, plan, voice="anna")
    second = fit(resumed, items[1:], items[:1], plan, resume=tmp_path)
    assert second.finished
    assert second.records == whole.records
    assert through.weights().keys() == resumed.weights().keys()
    assert all(torch.equal(tensor, resumed.weights()[name]) for name, tensor in through.weights().items())


def test_everything_but_text_tokens_and_timbre_learns(mel_base, items):
    trainer = trainer_of(mel_base)
    for _ in range(2):
        trainer.step(trainer.collate(items))
    changed = trainer.weights().keys()
    parameters = {name for name, _ in mel_base.semantic_to_mel.named_parameters()}
    assert parameters - changed == {
        name for name in parameters if under(name, ["enc_p", "ssl_proj", "ref_enc", "linear_mel"])
    }


def test_low_rank_weights_are_small_and_stand_for_the_merged_network(mel_base, items):
    trainer = trainer_of(mel_base, trains=Trains.LOW_RANK)
    assert trainer.weights() == {}
    for _ in range(2):
        trainer.step(trainer.collate(items))
    weights = trainer.weights()
    factors = {name for name in weights if ".lora_" in name}
    assert {name.split(".")[0] for name in weights.keys() - factors} == {"bridge", "wns1"}
    assert len(factors) == 2 * 4 * mel_base.semantic_to_mel.config.flow_layers
    assert trainer.metadata()["lora_rank"] == "2"
    with torch.random.fork_rng(devices=[]):
        fresh = SemanticToMel(mel_base.semantic_to_mel.config)
    fresh.load_state_dict(mel_base.semantic_to_mel.state_dict())
    add_lora(fresh.cfm, ["to_q", "to_k", "to_v", "to_out.0"], rank=2)
    assert fresh.load_state_dict(weights, strict=False).unexpected_keys == []
    batch = trainer.collate(items[:2])
    draws = trainer._draws(batch)
    given = [
        batch.content,
        batch.spectrogram,
        batch.lengths,
        batch.mel,
        batch.mel_lengths,
        batch.phoneme_ids,
        batch.phoneme_lengths,
    ]
    merge_lora(fresh)
    torch.testing.assert_close(
        fresh.eval()(*given, draws=draws), trainer.network.eval()(*given, draws=draws), atol=1e-5, rtol=1e-4
    )


def test_a_clips_draws_do_not_depend_on_its_batch(mel_base, items):
    trainer = trainer_of(mel_base)
    pair, trio = trainer.collate(items[:2]), trainer.collate([items[4], items[1], items[0]])
    ours, others = trainer._draws(pair), trainer._draws(trio)
    assert torch.equal(ours.time, others.time[[2, 1]])
    assert torch.equal(ours.prompt_lengths, others.prompt_lengths[[2, 1]])
    assert (ours.halvings is None) == (others.halvings is None)
    frames = int(pair.mel_lengths[0])
    assert torch.equal(ours.noise[0, :, :frames], others.noise[2, :, :frames])
    assert ours.noise[0, :, :frames].std().item() == pytest.approx(1.0, abs=0.1)


def test_shortcuts_train_in_some_steps(mel_base, items):
    trainer = trainer_of(mel_base)
    batch = trainer.collate(items[:2])
    shortcuts = []
    for step in range(40):
        trainer.steps_done = step
        shortcuts.append(trainer._draws(batch).halvings is not None)
    assert 5 < sum(shortcuts) < 20


def test_a_clips_loss_does_not_depend_on_its_batch(mel_base, items):
    trainer = trainer_of(mel_base, batch_size=1)
    together = trainer_of(mel_base, batch_size=3)
    assert together.evaluate(items[:3])["flow"] == pytest.approx(trainer.evaluate(items[:3])["flow"], rel=1e-5)


def test_a_long_clip_gives_other_windows_in_other_steps(mel_base, items):
    trainer = trainer_of(mel_base, longest_frames=32)
    first = trainer.collate(items[4:5])
    trainer.steps_done = 1
    second = trainer.collate(items[4:5])
    assert first.lengths.tolist() == second.lengths.tolist() == [32]
    assert first.mel_lengths.tolist() == [64]
    assert not torch.equal(first.mel, second.mel)


def test_a_step_without_a_finite_gradient_leaves_the_weights(mel_base, items):
    trainer = trainer_of(mel_base)
    broken = replace(items[0], wave=torch.full_like(items[0].wave, torch.inf))
    trainer.step(trainer.collate([broken, items[1]]))
    assert (trainer.steps_done, trainer.skipped) == (1, 1)
    assert trainer.weights() == {}


def test_what_does_not_fit_is_refused(mel_base, base):
    with pytest.raises(ValueError, match=r"v3 and v4 train one of .*; got upper_layers"):
        trained_modules(Trains.UPPER_LAYERS)
    with pytest.raises(ValueError, match="must be 2 or more"):
        trainer_of(mel_base, longest_frames=1)
    with pytest.raises(ValueError, match="predicts no mel spectrograms"):
        trainer_of(base)
    trainer, other = trainer_of(mel_base), trainer_of(mel_base, trains=Trains.LOW_RANK)
    with pytest.raises(ValueError, match=r"is nothing there and"):
        trainer.load_state(other.state())


def test_a_plan_without_steps_changes_nothing(mel_base, items):
    trainer = trainer_of(mel_base, steps=0, trains=Trains.NOTHING)
    assert trainer.weights() == {}
    assert trainer.evaluate(items[:1])["flow"] > 0


@pytest.mark.parametrize("values", [{}, {"trains": Trains.LOW_RANK, "checkpoint_layers": True}, {"augment": True}])
def test_a_step_in_parts_or_on_ranks_is_the_whole_step(mel_base, items, values):
    whole = gradients_of(trainer := trainer_of(mel_base, **values), trainer.collate(items))

    def in_parts(reducer=None, chosen=(items[:3], items[3:4], items[4:])):
        trainer = MelTrainer(mel_base, replace(PLAN, **values), voice="anna", reducer=reducer)
        return gradients_of(trainer, [trainer.collate(part) for part in chosen])

    assert_alike(whole, in_parts())
    first, second = in_ranks(2, lambda reducer: in_parts(reducer, ((), (items[:4], items[4:]))[reducer.rank]))
    assert_alike(whole, first)
    assert_alike(whole, second)


def test_shortcuts_are_split_alike(mel_base, items):
    trainer = trainer_of(mel_base)
    shortcut = next(step for step in range(40) if setattr(trainer, "steps_done", step) or trainer._shortcut_now())

    def at(batches):
        trainer = trainer_of(mel_base)
        trainer.steps_done = shortcut
        return gradients_of(trainer, [trainer.collate(some) for some in batches])

    assert_alike(at([items]), at([items[:2], items[2:]]))


def test_layers_computed_again_give_the_same_bits(mel_base, items):
    plain, again = trainer_of(mel_base), trainer_of(mel_base, checkpoint_layers=True)
    for _ in range(3):
        numbers = [trainer.step(trainer.collate(items[:2])) for trainer in (plain, again)]
    assert numbers[0] == numbers[1]
    assert all(torch.equal(tensor, again.weights()[name]) for name, tensor in plain.weights().items())


def test_what_is_spoken_at_a_save_is_a_distance_and_draws_nothing(mel_base, items):
    trainer = trainer_of(mel_base)
    spoken = trainer.speak(items[:2])
    assert 0 < spoken["spoken_mel"] < 20
    torch.rand(3)
    assert trainer.speak(items[:2]) == spoken
