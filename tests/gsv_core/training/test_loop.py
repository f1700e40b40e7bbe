import math
from dataclasses import replace

import pytest
import torch

from gsv_core.checkpoints.checkpoint import latest_checkpoint, save_checkpoint
from gsv_core.training import loop
from gsv_core.training.loop import DivergedError, fit
from gsv_core.training.schedules import PhasePlan
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.wave_trainer import WaveTrainer
from tests.gsv_core.training.made_ranks import in_ranks

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
    with pytest.raises(
        DivergedError, match=r"3 of 3 steps had no finite gradient, the last with clip0\d(, clip0\d)?; lower"
    ):
        fit(SemanticTrainer(base, plan, voice="anna"), broken, [], plan)


class Scripted(SemanticTrainer):
    """Held-out losses as they are written down; everything else is real."""

    losses = (5.0, 4.0, 3.0, 3.5, 2.0, 2.5, 2.6, 2.4, 2.3, 2.2, 2.1)

    def evaluate(self, items):
        return {"cross_entropy": self.losses[self.steps_done // 2]}


PATIENT = replace(PLAN, steps=20, save_every=5, evaluate_every=2, patience=3)


def fit_scripted(base, items, plan=PATIENT, trainer=Scripted, **given):
    saves, trainer = [], trainer(base, plan, voice="anna")
    return fit(trainer, items[1:], items[:1], plan, on_save=saves.append, **given), saves


def test_without_a_better_evaluation_for_a_while_the_phase_ends(base, items):
    result, saves = fit_scripted(base, items)
    assert (result.steps, result.finished, result.ended) == (14, True, "early")
    assert result.reason == "no better than at step 8 in 3 evaluations"
    # The regular ones, and the best in between.
    assert [(save.step, save.replaces) for save in saves] == [(4, None), (5, None), (8, 4), (10, None)]


def test_a_better_best_takes_the_place_of_the_one_before(base, items):
    class Better(Scripted):
        losses = (5.0, 4.5, 4.0, 3.0, 2.0, 2.5, 1.0, 0.9, 0.8, 2.0, 2.0)

    result, saves = fit_scripted(base, items, trainer=Better)
    assert (result.steps, result.ended) == (20, "steps")
    assert [(save.step, save.replaces) for save in saves] == [
        *((4, None), (5, None), (8, 4), (10, None), (14, 8), (15, None), (16, 14), (20, None)),
    ]


def test_an_early_end_is_the_same_after_a_kill_and_stays_the_end(base, items, tmp_path):
    whole, _ = fit_scripted(base, items)
    for steps in (9, 3):
        fit_scripted(base, items, resume=tmp_path, should_stop=stop_after(steps))
    again, _ = fit_scripted(base, items, resume=tmp_path)
    assert again == whole
    seen = []
    last, saves = fit_scripted(base, items, resume=tmp_path, on_step=seen.append)
    assert (last, seen, saves) == (whole, [], [])


@pytest.mark.parametrize("losses", [Scripted.losses, (5.0, 4.5, 4.0, 3.0, 2.0, 2.5, 1.0, 0.9, 0.8, 2.0, 2.0)])
def test_what_is_left_to_choose_from_does_not_depend_on_kills(base, items, tmp_path, losses):
    class Told(Scripted):
        pass

    Told.losses = losses

    def left(kills):
        files, folder = set(), tmp_path / str(kills)

        def keep(save):
            files.add(save.step)
            files.discard(save.replaces)

        for steps in (*kills, 99):
            trainer = Told(base, PATIENT, voice="anna")
            stop = stop_after(steps)
            fit(trainer, items[1:], items[:1], PATIENT, resume=folder, on_save=keep, should_stop=stop)
        return files

    assert left((2, 2, 4)) == left((13, 1)) == left(())


def test_a_base_that_training_only_spoils_still_gives_a_candidate(base, items):
    class Worse(Scripted):
        losses = (1.0, 4.5, 4.0, 3.0, 2.0, 2.5)

    result, saves = fit_scripted(base, items, replace(PATIENT, save_every=9), trainer=Worse)
    assert (result.ended, [save.step for save in saves]) == ("early", [6])


def test_with_patience_and_nothing_held_out_all_steps_are_made(base, items):
    plan = replace(PATIENT, steps=6)
    result = fit(SemanticTrainer(base, plan, voice="anna"), items, [], plan)
    assert (result.steps, result.ended, result.reason) == (6, "steps", "all 6 steps")


def test_saves_show_what_was_learnt_by_heart_and_how_it_sounds(base, items):
    plan = replace(PLAN, steps=4, save_every=4)
    result = fit(WaveTrainer(base, plan, voice="anna"), items[1:], items[:1], plan)
    last = [record for record in result.records if record.kind == "held_out"][-1].metrics
    assert last.keys() == {"mel", "kl", "seen_mel", "seen_kl", "spoken_mel"}
    first = next(record for record in result.records if record.kind == "held_out").metrics
    assert first.keys() == {"mel", "kl"}


def test_a_checkpoint_of_another_shape_is_named_and_nothing_starts_again(base, items, tmp_path):
    trainer = SemanticTrainer(base, PLAN, voice="anna")
    fit(trainer, items, [], PLAN, resume=tmp_path)
    saved = latest_checkpoint(tmp_path, trainer.identity)
    saved.state["trained"]["bert_proj.weight"] = torch.zeros(3, 3)
    save_checkpoint(tmp_path, saved)
    with pytest.raises(
        ValueError, match=r"step 5 in .* another shape .*bert_proj\.weight is \(3, 3\) there and"
    ) as caught:
        fit(SemanticTrainer(base, PLAN, voice="anna"), items, [], PLAN, resume=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_goes_on_with_less_memory(base, items, tmp_path):
    whole = fit(SemanticTrainer(base, PLAN, voice="anna"), items, [], PLAN)
    fit(SemanticTrainer(base, PLAN, voice="anna"), items, [], PLAN, resume=tmp_path, should_stop=stop_after(2))
    smaller = replace(PLAN, accumulate=2, checkpoint_layers=True)
    again = fit(SemanticTrainer(base, smaller, voice="anna"), items, [], smaller, resume=tmp_path)
    assert again.records[-1].metrics == pytest.approx(whole.records[-1].metrics, rel=1e-3)


def test_memory_is_returned_where_layers_are_computed_again_and_kept_else(base, items, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "return_large_blocks", asked.append)
    for recompute in (True, False):
        plan = replace(PLAN, checkpoint_layers=recompute)
        fit(SemanticTrainer(base, plan, voice="anna"), items, [], plan, should_stop=lambda: True)
    assert asked == [True, False]


def test_numbers_that_are_none_are_left_out_and_skipped_steps_are_counted(base, items):
    plan = replace(PLAN, steps=2)
    broken = [replace(item, text_vectors=torch.full((len(item.phoneme_ids), 8), torch.nan)) for item in items]
    result = fit(SemanticTrainer(base, plan, voice="anna"), broken, [], plan)
    assert result.skipped == 2
    assert [record.metrics.get("skipped") for record in result.records] == [1.0, 2.0]
    assert all(math.isfinite(value) for record in result.records for value in record.metrics.values())


def test_ranks_make_the_same_curve_and_the_first_alone_saves(base, items):
    alone = fit(SemanticTrainer(base, PLAN, voice="anna"), items[1:], items[:1], PLAN)

    def work(reducer):
        saves = []
        trainer = SemanticTrainer(base, PLAN, voice="anna", reducer=reducer)
        return fit(trainer, items[1:], items[:1], PLAN, on_save=saves.append), len(saves)

    (first, saved), (second, unsaved) = in_ranks(2, work)
    assert (saved, unsaved) == (3, 0)
    assert first.records == second.records
    for ours, theirs in zip(alone.records, first.records, strict=True):
        assert theirs.metrics == pytest.approx(ours.metrics, rel=2e-3)


def test_a_plan_of_no_steps_leaves_the_base(base, items):
    plan = replace(PLAN, steps=0)
    trainer = WaveTrainer(base, plan, voice="anna")
    result = fit(trainer, items[1:], items[:1], plan)
    assert (result.steps, result.finished) == (0, True)
    assert trainer.weights() == {}
    assert [record.kind for record in result.records] == ["held_out"]


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        (SemanticTrainer, {"phoneme_ids": torch.tensor([5000])}, "has phoneme 5000 of 732"),
        (SemanticTrainer, {"tokens": torch.tensor([1024])}, "has token 1024 of 1024"),
        (SemanticTrainer, {"text_vectors": torch.zeros(3, 1024)}, "has text vectors 1024 wide, not"),
        (WaveTrainer, {"content": torch.zeros(60, 768)}, "has content features 768 wide, not"),
        (WaveTrainer, {"speaker_vector": None}, "has no speaker vector"),
        (WaveTrainer, {"speaker_vector": torch.zeros(7)}, "has a speaker vector 7 wide, not"),
    ],
)
def test_clips_of_another_release_are_named_before_the_first_step(base, items, kind, changed, said):
    other = replace(items[2], **changed)
    seen = []
    with pytest.raises(ValueError, match=f"clip clip02 {said}.* prepare the corpus again with --base nano"):
        fit(kind(base, PLAN, voice="anna"), items[:2], [other], PLAN, on_step=seen.append)
    assert not seen


def test_a_checkpoint_is_never_older_than_asked_for(base, items, tmp_path):
    plan = replace(PLAN, save_every=100)
    seen = []

    def count(record):
        seen.append(sorted(path.name for path in tmp_path.glob("*.pt")))

    result = fit(
        SemanticTrainer(base, plan, voice="anna"), items, [], plan, resume=tmp_path, save_every_s=0.0, on_step=count
    )
    assert seen[:3] == [[], ["step-000001.pt"], ["step-000001.pt", "step-000002.pt"]]
    assert result.finished
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["step-000004.pt", "step-000005.pt"]
