"""Our text front ends against recorded lines: a folder of JSONL files to agreement per language.

The format is that of `golden/text`: one sentence a line (`lang`, `version`, `text`, `phones`, `word2ph`), mixtures with
their `pieces`, language spans (`mode`, `pieces`, `lid`) and cuts (`method`, `pieces_zh`, `pieces_en`). Lines whose
notes begin with "upstream bug" are no reference and are left out.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gsv_core.text.front_end import cut_text, read_span
from gsv_core.text.language_spans import split_languages
from gsv_core.text.symbols import UNKNOWN, known

# The share of lines that must agree. Open JTalk's forks carry other dictionaries and other accents.
BOUNDS = {"zh": 1.0, "yue": 1.0, "ko": 1.0, "en": 0.97, "ja": 0.90}
_SHOWN_DIFFERENCES = 20
_ACCENT = frozenset({"[", "]", UNKNOWN})
_UPSTREAM_JAPANESE = ("pyopenjtalk", "pyopenjtalk-prebuilt")


@dataclass
class Agreement:
    """How many lines and phonemes agree with the record, and the lines that do not."""

    lines: int = 0
    lines_equal: int = 0
    phonemes: int = 0
    phonemes_wrong: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.lines_equal / self.lines if self.lines else 1.0

    def add(self, name: str, expected: list[str], ours: list[str]) -> None:
        wrong = edit_distance(expected, ours)
        self.lines += 1
        self.lines_equal += expected == ours
        self.phonemes += len(expected)
        self.phonemes_wrong += wrong
        if expected != ours:
            self.differences.append(f"{name}\n    expected {' '.join(expected)}\n    ours     {' '.join(ours)}")


def edit_distance(expected: list[str], ours: list[str]) -> int:
    """Insertions, deletions and replacements between two sequences."""
    row = list(range(len(ours) + 1))
    for i, wanted in enumerate(expected, 1):
        previous, row[0] = row[0], i
        for j, got in enumerate(ours, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (wanted != got))
    return row[-1]


def exact_japanese() -> bool:
    """Whether the library that made the record is installed; its forks have other accents."""
    for name in _UPSTREAM_JAPANESE:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return True
    return False


def _is_reference(row: Mapping[str, Any]) -> bool:
    return not str(row.get("notes", "")).startswith("upstream bug") and not row.get("error")


def _rows(folder: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                yield f"{path.name}:{number}", json.loads(line)


def _compared(phones: Iterable[str], language: str) -> list[str]:
    return [phone for phone in phones if language != "ja" or exact_japanese() or phone not in _ACCENT]


def _add_piece(into: dict[str, Agreement], name: str, piece: Mapping[str, Any], language: str, release: str) -> None:
    reading = read_span(piece["text"], language, release)
    ours = _compared(known(reading.phonemes, release), language)
    expected = _compared(piece["phones"], language)
    if piece.get("word2ph") is not None:
        # The alignment is part of the line: a difference there is one more wrong symbol.
        expected.append(f"per character {piece['word2ph']}")
        ours.append(f"per character {list(reading.phonemes_per_character)}")
    into.setdefault(language, Agreement()).add(f"{name} {language} {release} {piece['text']!r}", expected, ours)


def replay(answers: Iterable[tuple[str, str]]) -> Callable[[str], str]:
    """A language model that gives recorded answers; for another question, what most of its recorded parts were."""
    recorded = dict(answers)

    def ask(text: str) -> str:
        if text in recorded:
            return recorded[text]
        votes: dict[str, int] = {}
        for question, answer in recorded.items():
            if question.strip() and question.strip() in text:
                votes[answer] = votes.get(answer, 0) + len(question)
        return max(votes, key=lambda answer: votes[answer]) if votes else "zh"

    return ask


def evaluate(folder: Path) -> dict[str, Agreement]:
    """Agreement by language over every reference line of `folder`, with `spans` and `cuts` beside them."""
    found: dict[str, Agreement] = {}
    for name, row in _rows(folder):
        if not _is_reference(row):
            continue
        if "method" in row:
            for end in ("zh", "en"):
                if row.get(f"pieces_{end}") is not None:
                    _add_cut(found, f"{name} {row['method']} {row['text']!r}", row, end)
        elif "mode" in row:
            ask = replay((question, answer) for question, answer in row.get("lid", ()))
            ours = [f"{span.language}:{span.text}" for span in split_languages(row["text"], row["mode"], ask)]
            expected = [f"{language}:{text}" for language, text in row["pieces"]]
            found.setdefault("spans", Agreement()).add(f"{name} {row['mode']} {row['text']!r}", expected, ours)
        elif "pieces" in row:
            for piece in row["pieces"]:
                if piece["lang"] in BOUNDS:
                    _add_piece(found, name, piece, piece["lang"], row["version"])
        elif "phones" in row and row["lang"] in BOUNDS:
            _add_piece(found, name, row, row["lang"], row["version"])
    return found


def _add_cut(found: dict[str, Agreement], name: str, row: Mapping[str, Any], end: str) -> None:
    """Cuts agree where the same words stand in the same pieces; the marks we add for pauses are ours."""

    def bare(pieces: Iterable[str]) -> list[str]:
        return ["".join(character for character in piece if character.isalnum()) for piece in pieces]

    ours = bare(cut_text(row["text"], row["method"]))
    found.setdefault("cuts", Agreement()).add(f"{name} {end}", bare(row[f"pieces_{end}"]), ours)


def report(found: Mapping[str, Agreement]) -> tuple[str, bool]:
    """What to print, and whether every language meets its bound."""
    lines, good = [], True
    for language, agreement in sorted(found.items()):
        bound = 1.0 if language == "ja" and exact_japanese() else BOUNDS.get(language)
        kept = bound is None or agreement.share >= bound
        good &= kept
        wrong = agreement.phonemes_wrong / agreement.phonemes if agreement.phonemes else 0.0
        lines.append(
            f"{language:6} {agreement.lines_equal}/{agreement.lines} lines ({agreement.share:.1%}), {wrong:.2%} of"
            f" {agreement.phonemes} symbols wrong, bound {'none' if bound is None else f'{bound:.0%}'}"
            f"{'' if kept else ': BELOW'}"
        )
        lines += [f"  {difference}" for difference in agreement.differences[:_SHOWN_DIFFERENCES]]
    if not found:
        return "no recorded lines found: give a folder of JSONL files", False
    if "ja" in found and not exact_japanese():
        lines.append("ja: accent marks ignored, upstream's own pyopenjtalk is not installed")
    return "\n".join(lines), good


def main(folder: Path) -> int:
    """Print the agreement of every language; 0 if all bounds are met."""
    text, good = report(evaluate(Path(folder)))
    sys.stdout.write(text + "\n")
    return 0 if good else 1
