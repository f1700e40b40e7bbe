"""A user's dictionary: how words are said that the other dictionaries get wrong, or have never heard of.

`lexicon.tsv` holds one word a line: the word, its pronunciation and, if the word's script leaves a doubt, its language,
parted by tabs. Blank lines and lines that begin with `#` are passed over. Pronunciations are written as each language
writes them:

    zh   pinyin with a tone digit for every character, 5 is neutral     重庆    chong2 qing4
    yue  jyutping                                                       重慶    cung4 hing3      yue
    en   ARPAbet, stress on every vowel                                 Nguyen  N W IH1 N
    ja   kana, read by Open JTalk in the sentence around it;            重慶    ジュウケイ         ja
         kana and the mora after which the pitch falls (0: never);      重慶    ジュウケイ 0       ja
         or phonemes with the marks [ ] #                               重慶    j u [ u k e i    ja
    ko   hangul as it sounds                                            독립문   동님문

The words are found before any reader sees the text: the longest first, Latin letters in any case and as whole words
only, other scripts anywhere. What is given is said as given: no tone sandhi changes it. The words around keep their
context: a given Chinese word is read with its sentence and then replaced, so that 一 and 不 before it turn as the
dictionaries' reading asks, and Japanese kana and Korean hangul stand in the text in the word's place.
"""

import hashlib
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from gsv_core.text.language_spans import AUTOMATIC, LANGUAGES, Span
from gsv_core.text.notation import (
    FALL,
    PHRASE_END,
    check_hangul,
    falls_at_its_end,
    is_kana,
    shown,
    spell_arpabet,
    spell_japanese,
    spell_jyutping,
    spell_pinyin,
)
from gsv_core.text.reading import Reading
from gsv_core.text.symbols import MARKS

FILE_NAME = "lexicon.tsv"

