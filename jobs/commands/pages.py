"""report, compare, doctor: what became of recordings and fleet, whom people prefer, and what this machine can do."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.command import DONE, FAILED, Command, add_tracking, config_of, tracking_uri_of
from jobs.terminal import say, say_json, say_table

if TYPE_CHECKING:
    from jobs.report import VoiceCoverage

_MOST_NAMED = 12


def _report(options: argparse.Namespace) -> int:
    from jobs.report import report
    from jobs.workspace import Workspace

    if options.fleet:
        return _fleet(options)
    if options.coverage is not None:
        return _coverage(options)
    if options.sentences is not None:
        raise ValueError("--sentences needs --coverage VOICE: the voice they would be recorded for")
    try:
        workspace = Workspace.open(options.workspace)
        page = report(workspace.storage, options.out or workspace.report)
    except OSError as error:
        raise ValueError(f"{options.out or options.workspace}: {error.strerror}") from error
    if options.json:
        say_json({"report": str(page)})
    else:
        say(page)
    return DONE


def _fleet(options: argparse.Namespace) -> int:
    from jobs.fleet_page import write_fleet_page
    from jobs.tracking import Registry
    from jobs.workspace import Workspace

    config = config_of(options)
    workspace = Workspace.open(options.workspace)
    uri = tracking_uri_of(options, config)
    # A workspace in which nothing was registered yet has no store, and no champions either.
    nothing_yet = uri == workspace.default_tracking_uri and not (workspace.root / "mlflow.db").is_file()
    registry = None if nothing_yet else Registry(uri, prefix=config.registry.prefix)
    try:
        page = write_fleet_page(workspace, registry, options.out)
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
    corpus = Workspace.open(options.workspace).storage
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


def _compare(options: argparse.Namespace) -> int:
    from jobs.compare import compare
    from jobs.workspace import Workspace

    if options.read:
        return _read_votes(options)
    if len(options.voices) != 2:
        raise ValueError(f"compare takes two voices, got {len(options.voices)}; or --read VOTES.json")
    config = config_of(options)
    made = compare(
        Workspace.open(options.workspace),
        *options.voices,
        tracking_uri=tracking_uri_of(options, config),
        prefix=config.registry.prefix,
        models=config.flow.base_folder,
        sentences=options.sentences,
        language=options.language,
        most=options.most,
        seed=options.seed,
        out=options.out,
    )
    if options.json:
        say_json({"comparison": made.identity, "page": str(made.page), "key": str(made.key)})
    else:
        say(made.page)
        say(f"{made.sentences} sentences; open it, or hand it on, and read the votes: gsv compare --read VOTES.json")
    return DONE


def _read_votes(options: argparse.Namespace) -> int:
    from jobs.compare import log_preference, read_votes
    from jobs.workspace import Workspace

    if options.voices:
        raise ValueError("compare --read takes files of votes, and no voices: what was compared is in the workspace")
    config = config_of(options)
    found = read_votes(options.read, Workspace.open(options.workspace))
    written = [
        log_preference(entry, tracking_uri_of(options, config), prefix=config.registry.prefix) for entry in found
    ]
    if options.json:
        say_json([asdict(entry) for entry in found], indent=1)
        return DONE
    rows = []
    for entry in found:
        low, high = entry.interval
        share = "–" if entry.share is None else f"{100 * entry.share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        votes = f"{entry.for_a} : {entry.for_b}, {entry.same} alike"
        rows.append((entry.a.label, entry.b.label, votes, share, f"{entry.p_value:.3f}"))
    say_table(("a", "b", "votes", "prefer a, 95 %", "chance if alike"), rows)
    marked = [label for labels in written for label in labels]
    say(f"written on {', '.join(marked)}" if marked else "neither is registered, so nothing was written on them")
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
    parser.add_argument("--coverage", metavar="VOICE", help="instead, say which sounds of its language a voice lacks")
    parser.add_argument("--sentences", type=Path, help="with --coverage: text file to choose sentences to record from")
    parser.add_argument("--most", type=int, default=20, help="with --sentences: how many at most [20]")
    parser.add_argument("--fleet", action="store_true", help="instead, the morning page of all voices")
    add_tracking(parser)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("voices", nargs="*", metavar="A B", help="VOICE, VOICE:3, VOICE@champion, or a run's folder")
    parser.add_argument("--sentences", type=Path, help="text file with what they say, a line each [fixed sentences]")
    parser.add_argument("--language", help="language of the sentences [that of the first one's Prompt]")
    parser.add_argument("--most", type=int, default=8, help="how many sentences at most [8]")
    parser.add_argument("--seed", type=int, default=0, help="of the speech and of which comes first [0]")
    parser.add_argument("--out", type=Path, help="folder for the page [in the workspace]")
    parser.add_argument("--read", type=Path, nargs="+", metavar="VOTES", help="instead, count what listeners saved")
    add_tracking(parser)


COMMANDS = {
    "report": Command(
        run=_report,
        says="write the HTML report",
        example="gsv report --workspace work",
        add_arguments=_add_report,
    ),
    "compare": Command(
        run=_compare,
        says="blind listening page for two voices, and its votes",
        example="gsv compare anna:3 anna@champion --workspace work",
        add_arguments=_add_compare,
    ),
    "doctor": Command(run=_doctor, says="what this machine can and cannot do", example="gsv doctor"),
}
