"""Mandarin text to phonemes: an initial and a toned final for each character, one phoneme for each mark.

Words and their tags come from jieba, readings from pypinyin (both carry their dictionaries) or, where its files are
given, from g2pW (`mandarin_polyphones`), tones from `mandarin_tones`. Letters: none are left here; other languages are
cut out before (`language_spans`).
"""

import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

from gsv_core.text.mandarin_normalisation import spoken_text
from gsv_core.text.mandarin_polyphones import Polyphones
from gsv_core.text.mandarin_tones import Word, merge_words, speak_er, spoken_tones
from gsv_core.text.reading import Reading
from gsv_core.text.symbols import MARKS, SYMBOLS_V2

HAN = r"\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
# Silences a writer may ask for; they swallow the marks beside them and stand as a comma in the normal text.
_SILENCES = {"^": "SP3", "￥": "SP2"}
_MARK_OF = {
    "：": ",",
    "；": ",",
    "，": ",",
    "·": ",",
    "、": ",",
    "。": ".",
    "\n": ".",
    "！": "!",
    "？": "?",
    "~": "…",
    "～": "…",
    "嗯": "恩",
    "呣": "母",
}
_MARKS = str.maketrans(_MARK_OF)
_PAUSES = re.escape("".join((*sorted(MARKS), *_SILENCES)))
_NOT_SPOKEN = re.compile(rf"[^{HAN}{_PAUSES}]")
_WORTH_NAMING = re.compile(r"[^\W_]")
_REPEATED_PAUSE = re.compile(rf"[{_PAUSES}]{{2,}}")
_AFTER_PAUSE = re.compile(rf"(?<=[{_PAUSES}])")
_KNOWN = frozenset(SYMBOLS_V2)

# Spelling of a final, after an initial and without one.
_AFTER_INITIAL = {"uei": "ui", "iou": "iu", "uen": "un"}
_ALONE = {
    "i": ("y", "i"), "ia": ("y", "a"), "ian": ("y", "En"), "iang": ("y", "ang"), "iao": ("y", "ao"), "ie": ("y", "E"),
    "in": ("y", "in"), "ing": ("y", "ing"), "io": ("y", "o"), "iong": ("y", "ong"), "iou": ("y", "ou"),
    "u": ("w", "u"), "ua": ("w", "a"), "uai": ("w", "ai"), "uan": ("w", "an"), "uang": ("w", "ang"), "uei": ("w", "ei"),
    "uen": ("w", "en"), "ueng": ("w", "eng"), "uo": ("w", "o"), "ong": ("w", "eng"),
    "v": ("y", "v"), "van": ("y", "van"), "ve": ("y", "ve"), "vn": ("y", "vn"),
}  # fmt: skip
_OPEN = {"a": "AA", "e": "EE", "o": "OO"}
_LOADING = threading.Lock()


@dataclass(frozen=True)
class _Jieba:
    tokenizer: Any
    tagger: Any


@cache
def _load_jieba() -> _Jieba:
    """A tokenizer of our own: jieba's shared one would print, write a cache file, and change with its user's words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba asks for pkg_resources and has no other way to be told
        import jieba
        from jieba import posseg

    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    tagger = posseg.POSTokenizer.__new__(posseg.POSTokenizer)
    tagger.tokenizer = tokenizer
    tagger.word_tag_tab = dict(posseg.dt.word_tag_tab)
    return _Jieba(tokenizer, tagger)


def _jieba() -> _Jieba:
    with _LOADING:
        return _load_jieba()


def engines() -> dict[str, str]:
    """Names and versions of the dictionaries that decide the result."""
    return {"jieba": version("jieba"), "pypinyin": version("pypinyin")}


@lru_cache(maxsize=65536)
def _syllables(word: str) -> tuple[tuple[str, str], ...]:
    """(initial, toned final) of each character of `word`, read as one word."""
    from pypinyin import Style, lazy_pinyin

    initials = lazy_pinyin(word, neutral_tone_with_five=True, style=Style.INITIALS)
    finals = lazy_pinyin(word, neutral_tone_with_five=True, style=Style.FINALS_TONE3)
    if len(finals) == len(initials) == len(word):
        # A syllable without a vowel (噷 hm) has no final; the character itself stands for it and has no phonemes.
        return tuple((initial, final or character) for initial, final, character in zip(initials, finals, word))
    # pypinyin takes a run of characters it does not know as one: read them one by one.
    return tuple(pair for character in word for pair in _syllables(character)[:1]) if len(word) > 1 else (("", word),)


def _heard(word: str, said: Sequence[str | None]) -> list[tuple[str, str]]:
    """(initial, toned final) of each character of `word`: what g2pW `said` in its place, else pypinyin's."""
    from pypinyin.contrib.tone_convert import to_finals_tone3, to_initials

    return [
        (to_initials(syllable), to_finals_tone3(syllable, neutral_tone_with_five=True)) if syllable else pair
        for syllable, pair in zip(said, _syllables(word), strict=True)
    ]


