"""Text to phonemes, in five languages and their mixtures: the one door to this package.

`phonemise` cuts a text into spans of one language (`language_spans`), lets each language's module read its spans and
joins what they say. Languages load on first use.
"""

import importlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING

from gsv_core.text.language_spans import LANGUAGES, MODES, split_languages
from gsv_core.text.lexicon import Lexicon, read_stretch, stretches
from gsv_core.text.reading import Reading
from gsv_core.text.symbols import MARKS, PAD, UNKNOWN, ids_of, inventory, known

if TYPE_CHECKING:
    from gsv_core.text.mandarin_polyphones import Polyphones

_MODULES = {"zh": "mandarin", "en": "english", "ja": "japanese", "ko": "korean", "yue": "cantonese"}
_ONLY_SINCE_V2 = frozenset({"ko", "yue"})
_SILENT = MARKS | {UNKNOWN, PAD, "[", "]", "空", "停", "SP", "SP2", "SP3"}


_LONGEST_TEXT = 100_000
_FEWEST_SPOKEN = 6
_LONGEST_CHUNK = 1000
_SENTENCE_END = re.compile(r"[。！？!?\n]|\.(?=\s)")
_BLANK = re.compile(r"[\s，,、；]")
_LINE_BREAK = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ud800-\udfff]"
)
_SEPARATOR = re.compile("[\x1c-\x1f]")


class TextError(ValueError):
    """A text that cannot be read, as opposed to a wrong setup. `reason` is what its Rejection says."""

    reason = "unreadable"


class UnspeakableText(TextError):  # noqa: N818 - these name the text, not a fault of the program
    """Nothing in the text can be spoken: it is empty, or marks, emoji and foreign scripts only."""

    reason = "unspeakable"


class TextTooLong(TextError):  # noqa: N818
    """More characters than one text has."""

    reason = "text_too_long"


class UnsupportedLanguage(TextError):  # noqa: N818
    """No front end for the language, or no symbols for it in the release."""

    reason = "unsupported_language"


@dataclass(frozen=True, kw_only=True)
class PhonemisedSpan:
    """One span of one language. `phonemes_per_character` belongs to `normal_text`; empty for en, ja, ko."""

    language: str
    text: str
    normal_text: str
    phonemes: tuple[str, ...]
    phonemes_per_character: tuple[int, ...] = ()

    @property
    def num_phonemes(self) -> int:
        return len(self.phonemes)


@dataclass(frozen=True, kw_only=True)
class PhonemisedText:
    """A text as the base models take it.

    `phonemes` and `ids` are (P,). `phonemes_per_character` has one entry per character of `normal_text` and adds up to
    P if every span keeps that alignment (zh, yue), else it is empty; `spans` always tell. `dropped` are the characters
    that ought to be heard and are not.
    """

    text: str
    normal_text: str
    phonemes: tuple[str, ...]
    ids: tuple[int, ...]
    phonemes_per_character: tuple[int, ...]
    language: str
    spans: tuple[PhonemisedSpan, ...] = ()
    dropped: str = ""


def _reader(language: str, release: str, polyphones: "Polyphones | None") -> Callable[[str], Reading]:
    module = importlib.import_module(f"gsv_core.text.{_MODULES[language]}")
    if language == "zh":
        return lambda text: module.read(text, erhua=release != "v1", polyphones=polyphones)
    return module.read


