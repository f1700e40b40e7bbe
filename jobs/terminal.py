"""What people and programs read on standard output: lines, tables, JSON. The only place that prints."""

import json
import sys
from collections.abc import Sequence
from typing import Any


def say(line: object = "") -> None:
    """One line to standard output."""
    print(line)


def complain(line: str) -> None:
    """One line to standard error."""
    print(line, file=sys.stderr)


def say_json(value: Any, *, indent: int | None = None) -> None:
    """`value` as JSON to standard output, letters of every script as they are."""
    print(json.dumps(value, indent=indent, ensure_ascii=False))


def say_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; numbers to the right. Wide characters count as two."""
    from rich.cells import cell_len

    widths = [max(cell_len(str(row[index])) for row in [headings, *rows]) for index in range(len(headings))]

    def padded(cell: str, index: int) -> str:
        space = " " * (widths[index] - cell_len(cell))
        is_number = (index > 0 and cell.replace(".", "").replace("–", "").isdigit()) or cell == "–"
        return space + cell if is_number else cell + space

    for row in [headings, ["─" * width for width in widths], *rows]:
        print("  ".join(padded(str(cell), index) for index, cell in enumerate(row)).rstrip())


def short(text: str) -> str:
    """`text` on one line of at most 110 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 110 else line[:109] + "…"


def number(value: float | None) -> str:
    """Two digits after the point, or a dash where there is no number."""
    return "–" if value is None else f"{value:.2f}"
