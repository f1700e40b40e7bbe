"""Mandarin characters of several readings, read by what stands around them: characters to pinyin syllables.

g2pW (Chen et al. 2022, "g2pW: A Conditional Weighted Softmax BERT for Polyphone Disambiguation in Mandarin",
arXiv:2203.10430) is a BERT that is asked about one character of a sentence and answers with a probability for each
reading in its list. It runs where its published folder is at hand: g2pW.onnx, POLYPHONIC_CHARS.txt and
MONOPHONIC_CHARS.txt (character, tab, bopomofo), bopomofo_to_pinyin_wo_tune_dict.json. Its own config.py is Python and
is never run. B: characters asked about, T: tokens, L: readings in the list.
"""

import ast
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER_NAME = "G2PWModel"
"""In the models folder, where `gsv models pull text` puts it."""
MODEL_FILE = "g2pW.onnx"
_TABLES = ("POLYPHONIC_CHARS.txt", "MONOPHONIC_CHARS.txt", "bopomofo_to_pinyin_wo_tune_dict.json")
# Phrases whose readings a person has put right (one `phrase: ['pin1', 'yin1']` a line); later files win.
_CORRECTIONS = ("polyphonic.rep", "polyphonic-fix.rep")
_TOKEN_LISTS = ("vocab.txt", "tokenizer.json")
_BERT_FOLDER = "chinese-roberta-wwm-ext-large"
# The published models were trained without asking about these: tone rules (一, 不) or pypinyin know better.
_NEVER_ASKED = frozenset("一不和咋嗲剖差攢倒難奔勁拗肖瘙誒泊听噢")
_NOT_SINGLE = frozenset("似攢")
# What the model sees on each side of the first and the last character asked about.
_REACH = 16
_UNKNOWN_TOKEN, _BEGIN_TOKEN, _END_TOKEN = "[UNK]", "[CLS]", "[SEP]"

Convert = Callable[[str], str]
Read = Callable[[str, Sequence[int]], list[str]]


@dataclass(frozen=True, kw_only=True)
class Polyphones:
    """Readings by context. `ask`(sentence in traditional characters, indices) -> bopomofo of each index."""

    ask: Read
    asked_about: frozenset[str]
    single: Mapping[str, str]
    pinyin_of: Mapping[str, str]
    traditional: Convert
    corrections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    digest: str = ""

    def engines(self) -> dict[str, str]:
        """Name and digest of the model, for a corpus's metadata: it decides what is said."""
        return {"g2pW": self.digest}

    def read(self, sentence: str) -> list[str | None]:
        """The syllable of each character, tone digit last; None where the model has no say."""
        asked = self.traditional(sentence)
        if len(asked) != len(sentence):
            raise ValueError(
                f"{sentence!r} has another length in traditional characters: the conversion is not one to one"
            )
        indices = [index for index, character in enumerate(asked) if character in self.asked_about]
        syllables = [self._pinyin(self.single.get(character, "")) for character in asked]
        if indices:
            first = max(0, indices[0] - _REACH)
            window = asked[first : indices[-1] + _REACH + 1]
            answers = self.ask(window, [index - first for index in indices])
            for index, answer in zip(indices, answers, strict=True):
                syllables[index] = self._pinyin(answer)
        return syllables

    def correct(self, word: str, syllables: Sequence[str | None]) -> list[str | None]:
        """The readings of one word, with those that `corrections` hold for the word or for its characters."""
        whole = self.corrections.get(word)
        if whole is not None and len(whole) == len(word):
            return list(whole)
        return [
            self.corrections[character][0] if character in self.corrections else syllable
            for character, syllable in zip(word, syllables, strict=True)
        ]

    def _pinyin(self, bopomofo: str) -> str | None:
        known = self.pinyin_of.get(bopomofo[:-1])
        return known + bopomofo[-1] if known else None


def model_files(folder: Path, vocabulary: Path | None = None) -> tuple[Path, ...]:
    """Every file of the model in `folder` that decides a reading: network, tables, corrections, token list.

    The token list (`vocabulary`) is that of the Chinese BERT the network was made from: vocab.txt or tokenizer.json in
    the folder, or in a base's own folder beside it.

    Raises:
        ValueError: one is missing.
    """
    found = vocabulary or next(
        (
            place / name
            for place in (folder, folder.parent / _BERT_FOLDER)
            for name in _TOKEN_LISTS
            if (place / name).is_file()
        ),
        folder / _TOKEN_LISTS[-1],
    )
    needed = (folder / MODEL_FILE, *(folder / name for name in _TABLES), found)
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise ValueError(
            f"no {', '.join(missing)} in {folder}: run `gsv models pull text`, or give its published folder"
        )
    return (*needed[:-1], *(folder / name for name in _CORRECTIONS if (folder / name).is_file()), found)