def read_span(text: str, language: str, release: str = "v2", *, polyphones: "Polyphones | None" = None) -> Reading:
    """`text` as one span of `language`, whatever its letters; `polyphones` is for Mandarin.

    Raises:
        UnsupportedLanguage: an unknown language, or one that the release has no symbols for.
        ValueError: an unknown release.
    """
    inventory(release)
    if language not in _MODULES:
        raise UnsupportedLanguage(f"unknown language {language!r}: choose one of {', '.join(LANGUAGES)}")
    if release == "v1" and language in _ONLY_SINCE_V2:
        raise UnsupportedLanguage(f"release v1 has no symbols for {language!r}: use a base model from v2 on")
    read = _reader(language, release, polyphones)
    readings = [read(chunk) for chunk in _chunks(_clean(text))]
    if len(readings) == 1:
        return readings[0]
    return Reading(
        normal_text=" ".join(reading.normal_text for reading in readings)
        if language == "en"
        else "".join(reading.normal_text for reading in readings),
        phonemes=tuple(phoneme for reading in readings for phoneme in reading.phonemes),
        phonemes_per_character=tuple(count for reading in readings for count in reading.phonemes_per_character),
        dropped="".join(dict.fromkeys(character for reading in readings for character in reading.dropped)),
    )


def _clean(text: str) -> str:
    """What reaches the languages: composed characters, one kind of line break, no control characters or surrogates."""
    text = _INVISIBLE.sub("", _LINE_BREAK.sub("\n", text))
    return unicodedata.normalize("NFC", _SEPARATOR.sub(" ", text))


def _chunks(text: str) -> list[str]:
    """A long text after sentence ends, so that reading it takes time in proportion to its length."""
    if len(text) <= _LONGEST_CHUNK:
        return [text]
    chunks, start = [], 0
    while len(text) - start > _LONGEST_CHUNK:
        window = text[start : start + _LONGEST_CHUNK]
        ends = [end.end() for end in _SENTENCE_END.finditer(window)] or [end.end() for end in _BLANK.finditer(window)]
        cut = ends[-1] if ends else _LONGEST_CHUNK
        chunks.append(window[:cut])
        start += cut
    return [*chunks, text[start:]]


def phonemise(
    text: str,
    language: str,
    release: str = "v2",
    *,
    lexicon: Lexicon | None = None,
    polyphones: "Polyphones | None" = None,
) -> PhonemisedText:
    """`text` to phonemes and ids of the inventory of `release` ("v1" or "v2").

    `language`: zh, en, ja, ko, yue (each with English words in it), auto or auto_yue (the text decides), all_zh,
    all_ja, all_ko, all_yue. The words of `lexicon` are said as it says, Mandarin characters of
    several readings as `polyphones` (see `mandarin_polyphones`) hears them.

    Raises:
        TextError: UnspeakableText, nothing speakable is left; TextTooLong; UnsupportedLanguage.
        ValueError: an unknown release.
    """
    inventory(release)
    if language not in MODES:
        raise UnsupportedLanguage(f"unknown language {language!r}: choose one of {', '.join(MODES)}")
    if len(text) > _LONGEST_TEXT:
        raise TextTooLong(f"a text of {len(text)} characters is too long: cut it, {_LONGEST_TEXT} at most at a time")
    spans: list[PhonemisedSpan] = []
    dropped: list[str] = []

    def read(part: str, spoken: str, alone: bool) -> Reading:
        reading = read_span(part, spoken, release, polyphones=polyphones)
        return reading if alone or spoken != "en" else _without_lead_in(reading)

    pieces = stretches(split_languages(_clean(text), language), language, lexicon)
    for span in pieces:
        reading = read_stretch(span, lexicon, read)
        dropped.extend(reading.dropped)
        if len(pieces) > 1 and span.language == "en":
            reading = _without_lead_in(reading)
        if reading.phonemes:
            spans.append(
                PhonemisedSpan(
                    language=span.language,
                    text=span.text,
                    normal_text=reading.normal_text,
                    phonemes=known(reading.phonemes, release),
                    phonemes_per_character=reading.phonemes_per_character,
                )
            )
    phonemes = tuple(phoneme for span in spans for phoneme in span.phonemes)
    if all(phoneme in _SILENT for phoneme in phonemes):
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise UnspeakableText(f"nothing to speak in {ascii(shown) if not shown.isprintable() else repr(shown)}")
    aligned = all(span.phonemes_per_character for span in spans)
    return PhonemisedText(
        text=text,
        normal_text="".join(span.normal_text for span in spans),
        phonemes=phonemes,
        ids=ids_of(phonemes, release),
        phonemes_per_character=tuple(count for span in spans for count in span.phonemes_per_character)
        if aligned
        else (),
        language=language,
        spans=tuple(spans),
        dropped="".join(dict.fromkeys(dropped)),
    )


