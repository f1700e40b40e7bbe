"""Our text front ends against recorded lines: a folder of JSONL files to agreement per language.

The format is that of `golden/text`: one sentence a line (`lang`, `version`, `text`, `phones`, `word2ph`), mixtures with
their `pieces`, language spans (`mode`, `pieces`, `lid`) and cuts (`method`, `pieces_zh`, `pieces_en`). Lines whose
notes begin with "upstream bug" are no reference and are left out. Lines the record does not mark, yet where upstream is
plainly wrong by one of the rules below and right in all else, are listed with that rule and count neither way.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gsv_core.text.front_end import TextError, cut_text, read_span
from gsv_core.text.language_spans import split_languages
from gsv_core.text.mandarin_normalisation import MORE_COUNTED, cardinal, digits_aloud
from gsv_core.text.symbols import UNKNOWN, known

# The share of lines that must agree. Open JTalk's forks carry other dictionaries and other accents.
BOUNDS = {"zh": 1.0, "yue": 1.0, "ko": 1.0, "en": 0.97, "ja": 0.90}
# Of our own choosing: where spans and pieces end is no sound, but it should be what the models were used with.
_CUTTING_BOUNDS = {"spans": 0.95, "cuts": 0.95}
_SHOWN_DIFFERENCES = 20
_SHORT_RUN = 6
_ACCENT = frozenset({"[", "]", UNKNOWN})
_UPSTREAM_JAPANESE = ("pyopenjtalk", "pyopenjtalk-prebuilt")
# Where upstream's reading of an unmarked line means something else, we deviate; only there, and never for style.
# A rule forgives exactly that: the text with upstream's mistake put into it must read as recorded, symbol for symbol.
# languages, what it is about, how the mistake is put into the text, why.
_BETTER: tuple[tuple[tuple[str, ...], re.Pattern[str], Callable[[re.Match[str]], str], str], ...] = (
    (
        ("zh",),
        re.compile(r"([￥$])(?=\d)|[¥€£](?=\d)"),
        lambda match: {"￥": "，", "$": "。"}.get(match[1], ""),
        "an amount keeps its currency; upstream makes it a pause or nothing",
    ),
    (
        ("yue",),
        re.compile(r"([$])(?=\d)|[￥¥€£](?=\d)"),
        lambda match: "。" if match[1] else "",
        "an amount keeps its currency; upstream makes it a pause or nothing",
    ),
    (("zh", "yue"), re.compile(r"(?<=\d)mm(?![A-Za-z])"), lambda _: "米米", "mm are millimetres; upstream says 米米"),
    (
        ("zh", "yue"),
        re.compile(r"(?<![\d:])(\d+):(\d)(?![\d:])"),
        lambda match: cardinal(match[1]) + cardinal(match[2]),
        "3:2 is a ratio; upstream says 三二, and 十一 for 10:1",
    ),
    (
        ("zh", "yue"),
        re.compile(rf"(?<!\d)\d{{3,}}(?=[多余几]?(?:{'|'.join(MORE_COUNTED)}))"),
        lambda match: digits_aloud(match.group(), "幺"),
        "amounts are no serial numbers",
    ),
    (
        ("ja", "ko"),
        re.compile(r"(?<![\w\-])-(?=\d)"),
        lambda _: "，",
        "the minus of a number is said; upstream makes it a dash",
    ),
)
_UNITS = re.compile(r"[\d.]+\s?(?:°[CF]|℃|km/h|m/s|km|kg|cm|mm|ml|m|d[bB])[²³]?")


@dataclass
class Agreement:
    """How many lines and phonemes agree with the record, and the lines that do not."""

    lines: int = 0
    lines_equal: int = 0
    phonemes: int = 0
    phonemes_wrong: int = 0
    differences: list[str] = field(default_factory=list)
    better: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.lines_equal / self.lines if self.lines else 1.0

    def add(self, name: str, expected: list[str], ours: list[str], reason: str = "") -> None:
        """Count a line; one that differs for a `reason` is only listed."""
        if expected != ours and reason:
            self.better.append(f"{name}: {reason}")
            return
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
    expected = _compared(piece["phones"], language)
    aligned = piece.get("word2ph") is not None
    if aligned:
        # The alignment is part of the line: a difference there is one more wrong symbol.
        expected.append(f"per character {piece['word2ph']}")
    ours = _read(piece["text"], language, release, aligned)
    reason = ""
    if ours != expected:
        recorded = _pauses_alike(expected)
        reason = next(
            (
                why
                for text, why in _mistaken(piece["text"], language)
                if _pauses_alike(_read(text, language, release, aligned)) == recorded
            ),
            "",
        )
    into.setdefault(language, Agreement()).add(f"{name} {language} {release} {piece['text']!r}", expected, ours, reason)


def _read(text: str, language: str, release: str, aligned: bool) -> list[str]:
    """Our phonemes of `text`, with the alignment as one more symbol."""
    try:
        reading = read_span(text, language, release)
    except TextError as error:
        return [error.reason]
    alignment = [f"per character {list(reading.phonemes_per_character)}"] if aligned else []
    return [*_compared(known(reading.phonemes, release), language), *alignment]


def _pauses_alike(phones: Iterable[str]) -> list[str]:
    """`phones` with one symbol for the pauses that upstream makes of signs: SP2 of a currency, a dash of a minus."""
    return ["," if phone in ("SP2", "-") else phone for phone in phones]


def _mistaken(text: str, language: str) -> Iterator[tuple[str, str]]:
    """`text` with each of upstream's mistakes put into it, and with all of them, and why they are mistakes."""
    reasons = []
    changed = text
    for languages, found, mistake, why in _BETTER:
        if language in languages and found.search(text):
            yield found.sub(mistake, text), why
            changed = found.sub(mistake, changed)
            reasons.append(why)
    if len(reasons) > 1:
        yield changed, "; ".join(reasons)


