"""Pronunciations as people write them, pinyin, jyutping, ARPAbet, kana and hangul, to phonemes of the inventories.

Every function raises a ValueError that names what it cannot read.
"""

import re
from collections.abc import Iterator, Sequence

from gsv_core.text.symbols import SYMBOLS_V2

_KANA = re.compile("[\u3040-\u30ff\u31f0-\u31ff]")
_HANGUL = re.compile("[\uac00-\ud7a3]")
_KNOWN = frozenset(SYMBOLS_V2)

_PINYIN = re.compile("(zh|ch|sh|[bpmfdtnlgkhjqxrzcsyw])?([a-zê]+)([1-5])")
_JYUTPING = re.compile(
    "(?:ng|gw|kw|[bpmfdtnlgkhwzcsj])?"
    "(?:aa(?:ng|[iumnptk])?|a(?:ng|[iumnptk])|oe(?:ng|[kt])?|eo[int]|yu[nt]?"
    "|[ei](?:ng|[iumnptk])?|[ou](?:ng|[iuntk])?|ng|m)[1-6]"
)
_ARPABET = frozenset(re.findall(r"\S+", "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH")) | frozenset(
    f"{vowel}{stress}" for vowel in re.findall("..", "AAAEAHAOAWAYEHEREYIHIYOWOYUHUW") for stress in "012"
)

PHRASE_END, _RISE, FALL = "#", "[", "]"
_ONSETS = {
    "": "アイウエオ", "k": "カキクケコ", "g": "ガギグゲゴ", "s": "サ セソ", "z": "ザ ズゼゾ", "t": "タ  テト",
    "d": "ダ  デド", "n": "ナニヌネノ", "h": "ハヒ ヘホ", "b": "バビブベボ", "p": "パピプペポ", "m": "マミムメモ",
    "r": "ラリルレロ",
}  # fmt: skip
_SYLLABLES = {
    **{kana: (onset, vowel) for onset, row in _ONSETS.items() for kana, vowel in zip(row, "aiueo") if kana != " "},
    "ヤ": ("y", "a"), "ユ": ("y", "u"), "ヨ": ("y", "o"), "ワ": ("w", "a"), "ヲ": ("", "o"), "フ": ("f", "u"),
    "シ": ("sh", "i"), "ジ": ("j", "i"), "ヂ": ("j", "i"), "チ": ("ch", "i"), "ツ": ("ts", "u"), "ヅ": ("z", "u"),
    "ヴ": ("v", "u"), "ヰ": ("", "i"), "ヱ": ("", "e"),
}  # fmt: skip
# A small letter after a full one: キャ is ky a, チェ is ch e, ファ is f a, ティ is t i.
_SMALL = dict(zip("ァィゥェォャュョ", ("a", "i", "u", "e", "o", "a", "u", "o")))
_PALATAL = frozenset("ャュョ")
_NEVER_PALATAL = frozenset({"sh", "j", "ch", "y"})
_HIRAGANA = {code: code + 0x60 for code in range(0x3041, 0x3097)}
_JAPANESE = frozenset(
    re.findall(r"\S+", "a i u e o N cl k g s z t d n h b p m r y w f v sh j ch ts ky gy ny hy by py my ry ty dy")
) & frozenset(SYMBOLS_V2)


def _check_symbols(symbols: Sequence[str], known: frozenset[str], complaint: str) -> tuple[str, ...]:
    for symbol in symbols:
        if symbol not in known:
            raise ValueError(f"{shown(symbol)} {complaint}")
    return tuple(symbols)


def check_hangul(pronunciation: str) -> None:
    """Refuse anything but syllables and blanks."""
    for character in pronunciation:
        if not _HANGUL.match(character) and character != " ":
            raise ValueError(f"{shown(character)} is no hangul syllable; write Korean as it sounds, such as 동님문")


def is_kana(pronunciation: str) -> bool:
    """Whether there is nothing but hiragana, katakana and long vowel marks."""
    return all(map(_KANA.match, pronunciation))


def spell_arpabet(pronunciation: str) -> tuple[str, ...]:
    """`n eh1 v er0`, in letters of either size."""
    complaint = "is no ARPAbet phoneme; a vowel carries its stress, such as AH0"
    return _check_symbols(pronunciation.upper().split(), _ARPABET, complaint)


