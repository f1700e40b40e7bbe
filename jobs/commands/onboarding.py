"""onboard, prepare, train, evaluate, register: recordings in, registered voices out."""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from jobs.command import DONE, TROUBLED, Command, add_budget, add_cluster, add_tracking, config_of, core_log
from jobs.terminal import complain, number, say, say_json, say_table, short

if TYPE_CHECKING:
    from jobs.config import JobConfig
    from jobs.onboard import Summary
    from jobs.workspace import Workspace


def _onboard(options: argparse.Namespace) -> int:
    from jobs.onboard import onboard
    from jobs.prepare import forecast
    from jobs.progress import progress_for

    config = config_of(options)
    workspace = _open_workspace(options, config)
    progress = progress_for(json_output=options.json)
    recordings = _recordings(options, workspace.root)
    if options.dry_run:
        return _show_forecast(forecast(recordings, workspace, config, progress), options)
    with core_log(workspace.root, options):
        summary = onboard(recordings, workspace, config, progress, wait_s=options.wait)
    if options.json:
        say_json(summary.record(), indent=1)
    else:
        _show_summary(summary, options)
    return summary.exit_code


def _prepare(options: argparse.Namespace) -> int:
    from jobs.cluster import Cluster
    from jobs.prepare import forecast, prepare
    from jobs.progress import progress_for

    config = config_of(options)
    workspace = _open_workspace(options, config)
    progress = progress_for(json_output=options.json)
    recordings = _recordings(options, workspace.root)
    if options.dry_run:
        return _show_forecast(forecast(recordings, workspace, config, progress), options)
    with (
        core_log(workspace.root, options),
        workspace.lease(wait_s=options.wait),
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
        say_json({"corpus_digest": prepared.corpus_digest, "voices": lines}, indent=1)
    else:
        headings = ("voice", "seconds in", "kept", "rejected", "rows left out")
        say_table(headings, [[*map(str, list(line.values())[:5])] for line in lines])
        say(f"corpus   {workspace.corpus_place}  ({prepared.units_made} units made, {prepared.units_done_before} kept)")
    speech = sum(voice.seconds_kept + voice.seconds_rejected for voice in prepared.voices.values())
    rejected = sum(voice.seconds_rejected for voice in prepared.voices.values())
    too_many = rejected > config.most_rejected_share * speech
    failed = [error for voice in prepared.voices.values() for error in voice.failed_units]
    if failed:
        complain(f"gsv: {len(failed)} units could not be made, the first: {failed[0]}")
    return TROUBLED if too_many or failed else DONE


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

    config = config_of(options)
    workspace = Workspace.open(options.workspace, config.corpus_uri)
    with core_log(workspace.root, options):
        result = run_step(step, workspace, config, progress_for(json_output=options.json), only=options.voice)
    if options.json:
        say_json(result, indent=1)
    else:
        made = {row["voice"]: f"{row['model']} v{row['version']}" for row in result if "version" in row}
        rows = [[row["voice"], row["run_id"], made.get(row["voice"], row["outcome"])] for row in result]
        say_table(("voice", "run", step), rows)
        for row in result:
            if "scores" in row:
                _show_scores(row)
    return TROUBLED if any(row["failed"] for row in result) else DONE


def _show_scores(row: dict[str, Any]) -> None:
    """The pairs of a voice beside the untuned base and its recordings."""
    measures = ("score", "character_error_rate", "likeness", "quality", "mel_cepstral_distance")
    say()
    say_table(
        (row["voice"], "score", "CER", "likeness", "quality", "MCD dB", ""),
        [
            [
                line["what"],
                *(number(line.get(name)) for name in measures),
                "chosen" if line["what"] == row["chosen"] else "",
            ]
            for line in row["scores"]
        ],
    )
    say(row["page"])


def _recordings(options: argparse.Namespace, workspace: Path) -> Path:
    if options.demo:
        from jobs.demo import make_demo_voices

        return make_demo_voices(workspace / "demo-recordings")
    if options.recordings is None:
        raise ValueError("give the folder of recordings, with one sub-folder per voice, or --demo")
    return options.recordings


def _open_workspace(options: argparse.Namespace, config: "JobConfig") -> "Workspace":
    """The workspace of a job that takes recordings. Raises ValueError where it would be among them."""
    from jobs.workspace import Workspace

    recordings = None if options.demo else options.recordings
    if recordings and recordings.is_dir() and options.workspace.resolve().is_relative_to(recordings.resolve()):
        raise ValueError(
            f"--workspace {options.workspace}: lies inside the recordings {recordings}, where what it holds would be "
            "taken for a voice; give a folder elsewhere"
        )
    return Workspace.open(options.workspace, config.corpus_uri)


def _show_summary(summary: "Summary", options: argparse.Namespace) -> None:
    rows = []
    for voice in summary.voices:
        scores = voice.scores
        rows.append(
            [
                voice.voice,
                f"{voice.seconds_kept:.1f}",
                f"{voice.seconds_rejected:.1f}",
                number(scores.get("character_error_rate")),
                number(scores.get("likeness")),
                number(scores.get("quality")),
                f"{voice.model} v{voice.version}{' (new)' if voice.new else ''}" if voice.model else voice.state,
            ]
        )
    say()
    if summary.did_nothing:
        say("Nothing new: no recording to prepare, no voice to train, measure or register.")
    if summary.speech:
        say(f"Mind: {summary.speech}. The scores show the machinery, not a voice.\n")
    say_table(("voice", "kept s", "rejected s", "CER", "likeness", "quality", "version"), rows)
    for voice in summary.voices:
        if voice.reason:
            say(f"\n{voice.voice}: {voice.state}: {voice.reason}")
        elif voice.rejections:
            say(f"\n{voice.voice}:")
        for reason, count in voice.rejections.items():
            say(f"  left out {count} for {reason}, such as: {short(voice.details[reason])}")
    for voice in summary.voices:
        if voice.champion:
            say(f"\n{voice.voice}: version {voice.version} {voice.champion}")
    engines = summary.engines
    say(
        f"\nCER by {engines['recogniser']} (lower is better), likeness by {engines['speaker_verifier']}"
        f"{'' if summary.likeness_independent else ', which also screened the data'}, "
        f"quality by {engines['quality']} (1 to 5)."
    )
    say(f"\nreport   {summary.report}")
    say(f"mlflow   {_mlflow_command(summary.tracking_uri)}")
    if not summary.tracking_uri.startswith("http"):
        say("         then open http://127.0.0.1:5000/#/models")
    first = next((voice for voice in summary.voices if voice.model), None)
    if first:
        say(
            f"speak    gsv synth --workspace {quote(str(options.workspace))} --voice {quote(first.voice)} "
            f'--text "…" --language {first.language or "en"} --out a.wav'
        )
    say(f"took     {summary.seconds:.0f} s")


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
        say_json(record)
    else:
        say(
            f"{forecast.voices} voices, {forecast.recordings} recordings, {forecast.bytes / 1e6:.1f} MB: "
            f"{forecast.units_to_do} units to do, {forecast.units_done} done already"
        )
    return DONE


def _add_recordings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recordings", type=Path, nargs="?", help="folder with a sub-folder per voice, or a table")
    parser.add_argument("--demo", action="store_true", help="make and use two demonstration voices")
    parser.add_argument("--language", help="language of voices that do not state one (zh, en, ja, ko, yue)")
    parser.add_argument("--corpus", metavar="URI", help="where the corpus lies: s3://bucket/corpus [the workspace]")
    parser.add_argument("--corrections", metavar="FILE", help="corrections.tsv for all voices, as gsv review writes it")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="for another job on the same corpus to end [0]"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do none of it")
    add_cluster(parser)


def _add_onboard(parser: argparse.ArgumentParser) -> None:
    _add_recordings(parser)
    add_budget(parser)
    add_tracking(parser)


def _add_step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", action="append", help="only this voice (may be given more than once)")
    add_cluster(parser)
    add_tracking(parser)


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_step(parser)
    add_budget(parser)


COMMANDS = {
    "onboard": Command(
        run=_onboard,
        says="recordings in, registered voices out",
        example="gsv onboard recordings/ --workspace work",
        add_arguments=_add_onboard,
    ),
    "prepare": Command(
        run=_prepare,
        says="recordings → corpus of shards",
        example="gsv prepare recordings/ --workspace work",
        add_arguments=_add_recordings,
    ),
    "train": Command(
        run=_train,
        says="corpus → candidates per voice",
        example="gsv train --workspace work --voice anna --max-hours 8",
        add_arguments=_add_train,
    ),
    "evaluate": Command(
        run=_evaluate,
        says="measure every saved pair",
        example="gsv evaluate --workspace work",
        add_arguments=_add_step,
    ),
    "register": Command(
        run=_register,
        says="best pair → MLflow model version",
        example="gsv register --workspace work",
        add_arguments=_add_step,
    ),
}
