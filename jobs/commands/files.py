"""models: the files of base models."""

import argparse
from pathlib import Path

from jobs.command import DONE, Command
from jobs.terminal import say, say_json, say_table


def _models(options: argparse.Namespace) -> int:
    from jobs.models import list_releases, pull_release, verify_release

    folder = options.folder
    if options.action == "list":
        rows = list_releases(folder)
        if options.json:
            say_json(rows, indent=1)
        else:
            say_table(("release", "state", "files"), [[str(cell) for cell in row.values()] for row in rows])
        return DONE
    if options.release is None:
        raise ValueError(f"gsv models {options.action}: name a release, such as v2Pro (`gsv models list` shows all)")
    if options.action == "pull":
        files = pull_release(options.release, folder, options.source)
    else:
        files = verify_release(options.release, folder)
    if options.json:
        say_json(files)
    else:
        say(f"{options.release}: {len(files)} files in {folder} are as locked")
    return DONE


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "pull", "verify"))
    parser.add_argument("release", nargs="?")
    parser.add_argument("--folder", type=Path, default=Path("models"), help="where the files lie [./models]")
    parser.add_argument("--from", dest="source", type=Path, help="take the files from this folder instead of the hub")


COMMANDS = {
    "models": Command(
        run=_models,
        says="fetch and check base models",
        example="gsv models pull v2Pro --folder models",
        add_arguments=_add_models,
    ),
}
