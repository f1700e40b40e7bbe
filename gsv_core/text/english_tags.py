"""Part-of-speech tags of English words (Penn Treebank's), to tell homographs apart.

An averaged perceptron over the neighbours of a word and the two tags before it (Collins 2002; the features and weights
are Honnibal's, as NLTK distributes them), read from a data file of ours.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

_BEFORE = ("-START-", "-START2-")
_AFTER = ("-END-", "-END2-")


@dataclass(frozen=True)
class _Perceptron:
    """`weights` maps a feature to "tag:weight ..." in thousandths, taken apart when first met."""

    tags: tuple[str, ...]
    certain: dict[str, str]
    weights: dict[str, str]
    parsed: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def of(self, feature: str) -> tuple[tuple[int, int], ...]:
        found = self.parsed.get(feature)
        if found is None:
            pairs = (pair.split(":") for pair in self.weights.get(feature, "").split())
            found = self.parsed[feature] = tuple((int(tag), int(weight)) for tag, weight in pairs)
        return found

    def best(self, features: Sequence[str]) -> str:
        scores = [0] * len(self.tags)
        for feature in features:
            for tag, weight in self.of(feature):
                scores[tag] += weight
        return max(zip(scores, self.tags))[1]


@cache
def _load() -> _Perceptron:
    data = resources.files("gsv_core.text").joinpath("data/english_tags.txt.gz").read_bytes()
    tags, certain, *lines = gzip.decompress(data).decode("utf-8").splitlines()
    return _Perceptron(
        tags=tuple(tags.split()),
        certain=dict(pair.rsplit("/", 1) for pair in certain.split()),
        weights={feature: weights for feature, _, weights in (line.partition("\t") for line in lines)},
    )


def _shape(word: str) -> str:
    if "-" in word[1:]:
        return "!HYPHEN"
    if word.isdigit() and len(word) == 4:
        return "!YEAR"
    return "!DIGITS" if word[:1].isdigit() else word.lower()


def tag_words(words: Sequence[str]) -> list[str]:
    """One tag a word; marks are words of their own."""
    perceptron = _load()
    context = [*_BEFORE, *map(_shape, words), *_AFTER]
    last, one_before = _BEFORE
    tags = []
    for index, word in enumerate(words):
        two_left, left, here, right, two_right = context[index : index + 5]
        tag = perceptron.certain.get(word) or perceptron.best(
            (
                "bias",
                f"i suffix {word[-3:]}",
                f"i pref1 {word[:1]}",
                f"i-1 tag {last}",
                f"i-2 tag {one_before}",
                f"i tag+i-2 tag {last} {one_before}",
                f"i word {here}",
                f"i-1 tag+i word {last} {here}",
                f"i-1 word {left}",
                f"i-1 suffix {left[-3:]}",
                f"i-2 word {two_left}",
                f"i+1 word {right}",
                f"i+1 suffix {right[-3:]}",
                f"i+2 word {two_right}",
            )
        )
        tags.append(tag)
        last, one_before = tag, last
    return tags
