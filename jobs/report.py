"""Report: what a corpus and its runs came to → one HTML page, and one for each run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipelines.report.numbers import collect
from pipelines.report.page import write_report


def report(corpus: Path, out: Path | None = None) -> Path:
    """Write the page about `corpus` and return its place. Raises ValueError where there is no corpus."""
    return write_report(collect(corpus), out or corpus / "report" / "index.html")


def report_runs(corpus: Path, runs: Mapping[str, Path]) -> None:
    """Write `report.html` into the run folder of each voice: the part of the corpus report that is about it."""
    numbers = collect(corpus)
    for voice in numbers.voices:
        if voice.voice in runs:
            write_report(replace(numbers, voices=(voice,)), runs[voice.voice] / "report.html")
