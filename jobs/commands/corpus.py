"""verify, review, gc, forget: a corpus checked, corrected, and cleared of what nothing refers to or nobody allows."""

import argparse
from dataclasses import asdict
from pathlib import Path

from jobs.command import DONE, FAILED, Command, add_tracking, config_of
from jobs.terminal import say, say_json, say_table

_MOST_SHOWN = 20


def _verify(options: argparse.Namespace) -> int:
    from jobs.progress import progress_for
    from jobs.workspace import Workspace
    from pipelines.verify import discard_damaged, verify_corpus

    workspace = Workspace.open(options.workspace)
    corpus = workspace.storage
    with workspace.lease(), progress_for(json_output=options.json).bar("verify") as bar:
        verified = verify_corpus(corpus, on_unit=lambda done, total: bar.update(done, total))
        discarded = discard_damaged(verified, corpus) if options.repair else []
    if options.json:
        say_json(asdict(verified) | {"discarded_units": discarded}, indent=1)
    else:
        for damage in verified.damage:
            say(f"{damage.path}: {damage.what}")
        size = verified.size_bytes / 1e6
        found = f"{len(verified.damage)} damaged" if verified.damage else "all as committed"
        say(f"{verified.units} units, {verified.clips} clips, {verified.files} files, {size:.1f} MB: {found}")
        if discarded:
            say(f"{len(discarded)} units discarded; prepare again to make them anew")
        elif verified.damage:
            say("remedy: gsv verify --repair, then prepare again: damaged units are made anew from their recordings")
    return FAILED if verified.damage and not discarded else DONE


def _gc(options: argparse.Namespace) -> int:
    from jobs.workspace import Workspace
    from pipelines.garbage import find_leftovers, remove

    workspace = Workspace.open(options.workspace)
    corpus = workspace.storage
    with workspace.lease():
        leftovers = find_leftovers(corpus)
        if options.yes:
            remove(leftovers, corpus)
    size = sum(leftover.size_bytes for leftover in leftovers)
    if options.json:
        say_json({"removed": options.yes, "bytes": size, "files": [asdict(entry) for entry in leftovers]}, indent=1)
        return DONE
    shown = leftovers[:_MOST_SHOWN]
    if shown:
        rows = [[entry.path, f"{entry.size_bytes / 1e6:.2f}", entry.reason] for entry in shown]
        say_table(("file", "MB", "why it can go"), rows)
        if len(leftovers) > len(shown):
            say(f"… and {len(leftovers) - len(shown)} more (--json lists all)")
    if not leftovers:
        say("nothing to remove: all of the corpus is of the last run")
    elif options.yes:
        say(f"removed {len(leftovers)} files, {size / 1e6:.1f} MB")
    else:
        say(f"{len(leftovers)} files, {size / 1e6:.1f} MB can go; nothing was removed: --yes removes them")
    return DONE


def _review(options: argparse.Namespace) -> int:
    from jobs.review import review
    from jobs.workspace import Workspace

    workspace = Workspace.open(options.workspace)
    found = review(workspace, config_of(options), only=options.voice, most=options.most, out=options.out)
    if options.json:
        say_json(asdict(found) | {"page": str(found.page), "table": str(found.table)})
        return DONE
    say(f"{found.doubtful} of {found.clips} clips to listen to, {found.corrected} corrected before")
    say(f"page     {found.page}")
    say(f"table    {found.table}")
    place = f"RECORDINGS/{options.voice}" if options.voice else "RECORDINGS"
    say(f"save the corrected table as {place}/corrections.tsv and prepare again: only what was corrected is made anew")
    return DONE


def _forget(options: argparse.Namespace) -> int:
    from jobs.forget import forget
    from jobs.workspace import Workspace

    workspace = Workspace.open(options.workspace)
    erasure = forget(options.voice, workspace, config_of(options), reason=options.reason, really=options.yes)
    if options.json:
        say_json(asdict(erasure), indent=1)
        return DONE if erasure.complete else FAILED
    say_table(("of the voice", "there are"), [[name.replace("_", " "), str(n)] for name, n in erasure.counts.items()])
    if erasure.done:
        say(f"voice {erasure.voice} is forgotten; prepare leaves it out until voice.yaml holds a new consent")
    else:
        say("nothing was erased: --yes erases them for good, and takes the voice out of the reports")
    if erasure.recordings:
        say(f"its {len(erasure.recordings)} recordings are yours to remove, the first is {erasure.recordings[0]}")
    if not erasure.complete:
        say("the MLflow server deleted the files and marked the runs; run `mlflow gc` there to take them out")
    return DONE if erasure.complete else FAILED


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="discard damaged units, so that they are made again")


def _add_gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="remove them; without it, only say what would go")


def _add_review(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", help="only this one [all]")
    parser.add_argument("--most", type=int, default=100, help="how many clips at most [100]")
    parser.add_argument("--out", type=Path, help="folder for page and table [review in the workspace]")


def _add_forget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("voice", metavar="VOICE")
    parser.add_argument("--yes", action="store_true", help="erase it; without it, only say what would go")
    parser.add_argument("--reason", default="", help="why, for the record that stays")
    add_tracking(parser)


COMMANDS = {
    "verify": Command(
        run=_verify,
        says="check every shard of a corpus against its manifest",
        example="gsv verify --workspace work",
        add_arguments=_add_verify,
    ),
    "review": Command(
        run=_review,
        says="write the doubtful clips as a page to listen to and a table to correct",
        example="gsv review --workspace work --voice anna",
        add_arguments=_add_review,
    ),
    "forget": Command(
        run=_forget,
        says="erase a voice whose consent was withdrawn, with --yes",
        example='gsv forget anna --workspace work --reason "asked on the phone" --yes',
        add_arguments=_add_forget,
    ),
    "gc": Command(
        run=_gc,
        says="find what no current config refers to, and remove it with --yes",
        example="gsv gc --workspace work",
        add_arguments=_add_gc,
    ),
}