def _without_lead_in(reading: Reading) -> Reading:
    """A short English text gets a pause in front; inside a sentence of another language it would tear it apart."""
    added = reading.phonemes[:1] == (",",) and not reading.normal_text.startswith(",")
    return replace(reading, phonemes=reading.phonemes[1:]) if added else reading


def with_lead_in(result: PhonemisedText) -> PhonemisedText:
    """`result` with a pause in front if it is so short that the models, used to sentences, would stumble over it."""
    if len(result.phonemes) >= _FEWEST_SPOKEN:
        return result
    pause = "."
    first = result.spans[0]
    aligned = (1, *first.phonemes_per_character) if first.phonemes_per_character else ()
    longer = replace(
        first,
        normal_text=pause + first.normal_text,
        phonemes=(pause, *first.phonemes),
        phonemes_per_character=aligned,
    )
    return replace(
        result,
        normal_text=pause + result.normal_text,
        phonemes=(pause, *result.phonemes),
        # The marks have the same ids in every release.
        ids=(*ids_of((pause,), "v2"), *result.ids),
        phonemes_per_character=(1, *result.phonemes_per_character) if result.phonemes_per_character else (),
        spans=(longer, *result.spans[1:]),
    )


def engines(polyphones: "Polyphones | None" = None) -> dict[str, str]:
    """Dictionary name -> version of every installed part that decides the phonemes, for a corpus's metadata."""
    found: dict[str, str] = dict(polyphones.engines()) if polyphones else {}
    for name in (*_MODULES.values(), "language_spans"):
        try:
            found.update(importlib.import_module(f"gsv_core.text.{name}").engines())
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


_PART_ENDS = frozenset("，。？！,.?!~:：—…")
_SOME_MARK = re.compile(r"[，。？！、；,.?!;~:：—…\s]*\Z")
_MARKS_IN_A_ROW = re.compile(r"([!?…,.\-])[!?…,.\-]+")
_MARKS_ALONE = frozenset("!?…,.- ;、，。？！：")


@dataclass(frozen=True)
class _Part:
    """A stretch of text up to and with a mark. A number goes on after it where the mark is a decimal point."""

    text: str
    goes_on: bool


def _parts(text: str) -> list[_Part]:
    parts, start = [], 0
    for index, character in enumerate(text):
        if character in _PART_ENDS:
            goes_on = character == "." and text[index - 1 : index].isdigit() and text[index + 1 : index + 2].isdigit()
            parts.append(_Part(text[start : index + 1], goes_on))
            start = index + 1
    return [*parts, _Part(text[start:], False)] if text[start:] else parts


def _groups(parts: list[_Part], full: Callable[[int, str], bool]) -> list[str]:
    """The parts joined; a group ends where `full`(number of parts so far, group) says so, never inside a number."""
    groups, held, due = [], "", False
    for count, part in enumerate(parts, 1):
        held += part.text
        due = due or full(count, held)
        if due and not part.goes_on:
            groups.append(held)
            held, due = "", False
    return [*groups, held] if held else groups


def _whole(text: str) -> list[str]:
    return [text]


