"""report, doctor: what became of the recordings, and what this machine can do."""

import argparse
from dataclasses import asdict
from pathlib import Path

from jobs.command import DONE, FAILED, Command, config_of
from jobs.terminal import say, say_json


def _report(options: argparse.Namespace) -> int:
    from jobs.report import report
    from jobs.workspace import Workspace

    try:
        page = report(Workspace.open(options.workspace).corpus, options.out)
    except OSError as error:
        raise ValueError(f"{options.out or options.workspace}: {error.strerror}") from error
    if options.json:
        say_json({"report": str(page)})
    else:
        say(page)
    return DONE


def _doctor(options: argparse.Namespace) -> int:
    from jobs.doctor import examine

    findings = examine(config_of(options), options.workspace)
    if options.json:
        say_json([asdict(finding) for finding in findings], indent=1)
    else:
        for finding in findings:
            say(f"{'ok ' if finding.ok else '-- '} {finding.what:<22} {finding.says}")
            if finding.remedy:
                say(f"    {'':<22} {finding.remedy}")
    return DONE if all(finding.ok or not finding.needed for finding in findings) else FAILED


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="where to write the page [in the corpus]")


COMMANDS = {
    "report": Command(
        run=_report,
        says="write the HTML report",
        example="gsv report --workspace work",
        add_arguments=_add_report,
    ),
    "doctor": Command(run=_doctor, says="what this machine can and cannot do", example="gsv doctor"),
}
