from dataclasses import replace
from pathlib import Path

from pipelines.report.history import Change, VoiceSummary, changes, remember
from pipelines.report.numbers import CorpusNumbers, VoiceNumbers
from pipelines.report.page import page
from pipelines.storage import LocalStorage


def summary(voice: str, **numbers: object) -> VoiceSummary:
    values = {"seconds_in": 10.0, "seconds_kept": 8.0, "seconds_rejected": 1.0, "state": "prepared"}
    return VoiceSummary(voice=voice, **{**values, **numbers})  # type: ignore[arg-type]


def test_voices_that_came_went_or_changed_are_told_and_others_not() -> None:
    before = [summary("ada"), summary("ben"), summary("gone")]
    now = [summary("ada"), summary("ben", seconds_kept=9.0), summary("new")]
    told = {change.voice: change for change in changes(before, now)}
    assert set(told) == {"ben", "gone", "new"}
    assert told["new"] == Change(voice="new", before=None, now=now[2])
    assert told["gone"].now is None


def test_a_corpus_is_compared_with_the_one_before_it_and_not_with_itself(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    voice = VoiceNumbers(voice="ada", state="prepared", seconds_in=10, seconds_kept=5)
    first = CorpusNumbers(name="corpus", digest="1", voices=(voice,))
    assert remember(first, storage) == ()
    assert remember(first, storage) == ()
    second = replace(first, digest="2", voices=(replace(voice, seconds_kept=7),))
    (change,) = remember(second, storage)
    assert change.before is not None
    assert change.before.seconds_kept == 5
    # Written again, the report still compares with the corpus before, not with its own first writing.
    assert remember(second, storage) == (change,)


def test_the_page_says_what_is_better_and_what_is_worse() -> None:
    before = summary("ada", character_error_rate=0.2, likeness=0.8)
    now = summary("ada", seconds_kept=4.0, character_error_rate=0.1, likeness=0.7, model_version="2")
    text = page(CorpusNumbers(name="corpus"), changes=[Change(voice="ada", before=before, now=now)])
    assert '<span class="change worse">−4.0 s kept</span>' in text
    assert '<span class="change better">Character errors 20.0 % → 10.0 %</span>' in text
    assert '<span class="change worse">Likeness 0.800 → 0.700</span>' in text
    assert "version 2" in text
    assert "Since the corpus before" not in page(CorpusNumbers(name="corpus"))
