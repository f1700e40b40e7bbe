"""Cantonese text to phonemes: each syllable in two parts, the tone on the second.

Numbers are put in words as for Mandarin (`mandarin_normalisation`), readings come from ToJyutping. The models were
trained on a peculiar cut of the syllables, which stays: 屋 uk1 is Yuk Yk1, 五 ng5 is Yng Yg5.
"""

import re
import threading
from functools import cache
from importlib.metadata import version

from gsv_core.text.mandarin import HAN, lost_characters
from gsv_core.text.mandarin_normalisation import spoken_text
from gsv_core.text.reading import Reading
from gsv_core.text.symbols import MARKS, SYMBOLS_V2

# The first that a syllable begins with is its first part; the order decides.
_FIRST_PARTS = [
    "aa",
    "aai",
    "aak",
    "aap",
    "aat",
    "aau",
    "ai",
    "au",
    "ap",
    "at",
    "ak",
    "a",
    "p",
    "b",
    "e",
    "ts",
    "t",
    "dz",
    "d",
    "kw",
    "k",
    "gw",
    "g",
    "f",
    "h",
    "l",
    "m",
    "ng",
    "n",
    "s",
    "y",
    "w",
    "c",
    "z",
    "j",
    "ong",
    "on",
    "ou",
    "oi",
    "ok",
    "o",
    "uk",
    "ung",
]
_MARKS = str.maketrans(
    {
        "：": ",", "；": ",", "，": ",", "·": ",", "、": ",", "。": ".", "\n": ".", "！": "!", "？": "?",
        "~": "-", "～": "-", "—": "-",
    }
)  # fmt: skip
_NOT_SPOKEN = re.compile(rf"[^{HAN}{re.escape(''.join(sorted(MARKS)))}]")
_KNOWN = frozenset(SYMBOLS_V2)
_LOADING = threading.Lock()


def engines() -> dict[str, str]:
    """Names and versions of the dictionaries that decide the result."""
    return {"ToJyutping": version("ToJyutping")}


def _jyutping(text: str) -> list[tuple[str, str | None]]:
    with _LOADING:
        import ToJyutping

        return ToJyutping.get_jyutping_list(text)


@cache
def spell(syllable: str) -> tuple[str, ...]:
    """The two phonemes of a jyutping syllable; none if there is no such syllable."""
    first = next((part for part in _FIRST_PARTS if syllable.startswith(part)), None)
    if first is None:
        return ()
    rest = syllable[len(first) :]
    # A syllable that is all first part lends its last letter: uk1 is uk + k1, aa3 is aa + a3, ai1 is ai + i1.
    phonemes = (f"Y{first}", f"Y{rest}" if len(rest) > 1 else f"Y{first[-1]}{rest}")
    if all(phoneme in _KNOWN for phoneme in phonemes):
        return phonemes
    # Speakers say 盎 with and without ng-; only with it are there symbols for it.
    return () if syllable.startswith("ng") else spell(f"ng{syllable}") if syllable[0] in "aeiou" else ()


def read(text: str) -> Reading:
    """Cantonese `text` to a Reading with its alignment."""
    spoken = spoken_text(text, one_on_telephone="一")
    normal_text = _NOT_SPOKEN.sub("", spoken.replace("...", "…").translate(_MARKS))
    per_character: list[tuple[str, ...]] = []
    dropped = list(lost_characters(spoken))
    for character, jyutping in _jyutping(normal_text):
        if character in MARKS:
            per_character.append((character,))
            continue
        phonemes = tuple(phoneme for syllable in (jyutping or "").split() for phoneme in spell(syllable))
        if not phonemes:
            dropped.append(character)
        per_character.append(phonemes)
    return Reading(
        normal_text=normal_text,
        phonemes=tuple(phoneme for phonemes in per_character for phoneme in phonemes),
        phonemes_per_character=tuple(len(phonemes) for phonemes in per_character),
        dropped="".join(dict.fromkeys(dropped)),
    )
