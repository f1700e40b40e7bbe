"""`gsv <verb>`: what a person or a scheduler types. One table, verb → function.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 finished, but a voice failed or more speech was rejected than allowed.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.config import JobConfig
    from jobs.onboard import Summary
    from jobs.workspace import Workspace

DONE, FAILED, WRONG_USE, TROUBLED = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the process's exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.CRITICAL,
        format="%(levelname)s %(name)s: %(message)s",
    )
    # onnxruntime reports its use over the network and keeps a database unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return options.run(options)
    except ValueError as error:
        if not _is_ours(error):
            return _failed(error, options)
        if options.verbose:
            logging.getLogger(__name__).exception("wrong use")
        print(f"gsv: {_one_line(error)}", file=sys.stderr)
        return WRONG_USE
    except (KeyboardInterrupt, SystemExit):
        # Ray turns SIGTERM into SystemExit.
        print("gsv: interrupted; run the same command again to go on", file=sys.stderr)
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last line says what went wrong; --verbose shows where
        return _failed(error, options)


def _is_ours(error: ValueError) -> bool:
    """Whether it was raised to tell a user something; a library's own kind of ValueError means something is broken."""
    kind = type(error)
    return kind is ValueError or kind.__module__.split(".")[0] in ("gsv_core", "pipelines", "jobs")


def _failed(error: BaseException, options: argparse.Namespace) -> int:
    if options.verbose:
        logging.getLogger(__name__).error("failed", exc_info=error)
    print(f"gsv: {type(error).__name__}: {_one_line(error)} (--verbose shows where)", file=sys.stderr)
    return FAILED


# --- verbs ------------------------------------------------------------------------------------------------------------


def _onboard(options: argparse.Namespace) -> int:
    from jobs.onboard import onboard
    from jobs.prepare import forecast
    from jobs.progress import progress_for

    config = _config(options)
    workspace = _open_workspace(options)
    progress = progress_for(json_output=options.json)
    recordings = _recordings(options, workspace.root)
    if options.dry_run:
        return _show_forecast(forecast(recordings, workspace, config, progress), options)
    with _core_log(workspace.root, options):
        summary = onboard(recordings, workspace, config, progress)
    if options.json:
        print(json.dumps(summary.record(), indent=1, ensure_ascii=False))
    else:
        _show_summary(summary, options)
    return summary.exit_code


def _prepare(options: argparse.Namespace) -> int:
    from jobs.cluster import Cluster
    from jobs.prepare import forecast, prepare
    from jobs.progress import progress_for

    config = _config(options)
    workspace = _open_workspace(options)
    progress = progress_for(json_output=options.json)
    recordings = _recordings(options, workspace.root)
    if options.dry_run:
        return _show_forecast(forecast(recordings, workspace, config, progress), options)
    with (
        _core_log(workspace.root, options),
        workspace.lease(),
        Cluster(config.cluster, workspace.root) as cluster,
    ):
        prepared = prepare(recordings, workspace, config, cluster, progress)
    lines = [
        {
            "voice": name,
            "seconds_in": round(voice.seconds_in, 1),
            "seconds_kept": round(voice.seconds_kept, 1),
            "seconds_rejected": round(voice.seconds_rejected, 1),
            "rejections": voice.rejections,
            "failed_units": list(voice.failed_units),
        }
        for name, voice in sorted(prepared.voices.items())
    ]
    if options.json:
        print(json.dumps({"corpus_digest": prepared.corpus_digest, "voices": lines}, indent=1, ensure_ascii=False))
    else:
        headings = ("voice", "seconds in", "kept", "rejected", "rows left out")
        _table(headings, [[*map(str, list(line.values())[:5])] for line in lines])
        print(f"corpus   {workspace.corpus}  ({prepared.units_made} units made, {prepared.units_done_before} kept)")
    speech = sum(voice.seconds_kept + voice.seconds_rejected for voice in prepared.voices.values())
    rejected = sum(voice.seconds_rejected for voice in prepared.voices.values())
    too_many = rejected > config.most_rejected_share * speech
    return TROUBLED if too_many or any(line["failed_units"] for line in lines) else DONE


def _train(options: argparse.Namespace) -> int:
    return _step(options, "train")


def _evaluate(options: argparse.Namespace) -> int:
    return _step(options, "evaluate")


