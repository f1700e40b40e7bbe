import json
from dataclasses import replace
from pathlib import Path

import pytest

from gsv_core.checkpoints.releases import Release
from gsv_core.training.recipes import choose_recipe, trained_parts
from gsv_core.training.schedules import Schedule, Trains, rate_share
from gsv_core.training.semantic_trainer import SemanticTrainer
from gsv_core.training.wave_trainer import WaveTrainer


@pytest.mark.parametrize(
    ("seconds", "semantic", "wave"),
    [
        (12, Trains.NOTHING, Trains.PROJECTIONS),
        (60, Trains.LOW_RANK, Trains.ACOUSTIC_SIDE),
        (600, Trains.LOW_RANK, Trains.EVERYTHING),
        (7200, Trains.EVERYTHING, Trains.EVERYTHING),
    ],
)
@pytest.mark.parametrize("release", [Release.V1, Release.V2, Release.V2_PRO, Release.V2_PRO_PLUS])
def test_more_speech_moves_more_weights(seconds, semantic, wave, release):
    recipe = choose_recipe(seconds, release)
    assert (recipe.semantic.trains, recipe.wave.trains) == (semantic, wave)
    assert (recipe.semantic.steps == 0) == (semantic is Trains.NOTHING)
    if wave is not Trains.EVERYTHING:
        assert 1e-5 <= recipe.wave.learning_rate <= 5e-5


def test_steps_grow_with_the_data_but_not_below_a_hundred_clips():
    steps = [choose_recipe(seconds, Release.V2).wave.steps for seconds in (130, 400, 4000, 8000)]
    assert steps[0] == steps[1] == 8 * 25
    assert steps[3] == 2 * steps[2] == 8 * 400


def test_nano_trains_everything_and_saves_two_candidates_per_phase():
    recipe = choose_recipe(40, Release.NANO, seed=3)
    for plan in (recipe.semantic, recipe.wave):
        assert plan.trains is Trains.EVERYTHING
        assert plan.steps == 2 * plan.save_every
        assert plan.seed == 3
    assert "not speech" in recipe.note


def test_fields_of_a_plan_can_be_overridden_and_are_checked():
    recipe = choose_recipe(600, Release.V2, semantic={"steps": 7, "trains": "nothing"}, wave={"learning_rate": 1e-6})
    assert (recipe.semantic.steps, recipe.semantic.trains) == (7, Trains.NOTHING)
    assert recipe.wave.learning_rate == 1e-6
    with pytest.raises(
        ValueError, match=r"recipe\.wave has no field epochs; there are accumulate, augment, batch_size"
    ):
        choose_recipe(600, Release.V2, wave={"epochs": 3})
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        choose_recipe(600, Release.V2, semantic={"batch_size": 0})


def test_a_recipe_is_json_and_no_speech_has_none():
    record = json.loads(json.dumps(choose_recipe(20, Release.V2).record()))
    assert record["name"] == "projections"
    assert record["wave"]["trains"] == "projections"
    with pytest.raises(ValueError, match="0 s"):
        choose_recipe(0, Release.V2)


def test_upstreams_recipe_has_its_epochs_rates_and_saves():
    recipe = choose_recipe(60, Release.V2, name="upstream", seed=2)
    semantic, wave = recipe.semantic, recipe.wave
    assert (semantic.schedule, wave.schedule) == (Schedule.UPSTREAM_SEMANTIC, Schedule.UPSTREAM_WAVE)
    assert (semantic.steps, semantic.save_every) == (15 * 13, 5 * 13)
    assert (wave.steps, wave.save_every) == (8 * 25, 4 * 25)
    assert [semantic.learning_rate * rate_share(step, semantic) for step in (0, 1, 99)] == [0.01, 0.002, 0.002]
    rates = [wave.learning_rate * rate_share(step, wave) for step in (0, 24, 25)]
    assert rates == pytest.approx([1e-4 * 0.999875, 1e-4 * 0.999875, 1e-4 * 0.999875**2])
    flow = choose_recipe(3600, Release.V4, name="upstream").wave
    assert (flow.steps, flow.trains) == (2 * 180, Trains.LOW_RANK)
    assert json.loads(json.dumps(recipe.record())) == recipe.record()


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match="upstream"):
        choose_recipe(60, Release.V2, name="theirs")