def spell_pinyin(syllable: str) -> tuple[str, ...]:
    """chong2 -> ch ong2; the symbols write yuan as y van, zhi as zh ir, and e alone as EE e."""
    written = syllable.replace("u:", "v").replace("ü", "v")
    match = _PINYIN.fullmatch("er5" if written == "r5" else written)
    phonemes: tuple[str, ...] = ()
    if match:
        initial, final, tone = match.groups()
        if initial is None:
            initial = {"a": "AA", "e": "EE", "o": "OO"}.get(final[0], "")
        elif initial == "y":
            final = {"an": "En", "e": "E"}.get(final, f"v{final[1:]}" if final.startswith("u") else final)
        elif initial in ("z", "c", "s") and final == "i":
            final = "i0"
        elif initial in ("zh", "ch", "sh", "r") and final == "i":
            final = "ir"
        elif initial in ("j", "q", "x") and final.startswith("u"):
            final = f"v{final[1:]}"
        elif initial in ("n", "l") and final == "ue":
            final = "ve"
        phonemes = (initial, final + tone)
    if not phonemes or not set(phonemes) <= _KNOWN:
        raise ValueError(f"{shown(syllable)} is no pinyin with a tone digit, such as chong2")
    return phonemes


def spell_jyutping(syllable: str) -> tuple[str, ...]:
    """cung4 -> Yc Yung4."""
    from gsv_core.text.cantonese import spell

    phonemes = spell(syllable) if _JYUTPING.fullmatch(syllable) else ()
    if not phonemes:
        raise ValueError(f"{shown(syllable)} is no jyutping with a tone digit that the models know, such as cung4")
    return phonemes


def spell_japanese(pronunciation: str) -> tuple[str, ...]:
    """`ジュウケイ 0`, or phonemes with marks; the border of an accent phrase is UNK, as the models learned it."""
    kana, _, fall = pronunciation.partition(" ")
    if is_kana(kana) and fall.isdecimal():
        spoken = morae(kana)
        if int(fall) > len(spoken):
            raise ValueError(f"the pitch of {shown(kana)} cannot fall after mora {int(fall)} of {len(spoken)}")
        return tuple(_accented(spoken, int(fall)))
    return _check_symbols(
        pronunciation.split(),
        _JAPANESE | {PHRASE_END, _RISE, FALL},
        "is neither kana nor a Japanese phoneme; the marks are [ ] #",
    )


def morae(kana: str) -> list[tuple[str, ...]]:
    """The phonemes of each mora, in Open JTalk's notation."""
    morae: list[tuple[str, ...]] = []
    for character in kana.translate(_HIRAGANA):
        if character == "ン":
            morae.append(("N",))
        elif character == "ッ":
            morae.append(("cl",))
        elif character == "ー" and morae:
            morae.append(morae[-1][-1:])
        elif character in _SMALL and morae and len(morae[-1]) == 2:
            onset = morae[-1][0]
            palatal = character in _PALATAL and onset not in _NEVER_PALATAL
            morae[-1] = (f"{onset}y" if palatal else onset, _SMALL[character])
        elif character in _SMALL and morae and morae[-1] == ("u",) and character in "ィェォ":
            morae[-1] = ("w", _SMALL[character])
        elif character in _SYLLABLES:
            morae.append(tuple(filter(None, _SYLLABLES[character])))
        else:
            raise ValueError(f"{shown(character)} cannot be said here in {shown(kana)}")
    for phoneme in (phoneme for mora in morae for phoneme in mora):
        if phoneme not in _JAPANESE:
            raise ValueError(f"the models have no phoneme {phoneme} for {shown(kana)}")
    return morae


def falls_at_its_end(pronunciation: str) -> bool:
    """Whether the pitch falls after the last mora, which is heard in the particle that follows: 橋が is ha shi ] ga."""
    kana, _, fall = pronunciation.partition(" ")
    return is_kana(kana) and fall.isdecimal() and 0 < int(fall) == len(morae(kana))


def _accented(morae: Sequence[tuple[str, ...]], fall: int) -> Iterator[str]:
    """Tokyo pitch: low to high after the first mora unless it is the accented one, high to low after the accent."""
    for number, mora in enumerate(morae, start=1):
        yield from mora
        if number == len(morae):
            return
        if number == fall:
            yield FALL
        elif number == 1:
            yield _RISE


def shown(text: str) -> str:
    """`text` for a message: short, on one line, nothing in it that a terminal would obey."""
    short = text if len(text) <= 40 else f"{text[:40]}…"
    return repr(short) if short.isprintable() else ascii(short)
