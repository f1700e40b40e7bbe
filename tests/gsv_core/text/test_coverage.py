"""What was heard and what is missing; the greedy choice of sentences against the plain, slow one."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsv_core.text.coverage import KINDS, Sentence, count_units, frequencies, measure, propose_sentences
from gsv_core.text.front_end import phonemise
from gsv_core.text.language_spans import LANGUAGES
from gsv_core.text.symbols import SYMBOLS_V2

_TONE_DIGITS = {"zh": "12345", "yue": "123456", "en": "012"}


def spans(text: str, language: str):
    return [(span.language, span.phonemes) for span in phonemise(text, language).spans]


def test_units_are_counted_without_tones_and_across_words_but_not_across_pauses():
    counts = count_units([("zh", ["n", "i3", "h", "ao3", ",", "n", "in2"]), ("zh", ["n", "i3"])])
    assert counts["zh", "phonemes"] == {"n": 3, "i": 2, "h": 1, "ao": 1, "in": 1}
    assert counts["zh", "tones"] == {"i3": 2, "ao3": 1, "in2": 1}
    assert counts["zh", "pairs"] == {"n i": 2, "i h": 1, "h ao": 1, "n in": 1}


def test_stress_is_a_tone_and_pitch_marks_and_blanks_are_nothing():
    counts = count_units([("en", ["HH", "AH0", "L", "OW1", "."]), ("ja", ["h", "a", "UNK", "[", "sh", "i"])])
    assert counts["en", "phonemes"] == {"HH": 1, "AH": 1, "L": 1, "OW": 1}
    assert counts["en", "tones"] == {"AH0": 1, "OW1": 1}
    assert counts["ja", "pairs"] == {"h a": 1, "a sh": 1, "sh i": 1}
    assert counts["ja", "tones"] == {}
    assert count_units([("ko", ["ㄱ", "ㅏ", "空", "ㄴ", "停", "ㅏ"])])["ko", "pairs"] == {"ㄱ ㅏ": 1, "ㅏ ㄴ": 1}


@pytest.mark.parametrize("language", LANGUAGES)
def test_tables_hold_shares_of_units_that_the_models_know(language):
    table = frequencies(language)
    assert tuple(table) == (KINDS if language in _TONE_DIGITS else ("phonemes", "pairs"))
    known = set(SYMBOLS_V2)
    bases = {symbol.rstrip("0123456") for symbol in known} | known | {"i0"}
    for kind, units in table.items():
        assert all(weight > 0 for weight in units.values())
        assert 990_000 < sum(units.values()) < 1_010_000
        parts = {part for unit in units for part in unit.split(" ")}
        assert parts <= (known if kind == "tones" else bases)
    assert set(" ".join(table["pairs"]).split()) <= set(table["phonemes"]) | {"UH"}


def test_a_language_without_a_table_is_refused_by_name_and_left_out_of_a_measure():
    with pytest.raises(ValueError, match="'de'"):
        frequencies("de")
    assert measure([("de", ["a", "b"]), ("en", [])]) == ()


def test_what_is_heard_and_what_is_missing_add_up_to_the_language():
    (english,) = measure(spans("She had your dark suit in greasy wash water all year.", "en"))
    assert english.language == "en"
    assert [kind.kind for kind in english.kinds] == list(KINDS)
    for kind in english.kinds:
        assert kind.seen + len(kind.missing) == kind.known == len(frequencies("en")[kind.kind])
        assert 0 < kind.weighted_share < 1
        weights = [unit.weight for unit in kind.missing]
        assert weights == sorted(weights, reverse=True)
        assert all(unit.count == 0 for unit in kind.missing)
        assert all(0 < unit.count < 5 for unit in kind.rare)
    # Common things come first: the share by weight is larger than that of the bare numbers.
    assert english.kinds[2].weighted_share > english.kinds[2].share


def test_more_speech_never_covers_less():
    few = spans("我们今天去公园。", "zh")
    (before,), (after,) = measure(few), measure(few + spans("天气很好，大家都很高兴。", "zh"))
    for less, more in zip(before.kinds, after.kinds, strict=True):
        assert less.seen <= more.seen
        assert less.weighted_share <= more.weighted_share
        assert {unit.name for unit in more.missing} <= {unit.name for unit in less.missing}


def test_languages_are_measured_apart_the_most_spoken_first():
    found = measure(spans("我用Python写代码，写了很多很多代码。", "zh"))
    assert [entry.language for entry in found] == ["zh", "en"]
    assert sum(entry.phonemes_heard for entry in found) == len(
        [p for _, said in spans("我用Python写代码，写了很多很多代码。", "zh") for p in said if p not in ",."]
    )


def test_ten_thousand_utterances_are_measured_in_two_seconds():
    many = spans("我们今天去公园散步，天气很好，大家都很高兴，晚上再一起吃饭。", "zh") * 10_000
    measure(many[:1])
    began = time.process_time()
    measure(many)
    assert time.process_time() - began < 2


_UNITS = [("en", "phonemes", name) for name in "abcdefgh"]
_MISSING = st.dictionaries(st.sampled_from(_UNITS), st.integers(1, 50))
_SENTENCES = st.lists(
    st.builds(
        Sentence,
        text=st.text(max_size=3),
        units=st.frozensets(st.sampled_from(_UNITS), max_size=5),
        cost=st.integers(1, 30),
    ),
    max_size=12,
)


def plain_greedy(missing, sentences, most):
    """The same choice with nothing remembered: every sentence weighed again at every step."""
    left, chosen = dict(missing), []
    while len(chosen) < most:
        gains = [sum(left.get(unit, 0) for unit in sentence.units) for sentence in sentences]
        best = max(range(len(sentences)), key=lambda i: (gains[i] / sentences[i].cost, -i), default=None)
        if best is None or not gains[best]:
            break
        chosen.append(sentences[best])
        for unit in sentences[best].units:
            left.pop(unit, None)
    return chosen, set(left)


@given(_MISSING, _SENTENCES, st.integers(0, 6))
def test_the_choice_is_that_of_the_plain_greedy_search(missing, sentences, most):
    proposal = propose_sentences(missing, sentences, most=most)
    chosen, left = plain_greedy(missing, sentences, most)
    assert [entry.sentence for entry in proposal.sentences] == chosen
    assert set(proposal.uncovered) == left


@given(_MISSING, _SENTENCES)
def test_every_sentence_adds_something_and_together_they_add_all_that_can_be_had(missing, sentences):
    proposal = propose_sentences(missing, sentences, most=len(sentences))
    covered: set = set()
    for entry in proposal.sentences:
        assert entry.adds
        assert entry.weight == sum(missing[unit] for unit in entry.adds) > 0
        assert set(entry.adds) <= entry.sentence.units
        assert not covered & set(entry.adds)
        covered |= set(entry.adds)
    obtainable = set().union(*(sentence.units for sentence in sentences)) & set(missing)
    assert covered == obtainable
    assert set(proposal.uncovered) == set(missing) - obtainable
    weights = [missing[unit] for unit in proposal.uncovered]
    assert weights == sorted(weights, reverse=True)


def test_the_search_stops_where_nothing_is_missing_and_refuses_a_negative_number():
    sentence = Sentence.of("Hello.", spans("Hello.", "en"))
    assert propose_sentences({}, [sentence]).sentences == ()
    assert propose_sentences({("en", "phonemes", "HH"): 1}, []).uncovered == (("en", "phonemes", "HH"),)
    with pytest.raises(ValueError, match="negative"):
        propose_sentences({}, [], most=-1)
    with pytest.raises(ValueError, match="costs"):
        Sentence(text="", units=frozenset(), cost=0)


def test_a_sentence_with_the_missing_sounds_is_proposed_before_others():
    (heard,) = measure(spans("The dog ran home again.", "en"))
    candidates = ["The dog ran.", "A joyful boy enjoyed the voyage.", "Measure the usual treasure."]
    proposal = propose_sentences(heard.missing, [Sentence.of(text, spans(text, "en")) for text in candidates])
    assert {entry.sentence.text for entry in proposal.sentences[:2]} == set(candidates[1:])
    assert ("en", "phonemes", "OY") not in proposal.uncovered
    assert ("en", "phonemes", "CH") in proposal.uncovered


def test_a_hundred_thousand_sentences_are_searched_in_seconds():
    generator = random.Random(0)
    missing = {("en", "pairs", str(index)): 1 + index for index in range(1000)}
    names = list(missing)
    sentences = [
        Sentence(text=str(number), units=frozenset(generator.sample(names, 10)), cost=generator.randint(20, 80))
        for number in range(100_000)
    ]
    began = time.process_time()
    proposal = propose_sentences(missing, sentences, most=100)
    assert time.process_time() - began < 5
    assert len(proposal.sentences) == 100
