"""`python -m tests.parity models|text DIR`: ours against the recorded cases in DIR.

Exit code 1 if any number disagrees or anything recorded there is evaluated by nobody, 2 for wrong use.
"""

import argparse
import sys
from pathlib import Path

import torch

from tests.parity.models import Report, reports
from tests.parity.recorded import Comparison


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("subject", choices=["models", "text"])
    parser.add_argument("folder", type=Path, help="models: NAME.safetensors and NAME.json per case; text: JSONL files")
    parser.add_argument("--case", action="append", help="models: only this, inventory/NAME or ckpt/FILE; repeatable")
    parser.add_argument("--quiet", action="store_true", help="models: only what is wrong, and the summaries")
    options = parser.parse_args(arguments)
    if options.subject == "text":
        from tests.parity import text

        return text.main(options.folder)

    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    torch.set_num_threads(1)
    done = []
    for report in reports(options.folder, options.case or ()):
        _show(report, quiet=options.quiet)
        done.append(report)
    if not done:
        parser.error(f"no case to evaluate in {options.folder}")
    return _conclude(done)


def _show(report: Report, *, quiet: bool) -> None:
    for comparison in report.comparisons:
        if not quiet or not comparison.agrees:
            print(_line(report.name, comparison))
    print(_summary(report), flush=True)


def _line(case: str, comparison: Comparison) -> str:
    verdict = "not compared" if comparison.left_out else "pass" if comparison.agrees else "FAIL"
    numbers = (
        f"absolute {comparison.error:.2g} relative {comparison.relative:.2g} tolerance {comparison.tolerance:.2g}"
        if not comparison.left_out
        else ""
    )
    note = f" ({comparison.note})" if comparison.note else ""
    return f"  {case} {comparison.name}: {numbers}{' ' if numbers else ''}{verdict}{note}"


def _summary(report: Report) -> str:
    compared = len(report.comparisons) - len(report.left_out)
    verdict = f"{len(report.wrong)} FAIL" if report.wrong else "all pass"
    parts = [f"{report.name}: {compared} compared, {verdict}"]
    if report.left_out:
        parts.append(f"{len(report.left_out)} middles not compared")
    if report.closest is not None and 0 < report.closest.used < float("inf"):
        parts.append(f"most of its tolerance used: {report.closest.name} ({report.closest.used:.1%})")
    return "; ".join(parts)


def _conclude(done: list[Report]) -> int:
    wrong = [report.name for report in done if report.wrong]
    compared = sum(len(report.comparisons) - len(report.left_out) for report in done)
    print(f"{len(done)} cases and files, {compared} comparisons: {len(done) - len(wrong)} pass, {len(wrong)} fail")
    if wrong:
        print(f"failed: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
