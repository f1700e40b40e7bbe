"""Phases of many voices together: each as `fit` does it, stopped, resumed and failed each by itself."""

from dataclasses import replace

import pytest
import torch

from gsv_core.training.adapter_loop import VoiceRun, fit_many
from gsv_core.training.loop import DivergedError, fit
from gsv_core.training.mel_trainer import MelTrainer
from gsv_core.training.schedules import PhasePlan, Trains
from gsv_core.training.semantic_trainer import SemanticTrainer

PLAN = PhasePlan(
    steps=6,
    batch_size=2,
    learning_rate=2e-3,
    trains=Trains.LOW_RANK,
    rank=2,
    save_every=2,
    evaluate_every=2,
    longest_frames=48,
)
VOICES = ("anna", "bert", "cleo")


def run_of(number, items, phase="semantic", **values):
    """Voices of different data, rates and numbers of steps."""
    plan = replace(PLAN, seed=number, steps=PLAN.steps - 2 * number, learning_rate=PLAN.learning_rate / (number + 1))
    given = items[1 : 3 + number]
    return replace(
        VoiceRun(voice=VOICES[number], phase=phase, plan=plan, items=given, held_out=items[:1]),
        **values,
    )


def numbers_of(records):
    return [(record.kind, record.step, value) for record in records for value in record.metrics.values()]


@pytest.mark.parametrize("phase", ["semantic", "wave"])
@pytest.mark.parametrize("seats", [2, 8])
def test_every_voice_goes_its_own_way(base, mel_base, items, phase, seats):
    used, kind = (base, SemanticTrainer) if phase == "semantic" else (mel_base, MelTrainer)
    saves = {voice: {} for voice in VOICES}
    runs = [
        run_of(number, items, phase, on_save=lambda save, voice=voice: saves[voice].update({save.step: save}))
        for number, voice in enumerate(VOICES)
    ]
    results = fit_many(used, runs, seats=seats)
    assert list(results) == list(VOICES)
    for run in runs:
        alone = {}
        wanted = fit(
            kind(used, run.plan, voice=run.voice),
            run.items,
            run.held_out,
            run.plan,
            on_save=lambda save, alone=alone: alone.update({save.step: save}),
        )
        found = results[run.voice]
        assert (found.steps, found.ended, found.skipped) == (run.plan.steps, "steps", 0)
        ours, theirs = numbers_of(found.records), numbers_of(wanted.records)
        assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
        assert [entry[2] for entry in ours] == pytest.approx([entry[2] for entry in theirs], rel=1e-4)
        assert saves[run.voice].keys() == alone.keys()
        for step, save in alone.items():
            ours = saves[run.voice][step]
            assert ours.metadata == save.metadata
            assert {name: tensor.shape for name, tensor in ours.weights.items()} == {
                name: tensor.shape for name, tensor in save.weights.items()
            }
            for name, tensor in save.weights.items():
                torch.testing.assert_close(
                    ours.weights[name], tensor, rtol=1e-4, atol=0.1 * run.plan.learning_rate, msg=name
                )


def test_the_same_runs_on_the_same_seats_give_the_same_bits(mel_base, items):
    def weights():
        found = {}
        runs = [
            run_of(number, items, "wave", on_save=lambda save, number=number: found.update({number: save.weights}))
            for number in range(3)
        ]
        fit_many(mel_base, runs, seats=2)
        return found

    first, second = weights(), weights()
    for number, tensors in first.items():
        assert all(torch.equal(tensor, second[number][name]) for name, tensor in tensors.items())


