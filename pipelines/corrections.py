"""What people heard differently: a table of corrections, by clip id.

`corrections.tsv` holds a line a clip under a line of headings. `clip_id` and `recording` say which clip; `text` and
`language` what is said in it; `verdict` is `keep`, `reject` or blank. A line corrects its clip if it has a verdict, or
if text or language are not what `text_before` and `language_before` say; so the table that `gsv review` writes changes
nothing until somebody edits it. Other columns are passed over. Tabs, commas or semicolons part the cells, as whatever
spreadsheet saved it likes. A clip's text is then final: no recogniser judges it. Its audio and span stay as they are.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from gsv_core.text.language_spans import LANGUAGES
from pipelines.stage import digest_of

FILE_NAME = "corrections.tsv"
COLUMNS = (
    "clip_id",
    "recording",
    "uri",
    "start_s",
    "end_s",
    "doubt",
    "language",
    "text",
    "verdict",
    "language_before",
    "text_before",
)
"""Of the table that review writes, in this order."""
VERDICTS = ("", "keep", "reject")

_NEEDED = ("clip_id", "recording", "text", "verdict")
_LARGEST_BYTES = 64 << 20
_LONGEST_TEXT = 4_000
_IDENTITY = re.compile(r"[0-9a-f]{20}\Z")
# A spreadsheet takes a cell that begins so for a formula; the mark before it is what spreadsheets show text by.
_FORMULA = re.compile(r"'*[=+\-@]")


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What a person said of one clip: its text (and language, None: as it was), or that it is to be left out."""

    clip_id: str
    recording_id: str
    text: str = ""
    language: str | None = None
    rejected: bool = False


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """Corrections by clip id."""

    by_clip: Mapping[str, Correction] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The table at `path`.

        Raises:
            ValueError: it cannot be read, or a line of it is wrong: the message names the line.
        """
        try:
            if path.stat().st_size > _LARGEST_BYTES:
                raise ValueError(f"{path}: longer than {_LARGEST_BYTES} bytes; keep only the lines you changed")
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes, place: str) -> Self:
        """The table in `data`; `place` is what messages call it.

        Raises:
            ValueError: a line of it is wrong: the message names the line.
        """
        try:
            # Spreadsheets save "Unicode text" as UTF-16.
            text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: not UTF-8; save the table as UTF-8") from error
        return cls(by_clip=_parsed(text, place))

    def __bool__(self) -> bool:
        return bool(self.by_clip)

    def __len__(self) -> int:
        return len(self.by_clip)

    def over(self, other: "Corrections") -> "Corrections":
        """These, and those of `other` for clips that have none here."""
        return Corrections(by_clip={**other.by_clip, **self.by_clip})

    def of(self, recordings: Iterable[str]) -> "Corrections":
        """Those of the recordings with these ids."""
        wanted = set(recordings)
        return Corrections(
            by_clip={clip: entry for clip, entry in self.by_clip.items() if entry.recording_id in wanted}
        )

    def digest_of(self, recording_id: str) -> str | None:
        """Names what was said of one recording's clips; None where nothing was."""
        return self._digests.get(recording_id)

    @cached_property
    def _digests(self) -> dict[str, str]:
        said: dict[str, list[list[Any]]] = {}
        for clip, entry in sorted(self.by_clip.items()):
            said.setdefault(entry.recording_id, []).append([clip, entry.text, entry.language, entry.rejected])
        return {recording: digest_of(lines) for recording, lines in said.items()}

    @property
    def table(self) -> str:
        """The corrections as a table that `read` gives back as they are."""
        return write_table(
            [
                {
                    "clip_id": clip,
                    "recording": entry.recording_id,
                    "text": entry.text,
                    "language": entry.language or "",
                    "verdict": "reject" if entry.rejected else "keep",
                }
                for clip, entry in sorted(self.by_clip.items())
            ],
            ("clip_id", "recording", "language", "text", "verdict"),
        )


def write_table(lines: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Lines under their headings, parted by tabs. No cell can be taken for a formula."""
    file = io.StringIO()
    writer = csv.writer(file, "excel-tab", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_shown(line.get(column)) for column in columns] for line in lines)
    return file.getvalue()


def _shown(value: Any) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return f"'{text}" if _FORMULA.match(text) else text


def _meant(cell: str | None) -> str:
    text = (cell or "").strip()
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _parsed(text: str, name: str) -> dict[str, Correction]:
    headings = text.partition("\n")[0]
    delimiter = max("\t,;", key=headings.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found: dict[str, Correction] = {}
    lines: dict[str, int] = {}
    try:
        if missing := [column for column in _NEEDED if column not in (reader.fieldnames or ())]:
            raise ValueError(
                f"{name}, line 1: no column {missing[0]}; there must be {', '.join(_NEEDED)}, as in the table of "
                "`gsv review`"
            )
        for row in reader:
            if not any(cell for cell in row.values()):
                continue
            try:
                correction = _correction(row)
            except ValueError as error:
                raise ValueError(f"{name}, line {reader.line_num}: {error}") from error
            if correction is None:
                continue
            if correction.clip_id in found:
                raise ValueError(
                    f"{name}, line {reader.line_num}: clip {correction.clip_id} was corrected in line "
                    f"{lines[correction.clip_id]} already; keep one of them"
                )
            found[correction.clip_id] = correction
            lines[correction.clip_id] = reader.line_num
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.line_num}: not readable as a table ({error})") from error
    return found


def _correction(row: Mapping[Any, Any]) -> Correction | None:
    """One line of a table; None where it says nothing new. Raises ValueError where it cannot be understood."""
    if None in row:
        raise ValueError("more cells than headings; is there a tab inside a text?")
    cells = {column: _meant(row.get(column)) for column in COLUMNS}
    for column in ("clip_id", "recording"):
        if not _IDENTITY.match(cells[column]):
            raise ValueError(f"{column} is {cells[column][:40]!r}, expected 20 digits of 0-9a-f")
    verdict, language, text = cells["verdict"].lower(), cells["language"].lower(), cells["text"]
    if verdict not in VERDICTS:
        raise ValueError(f"verdict is {verdict[:40]!r}, expected keep, reject or nothing")
    if language and language not in LANGUAGES:
        raise ValueError(f"language is {language[:40]!r}, expected one of {', '.join(LANGUAGES)}")
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"the text has {len(text)} characters; no clip holds more than {_LONGEST_TEXT}")
    if odd := next((letter for letter in text if not letter.isprintable()), None):
        raise ValueError(f"the text holds the character U+{ord(odd):04X}, which nobody can say; take it out")
    clip_id, recording_id = cells["clip_id"], cells["recording"]
    if verdict == "reject":
        return Correction(clip_id=clip_id, recording_id=recording_id, rejected=True)
    if not verdict and text == cells["text_before"] and language == cells["language_before"]:
        return None
    if not text:
        raise ValueError("no text; write what is said, or reject the clip")
    return Correction(clip_id=clip_id, recording_id=recording_id, text=text, language=language or None)
