"""verify, gc: a corpus checked, and cleared of what nothing refers to."""

import argparse
from dataclasses import asdict

from jobs.command import DONE, FAILED, Command
from jobs.terminal import say, say_json, say_table

_MOST_SHOWN = 20


def _verify(options: argparse.Namespace) -> int:
    from jobs.progress import progress_for
    from jobs.workspace import Workspace
    from pipelines.storage import LocalStorage
    from pipelines.verify import discard_damaged, verify_corpus

    workspace = Workspace.open(options.workspace)
    corpus = LocalStorage(workspace.corpus)
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
    from pipelines.storage import LocalStorage

    workspace = Workspace.open(options.workspace)
    corpus = LocalStorage(workspace.corpus)
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


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="discard damaged units, so that they are made again")


def _add_gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="remove them; without it, only say what would go")


COMMANDS = {
    "verify": Command(
        run=_verify,
        says="check every shard of a corpus against its manifest",
        example="gsv verify --workspace work",
        add_arguments=_add_verify,
    ),
    "gc": Command(
        run=_gc,
        says="find what no current config refers to, and remove it with --yes",
        example="gsv gc --workspace work",
        add_arguments=_add_gc,
    ),
}