def test_a_stopped_voice_goes_on_from_its_checkpoint(base, items, tmp_path):
    """All are stopped at different steps and go on, in the same company: at most rounding differs."""
    whole = fit_many(base, [run_of(number, items) for number in range(3)])
    asked = {voice: iter(range(100)) for voice in VOICES}

    def stopping(number, stop):
        voice = VOICES[number]
        return run_of(
            number,
            items,
            resume=tmp_path / voice,
            should_stop=lambda: stop and next(asked[voice]) >= 1 + number % 2,
        )

    first = fit_many(base, [stopping(number, stop=True) for number in range(3)])
    assert [result.ended for result in first.values()] == ["stopped"] * 3
    assert [result.steps for result in first.values()] == [1, 2, 1]
    second = fit_many(base, [stopping(number, stop=False) for number in range(3)])
    for voice in VOICES:
        assert second[voice].ended == "steps"
        ours, theirs = numbers_of(second[voice].records), numbers_of(whole[voice].records)
        assert [entry[2] for entry in ours] == pytest.approx([entry[2] for entry in theirs], rel=1e-4)


def test_a_voice_alone_in_its_pack_resumes_bit_by_bit(base, items, tmp_path):
    whole = fit_many(base, [run_of(0, items)])["anna"]
    asked = iter(range(100))
    fit_many(base, [run_of(0, items, resume=tmp_path, should_stop=lambda: next(asked) >= 3)])
    torch.rand(5)
    assert fit_many(base, [run_of(0, items, resume=tmp_path)])["anna"].records == whole.records


@pytest.mark.parametrize("phase", ["semantic", "wave"])
@pytest.mark.parametrize("alone_first", [True, False])
def test_a_voice_goes_on_in_a_pack_or_alone_whichever_it_began_in(base, mel_base, items, tmp_path, phase, alone_first):
    used, kind = (base, SemanticTrainer) if phase == "semantic" else (mel_base, MelTrainer)
    run = run_of(0, items, phase, resume=tmp_path)

    def going_on(steps, *, alone):
        asked = iter(range(100))
        given = {"resume": tmp_path, "should_stop": lambda: next(asked) >= steps}
        if not alone:
            return fit_many(used, [replace(run, **given)])[run.voice]
        return fit(kind(used, run.plan, voice=run.voice), run.items, run.held_out, run.plan, **given)

    whole = fit(kind(used, run.plan, voice=run.voice), run.items, run.held_out, run.plan)
    assert going_on(3, alone=alone_first).ended == "stopped"
    found = going_on(99, alone=not alone_first)
    assert found.ended == "steps"
    ours, theirs = numbers_of(found.records), numbers_of(whole.records)
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    assert [entry[2] for entry in ours] == pytest.approx([entry[2] for entry in theirs], rel=1e-4)


def test_a_voice_that_diverges_or_has_nothing_leaves_the_others(base, items):
    broken = [replace(item, text_vectors=torch.full((len(item.phoneme_ids), 8), torch.nan)) for item in items[1:3]]
    runs = [
        run_of(0, items),
        replace(run_of(1, items), items=broken, plan=replace(PLAN, most_skipped=1)),
        replace(run_of(2, items), items=[]),
    ]
    results = fit_many(base, runs)
    assert results["anna"].ended == "steps"
    assert isinstance(results["bert"], DivergedError)
    assert "cleo has no clip" in str(results["cleo"])
    alone = fit(SemanticTrainer(base, runs[0].plan, voice="anna"), runs[0].items, runs[0].held_out, runs[0].plan)
    ours, theirs = numbers_of(results["anna"].records), numbers_of(alone.records)
    assert [entry[2] for entry in ours] == pytest.approx([entry[2] for entry in theirs], rel=1e-4)


def test_early_stop_is_a_voices_own(base, items):
    patient = run_of(0, items)
    hasty = run_of(1, items, plan=replace(PLAN, patience=1, evaluate_every=1, learning_rate=1e-12, weight_decay=0.0))
    results = fit_many(base, [patient, hasty])
    assert results["anna"].ended == "steps"
    assert results["bert"].ended == "early"
    assert results["bert"].steps < PLAN.steps


def test_what_cannot_be_trained_together_is_refused(base, items):
    with pytest.raises(ValueError, match="0 seats"):
        fit_many(base, [run_of(0, items)], seats=0)
    with pytest.raises(ValueError, match="anna would train twice"):
        fit_many(base, [run_of(0, items), run_of(0, items)])
    assert fit_many(base, []) == {}