_LARGEST_BYTES = 4 << 20
_MOST_WORDS = 50_000
_LONGEST_WORD = 60
_LONGEST_PRONUNCIATION = 400
_HEADER = ("word", "pronunciation")
_HAN = re.compile("[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_KANA = re.compile("[\u3040-\u30ff\u31f0-\u31ff]")
_HIRAGANA = re.compile("[\u3041-\u3096]")
_CONTENT_WORD = re.compile("[\u30a1-\u30fa\u3400-\u9fffA-Za-z0-9]")
_HANGUL = re.compile("[\uac00-\ud7a3]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f\uff21-\uff3a\uff41-\uff5a]")
_WHOLE = re.compile("[A-Za-z0-9\u00c0-\u024f\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")
_WHOLE_BEFORE = re.compile(f"{_WHOLE.pattern}'?$")
_WHOLE_AFTER = re.compile(f"'?{_WHOLE.pattern}")
_POSSESSIVE = re.compile("'s(?![a-z])")
_LETTER = re.compile(r"[^\W_]")
_EASTERN = re.compile(f"{_HAN.pattern}|{_KANA.pattern}|{_HANGUL.pattern}")
# Chinese readers turn these into the characters they are said like; so the words are found under those.
_SAID_AS = str.maketrans("嗯呣", "恩母")
# Where a text holds anything but letters, blanks and these, the readers put more words into it than are written.
_PLAIN = re.compile(r"(?:[^\W\d_]|[\s,.!?，。！？、；：…'’-])*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One word, the language it belongs to, and its pronunciation as that language writes it."""

    word: str
    pronunciation: str
    language: str

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ValueError(f"unknown language {self.language!r}: choose one of {', '.join(LANGUAGES)}")
        if self.replaces_text:
            return
        units = self._units
        if self.aligned and len(units) != len(self.word):
            raise ValueError(
                f"{self.word} has {len(self.word)} characters, its pronunciation {len(units)} syllables; "
                "give one for each character"
            )

    @property
    def replaces_text(self) -> bool:
        """Whether the word is written anew and then read in its sentence, instead of being given as phonemes."""
        if self.language == "ko":
            check_hangul(self.pronunciation)
            return True
        return self.language == "ja" and is_kana(self.pronunciation)

    @property
    def aligned(self) -> bool:
        """Whether the word is read with its sentence and its characters' phonemes are replaced then."""
        return self.language in ("zh", "yue") and all(map(_HAN.match, self.word))

    @cached_property
    def _units(self) -> tuple[tuple[str, ...], ...]:
        """The phonemes of each syllable, or of the whole word where its language is not written in syllables."""
        if self.language in ("zh", "yue"):
            spell = spell_pinyin if self.language == "zh" else spell_jyutping
            return tuple(spell(syllable) for syllable in self.pronunciation.lower().split())
        if self.language == "en":
            return (spell_arpabet(self.pronunciation),)
        return (spell_japanese(self.pronunciation),)

    def reading(self, written: str) -> Reading:
        """The word as it stands in a text (`written`), said."""
        phonemes = tuple(phoneme for unit in self._units for phoneme in unit)
        counts: tuple[int, ...] = ()
        if self.language in ("zh", "yue"):
            share, more = divmod(len(phonemes), len(written))
            counts = tuple(share + (index < more) for index in range(len(written)))
        return Reading(normal_text=written, phonemes=phonemes, phonemes_per_character=counts)


@dataclass(frozen=True)
class Given:
    """A word of the lexicon where it stands in a text."""

    entry: Entry
    written: str
    possessive: bool = False

    def reading(self) -> Reading:
        reading = self.entry.reading(self.written)
        if not self.possessive:
            return reading
        from gsv_core.text.english import with_s

        return Reading(normal_text=f"{self.written}'s", phonemes=with_s(reading.phonemes))


@dataclass(frozen=True)
class Stretch:
    """Consecutive text of one language: what is to be read, and the words whose phonemes are given."""

    language: str
    parts: tuple[str | Given, ...]

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.written + "'s" * part.possessive for part in self.parts)


@dataclass(frozen=True)
class _Words:
    """Words by their first character, the longest first: what a scan through a text looks up."""

    by_first: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, words: Iterable[str]) -> Self:
        by_first: dict[str, list[str]] = {}
        for word in sorted(set(words), key=lambda word: (-len(word), word)):
            by_first.setdefault(word[0], []).append(word)
        return cls({first: tuple(longest_first) for first, longest_first in by_first.items()})

    def at(self, text: str, start: int) -> Iterator[str]:
        """The words that stand in `text` at `start`, the longest first."""
        for word in self.by_first.get(text[start], ()):
            if text.startswith(word, start):
                yield word


