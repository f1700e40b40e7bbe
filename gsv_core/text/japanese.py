"""Japanese text to phonemes with the rise and fall of its pitch.

Open JTalk (pyopenjtalk or one of its forks) gives full-context labels; from the accent fields of each label follow the
marks `[` (pitch rises), `]` (falls) and `#` (an accent phrase ends), as in Kurihara, Seiyama, Kumano (2021), "Prosodic
Features Control by Symbols as Input of Sequence-to-Sequence Acoustic Modeling for Neural TTS". `#` has no symbol of its
own in the inventories: the models were trained with UNK there, and so it stays.
"""

import inspect
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from gsv_core.text.reading import Reading
from gsv_core.text.symbols import MARKS

PHRASE_END, RISE, FALL = "#", "[", "]"

_RUN = re.compile(
    r"[A-Za-z\d\u3005\u3006\u3007\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uff9f\U00020000-\U0003134f]+(?:(?<=\d)\.\d+)*"
)
_MARK_OF = {
    "：": ",", "；": ",", "，": ",", "、": ",", "・": ",", "·": ",", ":": ",", ";": ",", "。": ".", "．": ".",
    "！": "!", "？": "?", "\n": ".", "～": "…", "〜": "…", "~": "…", "—": "-", "―": "-", "－": "-",
}  # fmt: skip
_ASCII_MARKS = re.compile(r"([!?…,.\-])[!?…,.\-]+")
_THOUSANDS = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])")
_PERCENT = re.compile("[%％]")
# A sign before a number, not a hyphen between two.
_MINUS = re.compile(r"(?<![\dA-Za-z\-])(?<!マイナス)[-−](?=\d)")
_LABEL = re.compile(
    r"\-(?P<phone>[^+]+)\+.*/A:(?P<nucleus>-?\d+|xx)\+(?P<mora>\d+|xx)\+(?P<left>\d+|xx)/.*/F:(?P<moras>\d+|xx)_"
)
# Open JTalk pauses where it knows no word. Upstream takes the padding symbol for that, which the models must not hear.
_PAUSE = ","
_VOWELS = frozenset({"a", "i", "u", "e", "o", "N", "cl"})
_PACKAGES = ("pyopenjtalk", "pyopenjtalk-prebuilt", "pyopenjtalk-plus")
# What Open JTalk's libraries themselves look for instead of the dictionary they carry.
_DICTIONARY_FOLDER = "OPEN_JTALK_DICT_DIR"
_LOADING = threading.Lock()


@dataclass(frozen=True)
class _Label:
    """A phone and where it stands: distance to the pitch fall, mora from the left and right, moras of its phrase."""

    phone: str
    nucleus: int | None
    mora: int | None
    left: int | None
    moras: int | None


@cache
def _load_open_jtalk() -> tuple[Any, dict[str, Any]]:
    # The fork called "plus" imports onnxruntime, which since 1.31 reports its use over the network unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import pyopenjtalk

    dictionary = Path(os.fsdecode(pyopenjtalk.OPEN_JTALK_DICT_DIR))
    if not dictionary.is_dir():
        # The original library would download it now.
        raise ValueError(f"no Open JTalk dictionary at {dictionary}: set {_DICTIONARY_FOLDER} to a folder that has one")
    # The same fork corrects readings on its own; the models know those of plain Open JTalk.
    plain = "use_vanilla" in inspect.signature(pyopenjtalk.run_frontend).parameters
    return pyopenjtalk, {"use_vanilla": True} if plain else {}


def _full_context(text: str) -> tuple[list[str], str]:
    """The labels of one run, and the characters in it that Open JTalk has no sound for."""
    with _LOADING:
        open_jtalk, options = _load_open_jtalk()
        # Open JTalk writes warnings about a text that begins with a long vowel mark or has nothing to say.
        features = open_jtalk.run_frontend(text.lstrip("ー"), **options)
        unknown = "".join(str(feature["string"]) for feature in features if not feature["mora_size"])
        if not any(feature["mora_size"] for feature in features):
            return [], unknown
        return list(open_jtalk.make_label(features)), unknown


def engines() -> dict[str, str]:
    """Names and versions of the dictionaries that decide the result."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    folder = os.environ.get(_DICTIONARY_FOLDER)
    return {**found, "open_jtalk_dictionary": Path(folder).name if folder else "packaged"}


def _number(field: str) -> int | None:
    return None if field == "xx" else int(field)


def _parse(label: str) -> _Label:
    match = _LABEL.search(label)
    assert match, label
    return _Label(match["phone"], *(_number(match[name]) for name in ("nucleus", "mora", "left", "moras")))


def _with_prosody(labels: list[_Label]) -> Iterator[str]:
    """Phones and prosody marks of one run, without its begin and end."""
    for label, following in pairwise(labels):
        if label.phone == "sil":
            continue
        if label.phone == "pau":
            yield _PAUSE
            continue
        # Capitals are devoiced vowels; the inventory has no symbols for them.
        phone = label.phone.lower() if label.phone in "AIUEO" else label.phone
        yield phone
        if label.left == 1 and following.mora == 1 and phone in _VOWELS:
            yield PHRASE_END
        elif label.mora is None or following.mora is None:
            continue
        elif label.nucleus == 0 and following.mora == label.mora + 1 and label.mora != label.moras:
            yield FALL
        elif label.mora == 1 and following.mora == 2:
            yield RISE


def normalise(text: str) -> str:
    """The text Open JTalk gets to see: percent and minus in words, numbers whole, marks not repeated."""
    text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    text = _MINUS.sub("マイナス", text)
    return _PERCENT.sub("パーセント", _ASCII_MARKS.sub(r"\1", text))


def read(text: str) -> Reading:
    """Japanese `text` to a Reading; it keeps no alignment."""
    normal_text = normalise(text)
    lowered = normal_text.lower()
    phonemes: list[str] = []
    dropped: list[str] = []

    def read_between(stretch: str) -> None:
        for character in stretch:
            mark = _MARK_OF.get(character, character)
            if mark in MARKS:
                phonemes.append(mark)
            elif character.isalnum():
                dropped.append(character)

    end = 0
    for run in _RUN.finditer(lowered):
        read_between(lowered[end : run.start()])
        labels, unknown = _full_context(run.group())
        phonemes.extend(_with_prosody([_parse(label) for label in labels]))
        dropped.extend(character for character in unknown if character.isalnum())
        end = run.end()
    read_between(lowered[end:])
    return Reading(normal_text=normal_text, phonemes=tuple(phonemes), dropped="".join(dict.fromkeys(dropped)))
