"""Which clips become Prompts, and what is written of it."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.prompts import Candidate, candidates_of, choose_prompts
from pipelines.rows import RATE_HZ, SelectionRow


def row(number: int, *, seconds: float = 5.0, split: str = "train", cosine: float = 0.9) -> SelectionRow:
    return SelectionRow(
        clip_id=f"{number:020x}",
        unit_id="u",
        keep=True,
        reason="",
        split=split,
        prompt=split == "train" and 3 <= seconds <= 10,
        num_samples=round(seconds * RATE_HZ),
        centroid_cosine=cosine,
    )


def example(hz: float = 120.0, level: float = 0.1, **numbers: Any) -> Any:
    phase = 2 * np.pi * hz * np.arange(RATE_HZ) / RATE_HZ
    wave = level * sum(np.sin(k * phase) / k for k in range(1, 8))
    told = {"quality": 3.0, "snr_db": 30.0, "character_error_rate": 0.1, "confidence": 0.7, **numbers}
    return SimpleNamespace(description=told, wave=wave.astype(np.float32), rate_hz=RATE_HZ)


def names(candidates: list[Candidate]) -> list[int]:
    return [int(candidate.clip_id, 16) for candidate in candidates]


def test_never_a_held_out_clip_and_the_best_recording_first() -> None:
    rows = [row(1), row(2), row(3, split="held_out"), row(4, seconds=2.0), row(5, seconds=9.5), row(6, cosine=0.5)]
    examples = {entry.clip_id: example() for entry in rows}
    examples[rows[1].clip_id] = example(quality=4.5)
    found = candidates_of(rows, examples)
    assert names(found) == [2, 1, 6, 5]
    assert found[0].worth == pytest.approx(np.mean([4.5 / 5, 30 / 40, 0.9, 0.9, 1.0]))


def test_where_no_clip_has_the_length_the_longest_serves() -> None:
    rows = [row(1, seconds=1.0), row(2, seconds=2.5), row(3, seconds=2.0), row(4, seconds=2.9, split="held_out")]
    assert names(candidates_of(rows, {entry.clip_id: example() for entry in rows})) == [2]
    with pytest.raises(ValueError, match="no clip is kept for training"):
        candidates_of(rows[3:], {})


def test_a_number_that_is_not_known_is_left_out() -> None:
    bare = example(quality=None, snr_db=None, character_error_rate=None, confidence=None)
    (found,) = candidates_of([row(1, seconds=4.0, cosine=0.6)], {row(1).clip_id: bare})
    assert found.worth == pytest.approx((0.6 + 0.8) / 2)
    assert json.dumps(found.record())


def test_styles_are_the_calm_and_the_lively_of_the_voice_itself() -> None:
    rows = [row(number) for number in range(1, 8)]
    examples = {
        entry.clip_id: example(90 + 30 * place, 0.05 + 0.03 * place, phonemes_per_second=8 + place)
        for place, entry in enumerate(rows)
    }
    examples[rows[1].clip_id].description["quality"] = 3.5  # the better of the two calmest
    candidates = candidates_of(rows, examples)
    by_name = {int(candidate.clip_id, 16): candidate.liveliness for candidate in candidates}
    assert [by_name[number] for number in range(1, 8)] == sorted(by_name.values())
    prompts = choose_prompts(candidates, lambda _: 0.5, most=1)
    assert names([prompts.styles["calm"]]) == [2]
    assert names([prompts.styles["lively"]])[0] in (6, 7)
    tried = [candidate for candidate in prompts.candidates if candidate.spoken is not None]
    assert {*names(tried)} == {*names([candidates[0], *prompts.styles.values()])}
    few = candidates_of(rows[:5], examples)
    assert choose_prompts(few, lambda _: 0.5, most=1).styles == {}


def test_the_default_is_the_best_to_speak_with_unless_it_gains_little() -> None:
    rows = [row(1), row(2, cosine=0.85), row(3, cosine=0.8)]
    candidates = candidates_of(rows, {entry.clip_id: example() for entry in rows})
    scores = {1: 0.4, 2: 0.5, 3: 0.9}

    def spoken(candidate: Candidate) -> float:
        return scores[int(candidate.clip_id, 16)]

    assert names([choose_prompts(candidates, spoken, most=2).default]) == [2]
    assert names([choose_prompts(candidates, spoken, most=3).default]) == [3]
    assert names([choose_prompts(candidates, lambda _: 0.4, most=3).default]) == [1]
    scores[2] = 0.42
    assert names([choose_prompts(candidates, spoken, most=2).default]) == [1]

    def unasked(_: Candidate) -> float:
        raise AssertionError("nothing is spoken")

    assert names([choose_prompts(candidates, unasked, most=0).default]) == [1]
    assert names([choose_prompts(candidates[:1], unasked, most=3).default]) == [1]
