"""Which sounds of its language a voice has been heard to say, which it lacks, and which sentences would add them.

Phonemised text goes in; out come, per language, the phonemes, the tones (a Chinese final with its tone, an English
vowel with its stress) and the phoneme pairs that were seen and missing, each weighted by how common it is. A pair is
two phonemes said one after the other: marks and silences part them, the pitch marks of Japanese and the blanks of
Korean do not. Japanese and Korean have no tones here.

How common a unit is comes from the tables in `data` (`coverage_tables` makes them). They are estimates from what
permissively licensed packages and texts of our own offer, good for an order of importance and not for phonetics:
English words and word pairs as often as on the web of 2006, each in its first dictionary pronunciation; Mandarin words
as often as jieba counted them; Cantonese the same words read aloud, so written rather than spoken Cantonese; Japanese
and Korean a page of our own prose, with a tenth of the weight on the words of a dictionary, each counted once. Pairs
across Chinese words are those that words drawn independently would make.
"""

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise

from gsv_core.text.language_spans import LANGUAGES
from gsv_core.text.symbols import MARKS, PAD, UNKNOWN

KINDS = ("phonemes", "tones", "pairs")
RARE = 5
"""A unit heard fewer times than this is hardly learned."""

_BREAKS = MARKS | {PAD, "停", "SP", "SP2", "SP3"}
# Pitch marks, ends of accent phrases (the unknown symbol in the inventories) and blanks are no sounds of their own.
_TRANSPARENT = frozenset({UNKNOWN, "#", "[", "]", "空"})
_TONED = {"zh": re.compile("(.+)[1-5]"), "yue": re.compile("(Y.+)[1-6]"), "en": re.compile("([A-Z]+)[0-2]")}
# What one sentence costs a speaker beside its length, in phonemes: turning the page, breathing, starting again.
_COST_OF_A_SENTENCE = 10

Unit = tuple[str, str, str]
"""A language, a kind and a name: ("zh", "phonemes", "ch"), ("zh", "tones", "ong2"), ("zh", "pairs", "ch ong")."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One unit: how often it was heard, and its weight, in parts per million of its kind in the language."""

    name: str
    weight: int
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class KindCoverage:
    """One kind of unit in one language. `weighted_share` is what part of running speech the seen ones make up.

    `missing` and `rare` (seen, but fewer than `RARE` times) are in order of weight.
    """

    kind: str
    known: int
    seen: int
    weighted_share: float
    missing: tuple[Heard, ...]
    rare: tuple[Heard, ...]

    @property
    def share(self) -> float:
        return self.seen / self.known


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What was heard of one language: `kinds` in the order of `KINDS`, without those the language has not."""

    language: str
    phonemes_heard: int
    kinds: tuple[KindCoverage, ...]

    @property
    def missing(self) -> dict[Unit, int]:
        """Every missing unit with its weight."""
        return {(self.language, kind.kind, heard.name): heard.weight for kind in self.kinds for heard in kind.missing}


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence one might record: the units it holds, and what saying it costs."""

    text: str
    units: frozenset[Unit]
    cost: int

    def __post_init__(self) -> None:
        if self.cost <= 0:
            raise ValueError(f"a sentence costs something to say, got {self.cost}")

    @classmethod
    def of(cls, text: str, spans: Sequence[tuple[str, Sequence[str]]]) -> "Sentence":
        """The sentence `text` with its (language, phonemes)."""
        counts = count_units(spans)
        units = frozenset((language, kind, name) for (language, kind), names in counts.items() for name in names)
        return cls(text=text, units=units, cost=sum(len(phonemes) for _, phonemes in spans) + _COST_OF_A_SENTENCE)


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """A sentence worth recording, and the units that it adds to those before it, in order of weight."""

    sentence: Sentence
    adds: tuple[Unit, ...]
    weight: int


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Sentences in the order of their worth; `uncovered` are the units that none of them holds, in order of weight."""

    sentences: tuple[Proposed, ...]
    uncovered: tuple[Unit, ...]


def count_units(spans: Iterable[tuple[str, Sequence[str]]]) -> dict[tuple[str, str], Counter[str]]:
    """(language, kind) -> how often each unit occurs in `spans` of (language, phonemes)."""
    singles: dict[str, Counter[str]] = {}
    neighbours: dict[str, Counter[tuple[str, str]]] = {}
    for language, phonemes in spans:
        sounds = [phoneme for phoneme in phonemes if phoneme not in _TRANSPARENT]
        singles.setdefault(language, Counter()).update(sounds)
        neighbours.setdefault(language, Counter()).update(pairwise(sounds))
    counts: dict[tuple[str, str], Counter[str]] = {}
    for language, found in singles.items():
        for kind in KINDS:
            counts[language, kind] = Counter()
        base = {phoneme: _base(phoneme, language) for phoneme in found}
        for phoneme, count in found.items():
            if phoneme not in _BREAKS:
                counts[language, "phonemes"][base[phoneme]] += count
                if base[phoneme] != phoneme:
                    counts[language, "tones"][phoneme] += count
        for (first, second), count in neighbours[language].items():
            if first not in _BREAKS and second not in _BREAKS:
                counts[language, "pairs"][f"{base[first]} {base[second]}"] += count
    return counts


def _base(phoneme: str, language: str) -> str:
    """A phoneme without its tone or stress."""
    toned = _TONED[language].fullmatch(phoneme) if language in _TONED else None
    return toned.group(1) if toned else phoneme


@cache
def frequencies(language: str) -> Mapping[str, Mapping[str, int]]:
    """Kind -> unit -> parts per million of its kind in running speech of `language`.

    Raises:
        ValueError: there is no table for that language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"no table of sounds for {language!r}: there are {', '.join(LANGUAGES)}")
    text = resources.files("gsv_core.text").joinpath(f"data/coverage_{language}.tsv").read_text(encoding="utf-8")
    table: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        kind, unit, weight = line.split("\t")
        table.setdefault(kind, {})[unit] = int(weight)
    return table