def _add_spans(into: dict[str, Agreement], name: str, row: Mapping[str, Any], mode: str, pieces: list[Any]) -> None:
    """Our spans of a text, the recorded answers of the language model replayed, against the recorded ones."""
    ask = replay((question, answer) for question, answer in row.get("lid", ()))
    # A text that was put through a second time had a full stop put in front.
    lead = "." if pieces and str(pieces[0][1]).startswith(".") and not row["text"].startswith(".") else ""
    ours = [(span.language, span.text) for span in split_languages(lead + row["text"], mode, ask)]
    expected = [(str(language), str(text)) for language, text in pieces]
    into.setdefault("spans", Agreement()).add(
        f"{name} {mode} {row['text']!r}",
        [f"{language}:{text.strip()}" for language, text in expected],
        [f"{language}:{text.strip()}" for language, text in ours],
        _span_reason(lead + row["text"], expected, ours, row.get("lid", ())),
    )


def _span_reason(
    text: str, expected: list[tuple[str, str]], ours: list[tuple[str, str]], lid: Iterable[tuple[str, str]]
) -> str:
    """Why spans differ, if every character in another language than recorded has a reason to be."""
    recorded, found = (
        [(character, language) for language, piece in spans for character in piece if not character.isspace()]
        for spans in (expected, ours)
    )
    if [character for character, _ in recorded] != [character for character, _ in found]:
        return "upstream loses characters"
    units = {index for unit in _UNITS.finditer("".join(text.split())) for index in range(*unit.span())}
    foreign = any(_is_foreign(character) for character in text)
    by_model = _decided_by_model("".join(character for character, _ in recorded), lid)
    reasons = set()
    for index, ((character, language), (_, own)) in enumerate(zip(recorded, found, strict=True)):
        if language == own:
            continue
        if {language, own} <= {"zh", "yue", "ja"}:
            if not by_model[index]:
                return ""
            reasons.add("the small model decides upstream what a short run of Han characters is, often wrongly")
        elif index in units and language == "en":
            reasons.add("a unit is read in the language of its number")
        elif "\u3130" <= character <= "\u318f":
            reasons.add("single jamo are Korean; upstream calls them English")
        elif unicodedata.category(character) in ("So", "Sk", "Mn", "Cf"):
            reasons.add("a sign or emoji goes with its neighbour; upstream calls it English")
        elif foreign:
            reasons.add("Latin letters are English beside accents and other scripts too")
        else:
            return ""
    return "; ".join(sorted(reasons))


def _decided_by_model(text: str, lid: Iterable[tuple[str, str]]) -> list[bool]:
    """For each character, whether it stands in a run that upstream asked its model about, or next to one.

    Runs of one script with numbers and marks only, which follow the run beside them.
    """
    asked = [False] * len(text)
    for question, _ in lid:
        run = "".join(question.split())
        if run and len(run) <= _SHORT_RUN:
            for match in re.finditer(re.escape(run), text):
                asked[match.start() : match.end()] = [True] * len(run)
    for order in (range(1, len(text)), range(len(text) - 2, -1, -1)):
        for index in order:
            beside = asked[index - 1] if order.step > 0 else asked[index + 1]
            asked[index] |= beside and not text[index].isalpha()
    return asked


def _is_foreign(character: str) -> bool:
    """A letter of none of the five languages, or one of English with an accent."""
    return not character.isascii() and character.isalpha() and not "\u1100" <= character <= "\ud7ff"


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
    return evaluate_rows(_rows(folder))


def evaluate_rows(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Agreement]:
    """The same over lines and their names."""
    found: dict[str, Agreement] = {}
    for name, row in rows:
        if not _is_reference(row):
            continue
        if "method" in row:
            for end in ("zh", "en"):
                if row.get(f"pieces_{end}") is not None:
                    _add_cut(found, f"{name} {row['method']} {row['text']!r}", row, end)
        elif "mode" in row:
            _add_spans(found, name, row, row["mode"], row["pieces"])
        elif "pieces" in row:
            _add_spans(found, name, row, row["lang"], [(piece["lang"], piece["text"]) for piece in row["pieces"]])
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
        bound = 1.0 if language == "ja" and exact_japanese() else {**BOUNDS, **_CUTTING_BOUNDS}[language]
        kept = agreement.share >= bound
        good &= kept
        wrong = agreement.phonemes_wrong / agreement.phonemes if agreement.phonemes else 0.0
        lines.append(
            f"{language:6} {agreement.lines_equal}/{agreement.lines} lines ({agreement.share:.1%}), {wrong:.2%} of"
            f" {agreement.phonemes} symbols wrong, bound {bound:.0%}{'' if kept else ': BELOW'}"
            f"{f'; {len(agreement.better)} more read better on purpose' if agreement.better else ''}"
        )
        lines += [f"  {difference}" for difference in agreement.differences[:_SHOWN_DIFFERENCES]]
        lines += [f"  on purpose: {better}" for better in agreement.better[:_SHOWN_DIFFERENCES]]
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