def polyphones_digest(folder: Path, vocabulary: Path | None = None) -> str:
    """What names the model in `folder` in a corpus: 16 hex digits over all its files.

    Raises:
        ValueError: a file is missing.
    """
    digest = hashlib.sha256()
    for path in model_files(folder, vocabulary):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def load_polyphones(
    folder: Path, vocabulary: Path | None = None, traditional: Convert | None = None, *, expected: str | None = None
) -> Polyphones:
    """The model in `folder`; `vocabulary` as in `model_files`. One whose digest is not the `expected` is refused.

    `traditional`: simplified to traditional characters one to one; OpenCC's s2tw, which the model was used with, if
    none is given.

    Raises:
        ValueError: a file or a package is missing, or the lists do not fit the model.
    """
    *_, vocabulary = model_files(folder, vocabulary)
    digest = polyphones_digest(folder, vocabulary)
    if expected is not None and digest != expected:
        raise ValueError(
            f"the g2pW in {folder} has digest {digest}, needed is {expected}: phonemes depend on it; use the files the "
            "corpus was made with, or prepare it again"
        )
    polyphonic = _pairs(folder / _TABLES[0])
    tokens = _tokens(vocabulary)
    if not {_UNKNOWN_TOKEN, _BEGIN_TOKEN, _END_TOKEN} <= set(tokens):
        raise ValueError(
            f"{vocabulary} is no token list of a BERT: give the vocab.txt of chinese-roberta-wwm-ext-large"
        )
    session = _session(folder / MODEL_FILE)
    return Polyphones(
        ask=_Asker(session=session, tokens=tokens, readings=_fitting_readings(session, polyphonic)),
        asked_about=frozenset(character for character, _ in polyphonic) - _NEVER_ASKED,
        single={
            character: reading for character, reading in _pairs(folder / _TABLES[1]) if character not in _NOT_SINGLE
        },
        pinyin_of=json.loads((folder / _TABLES[2]).read_text(encoding="utf-8")),
        traditional=traditional or _opencc(),
        corrections=_corrections(folder),
        digest=digest,
    )


def _tokens(path: Path) -> dict[str, int]:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return {token: index for index, token in enumerate(text.splitlines())}
    try:
        return {str(token): int(index) for token, index in json.loads(text)["model"]["vocab"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no tokenizer of a BERT: give that of {_BERT_FOLDER}") from error


def _pairs(path: Path) -> list[tuple[str, str]]:
    """Lines of a character, a tab and a reading."""
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.rstrip("\r").split("\t")) for line in lines if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path}: each line must be a character, a tab and a reading")
    return [(character, reading) for character, reading in pairs]


def _corrections(folder: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for path in (folder / name for name in _CORRECTIONS):
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = re.fullmatch(r"\s*(\S+?)\s*:\s*(\[[^\[\]]*\])\s*", line)
            if line.strip() and not match:
                raise ValueError(f"{path}, line {number}: expected phrase: ['syllable1', ...]")
            if match:
                found[match[1]] = tuple(str(syllable) for syllable in ast.literal_eval(match[2]))
    return found


@dataclass(frozen=True, kw_only=True)
class _Readings:
    """The model's list of readings, and which of them (L,) each character may have."""

    bopomofo: tuple[str, ...]
    character_id: Mapping[str, int]
    allowed: Mapping[str, np.ndarray]


def _readings(polyphonic: Sequence[tuple[str, str]], with_character: bool) -> _Readings:
    """Labels are sorted; in one make of the model each is a reading, in the other a character with its reading."""
    labels = sorted({f"{character} {reading}" if with_character else reading for character, reading in polyphonic})
    number = {label: index for index, label in enumerate(labels)}
    allowed: dict[str, np.ndarray] = {}
    for character, reading in polyphonic:
        mask = allowed.setdefault(character, np.zeros(len(labels), np.float32))
        mask[number[f"{character} {reading}" if with_character else reading]] = 1
    return _Readings(
        bopomofo=tuple(label.rpartition(" ")[2] for label in labels),
        character_id={character: index for index, character in enumerate(sorted(allowed))},
        allowed=allowed,
    )


def _fitting_readings(session: Any, polyphonic: Sequence[tuple[str, str]]) -> _Readings:
    width = session.get_outputs()[0].shape[-1]
    for with_character in (False, True):
        readings = _readings(polyphonic, with_character)
        if not isinstance(width, int) or width == len(readings.bopomofo):
            return readings
    raise ValueError(
        f"the model answers with {width} readings, its POLYPHONIC_CHARS.txt lists others: take both from one folder"
    )


@dataclass(frozen=True, kw_only=True)
class _Asker:
    """The network and what its numbers mean."""

    session: Any
    tokens: Mapping[str, int]
    readings: _Readings

    def __call__(self, sentence: str, indices: Sequence[int]) -> list[str]:
        unknown = self.tokens[_UNKNOWN_TOKEN]
        one = [self.tokens.get(character, unknown) for character in sentence.lower()]
        ids = np.array([[self.tokens[_BEGIN_TOKEN], *one, self.tokens[_END_TOKEN]]] * len(indices), np.int64)  # (B, T)
        asked = [sentence[index] for index in indices]
        (probabilities,) = self.session.run(
            None,
            {
                "input_ids": ids,
                "token_type_ids": np.zeros_like(ids),
                "attention_mask": np.ones_like(ids),
                "phoneme_mask": np.stack([self.readings.allowed[character] for character in asked]),  # (B, L)
                "char_ids": np.array([self.readings.character_id[character] for character in asked], np.int64),  # (B,)
                "position_ids": np.array(indices, np.int64) + 1,  # (B,): the first token is [CLS]
            },
        )
        return [self.readings.bopomofo[best] for best in np.asarray(probabilities).argmax(axis=1)]


def _session(model: Path) -> Any:
    # onnxruntime reports its use over the network since 1.31 unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("g2pW needs the package onnxruntime: pip install gsv-fleet[polyphones]") from error
    options = onnxruntime.SessionOptions()
    # One thread: the same result on every machine, and no fight over cores.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model), sess_options=options, providers=["CPUExecutionProvider"])


@cache
def _opencc() -> Convert:
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise ValueError(
            "g2pW reads traditional characters and needs the package opencc: pip install gsv-fleet[polyphones]"
        ) from error
    return OpenCC("s2tw").convert
