from dataclasses import replace

import pytest
import torch

from gsv_core.checkpoints.checkpoint import latest_checkpoint
from gsv_core.training.loop import DivergedError, fit
from gsv_core.training.schedules import PhasePlan
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.wave_trainer import WaveTrainer

PLAN = PhasePlan(
    steps=5, batch_size=2, learning_rate=1e-3, warm_up_steps=1, save_every=2, evaluate_every=2, longest_frames=48
)
TRAINERS = pytest.mark.parametrize("kind", [SemanticTrainer, WaveTrainer])


def stop_after(steps):
    """A `should_stop` that lets `steps` steps pass."""
    asked = iter(range(10**6))
    return lambda: next(asked) >= steps


@TRAINERS
def test_a_killed_and_resumed_run_gives_the_same_numbers_bit_by_bit(base, items, tmp_path, kind):
    through = kind(base, PLAN, voice="anna")
    whole = fit(through, items[1:], items[:1], PLAN)

    first = fit(kind(base, PLAN, voice="anna"), items[1:], items[:1], PLAN, resume=tmp_path, should_stop=stop_after(3))
    assert (first.steps, first.finished) == (3, False)
    torch.rand(5)
    seen = []
    resumed = kind(base, PLAN, voice="anna")
    second = fit(resumed, items[1:], items[:1], PLAN, resume=tmp_path, on_step=seen.append)
    assert second.finished
    assert second.records == whole.records
    assert [record.step for record in seen if record.kind == "train"] == [4, 5]
    assert through.weights().keys() == resumed.weights().keys()
    assert all(torch.equal(tensor, resumed.weights()[name]) for name, tensor in through.weights().items())


def test_the_curve_has_every_step_and_the_held_out_clips_from_the_start(base, items):
    saves = []
    result = fit(SemanticTrainer(base, PLAN, voice="anna"), items[1:], items[:1], PLAN, on_save=saves.append)
    assert [record.step for record in result.records if record.kind == "train"] == [1, 2, 3, 4, 5]
    assert [record.step for record in result.records if record.kind == "held_out"] == [0, 2, 4, 5]
    assert [save.step for save in saves] == [2, 4, 5]
    assert saves[0].metadata["step"] == "2"
    name = "ar_predict_layer.weight"
    assert not torch.equal(saves[0].weights[name], saves[1].weights[name])


def test_without_held_out_clips_only_training_is_recorded(base, items):
    result = fit(SemanticTrainer(base, PLAN, voice="anna"), items, [], PLAN)
    assert {record.kind for record in result.records} == {"train"}


def test_two_checkpoints_stay_and_a_finished_run_does_nothing(base, items, tmp_path):
    trainer = SemanticTrainer(base, PLAN, voice="anna")
    fit(trainer, items, [], PLAN, resume=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004.pt", "step-000005.pt"]
    seen = []
    again = fit(SemanticTrainer(base, PLAN, voice="anna"), items, [], PLAN, resume=tmp_path, on_step=seen.append)
    assert (again.steps, again.finished, seen) == (5, True, [])


def test_another_plan_or_voice_is_another_run(base, items, tmp_path):
    fit(SemanticTrainer(base, PLAN, voice="anna"), items, [], PLAN, resume=tmp_path)
    longer = replace(PLAN, steps=9)
    with pytest.raises(ValueError, match=r"belongs to another run \(differs in plan\)"):
        fit(SemanticTrainer(base, longer, voice="anna"), items, [], longer, resume=tmp_path)
    with pytest.raises(ValueError, match="differs in voice"):
        fit(SemanticTrainer(base, PLAN, voice="bert"), items, [], PLAN, resume=tmp_path)


def test_a_save_comes_before_its_checkpoint_so_that_a_kill_in_between_repeats_it(base, items, tmp_path):
    def kill(save):
        raise KeyboardInterrupt

    trainer = SemanticTrainer(base, PLAN, voice="anna")
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, items, [], PLAN, resume=tmp_path, on_save=kill)
    assert latest_checkpoint(tmp_path, trainer.identity) is None


def test_too_many_steps_without_a_gradient_end_the_run(base, items):
    plan = replace(PLAN, steps=20, most_skipped=2)
    broken = [replace(item, text_vectors=torch.full((len(item.phoneme_ids), 8), torch.nan)) for item in items]
    with pytest.raises(DivergedError, match="3 of 3 steps had no finite gradient"):
        fit(SemanticTrainer(base, plan, voice="anna"), broken, [], plan)


def test_a_plan_of_no_steps_leaves_the_base(base, items):
    plan = replace(PLAN, steps=0)
    trainer = WaveTrainer(base, plan, voice="anna")
    result = fit(trainer, items[1:], items[:1], plan)
    assert (result.steps, result.finished) == (0, True)
    assert trainer.weights() == {}
    assert [record.kind for record in result.records] == ["held_out"]
