from dataclasses import replace

import pytest
import torch

from gsv_core.training.schedules import PhasePlan, Trains
from gsv_core.training.updates import TRAINER_VERSION, under
from gsv_core.training.wave_trainer import FROZEN, TEXT_SIDE, WaveTrainer, trained_modules
from tests.gsv_core.training.made_ranks import assert_alike, gradients_of, in_ranks

PLAN = PhasePlan(steps=12, batch_size=4, learning_rate=2e-3, warm_up_steps=1, longest_frames=64)


def trainer_of(base, **values):
    return WaveTrainer(base, replace(PLAN, **values), voice="anna")


def test_mel_distance_of_held_out_clips_falls(base, items):
    trainer = trainer_of(base)
    before = trainer.evaluate(items[:1])
    for _ in range(12):
        numbers = trainer.step(trainer.collate(items[1:]))
    after = trainer.evaluate(items[:1])
    assert after["mel"] < 0.8 * before["mel"]
    assert after["kl"] < before["kl"]
    assert all(value == value for value in numbers.values())


def test_every_part_but_the_frozen_ones_learns(base, items):
    trainer = trainer_of(base)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    judges = {name: tensor.clone() for name, tensor in trainer.discriminators.state_dict().items()}
    for _ in range(2):
        trainer.step(trainer.collate(items))
    parameters = dict(trainer.network.named_parameters())
    still = {name for name in parameters if torch.equal(before[name], parameters[name])}
    assert {name.split(".")[0] for name in still} <= {"ssl_proj"}
    buffers = {name for name in before if name not in parameters}
    now = trainer.network.state_dict()
    assert all(torch.equal(before[name], now[name]) for name in buffers)
    assert not any(torch.equal(judges[name], now) for name, now in trainer.discriminators.state_dict().items())


def test_weights_are_what_synthesis_needs_and_what_changed(base, items):
    trainer = trainer_of(base)
    assert trainer.weights() == {}
    trainer.step(trainer.collate(items))
    names = trainer.weights().keys()
    assert "dec.conv_pre.weight" in names
    assert not any(under(name, (*FROZEN, "enc_q")) for name in names)
    assert trainer.metadata() == {
        "release": "nano",
        "base_digest": base.digest,
        "phase": "wave",
        "step": "1",
        "trainer_version": TRAINER_VERSION,
    }


def test_the_text_side_learns_at_its_own_rate(base):
    trainer = trainer_of(base)
    shares = {
        id(parameter): group["share"]
        for group in trainer.generator_optimiser.param_groups
        for parameter in group["params"]
    }
    for name, parameter in trainer.network.named_parameters():
        if parameter.requires_grad:
            assert shares[id(parameter)] == (0.4 if under(name, TEXT_SIDE) else 1.0), name


@pytest.mark.parametrize(
    ("trains", "some", "none"),
    [
        (Trains.ACOUSTIC_SIDE, "dec.conv_pre.weight", "enc_p.text_embedding.weight"),
        (Trains.PROJECTIONS, "sv_emb.weight", "dec.conv_pre.weight"),
        (Trains.NOTHING, None, ""),
    ],
)
def test_a_plan_trains_only_its_part(base, trains, some, none):
    network = trainer_of(base, trains=trains).network
    training = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert some is None or some in training
    assert not any(under(name, [none]) for name in training)


def test_everything_covers_all_but_what_is_frozen(base):
    prefixes = trained_modules(Trains.EVERYTHING, base.semantic_to_wave)
    left_out = {name for name, _ in base.semantic_to_wave.named_parameters() if not under(name, prefixes)}
    assert left_out == {"ssl_proj.weight", "ssl_proj.bias"}


def test_a_part_that_sovits_does_not_have_is_refused(base):
    with pytest.raises(ValueError, match="upper_layers"):
        trainer_of(base, trains=Trains.UPPER_LAYERS)


def test_noise_and_segment_of_a_clip_do_not_depend_on_its_batch(base, items):
    trainer = trainer_of(base)
    pair, trio = trainer.collate(items[:2]), trainer.collate([items[4], items[1], items[0]])
    assert torch.equal(trainer._draw_starts(pair), trainer._draw_starts(trio)[[2, 1]])
    noise, other = trainer._noise(pair, "step"), trainer._noise(trio, "step")
    frames = int(pair.lengths[0])
    assert torch.equal(noise[0, :, :frames], other[2, :, :frames])
    assert noise[0, :, :frames].std().item() == pytest.approx(1.0, abs=0.1)


def test_a_long_clip_gives_other_windows_in_other_steps(base, items):
    trainer = trainer_of(base, longest_frames=32)
    first = trainer.collate(items[4:5])
    trainer.steps_done = 1
    second = trainer.collate(items[4:5])
    assert first.lengths.tolist() == second.lengths.tolist() == [32]
    assert not torch.equal(first.wave, second.wave)


def test_a_clip_shorter_than_a_segment_is_padded(base, items):
    short = replace(
        items[0], wave=items[0].wave[: 20 * 640], content=items[0].content[:20], tokens=items[0].tokens[:10]
    )
    trainer = trainer_of(base)
    numbers = trainer.step(trainer.collate([short, items[1]]))
    assert trainer.skipped == 0
    assert all(value == value for value in numbers.values())
    assert trainer.evaluate([short])["mel"] > 0


def test_a_step_without_a_finite_gradient_leaves_the_weights(base, items):
    trainer = trainer_of(base)
    broken = replace(items[0], speaker_vector=torch.full_like(items[0].speaker_vector, torch.inf))
    trainer.step(trainer.collate([broken, items[1]]))
    assert (trainer.steps_done, trainer.skipped) == (1, 1)
    assert trainer.weights() == {}


def test_a_window_must_hold_a_segment(base):
    with pytest.raises(ValueError, match="longest_frames"):
        trainer_of(base, longest_frames=16)


@pytest.mark.parametrize("values", [{}, {"trains": Trains.PROJECTIONS, "augment": True, "checkpoint_layers": True}])
def test_a_step_in_parts_or_on_ranks_is_the_whole_step(base, items, values):
    whole = gradients_of(trainer := trainer_of(base, **values), trainer.collate(items))

    def in_parts(reducer=None, chosen=(items[:3], items[3:4], items[4:])):
        trainer = WaveTrainer(base, replace(PLAN, **values), voice="anna", reducer=reducer)
        return gradients_of(trainer, [trainer.collate(part) for part in chosen])

    assert_alike(whole, in_parts())
    first, second = in_ranks(2, lambda reducer: in_parts(reducer, ((), (items[:4], items[4:]))[reducer.rank]))
    assert_alike(whole, first)
    assert_alike(whole, second)


def test_a_decoder_computed_again_gives_the_same_bits(base, items):
    plain, again = trainer_of(base), trainer_of(base, checkpoint_layers=True)
    for _ in range(2):
        numbers = [trainer.step(trainer.collate(items[:2])) for trainer in (plain, again)]
    assert numbers[0] == numbers[1]
    assert all(torch.equal(tensor, again.weights()[name]) for name, tensor in plain.weights().items())


def test_what_is_spoken_at_a_save_comes_closer(base, items):
    trainer = trainer_of(base)
    before = trainer.speak(items[:1])["spoken_mel"]
    for _ in range(8):
        trainer.step(trainer.collate(items[1:]))
    assert trainer.speak(items[:1])["spoken_mel"] < 0.9 * before
