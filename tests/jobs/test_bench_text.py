import pytest

from jobs.bench_text import _different, measure_text


def test_every_language_has_a_row():
    bench = measure_text(("zh", "en"), characters=400)
    assert 0 < bench.import_seconds < 30
    assert [speed.language for speed in bench.speeds] == ["zh", "en"]
    assert all(speed.characters_per_second > 0 and speed.growth > 0 for speed in bench.speeds)


def test_the_text_goes_on_in_other_words():
    text = _different("3 and 25, ", 100)
    assert len(text) == 100
    assert "4 and 21, 5 and 22, " in text


def test_a_language_without_a_text_is_refused():
    with pytest.raises(ValueError, match="fr"):
        measure_text(("fr",))
