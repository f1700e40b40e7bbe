"""report, doctor: what became of the recordings, which sounds they lack, and what this machine can do."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.command import DONE, FAILED, Command, config_of
from jobs.terminal import say, say_json, say_table

if TYPE_CHECKING:
    from jobs.report import VoiceCoverage

_MOST_NAMED = 12


def _report(options: argparse.Namespace) -> int:
    from jobs.report import report
    from jobs.workspace import Workspace

    if options.coverage is not None:
        return _coverage(options)
    if options.sentences is not None:
        raise ValueError("--sentences needs --coverage VOICE: the voice they would be recorded for")
    try:
        page = report(Workspace.open(options.workspace).corpus, options.out)
    except OSError as error:
        raise ValueError(f"{options.out or options.workspace}: {error.strerror}") from error
    if options.json:
        say_json({"report": str(page)})
    else:
        say(page)
    return DONE


def _coverage(options: argparse.Namespace) -> int:
    from jobs.report import coverage
    from jobs.workspace import Workspace

    if options.most < 1:
        raise ValueError(f"--most must be at least 1, got {options.most}")
    corpus = Workspace.open(options.workspace).corpus
    found = coverage(corpus, options.coverage, options.sentences, most=options.most)
    if options.json:
        say_json(_coverage_record(found))
        return DONE
    rows = [
        (
            entry.language,
            kind.kind,
            f"{kind.seen} of {kind.known}",
            f"{100 * kind.weighted_share:.1f} %",
            ", ".join(unit.name for unit in kind.missing[:_MOST_NAMED])
            + ("…" if len(kind.missing) > _MOST_NAMED else ""),
        )
        for entry in found.languages
        for kind in entry.kinds
    ]
    say_table(("language", "kind", "heard", "of running speech", "missing, the commonest first"), rows)
    if found.proposal is None:
        return DONE
    say()
    for number, entry in enumerate(found.proposal.sentences, start=1):
        more = len(entry.adds) - _MOST_NAMED
        names = ", ".join(name for _, _, name in entry.adds[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        say(f"{number:>3}  {entry.sentence.text}")
        say(f"     adds {names}")
    if not found.proposal.sentences:
        say("no sentence of the file adds anything")
    say(f"{len(found.proposal.uncovered)} units stay uncovered")
    if found.unusable:
        say(f"lines of the file that cannot be recorded as one sentence: {found.unusable}")
    return DONE


def _coverage_record(found: "VoiceCoverage") -> dict[str, object]:
    record: dict[str, object] = {
        "voice": found.voice,
        "languages": [
            {
                "language": entry.language,
                "phonemes_heard": entry.phonemes_heard,
                **{
                    kind.kind: {
                        "known": kind.known,
                        "seen": kind.seen,
                        "share": round(kind.share, 6),
                        "weighted_share": round(kind.weighted_share, 6),
                        "missing": {unit.name: unit.weight for unit in kind.missing},
                        "rare": {unit.name: unit.count for unit in kind.rare},
                    }
                    for kind in entry.kinds
                },
            }
            for entry in found.languages
        ],
    }
    if found.proposal is not None:
        record["sentences"] = [
            {"text": entry.sentence.text, "weight": entry.weight, "adds": [list(unit) for unit in entry.adds]}
            for entry in found.proposal.sentences
        ]
        record["uncovered"] = [list(unit) for unit in found.proposal.uncovered]
        record["unusable"] = found.unusable
    return record


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
    parser.add_argument("--coverage", metavar="VOICE", help="instead, say which sounds of its language a voice lacks")
    parser.add_argument("--sentences", type=Path, help="with --coverage: text file to choose sentences to record from")
    parser.add_argument("--most", type=int, default=20, help="with --sentences: how many at most [20]")


COMMANDS = {
    "report": Command(
        run=_report,
        says="write the HTML report",
        example="gsv report --workspace work",
        add_arguments=_add_report,
    ),
    "doctor": Command(run=_doctor, says="what this machine can and cannot do", example="gsv doctor"),
}
