"""`python -m tests.parity models|text DIR`: ours against the recorded cases in DIR; exit code 1 if any disagrees."""

import argparse
import sys
from pathlib import Path

import torch

from tests.parity import inventory
from tests.parity.models import covered_cases, evaluate
from tests.parity.recorded import Comparison


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("subject", choices=["models", "text"])
    parser.add_argument("folder", type=Path, help="models: NAME.safetensors and NAME.json per case; text: JSONL files")
    parser.add_argument("--case", action="append", help="models: only this one; may be repeated")
    parser.add_argument("--verbose", action="store_true", help="models: every number, not only worst and wrong ones")
    options = parser.parse_args(arguments)
    if options.subject == "text":
        from tests.parity import text

        return text.main(options.folder)

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
        verdict = f"{len(disagreeing)} DISAGREE" if disagreeing else "agree"
        print(f"{case.name:24} {len(comparisons):4} numbers {verdict}; closest to its bound: {_line(worst)}")
        for comparison in comparisons if options.verbose else disagreeing:
            print(f"    {_line(comparison)}{'' if comparison.agrees else '  <- too far'}")
        wrong += bool(disagreeing)
    if not options.case:
        wrong += _inventories(options.folder / "inventory")
        print(f"not evaluated here: {', '.join(left_out) or 'nothing'}")
    print("all agree" if not wrong else f"{wrong} disagree")
    return 1 if wrong else 0


def _inventories(folder: Path) -> int:
    """Print how the full-size networks compare with the files' inventories; the number that differ."""
    names = [name for name in inventory.NETWORKS if (folder / f"{name}.json").is_file()]
    wrong = 0
    for name in names:
        found = inventory.differences(name, folder)
        print(f"{name:24} names and shapes {'DISAGREE' if found else 'agree'}")
        for difference in found:
            print(f"    {difference}")
        wrong += bool(found)
    return wrong


def _line(comparison: Comparison) -> str:
    return f"{comparison.name} {comparison.error:.2g} (of {comparison.tolerance:.2g})"


if __name__ == "__main__":
    sys.exit(main())