@dataclass(frozen=True)
class Lexicon:
    """Some entries, one for each word of a language, in the order of the words."""

    entries: tuple[Entry, ...] = ()

    @classmethod
    def read(cls, path: Path, language: str | None = None) -> Self:
        """The file at `path`. `language` is that of Chinese characters whose line names none (else Mandarin).

        Raises:
            ValueError: it cannot be read, or a line of it is wrong: the message names the line.
        """
        try:
            size = path.stat().st_size
            if size > _LARGEST_BYTES:
                raise ValueError(f"{path}: {size} bytes are too many for a lexicon, {_LARGEST_BYTES} at most")
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        return cls.parse(data, str(path), language)

    @classmethod
    def parse(cls, data: bytes, name: str = FILE_NAME, language: str | None = None) -> Self:
        """The content of a file that messages call `name`; the rest is as in `read`."""
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise ValueError(f"{name}, line {line}: not UTF-8; save the file as UTF-8") from error
        found: dict[tuple[str, str], tuple[int, Entry]] = {}
        for number, ended in enumerate(text.split("\n"), start=1):
            row = ended.removesuffix("\r")
            if not row.strip() or row.lstrip().startswith("#"):
                continue
            try:
                entry = _entry(row, language)
                if entry is None:
                    continue
                key = (_folded(entry.word), entry.language)
                if key in found:
                    raise ValueError(f"{shown(entry.word)} ({entry.language}) stands in line {found[key][0]} already")
            except ValueError as error:
                raise ValueError(f"{name}, line {number}: {error}") from error
            found[key] = (number, entry)
            if len(found) > _MOST_WORDS:
                raise ValueError(f"{name}, line {number}: more than {_MOST_WORDS} words")
        return cls(tuple(entry for _, (_, entry) in sorted(found.items())))

    def over(self, other: "Lexicon | None") -> "Lexicon":
        """The words of both; where both have one, this one's counts."""
        both = {
            (_folded(entry.word), entry.language): entry for entry in (*(other.entries if other else ()), *self.entries)
        }
        return Lexicon(tuple(entry for _, entry in sorted(both.items())))

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def text(self) -> str:
        """The lexicon as the file that `read` takes, whatever the order and the remarks of the one it came from."""
        lines = (f"{entry.word}\t{entry.pronunciation}\t{entry.language}\n" for entry in self.entries)
        return "word\tpronunciation\tlanguage\n" + "".join(lines)

    @property
    def digest(self) -> str:
        """SHA-256 of `text`: the same for the same words, 64 hex digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def part_for(self, text: str) -> "Lexicon":
        """The entries that may change what some of `text` is said like; the others cannot.

        Chinese words count as well where numbers or signs are to be put in words that are not written there.
        """
        letters = _folded("".join(text.split()))
        simple = _simplified(letters)
        plain = _PLAIN.fullmatch(text) is not None

        def matters(entry: Entry) -> bool:
            word = _folded("".join(entry.word.split()))
            return word in letters or (entry.aligned and (not plain or _simplified(word) in simple))

        return Lexicon(tuple(entry for entry in self.entries if matters(entry)))

    # --- finding the words --------------------------------------------------------------------------------------------

    @cached_property
    def _by_word(self) -> dict[str, dict[str, Entry]]:
        """Folded word -> language -> entry, of all that are found in the written text."""
        found: dict[str, dict[str, Entry]] = {}
        for entry in self.entries:
            if not entry.aligned:
                found.setdefault(_folded(entry.word), {})[entry.language] = entry
        return found

    @cached_property
    def _written(self) -> _Words:
        return _Words.of(self._by_word)

    @cached_property
    def _characters(self) -> dict[str, dict[str, Entry]]:
        """zh and yue -> simplified word -> entry, of all that are found in the text as it is said."""
        found: dict[str, dict[str, Entry]] = {"zh": {}, "yue": {}}
        for entry in self.entries:
            if entry.aligned:
                found[entry.language][_simplified(entry.word)] = entry
        return found

    @cached_property
    def _spoken(self) -> dict[str, _Words]:
        return {language: _Words.of(words) for language, words in self._characters.items()}

    def find(self, spans: Sequence[Span], mode: str) -> tuple[Stretch, ...]:
        """The text of `spans`, which were split in `mode`, with the words found that are not plain Chinese."""
        text = "".join(span.text for span in spans)
        folded = _folded(text)
        starts = [0]
        for span in spans:
            starts.append(starts[-1] + len(span.text))
        segments: list[tuple[str, str | Given]] = []

        def keep(start: int, end: int) -> None:
            """The text between two words, cut where its language changes."""
            while start < end:
                index = bisect_right(starts, start) - 1
                stop = min(end, starts[index + 1])
                part, language = text[start:stop], spans[index].language
                if start == done and segments and not any(map(str.isalnum, part)):
                    language = segments[-1][0]  # marks go with the word before them
                segments.append((language, part))
                start = stop

        done = index = 0
        while index < len(text):
            given = self._given_at(text, folded, index, spans, starts, mode)
            if given is None:
                index += 1
                continue
            keep(done, index)
            index += len(given.written) + 2 * given.possessive
            done = index
            entry = given.entry
            segments.append((entry.language, entry.pronunciation if entry.replaces_text else given))
        keep(done, len(text))
        return _joined(segments)

    def _given_at(
        self, text: str, folded: str, start: int, spans: Sequence[Span], starts: Sequence[int], mode: str
    ) -> Given | None:
        for word in self._written.at(folded, start):
            end = start + len(word)
            possessive = _POSSESSIVE.match(folded, end) is not None
            if not _stands_alone(folded, start, end):
                continue
            first, last = bisect_right(starts, start) - 1, bisect_right(starts, end - 1) - 1
            # A word that is all of its span is a borrowed one: 用GSV做 may say it in Chinese, "I use GSV" does not.
            borrowed = (
                _EASTERN.search(word) is None
                and not _LETTER.search(text, starts[first], start)
                and not _LETTER.search(text, end, starts[last + 1])
            )
            for language in _languages_at(spans, first, last, mode, borrowed):
                entry = self._by_word[word].get(language)
                if entry is not None:
                    return Given(entry, text[start:end], possessive and language == "en")
        return None

    def correct(self, reading: Reading, language: str) -> Reading:
        """A Chinese reading with the phonemes of the lexicon's words put in place of those it has."""
        words = self._characters.get(language)
        if not words or not reading.phonemes_per_character:
            return reading
        text = reading.normal_text
        counts = list(reading.phonemes_per_character)
        parts: list[tuple[str, ...]] = []
        taken = 0
        for count in counts:
            parts.append(reading.phonemes[taken : taken + count])
            taken += count
        index = 0
        while index < len(text):
            word = next(self._spoken[language].at(text, index), None)
            if word is not None:
                parts[index : index + len(word)] = words[word]._units
            index += len(word) if word is not None else 1
        return Reading(
            normal_text=text,
            phonemes=tuple(phoneme for part in parts for phoneme in part),
            phonemes_per_character=tuple(map(len, parts)),
            dropped="".join(
                letter
                for letter in reading.dropped
                if letter not in text or any(not part for part, said in zip(parts, text) if said == letter)
            ),
        )