def _finals(word: str) -> tuple[str, ...]:
    return tuple(final for _, final in _syllables(word))


@lru_cache(maxsize=65536)
def _split(word: str) -> tuple[str, str]:
    """The two parts a word is made of: its shortest dictionary word, at its beginning or its end, and the rest."""
    shortest = min(_jieba().tokenizer.cut_for_search(word), key=len)
    if word.startswith(shortest):
        return shortest, word[len(shortest) :]
    return word[: -len(shortest)], shortest


def _spell(initial: str, final: str) -> tuple[str, ...]:
    """The two phonemes of a syllable; none if the inventory has no such syllable."""
    body, tone = final[:-1], final[-1:]
    if initial:
        body = _AFTER_INITIAL.get(body, body)
        if body == "i" and initial in ("z", "c", "s"):
            body = "i0"
        elif body == "i" and initial in ("zh", "ch", "sh", "r"):
            body = "ir"
        elif body.startswith("u") and initial in ("j", "q", "x"):
            body = f"v{body[1:]}"
    elif body in _ALONE:
        initial, body = _ALONE[body]
    elif body[:1] in _OPEN:
        initial = _OPEN[body[0]]
    phonemes = (initial, body + tone)
    return phonemes if all(phoneme in _KNOWN for phoneme in phonemes) else ()


def _one_pause(match: re.Match[str]) -> str:
    """Of several marks in a row the first stays, unless the writer asked for a silence."""
    pauses = match.group()
    return next((mark for mark in pauses if mark in _SILENCES), pauses[0])


def _pronounceable(spoken: str) -> str:
    """Characters, the six marks and the silences only; never two of the latter in a row."""
    marked = spoken.replace("...", "…").translate(_MARKS)
    return _REPEATED_PAUSE.sub(_one_pause, _NOT_SPOKEN.sub("", marked))


def _read_sentence(sentence: str, erhua: bool, polyphones: Polyphones | None) -> list[tuple[str, ...]]:
    """The phonemes of each character."""
    said = polyphones.read(sentence) if polyphones else []
    start = 0
    words: Sequence[Word] = [(pair.word, pair.flag) for pair in _jieba().tagger.lcut(sentence)]
    phonemes: list[tuple[str, ...]] = []
    for word in merge_words(words, _finals):
        syllables: Sequence[tuple[str, str]] = _syllables(word[0])
        if polyphones:
            syllables = _heard(word[0], polyphones.correct(word[0], said[start : start + len(word[0])]))
            start += len(word[0])
        finals = spoken_tones(word, [final for _, final in syllables], _split)
        if erhua:
            finals = speak_er(word, finals)
        for character, (initial, _), final in zip(word[0], syllables, finals, strict=True):
            if character in MARKS:
                phonemes.append((character,))
            elif character in _SILENCES:
                phonemes.append((_SILENCES[character],))
            else:
                phonemes.append(_spell(initial, final))
    return phonemes


def lost_characters(spoken: str) -> str:
    """Letters and digits of a spoken text that no phoneme will stand for, each once."""
    return "".join(
        dict.fromkeys(
            character for character in spoken if _WORTH_NAMING.match(character) and _NOT_SPOKEN.match(character)
        )
    )


def read(text: str, *, erhua: bool = True, polyphones: Polyphones | None = None) -> Reading:
    """Mandarin `text` to a Reading with its alignment.

    `erhua` is off for v1, whose models knew none; `polyphones` reads characters of several readings by context.
    """
    spoken = spoken_text(text)
    kept = _pronounceable(spoken)
    per_character: list[tuple[str, ...]] = []
    for sentence in _AFTER_PAUSE.split(kept):
        if sentence:
            per_character.extend(_read_sentence(sentence, erhua, polyphones))
    unread = (character for character, phonemes in zip(kept, per_character) if not phonemes)
    return Reading(
        normal_text="".join("," if character in _SILENCES else character for character in kept),
        phonemes=tuple(phoneme for phonemes in per_character for phoneme in phonemes),
        phonemes_per_character=tuple(len(phonemes) for phonemes in per_character),
        dropped="".join(dict.fromkeys((*lost_characters(spoken), *unread))),
    )