def _by_four_parts(text: str) -> list[str]:
    parts = _parts(text.replace("——", "—"))
    # The last group takes what is left, up to eight.
    last = 4 * (-(-len(parts) // 4) - 2)
    return _groups(parts, lambda count, _: count % 4 == 0 and count <= last)


def _by_fifty_characters(text: str) -> list[str]:
    groups = _groups(_parts(text.replace("——", "—")), lambda _, held: len(held) > 50)
    if len(groups) > 1 and len(groups[-1]) < 50:
        groups[-2:] = ["".join(groups[-2:])]
    return groups


def _by_chinese_stop(text: str) -> list[str]:
    return re.split("(?<=。)(?!。)", text)


def _by_full_stop(text: str) -> list[str]:
    return re.split(r"(?<=[^\d.]\.)(?![\d.])", text)


def _by_every_mark(text: str) -> list[str]:
    return re.split(r"(?<=[,，.。?？!！;：、…])(?<!\d\.(?=\d))", text)


CUTTING_METHODS: Mapping[str, Callable[[str], list[str]]] = {
    "cut0": _whole,
    "cut1": _by_four_parts,
    "cut2": _by_fifty_characters,
    "cut3": _by_chinese_stop,
    "cut4": _by_full_stop,
    "cut5": _by_every_mark,
}
# The mark a piece is cut at counts for its length, except with these.
_UNCOUNTED = {"cut3": "。", "cut4": "."}
# A text that begins with fewer characters than this before a mark is thought to begin with a pause.
_SHORTEST_BEGIN = 4
_LEAD = "。"
# Shorter pieces join the next: a piece of one word is spoken badly.
_SHORTEST_PIECE = 5
_LONGEST_PIECE = 510
_WORDLESS = re.compile(r"[\W_]*")


def _not_too_long(piece: str) -> list[str]:
    if len(piece) <= _LONGEST_PIECE:
        return [piece]
    pieces, held = [], ""
    for part in _groups(_parts(piece), lambda _, __: True):
        # Without a mark in reach a cut between two characters has to do.
        for start in range(0, len(part), _LONGEST_PIECE):
            chunk = part[start : start + _LONGEST_PIECE]
            if held and len(held) + len(chunk) > _LONGEST_PIECE:
                pieces.append(held)
                held = ""
            held += chunk
    return [*pieces, held]


def _join_short(lines: Iterable[str], uncounted: str) -> list[str]:
    """`lines` with those of fewer than five characters joined to the next, the last to the one before."""
    pieces: list[str] = []
    held, length = "", 0
    for line in lines:
        held += line
        length += len(line.rstrip(uncounted))
        # A joined piece keeps the pause that was written between the two.
        held += "" if _SOME_MARK.fullmatch(held[-1:]) else "."
        if length >= _SHORTEST_PIECE:
            pieces.append(held)
            held, length = "", 0
    if held and pieces:
        pieces[-1] += held
    elif held:
        pieces.append(held)
    return pieces


def cut_text(text: str, method: str = "cut5") -> tuple[str, ...]:
    """A long text in pieces to be spoken one after another; nothing but blanks and wordless pieces is left out.

    Methods: cut0 none, cut1 every four parts, cut2 about fifty characters, cut3 at 。, cut4 at the full stop, cut5 at
    every mark; a line break always cuts. Of marks in a row the first stays, a number is never cut. Pieces under 5
    characters join the next, none is longer than 510.

    Raises:
        ValueError: an unknown method.
    """
    if method not in CUTTING_METHODS:
        raise ValueError(f"unknown cutting method {method!r}: choose one of {', '.join(CUTTING_METHODS)}")
    text = _MARKS_IN_A_ROW.sub(r"\1", text).strip("\n")
    begin = _parts(text)[0].text if text else ""
    short_begin = (
        bool(text) and text[0] not in _PART_ENDS and len(begin.rstrip("".join(_PART_ENDS)).strip()) < _SHORTEST_BEGIN
    )
    if short_begin:
        text = _LEAD + text
    cut = (piece for piece in CUTTING_METHODS[method](text) if not _MARKS_ALONE.issuperset(piece))
    lines = (line for piece in cut for line in piece.split("\n") if line.strip())
    spoken = [
        piece.strip() for piece in _join_short(lines, _UNCOUNTED.get(method, "")) if not _WORDLESS.fullmatch(piece)
    ]
    if short_begin and spoken:
        spoken[0] = spoken[0].removeprefix(_LEAD)
    return tuple(short for piece in spoken for short in _not_too_long(piece))
