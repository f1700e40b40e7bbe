"""`python -m tests.parity models DIR`: our networks against the recorded cases in DIR; exit code 1 if any disagrees."""

import argparse
import sys
from pathlib import Path

import torch

from tests.parity.models import covered_cases, evaluate


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("subject", choices=["models"])
    parser.add_argument("folder", type=Path, help="with NAME.safetensors and NAME.json per case")
    parser.add_argument("--case", action="append", help="only this one; may be repeated")
    parser.add_argument("--verbose", action="store_true", help="every number, not only the worst and the wrong ones")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    cases, left_out = covered_cases(options.folder)
    if options.case:
        cases = [case for case in cases if case.name in options.case]
    if not cases:
        parser.error(f"no case to evaluate in {options.folder}")
    wrong = 0
    for case in cases:
        comparisons = evaluate(case)
        disagreeing = [comparison for comparison in comparisons if not comparison.agrees]
        worst = max(comparisons, key=lambda comparison: comparison.error / (comparison.tolerance or 1))
        verdict = f"{len(disagreeing)} DISAGREE" if disagreeing else "agrees"
        print(f"{case.name:24} {len(comparisons):4} numbers, {verdict}; closest to its bound: {_line(worst)}")
        for comparison in comparisons if options.verbose else disagreeing:
            print(f"    {_line(comparison)}{'' if comparison.agrees else '  <- too far'}")
        wrong += bool(disagreeing)
    if left_out and not options.case:
        print(f"not evaluated here: {', '.join(left_out)}")
    print(f"{len(cases) - wrong} of {len(cases)} cases agree")
    return 1 if wrong else 0


def _line(comparison) -> str:
    return f"{comparison.name} {comparison.error:.2g} (of {comparison.tolerance:.2g})"


if __name__ == "__main__":
    sys.exit(main())
