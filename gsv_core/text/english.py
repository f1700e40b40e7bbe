"""English text to phonemes: ARPAbet with stress marks, one phoneme for each mark.

Words are looked up in the CMU Pronouncing Dictionary (a data file of ours), homographs decided by their part of speech
(`english_tags`), unknown words cut into known ones (wordsegment) or spoken by g2p_en's network, whose two data files
are read without importing the package: its import asks the network for more.
"""

import gzip
import importlib.util
import re
import threading
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gsv_core.text.english_normalisation import normalise
from gsv_core.text.english_tags import tag_words
from gsv_core.text.reading import Reading
from gsv_core.text.symbols import MARKS

_FEWEST_PHONEMES = 4
_LONGEST_SPELLED = 3
# Dictionary words that are names of letters in a row when somebody writes them today.
_SPELLED = frozenset({"ae", "ai", "ar", "ios", "hud", "os"})
_PHONEMES = [
    "AA0",
    "AA1",
    "AA2",
    "AE0",
    "AE1",
    "AE2",
    "AH0",
    "AH1",
    "AH2",
    "AO0",
    "AO1",
    "AO2",
    "AW0",
    "AW1",
    "AW2",
    "AY0",
    "AY1",
    "AY2",
    "B",
    "CH",
    "D",
    "DH",
    "EH0",
    "EH1",
    "EH2",
    "ER0",
    "ER1",
    "ER2",
    "EY0",
    "EY1",
    "EY2",
    "F",
    "G",
    "HH",
    "IH0",
    "IH1",
    "IH2",
    "IY0",
    "IY1",
    "IY2",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "OW0",
    "OW1",
    "OW2",
    "OY0",
    "OY1",
    "OY2",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "UH0",
    "UH1",
    "UH2",
    "UW",
    "UW0",
    "UW1",
    "UW2",
    "V",
    "W",
    "Y",
    "Z",
    "ZH",
]
_TOKEN = re.compile(r"[A-Za-z]+(?:\.[A-Za-z]+)+(?=$|[^A-Za-z'])|[A-Za-z](?:[A-Za-z]|['\-])+[A-Za-z]|[A-Za-z]+|\S")
_LOADING = threading.Lock()


@cache
def _load_dictionary() -> dict[str, str]:
    data = resources.files("gsv_core.text").joinpath("data/cmudict.txt.gz").read_bytes()
    lines = gzip.decompress(data).decode("utf-8").splitlines()
    return {word: phonemes for word, _, phonemes in (line.partition(" ") for line in lines) if word not in _SPELLED}


def dictionary_of_words() -> dict[str, str]:
    """Word in small letters -> its phonemes with blanks between, loaded once."""
    with _LOADING:
        return _load_dictionary()


def _g2p_en_file(name: str) -> Path:
    spec = importlib.util.find_spec("g2p_en")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("English needs g2p_en: install gsv-fleet with its dependencies")
    return Path(spec.submodule_search_locations[0]) / name