def _register(options: argparse.Namespace) -> int:
    return _step(options, "register")


def _step(options: argparse.Namespace, step: str) -> int:
    """One of train, evaluate, register over the corpus that is there, as far as it is not done."""
    from jobs.onboard import run_step
    from jobs.progress import progress_for
    from jobs.workspace import Workspace

    config = _config(options)
    workspace = Workspace.open(options.workspace)
    with _core_log(workspace.root, options):
        result = run_step(step, workspace, config, progress_for(json_output=options.json), only=options.voice)
    if options.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        _table(("voice", "run", step), [[row["voice"], row["run_id"], row["outcome"]] for row in result])
    return TROUBLED if any(row["failed"] for row in result) else DONE


def _synth(options: argparse.Namespace) -> int:
    from gsv_core.checkpoints.weights import write_atomically
    from jobs.synth import speak
    from jobs.workspace import Workspace

    config = _config(options)
    uri = config.registry.tracking_uri or Workspace.open(options.workspace).default_tracking_uri
    spoken = speak(
        uri,
        options.voice,
        options.text,
        options.language or "auto",
        version=options.version,
        alias=options.alias,
        seed=options.seed,
        speed=options.speed,
        models=config.flow.base_folder,
        prefix=config.registry.prefix,
    )

    def put(path: Path) -> None:
        path.write_bytes(spoken.wav)

    try:
        write_atomically(options.out, put)
    except OSError as error:
        raise ValueError(f"--out {options.out}: {error.strerror}") from error
    seconds = (len(spoken.wav) - 44) / 2 / spoken.rate_hz
    if options.json:
        facts = {"rate_hz": spoken.rate_hz, "release": spoken.release, "note": spoken.note}
        print(json.dumps({"out": str(options.out), "seconds": round(seconds, 3), **facts}))
    else:
        print(f"{options.out}  {seconds:.2f} s at {spoken.rate_hz} Hz")
        if spoken.note:
            print(spoken.note)
    return DONE


def _report(options: argparse.Namespace) -> int:
    from jobs.report import report
    from jobs.workspace import Workspace

    try:
        page = report(Workspace.open(options.workspace).corpus, options.out)
    except OSError as error:
        raise ValueError(f"{options.out or options.workspace}: {error.strerror}") from error
    print(json.dumps({"report": str(page)}) if options.json else page)
    return DONE


def _doctor(options: argparse.Namespace) -> int:
    from jobs.doctor import examine

    findings = examine(_config(options), options.workspace)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{'ok ' if finding.ok else '-- '} {finding.what:<22} {finding.says}")
            if finding.remedy:
                print(f"    {'':<22} {finding.remedy}")
    return DONE if all(finding.ok or not finding.needed for finding in findings) else FAILED


def _models(options: argparse.Namespace) -> int:
    from jobs.models import list_releases, pull_release, verify_release

    folder = options.folder
    if options.action == "list":
        rows = list_releases(folder)
        if options.json:
            print(json.dumps(rows, indent=1))
        else:
            _table(("release", "state", "files"), [[str(cell) for cell in row.values()] for row in rows])
        return DONE
    if options.release is None:
        raise ValueError(f"gsv models {options.action}: name a release, such as v2Pro (`gsv models list` shows all)")
    if options.action == "pull":
        files = pull_release(options.release, folder, options.source)
    else:
        files = verify_release(options.release, folder)
    print(json.dumps(files) if options.json else f"{options.release}: {len(files)} files in {folder} are as locked")
    return DONE


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show_summary(summary: "Summary", options: argparse.Namespace) -> None:
    rows = []
    for voice in summary.voices:
        scores = voice.scores
        rows.append(
            [
                voice.voice,
                f"{voice.seconds_kept:.1f}",
                f"{voice.seconds_rejected:.1f}",
                _number(scores.get("character_error_rate")),
                _number(scores.get("likeness")),
                _number(scores.get("quality")),
                f"{voice.model} v{voice.version}{' (new)' if voice.new else ''}" if voice.model else voice.state,
            ]
        )
    print()
    if summary.did_nothing:
        print("Nothing new: no recording to prepare, no voice to train, measure or register.")
    if summary.speech:
        print(f"Mind: {summary.speech}. The scores show the machinery, not a voice.\n")
    _table(("voice", "kept s", "rejected s", "CER", "likeness", "quality", "version"), rows)
    for voice in summary.voices:
        if voice.reason:
            print(f"\n{voice.voice}: {voice.state}: {voice.reason}")
        elif voice.rejections:
            print(f"\n{voice.voice}:")
        for reason, count in voice.rejections.items():
            print(f"  left out {count} for {reason}, such as: {_short(voice.details[reason])}")
    engines = summary.engines
    print(
        f"\nCER by {engines['recogniser']} (lower is better), likeness by {engines['speaker_verifier']}, which also "
        f"screened the data, quality by {engines['quality']} (1 to 5)."
    )
    print(f"\nreport   {summary.report}")
    print(f"mlflow   {_mlflow_command(summary.tracking_uri)}")
    if not summary.tracking_uri.startswith("http"):
        print("         then open http://127.0.0.1:5000/#/models")
    first = next((voice for voice in summary.voices if voice.model), None)
    if first:
        print(
            f"speak    gsv synth --workspace {quote(str(options.workspace))} --voice {quote(first.voice)} "
            f'--text "…" --language {first.language or "en"} --out a.wav'
        )
    print(f"took     {summary.seconds:.0f} s")


