"""Report: what a corpus and its runs came to → one HTML page."""

from pathlib import Path

from pipelines.report.numbers import collect
from pipelines.report.page import write_report


def report(corpus: Path, out: Path | None = None) -> Path:
    """Write the page about `corpus` and return its place. Raises ValueError where there is no corpus."""
    return write_report(collect(corpus), out or corpus / "report" / "index.html")