def measure(spans: Iterable[tuple[str, Sequence[str]]], *, rare: int = RARE) -> tuple[Coverage, ...]:
    """What `spans` of (language, phonemes) cover of their languages, the most heard first.

    Languages without a table are left out; so are units no table knows.
    """
    counts = count_units(spans)
    languages = [language for language, kind in counts if kind == "phonemes" and language in LANGUAGES]
    found = [
        Coverage(
            language=language,
            phonemes_heard=counts[language, "phonemes"].total(),
            kinds=tuple(
                _kind_coverage(kind, table, counts[language, kind], rare)
                for kind, table in frequencies(language).items()
            ),
        )
        for language in languages
        if counts[language, "phonemes"]
    ]
    return tuple(sorted(found, key=lambda coverage: (-coverage.phonemes_heard, coverage.language)))


def _kind_coverage(kind: str, table: Mapping[str, int], counts: Mapping[str, int], rare: int) -> KindCoverage:
    units = [Heard(name=name, weight=weight, count=counts.get(name, 0)) for name, weight in table.items()]
    units.sort(key=lambda unit: (-unit.weight, unit.name))
    seen = [unit for unit in units if unit.count]
    return KindCoverage(
        kind=kind,
        known=len(units),
        seen=len(seen),
        weighted_share=sum(unit.weight for unit in seen) / sum(unit.weight for unit in units),
        missing=tuple(unit for unit in units if not unit.count),
        rare=tuple(unit for unit in seen if unit.count < rare),
    )


def propose_sentences(missing: Mapping[Unit, int], sentences: Sequence[Sentence], *, most: int = 20) -> Proposal:
    """The sentences that cover what is `missing` (unit -> weight), at most `most`, those that pay best first.

    Weighted set cover, greedily: always the sentence with the most missing weight for its cost (Chvátal 1979), the
    earlier of two equal ones. What a sentence adds can only shrink as others are chosen, so an old figure is a bound
    and few are worked out anew (Minoux 1978): near-linear in all sentences.

    Raises:
        ValueError: `most` is negative.
    """
    if most < 0:
        raise ValueError(f"the number of sentences must not be negative, got {most}")
    left = dict(missing)

    def gain(sentence: Sentence) -> int:
        return sum(left[unit] for unit in sentence.units if unit in left)

    queue = [
        (-worth / sentence.cost, index) for index, sentence in enumerate(sentences) if (worth := gain(sentence)) > 0
    ]
    heapq.heapify(queue)
    chosen: list[Proposed] = []
    while queue and len(chosen) < most:
        bound, index = heapq.heappop(queue)
        sentence = sentences[index]
        worth = gain(sentence)
        if not worth:
            continue
        if -worth / sentence.cost > bound:
            heapq.heappush(queue, (-worth / sentence.cost, index))
            continue
        adds = _by_weight(left, (unit for unit in sentence.units if unit in left))
        chosen.append(Proposed(sentence=sentence, adds=adds, weight=worth))
        for unit in adds:
            del left[unit]
    return Proposal(sentences=tuple(chosen), uncovered=_by_weight(left, left))


def _by_weight(weights: Mapping[Unit, int], units: Iterable[Unit]) -> tuple[Unit, ...]:
    return tuple(sorted(units, key=lambda unit: (-weights[unit], unit)))
