"""A table of rows and the text of a file, in the encodings and formats that people hand in."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a CSV, JSONL, Parquet or `.list` file.

    Raises:
        ValueError: another kind of file, or one that cannot be understood; names the line.
    """
    suffix = path.suffix.lower()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if suffix == ".parquet":
        try:
            yield from pq.read_table(io.BytesIO(data)).to_pylist()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: not a Parquet file ({error})") from error
        return
    text = decode_text(data)
    if suffix == ".csv":
        try:
            yield from csv.DictReader(io.StringIO(text))
        except csv.Error as error:
            raise ValueError(f"{path}: not readable as CSV ({error})") from error
    elif suffix == ".jsonl":
        # Not splitlines(): JSON may hold U+2028 and its like inside a text as they are.
        for number, line in enumerate(filter(str.strip, text.split("\n")), start=1):
            try:
                row = json.loads(line)
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{path}, line {number}: half a surrogate pair is no text") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
            yield row
    elif suffix == ".list":
        for number, line in enumerate(filter(str.strip, text.split("\n")), start=1):
            parts = line.rstrip("\r").split("|", 3)  # a `|` inside the text belongs to the text
            if len(parts) != 4:
                raise ValueError(f"{path}, line {number}: expected path|speaker|language|text")
            yield {"uri": parts[0], "voice": parts[1], "language": parts[2].strip().lower(), "transcript": parts[3]}
    else:
        raise ValueError(f"{path}: expected a folder or a .csv, .jsonl, .parquet or .list table")


def decode_text(data: bytes) -> str:
    """UTF-8 (with or without a mark) or, failing that, UTF-16 where a mark says so, else Latin-1."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