def stretches(spans: Sequence[Span], mode: str, lexicon: Lexicon | None) -> tuple[Stretch, ...]:
    """`spans` of a text that was split in `mode`, with the words of `lexicon` found in it."""
    if not lexicon:
        return tuple(Stretch(span.language, (span.text,)) for span in spans)
    return lexicon.find(spans, mode)


def read_stretch(stretch: Stretch, lexicon: Lexicon | None, read: Callable[[str, str, bool], Reading]) -> Reading:
    """The phonemes of a stretch; `read(text, language, alone)` reads what the lexicon does not give."""
    language = stretch.language
    alone = len(stretch.parts) == 1
    readings = []
    for part in stretch.parts:
        if isinstance(part, Given):
            readings.append(part.reading())
        elif alone or part.strip():
            # A hyphen between a given word and its neighbour joins them; at the edge of a text it would be a pause.
            text = part if alone or language != "en" else re.sub(r"^-(?=\w)|(?<=\w)-$", " ", part)
            reading = read(text, language, alone)
            readings.append(lexicon.correct(reading, language) if lexicon else reading)
    if len(readings) == 1:
        return readings[0]
    phonemes: list[str] = []
    before: str | Given | None = None
    for reading, part in zip(readings, (part for part in stretch.parts if isinstance(part, Given) or part.strip())):
        if language == "ja":
            phonemes += _between(phonemes, before, part)
        phonemes += reading.phonemes
        before = part
    texts = [reading.normal_text.strip() if language == "en" else reading.normal_text for reading in readings]
    return Reading(
        normal_text=re.sub(r" (?=[!?…,.])", "", " ".join(texts)) if language == "en" else "".join(texts),
        phonemes=tuple(phonemes),
        phonemes_per_character=tuple(count for reading in readings for count in reading.phonemes_per_character),
        dropped="".join(dict.fromkeys(letter for reading in readings for letter in reading.dropped)),
    )


def _between(said: Sequence[str], before: str | Given | None, part: str | Given) -> tuple[str, ...]:
    """What Open JTalk would put before `part`: a phrase ends before a given word and, without particles, after one.

    An accent on a given word's last mora is heard in the particle.
    """
    if not said or said[-1] in MARKS or said[-1] == PHRASE_END:
        return ()
    if isinstance(part, Given) or _CONTENT_WORD.match(part):
        return (PHRASE_END,)
    particle = _HIRAGANA.match(part) is not None
    return (FALL,) if particle and isinstance(before, Given) and falls_at_its_end(before.entry.pronunciation) else ()