def _mlflow_command(uri: str) -> str:
    """What opens MLflow's page on this store."""
    if uri.startswith(("http://", "https://")):
        return uri
    program = Path(sys.executable).parent / "mlflow"
    name = os.path.relpath(program) if program.exists() else "mlflow"
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {quote(name)} server --workers 1 --backend-store-uri {quote(uri)}"


def _show_forecast(forecast: Any, options: argparse.Namespace) -> int:
    record = asdict(forecast)
    if options.json:
        print(json.dumps(record))
    else:
        print(
            f"{forecast.voices} voices, {forecast.recordings} recordings, {forecast.bytes / 1e6:.1f} MB: "
            f"{forecast.units_to_do} units to do, {forecast.units_done} done already"
        )
    return DONE


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.cells import cell_len

    widths = [max(cell_len(str(row[index])) for row in [headings, *rows]) for index in range(len(headings))]

    def padded(cell: str, index: int) -> str:
        space = " " * (widths[index] - cell_len(cell))
        is_number = (index > 0 and cell.replace(".", "").replace("–", "").isdigit()) or cell == "–"
        return space + cell if is_number else cell + space

    for row in [headings, ["─" * width for width in widths], *rows]:
        print("  ".join(padded(str(cell), index) for index, cell in enumerate(row)).rstrip())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 110 else line[:109] + "…"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _core_log(workspace: Path, options: argparse.Namespace) -> Iterator[None]:
    """Send what Ray's C++ core writes past Python, straight to descriptor 2, into a file of the workspace.

    Python's own standard error stays where it was: progress and errors are seen.
    """
    if options.verbose:
        yield
        return
    sys.stderr.flush()
    terminal, before = os.dup(2), sys.stderr
    with (workspace / "ray-core.log").open("ab") as log, os.fdopen(terminal, "w", buffering=1) as shown:
        os.dup2(log.fileno(), 2)
        # A test or a program may have put something else in the place of the terminal.
        sys.stderr = shown if before.isatty() or before is sys.__stderr__ else before
        try:
            yield
        finally:
            sys.stderr = before
            os.dup2(terminal, 2)


# --- what is asked ----------------------------------------------------------------------------------------------------


def _config(options: argparse.Namespace) -> "JobConfig":
    """The YAML, then `--set`, then the options that have a name of their own."""
    from jobs.config import load_config

    named = {
        "flow.release": options.base,
        "flow.base_folder": options.models and str(options.models),
        "language": getattr(options, "language", None) if options.verb in ("onboard", "prepare") else None,
        "cluster.ray_address": getattr(options, "ray_address", None),
        "cluster.cpus": getattr(options, "cpus", None),
        "registry.tracking_uri": getattr(options, "tracking_uri", None) or os.environ.get("MLFLOW_TRACKING_URI"),
        "training.seed": getattr(options, "seed", None) if options.verb != "synth" else None,
    }
    return load_config(options.config, options.set, {name: value for name, value in named.items() if value is not None})


def _recordings(options: argparse.Namespace, workspace: Path) -> Path:
    if options.demo:
        from jobs.demo import make_demo_voices

        return make_demo_voices(workspace / "demo-recordings")
    if options.recordings is None:
        raise ValueError("give the folder of recordings, with one sub-folder per voice, or --demo")
    return options.recordings


