"""select: what each voice keeps of its clips, and what another bound would do."""

import argparse
from dataclasses import asdict

from jobs.command import DONE, Command, config_of
from jobs.terminal import say, say_json, say_table


def _select(options: argparse.Namespace) -> int:
    from jobs.select import select_voices, try_bounds
    from jobs.workspace import Workspace

    config = config_of(options)
    workspace = Workspace.open(options.workspace)
    only = options.voice or ()
    if options.dry_run:
        voices, effects = try_bounds(workspace, config, only=only)
    else:
        voices, effects = select_voices(workspace, config, only=only), []
    if options.json:
        say_json({"voices": [asdict(entry) for entry in voices], "bounds": [asdict(entry) for entry in effects]})
        return DONE
    if options.dry_run:
        rows = [
            [
                effect.voice,
                effect.bound,
                "–" if effect.limit is None else f"{effect.limit:g}",
                str(effect.measured),
                str(effect.rejected),
                f"{effect.rejected_seconds:.1f}",
                str(effect.alone),
                f"{effect.alone_seconds:.1f}",
                " ".join(f"{value:.3g}" for value in effect.spread) or "–",
            ]
            for effect in effects
            if effect.bound.startswith("selection.") or effect.rejected
        ]
        headings = ("voice", "bound", "limit", "measured", "rejects", "seconds", "alone", "seconds")
        say_table((*headings, "least · 5 % · middle · 95 % · most"), rows)
        if any(effect.bound.startswith("flow.") and effect.rejected for effect in effects):
            say("A bound of flow counts when recordings are prepared: a changed one makes every unit anew.")
        say()
    rows = [
        [
            entry.voice,
            str(entry.clips),
            str(entry.kept),
            f"{entry.kept_seconds:.1f}",
            str(entry.held_out),
            ", ".join(f"{reason} {count}" for reason, count in entry.left_out.items()) or "–",
            "yes" if entry.enough else "no",
        ]
        for entry in voices
    ]
    say_table(("voice", "clips", "kept", "seconds", "held out", "left out", "enough"), rows)
    for entry in voices:
        for number, count in entry.not_finite.items():
            say(f"{entry.voice}: no {number} for {count} clips: its model answered with NaN or infinity")
    if options.dry_run:
        say("nothing was written")
    return DONE


def _add_select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", action="append", help="only this voice (may be given more than once)")
    parser.add_argument("--dry-run", action="store_true", help="show what each bound would reject, and write nothing")


COMMANDS = {
    "select": Command(
        run=_select,
        says="decide what each voice keeps, from the corpus's numbers alone",
        example="gsv select --workspace work --set selection.bounds.least_quality=2.5 --dry-run",
        add_arguments=_add_select,
    ),
}