@dataclass(frozen=True)
class _Homograph:
    """A word of two pronunciations: the first where its tag is one of `tags`, or begins with a tag of one letter."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    tags: tuple[str, ...]


@cache
def _homographs() -> dict[str, _Homograph]:
    found = {}
    for line in _g2p_en_file("homographs.en").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") and line.count("|") == 3:
            word, first, second, tag = line.strip().split("|")
            found[word.lower()] = _Homograph(tuple(first.split()), tuple(second.split()), (tag,))
    # The list has the two of "read" the wrong way round, and for "complex" a tag that no tagger answers with.
    found["read"] = _Homograph(("R", "IY1", "D"), ("R", "EH1", "D"), ("VB", "VBP"))
    found["complex"] = replace(found["complex"], tags=("JJ",))
    return found


class _Network:
    """g2p_en's letters to phonemes: one GRU reads the word, another writes at most 20 phonemes (Park & Kim 2018)."""

    _UNKNOWN_LETTER, _END_OF_WORD, _FIRST_LETTER = 1, 2, 3
    _BEGIN, _END, _FIRST_PHONEME = 2, 3, 4
    _LONGEST = 20

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self._weights = {name: arrays[name] for name in arrays.files}

    def _letter(self, letter: str) -> int:
        return self._FIRST_LETTER + ord(letter) - ord("a") if "a" <= letter <= "z" else self._UNKNOWN_LETTER

    def _step(self, side: str, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        """One GRU step, (64,), (128,) -> (128,)."""
        w = self._weights
        from_x = w[f"{side}_w_ih"] @ x + w[f"{side}_b_ih"]
        from_h = w[f"{side}_w_hh"] @ h + w[f"{side}_b_hh"]
        reset_x, update_x, new_x = np.split(from_x, 3)
        reset_h, update_h, new_h = np.split(from_h, 3)
        reset, update = (1 / (1 + np.exp(-(a + b))) for a, b in ((reset_x, reset_h), (update_x, update_h)))
        return (1 - update) * np.tanh(new_x + reset * new_h) + update * h

    def __call__(self, word: str) -> tuple[str, ...]:
        w = self._weights
        h = np.zeros(w["enc_w_hh"].shape[1], np.float32)
        for index in [*map(self._letter, word), self._END_OF_WORD]:
            h = self._step("enc", w["enc_emb"][index], h)
        said: list[str] = []
        last = self._BEGIN
        while len(said) < self._LONGEST:
            h = self._step("dec", w["dec_emb"][last], h)
            last = int((w["fc_w"] @ h + w["fc_b"]).argmax())
            if last == self._END:
                break
            if last >= self._FIRST_PHONEME:
                said.append(_PHONEMES[last - self._FIRST_PHONEME])
            else:
                break
        return tuple(said)


@cache
def _network() -> _Network:
    return _Network(_g2p_en_file("checkpoint20.npz"))


@cache
def _segmenter():
    import wordsegment

    segmenter = wordsegment.Segmenter()
    segmenter.load()
    return segmenter


# One unknown word is cut into at most this many letters at a time; longer ones are no words.
_LONGEST_WORD = 40


def _parts(word: str) -> list[str]:
    with _LOADING:
        return _segmenter().segment(word)


def engines() -> dict[str, str]:
    """Names and versions of the dictionaries that decide the result."""
    return {"cmudict": "0.7b", "g2p_en": version("g2p_en"), "wordsegment": version("wordsegment")}


def _spell(word: str) -> tuple[str, ...]:
    """The names of the letters."""
    dictionary = dictionary_of_words()
    names = {"a": "EY1"}
    return tuple(
        phoneme
        for letter in word.lower()
        if letter.isalpha()
        for phoneme in names.get(letter, dictionary.get(letter, "")).split()
    )


def with_s(stem: tuple[str, ...]) -> tuple[str, ...]:
    """A possessive: S after voiceless sounds, AH0 Z after hissing ones, Z elsewhere."""
    last = stem[-1] if stem else ""
    if last in ("P", "T", "K", "F", "TH", "HH"):
        return (*stem, "S")
    if last in ("S", "Z", "SH", "ZH", "CH", "JH"):
        return (*stem, "AH0", "Z")
    return (*stem, "Z")


@lru_cache(maxsize=65536)
def pronounce(word: str) -> tuple[str, ...]:
    """ARPAbet with stress marks of one English word, whatever its letters: known, spelled, cut in two or guessed.

    Empty if it holds no letter from a to z.
    """
    word = word.lower()
    known = dictionary_of_words().get(word) if len(word) > 1 else None
    if known is not None:
        return tuple(known.split())
    if len(word) <= _LONGEST_SPELLED:
        return _spell(word)
    if word.endswith("'s"):
        return with_s(pronounce(word[:-2]))
    if len(word) > _LONGEST_WORD:
        pieces = (word[start : start + _LONGEST_WORD] for start in range(0, len(word), _LONGEST_WORD))
        return tuple(phoneme for piece in pieces for phoneme in pronounce(piece))
    parts = _parts(word)
    if not parts:
        return ()
    if len(parts) == 1:
        # wordsegment takes "thirty-two" for one word, and the network knows no hyphen.
        parts = [piece for piece in word.split("-") if piece]
        if len(parts) == 1 or not all(piece in dictionary_of_words() for piece in parts):
            return _network()(word)
    return tuple(phoneme for part in parts for phoneme in pronounce(part))


def _tagged(tag: str, homograph: _Homograph) -> bool:
    return any(tag == wanted or (len(wanted) < 2 and tag.startswith(wanted)) for wanted in homograph.tags)


def _read_token(token: str, tag: str) -> tuple[str, ...]:
    if not any(letter.isalpha() for letter in token):
        return (token,)
    if len(token) == 1:
        return ("AH0",) if token == "a" else _spell(token)
    homograph = _homographs().get(token.lower())
    if homograph is not None:
        return homograph.first if _tagged(tag, homograph) else homograph.second
    if "." in token:
        # An address: its parts, without a pause for each dot.
        return tuple(phoneme for part in token.split(".") for phoneme in pronounce(part))
    return pronounce(token)


def read(text: str) -> Reading:
    """English `text` to a Reading; it keeps no alignment."""
    normal_text, lost = normalise(text)
    tokens = _TOKEN.findall(normal_text)
    ambiguous = any(token.lower() in _homographs() for token in tokens)
    tags = tag_words(tokens) if ambiguous else [""] * len(tokens)
    phonemes: list[str] = []
    for token, tag in zip(tokens, tags, strict=True):
        for phoneme in _read_token(token, tag):
            if phoneme == "'":
                phonemes.append("-")
            elif phoneme in MARKS or phoneme[0].isupper():
                phonemes.append(phoneme)
    if 0 < len(phonemes) < _FEWEST_PHONEMES:
        phonemes.insert(0, ",")
    return Reading(normal_text=normal_text, phonemes=tuple(phonemes), dropped=lost)