def _languages_at(spans: Sequence[Span], first: int, last: int, mode: str, borrowed: bool) -> Iterator[str]:
    """The languages whose entries fit a word in spans `first` to `last`, the best first."""
    own = [span.language for span in spans[first : last + 1]]
    main = mode.removeprefix("all_")
    if main not in AUTOMATIC:
        yield from (main, *own) if borrowed else (*own, main)
        return
    if borrowed:
        yield from (span.language for span in (*spans[max(0, first - 1) : first], *spans[last + 1 : last + 2]))
    yield from own


def _stands_alone(folded: str, start: int, end: int) -> bool:
    """Whether a word that begins or ends with a Latin letter or a digit has no further one, and is no part of can't."""
    return not (
        (_WHOLE.match(folded[start]) and _WHOLE_BEFORE.search(folded[max(0, start - 2) : start]))
        or (_WHOLE.match(folded[end - 1]) and _WHOLE_AFTER.match(folded, end) and not _POSSESSIVE.match(folded, end))
    )


def _joined(segments: Sequence[tuple[str, str | Given]]) -> tuple[Stretch, ...]:
    """Neighbours of one language together, and text with text, so that it is read as one."""
    joined: list[tuple[str, list[str | Given]]] = []
    for language, part in segments:
        if not joined or joined[-1][0] != language:
            joined.append((language, [part]))
            continue
        parts = joined[-1][1]
        before = parts[-1]
        if isinstance(before, str) and isinstance(part, str):
            parts[-1] = before + part
        else:
            parts.append(part)
    return tuple(Stretch(language, tuple(parts)) for language, parts in joined)


def _folded(text: str) -> str:
    """Small letters and one kind of apostrophe, character by character: positions stay."""
    if text.isascii():
        return text.lower()
    return "".join(small if len(small := letter.lower()) == 1 else letter for letter in text).replace("’", "'")


def _simplified(text: str) -> str:
    """Chinese characters as the readers see them; of the same length."""
    from gsv_core.text.mandarin_normalisation import simplify

    return simplify(text).translate(_SAID_AS)


def _entry(line: str, language: str | None) -> Entry | None:
    """One line of a file; None for the heading."""
    cells = [unicodedata.normalize("NFC", cell.strip()) for cell in line.split("\t")]
    if tuple(cell.lower() for cell in cells[:2]) == _HEADER:
        return None
    if not 2 <= len(cells) <= 3 or not all(cells[:2]):
        raise ValueError(
            f"expected WORD<tab>PRONUNCIATION[<tab>LANGUAGE], got {len(cells)} cell{'s' * (len(cells) != 1)} "
            f"in {shown(line)}"
        )
    word, pronunciation = (" ".join(cell.split()) for cell in cells[:2])
    for cell, most in ((word, _LONGEST_WORD), (pronunciation, _LONGEST_PRONUNCIATION)):
        if len(cell) > most:
            raise ValueError(f"{shown(cell)} has {len(cell)} characters, {most} at most")
        if not cell.isprintable():
            raise ValueError(f"{shown(cell)} holds a character that cannot be seen; take it out")
    if not any(map(str.isalnum, word)):
        raise ValueError(f"{shown(word)} is no word; a lexicon cannot change marks")
    chosen = cells[2].lower() if len(cells) == 3 and cells[2] else _language_of(word, language)
    if chosen not in LANGUAGES:
        raise ValueError(f"unknown language {shown(chosen)}: choose one of {', '.join(LANGUAGES)}")
    return Entry(word=word, pronunciation=" ".join(pronunciation.split()), language=chosen)


def _language_of(word: str, language: str | None) -> str:
    if _HANGUL.search(word):
        return "ko"
    if _KANA.search(word):
        return "ja"
    if _HAN.search(word):
        return language if language in ("zh", "yue", "ja") else "zh"
    if _LATIN.search(word):
        return "en"
    raise ValueError(f"which language {shown(word)} belongs to cannot be seen; name it in the third cell")
