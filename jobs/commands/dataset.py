"""export-dataset, import-dataset: a voice's clips to and from the folder GPT-SoVITS's own scripts train on."""

import argparse
from dataclasses import asdict
from pathlib import Path

from jobs.command import DONE, Command, config_of
from jobs.terminal import say, say_json

FORMATS = ("gpt-sovits",)


def _export(options: argparse.Namespace) -> int:
    from jobs.dataset import export_dataset
    from jobs.workspace import Workspace

    workspace = Workspace.open(options.workspace)
    exported = export_dataset(workspace, config_of(options), options.voice, options.out, split=options.split)
    if options.json:
        say_json(asdict(exported) | {"folder": str(exported.folder)})
    else:
        say(f"{exported.clips} clips, {exported.seconds:.1f} s, features of {exported.release}: {exported.folder}")
    return DONE


def _import(options: argparse.Namespace) -> int:
    from jobs.dataset import import_dataset
    from jobs.workspace import Workspace

    imported = import_dataset(options.dataset, Workspace.open(options.workspace), options.voice, options.out)
    if options.json:
        say_json(asdict(imported) | {"folder": str(imported.folder)})
        return DONE
    languages = ", ".join(imported.languages) or "of no known language"
    say(f"{imported.recordings} recordings ({languages}) in {imported.folder / imported.voice}")
    say("audio, texts and language were taken, features are made anew")
    say(f"next     gsv prepare {imported.folder} --workspace {options.workspace}")
    return DONE


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="[gpt-sovits]")
    parser.add_argument("--split", choices=("train", "held_out", "all"), default="train", help="which clips [train]")


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="a folder of GPT-SoVITS's, or a .list")
    parser.add_argument("--voice", required=True, help="the name it gets here")
    parser.add_argument("--out", type=Path, help="folder of recordings to put it into [imported in the workspace]")


COMMANDS = {
    "export-dataset": Command(
        run=_export,
        says="write what is kept of a voice as a folder GPT-SoVITS trains on",
        example="gsv export-dataset --workspace work --voice anna --out anna-dataset",
        add_arguments=_add_export,
    ),
    "import-dataset": Command(
        run=_import,
        says="make recordings of a folder GPT-SoVITS trained on",
        example="gsv import-dataset logs/anna --voice anna --out recordings",
        add_arguments=_add_import,
    ),
}
