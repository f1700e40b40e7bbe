"""inspect, export, import, models: checkpoint files, GPT-SoVITS's and ours."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.command import DONE, FAILED, WRONG_USE, Command, add_tracking, config_of, tracking_uri_of
from jobs.terminal import complain, say, say_json, say_table

if TYPE_CHECKING:
    from jobs.models import ListedRelease


def _inspect(options: argparse.Namespace) -> int:
    from jobs.inspect import inspect_files

    found = inspect_files(options.files, expected=options.expected)
    if options.json:
        say_json([description.record() for description in found.descriptions], indent=1)
    elif found.descriptions:
        headings = ("file", "part", "release", "precision", "tensors", "trained")
        rows = []
        for one in found.descriptions:
            trained = [one.info or "", f"LoRA {one.lora_rank}" if one.lora_rank else ""]
            cells = [one.path.name, str(one.part), one.release, ", ".join(one.dtypes), str(one.tensors)]
            rows.append([*cells, ", ".join(filter(None, trained)) or "–"])
        say_table(headings, rows)
        for one in found.descriptions:
            say(f"\n{one.path.name}: by {'; '.join(one.evidence)}")
            if one.training_paths:
                paths = ", ".join(f"{name} {value!r}" for name, value in one.training_paths.items())
                say(f"  paths on the machine that trained it, unused here: {paths}")
            for problem in one.problems:
                say(f"  not whole: {problem}")
    for line in found.refusals:
        complain(f"gsv: {line}")
    return WRONG_USE if found.refusals else FAILED if found.damaged else DONE


def _export(options: argparse.Namespace) -> int:
    from jobs.export import export_run, export_version

    config = config_of(options)
    models = Path(config.flow.base_folder) if config.flow.base_folder else None
    if (options.run_folder is None) == (options.voice is None):
        raise ValueError("gsv export: name a voice with --voice, or the folder of a run with --run")
    if options.run_folder is not None:
        exported = export_run(options.run_folder, options.out, models=models)
    else:
        exported = export_version(
            tracking_uri_of(options, config),
            options.voice,
            options.out,
            version=options.version,
            alias=options.alias,
            models=models,
            prefix=config.registry.prefix,
        )
    if options.json:
        files, reference = ([str(path) for path in paths or ()] for paths in (exported.files, exported.reference))
        say_json({"voice": exported.voice, "release": str(exported.release), "files": files, "reference": reference})
        return DONE
    for path in exported.files:
        say(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    for path in exported.reference or ():
        say(str(path))
    say("put them into GPT-SoVITS's folders of weights: the .ckpt with GPT's, the .pth with SoVITS's")
    say("the recording is what it should follow; the .list beside it says what is said in it")
    return DONE


def _import(options: argparse.Namespace) -> int:
    from jobs.import_ import EXPERIMENT, Reference, import_voice, plan_import
    from jobs.tracking import Tracker
    from jobs.workspace import Workspace

    config = config_of(options)
    reference = Reference(path=options.reference, text=options.text, language=options.language)
    plan = plan_import(options.gpt, options.sovits, voice=options.voice, reference=reference, release=options.base)
    if options.dry_run:
        if options.json:
            say_json(plan.record(), indent=1)
        else:
            for one in (plan.semantic, plan.wave):
                say(f"{one.path}: {one.part} of {one.release}, {one.info or 'no word on its training'}")
            say(f"would be registered as voice {plan.voice!r} on base {plan.release}; nothing was done")
        return DONE
    workspace = Workspace.open(options.workspace)
    tracker = Tracker(tracking_uri_of(options, config), EXPERIMENT, prefix=config.registry.prefix)
    with workspace.lease():
        version = import_voice(
            plan,
            workspace,
            tracker,
            models=Path(config.flow.base_folder) if config.flow.base_folder else None,
            require_consent=config.registry.require_consent,
        )
    if options.json:
        say_json({"voice": plan.voice, "release": str(plan.release), "model": version.name, "version": version.version})
    else:
        say(f"{plan.voice}: {version.name} v{version.version}, on base {plan.release}")
    return DONE


def _models(options: argparse.Namespace) -> int:
    from jobs.models import list_releases, pull_release, verify_release

    folder = Path(config_of(options).flow.base_folder or "models")
    if options.action == "list":
        listed = list_releases(folder, options.release)
        if options.json:
            say_json([one.record() for one in listed], indent=1)
        elif options.release is not None:
            _say_files(listed[0], folder)
        else:
            _say_releases(listed, folder)
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


def _say_releases(listed: "list[ListedRelease]", folder: Path) -> None:
    rows = [
        [str(one.release), one.state, str(len(one.here) + len(one.missing)), _megabytes(sum(one.here.values()))]
        for one in listed
    ]
    say_table(("release", "state", "files", "MB here"), rows)
    say(f"\nin {folder}; `gsv models list RELEASE` names its files, `gsv models pull RELEASE` fetches them")


def _say_files(one: "ListedRelease", folder: Path) -> None:
    if one.repository is None:
        say(f"{one.release} needs no files: it is built in")
        return
    rows = [[name, _megabytes(size)] for name, size in one.here.items()] + [[name, "missing"] for name in one.missing]
    say_table((f"files of {one.release} in {folder}", "MB"), rows)
    if one.missing:
        say(
            f"\n`gsv models pull {one.release} --models {folder}` fetches what is missing from {one.repository} on "
            "Hugging Face (HF_ENDPOINT names a mirror), or with --from DIR copies it"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}" if size else "–"


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "pull", "verify"))
    parser.add_argument("release", nargs="?", help="needed to pull and verify; in a list, names its files")
    parser.add_argument("--from", dest="source", type=Path, help="take the files from this folder instead of the hub")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--as", dest="expected", metavar="RELEASE", help="refuse a file that is not of this release")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice")
    parser.add_argument("--version", type=int, help="version of the voice [newest]")
    parser.add_argument("--alias", help="alias of the version, such as champion")
    add_tracking(parser)
    parser.add_argument(
        "--run", dest="run_folder", type=Path, help="the folder of a finished run, instead of a registered voice"
    )
    parser.add_argument("--format", choices=("gpt-sovits",), default="gpt-sovits", help="[gpt-sovits]")
    parser.add_argument("--out", type=Path, default=Path("export"), help="folder to write into [./export]")


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gpt", type=Path, metavar="GPT.ckpt")
    parser.add_argument("sovits", type=Path, metavar="SOVITS.pth")
    parser.add_argument("--voice", required=True)
    parser.add_argument("--reference", type=Path, required=True, help="recording of the voice, 3 to 10 s")
    parser.add_argument("--text", required=True, help="what is said in it")
    parser.add_argument("--language", required=True, help="zh, en, ja, ko or yue")
    parser.add_argument("--dry-run", action="store_true", help="describe both files, and register nothing")
    add_tracking(parser)


COMMANDS = {
    "inspect": Command(
        run=_inspect,
        says="what checkpoint files are, without executing anything in them",
        example="gsv inspect anna-e15.ckpt anna_e8_s200.pth",
        add_arguments=_add_inspect,
    ),
    "export": Command(
        run=_export,
        says="write a voice as the two files that GPT-SoVITS reads",
        example="gsv export --workspace work --voice anna --models models --out export",
        add_arguments=_add_export,
    ),
    "import": Command(
        run=_import,
        says="register a voice that GPT-SoVITS trained",
        example='gsv import anna-e15.ckpt anna_e8_s200.pth --voice anna --reference a.wav --text "…" --language en',
        add_arguments=_add_import,
    ),
    "models": Command(
        run=_models,
        says="fetch and check base models",
        example="gsv models pull v2Pro --models models",
        add_arguments=_add_models,
    ),
}