@pytest.mark.parametrize("release", [Release.V3, Release.V4])
@pytest.mark.parametrize(
    ("seconds", "wave"),
    [
        (20, Trains.PROJECTIONS),
        (60, Trains.LOW_RANK),
        (600, Trains.LOW_RANK),
        (3600, Trains.EVERYTHING),
    ],
)
def test_flow_matching_is_adapted_until_there_is_half_an_hour(release: Release, seconds: float, wave: Trains) -> None:
    recipe = choose_recipe(seconds, release)
    assert recipe.wave.trains == wave
    assert ("SoVITS LoRA" in recipe.note) == (wave == Trains.LOW_RANK)


def test_only_voices_of_less_than_two_minutes_are_augmented_and_none_of_nano_or_upstream():
    assert [choose_recipe(seconds, Release.V2).wave.augment for seconds in (20, 60, 119, 120, 3600)] == [
        *(True, True, True),
        *(False, False),
    ]
    assert not any(choose_recipe(600, Release.V2, name=name).semantic.patience for name in ("upstream",))
    assert not choose_recipe(20, Release.NANO).wave.augment


def test_patience_outlasts_the_way_to_the_first_candidate():
    for seconds in (20, 60, 600, 7200):
        recipe = choose_recipe(seconds, Release.V2)
        for plan in (recipe.semantic, recipe.wave):
            assert not plan.steps or plan.patience * plan.evaluate_every >= plan.save_every - plan.evaluate_every


def test_a_switch_of_a_plan_can_be_set_and_takes_no_number():
    assert choose_recipe(600, Release.V2, semantic={"preference": True}).semantic.preference
    with pytest.raises(ValueError, match=r"recipe\.wave\.augment is 1, expected bool"):
        choose_recipe(600, Release.V2, wave={"augment": 1})
    with pytest.raises(ValueError, match=r"recipe\.wave\.steps is True, expected int"):
        choose_recipe(600, Release.V2, wave={"steps": True})


def documented_parts():
    """Rows of the table in docs/training.md: release, phase, trains → modules, adapted matrices, parameters."""
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[1] in ("semantic", "wave"):
            releases, phase, trains, modules, counts = cells
            names = modules.replace("`", "").split(", ")
            adapted = [name.removeprefix("LoRA on ") for name in names if name.startswith("LoRA on ")]
            whole = [""] if names == ["all"] else [name for name in names if not name.startswith("LoRA on ")]
            for release, count in zip(releases.split(", "), counts.split(" / "), strict=True):
                rows[release, phase, trains] = (tuple(whole), tuple(adapted), int(count.replace(",", "")))
    return rows


def test_the_documents_table_of_trained_modules_is_the_codes():
    rows = documented_parts()
    for (release, phase, trains), documented in rows.items():
        parts = trained_parts(Release(release), phase, Trains(trains))
        assert documented == (parts.modules, parts.adapted, parts.parameters), (release, phase, trains)
    for release in Release:
        for seconds in (20, 60, 600, 7200):
            for name in (None, "upstream"):
                recipe = choose_recipe(seconds, release, name=name)
                for phase, plan in (("semantic", recipe.semantic), ("wave", recipe.wave)):
                    assert not plan.steps or (release, phase, plan.trains) in rows


def test_what_is_counted_is_what_a_trainer_trains(base):
    for trains in (Trains.EVERYTHING, Trains.LOW_RANK, Trains.UPPER_LAYERS):
        plan = replace(choose_recipe(60, Release.NANO).semantic, trains=trains)
        trained = SemanticTrainer(base, plan, voice="anna").trained.values()
        assert sum(p.numel() for p in trained) == trained_parts(Release.NANO, "semantic", trains).parameters
    for trains in (Trains.EVERYTHING, Trains.PROJECTIONS):
        plan = replace(choose_recipe(60, Release.NANO).wave, trains=trains)
        trained = WaveTrainer(base, plan, voice="anna").trained.values()
        assert sum(p.numel() for p in trained) == trained_parts(Release.NANO, "wave", trains).parameters