def _open_workspace(options: argparse.Namespace) -> "Workspace":
    """The workspace of a job that takes recordings. Raises ValueError where it would be among them."""
    from jobs.workspace import Workspace

    recordings = None if options.demo else options.recordings
    if recordings and recordings.is_dir() and options.workspace.resolve().is_relative_to(recordings.resolve()):
        raise ValueError(
            f"--workspace {options.workspace}: lies inside the recordings {recordings}, where what it holds would be "
            "taken for a voice; give a folder elsewhere"
        )
    return Workspace.open(options.workspace)


_VERBS: dict[str, tuple[Callable[[argparse.Namespace], int], str, str]] = {
    "onboard": (_onboard, "recordings in, registered voices out", "gsv onboard recordings/ --workspace work"),
    "prepare": (_prepare, "recordings → corpus of shards", "gsv prepare recordings/ --workspace work"),
    "train": (_train, "corpus → candidates per voice", "gsv train --workspace work --voice anna"),
    "evaluate": (_evaluate, "measure every saved pair", "gsv evaluate --workspace work"),
    "register": (_register, "best pair → MLflow model version", "gsv register --workspace work"),
    "synth": (
        _synth,
        "speak through a registered version",
        'gsv synth --workspace work --voice anna --text "Good morning." --language en --out a.wav',
    ),
    "report": (_report, "write the HTML report", "gsv report --workspace work"),
    "doctor": (_doctor, "what this machine can and cannot do", "gsv doctor"),
    "models": (_models, "fetch and check base models", "gsv models pull v2Pro --folder models"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gsv", description="Onboard a fleet of voices for GPT-SoVITS: recordings in, registered voices out."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (run, says, example) in _VERBS.items():
        one = verbs.add_parser(verb, help=says, description=f"{says}.", epilog=f"example: {example}")
        one.set_defaults(run=run)
        _common(one)
        if verb in _ADD:
            _ADD[verb](one)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help="folder of the job [./workspace]")
    parser.add_argument("--base", help="base release: nano, v1, v2, v2Pro, v2ProPlus, v3, v4 [nano]")
    parser.add_argument("--models", type=Path, help="folder of the base models' files")
    parser.add_argument("--config", type=Path, help="YAML with settings")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--verbose", action="store_true", help="log what happens, with tracebacks")


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ray-address", help="a Ray cluster that is up; else one is started here")
    parser.add_argument("--cpus", type=int, help="CPUs to use [all]")
    parser.add_argument("--seed", type=int, help="seed of the training [0]")


def _add_tracking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tracking-uri", help="MLflow store [SQLite in the workspace; MLFLOW_TRACKING_URI]")


def _add_recordings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recordings", type=Path, nargs="?", help="folder with a sub-folder per voice, or a table")
    parser.add_argument("--demo", action="store_true", help="make and use two demonstration voices")
    parser.add_argument("--language", help="language of voices that do not state one (zh, en, ja, ko, yue)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do none of it")
    _add_cluster(parser)


def _add_onboard(parser: argparse.ArgumentParser) -> None:
    _add_recordings(parser)
    _add_tracking(parser)


def _add_step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", action="append", help="only this voice (may be given more than once)")
    _add_cluster(parser)
    _add_tracking(parser)


def _add_synth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--language", help="zh, en, ja, ko, yue or auto [auto]")
    parser.add_argument("--out", type=Path, required=True, help="WAV file to write")
    parser.add_argument("--version", type=int, help="version of the voice [newest]")
    parser.add_argument("--alias", help="alias of the version, such as champion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", type=float, default=1.0, help="2 is twice as fast [1]")
    _add_tracking(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="where to write the page [in the corpus]")


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "pull", "verify"))
    parser.add_argument("release", nargs="?")
    parser.add_argument("--folder", type=Path, default=Path("models"), help="where the files lie [./models]")
    parser.add_argument("--from", dest="source", type=Path, help="take the files from this folder instead of the hub")


_ADD: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "onboard": _add_onboard,
    "prepare": _add_recordings,
    "train": _add_step,
    "evaluate": _add_step,
    "register": _add_step,
    "synth": _add_synth,
    "report": _add_report,
    "models": _add_models,
}


if __name__ == "__main__":
    sys.exit(main())
