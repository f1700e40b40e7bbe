"""synth, convert, blend: text, a recording, or other voices to speech of a registered version."""

import argparse
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from jobs.command import (
    DONE,
    TROUBLED,
    Command,
    add_tracking,
    add_version,
    config_of,
    core_log,
    tracking_uri_of,
)
from jobs.terminal import complain, say, say_json

if TYPE_CHECKING:
    from gsv_core.synthesis.synthesiser import Speech
    from jobs.config import JobConfig
    from jobs.synth import Delivery, References, VoiceAddress

_STANDARD = Path("-")


def _synth(options: argparse.Namespace) -> int:
    if options.table is not None:
        return _synth_table(options)
    if options.voice is None or options.out is None:
        raise ValueError("gsv synth: name a --voice, and with --out the file to write")
    if options.out == _STANDARD and not options.stream:
        raise ValueError("--out - goes with --stream")
    from gsv_core.audio.wav import wav_bytes
    from jobs.synth import speaking

    config = config_of(options)
    with speaking(
        _address(options, config),
        _text(options),
        options.language or "auto",
        style=options.style,
        references=_references(options, config),
        lexicon=options.lexicon,
        delivery=_delivery(options),
    ) as said:
        if options.stream:
            samples = _stream(options.out, said.pieces, said.rate_hz)
        else:
            import numpy as np

            wave = np.concatenate([piece.wave for piece in said.pieces])
            samples = len(wave)
            _write(options.out, wav_bytes(wave, said.rate_hz))
    seconds = samples / said.rate_hz
    if options.out == _STANDARD:
        if said.note:
            complain(said.note)
    elif options.json:
        facts = {"rate_hz": said.rate_hz, "release": said.release, "note": said.note}
        say_json({"out": str(options.out), "seconds": round(seconds, 3), **facts})
    else:
        say(f"{options.out}  {seconds:.2f} s at {said.rate_hz} Hz")
        if said.note:
            say(said.note)
    return DONE


def _synth_table(options: argparse.Namespace) -> int:
    from jobs.cluster import Cluster
    from jobs.progress import progress_for
    from jobs.synth_table import TableJob, synth_table
    from jobs.workspace import Workspace

    alone = {"--text": options.text, "--text-file": options.text_file, "--reference": options.reference}
    alone |= {"--style": options.style, "--stream": options.stream or None, "--lexicon": options.lexicon}
    if wrong := [name for name, value in alone.items() if value]:
        raise ValueError(f"{wrong[0]} does not go with --table: a row has columns of its own")
    if options.out is None or options.out == _STANDARD:
        raise ValueError("--table needs --out DIR, a folder for the waves")
    config = config_of(options)
    workspace = Workspace.open(options.workspace)
    job = TableJob(
        tracker_uri=tracking_uri_of(options, config),
        out=options.out,
        voice=options.voice,
        version=options.version,
        alias=options.alias,
        models=config.flow.base_folder,
        prefix=config.registry.prefix,
        delivery=_delivery(options),
        engines=config.flow.engines,
        least_consistency=config.selection.bounds.least_speaker_consistency,
        gpus_per_worker=config.cluster.gpus_per_worker,
    )
    with core_log(workspace.root, options), Cluster(config.cluster, workspace.root) as cluster:
        cluster.check()
        done = synth_table(options.table, job, cluster, progress_for(json_output=options.json))
    if options.json:
        errors = {str(number): error for number, error in done.errors.items()}
        facts = {"spoken": done.spoken, "present": done.present, "seconds": done.seconds, "errors": errors}
        say_json({"results": str(done.results), **facts})
    else:
        for number, error in done.errors.items():
            complain(f"row {number}: {error}")
        say(f"{done.results}  {done.spoken} spoken, {done.present} there before, {len(done.errors)} not, in all")
        say(f"{done.seconds:.1f} s of speech")
    return TROUBLED if done.errors else DONE


def _convert(options: argparse.Namespace) -> int:
    from jobs.convert import Source, convert_recording

    config = config_of(options)
    converted = convert_recording(
        _address(options, config),
        Source(path=options.source, text=options.text, language=options.language, engines=config.flow.engines),
        style=options.style,
        references=_references(options, config),
        seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
        rate_hz=options.rate_hz,
    )
    _write(options.out, converted.wav)
    if options.json:
        facts = {"rate_hz": converted.rate_hz, "release": converted.release, "note": converted.note}
        heard = {"text": converted.text, "heard_by": converted.heard_by}
        say_json({"out": str(options.out), "seconds": round(converted.seconds, 3), **facts, **heard})
    else:
        say(f"{options.out}  {converted.seconds:.2f} s at {converted.rate_hz} Hz")
        if converted.heard_by:
            say(f"text heard by {converted.heard_by}: {converted.text}")
        if converted.note:
            say(converted.note)
    return DONE


def _blend(options: argparse.Namespace) -> int:
    from jobs.blend import EXPERIMENT, blend_voices, plan_blend
    from jobs.tracking import Tracker
    from jobs.workspace import Workspace

    config = config_of(options)
    workspace = Workspace.open(options.workspace)
    tracker = Tracker(tracking_uri_of(options, config), EXPERIMENT, prefix=config.registry.prefix)
    required = config.registry.require_consent
    plan = plan_blend(tracker.registry, options.parts, options.name, alias=options.alias, require_consent=required)
    parts = [part.record() for part in plan.parts]
    if not options.dry_run:
        with workspace.lease():
            version = blend_voices(plan, workspace, tracker, models=config.flow.base_folder, require_consent=required)
    if options.json:
        made = {} if options.dry_run else {"model": version.name, "version": version.version}
        say_json({"voice": plan.name, "parts": parts, "consent": plan.consent is not None, **made})
        return DONE
    for part in parts:
        consent = f"consent {part['consent_id']}" if part["consent_id"] else "no consent"
        say(f"{100 * part['share']:5.1f} %  {part['voice']}, {part['model']} v{part['version']}, {consent}")
    if options.dry_run:
        say(f"would be registered as voice {plan.name!r}; nothing was done")
    else:
        say(f"{plan.name}: {version.name} v{version.version}, with the weights of {parts[0]['voice']}")
    return DONE


def _address(options: argparse.Namespace, config: "JobConfig") -> "VoiceAddress":
    from jobs.synth import VoiceAddress

    return VoiceAddress(
        tracker_uri=tracking_uri_of(options, config),
        voice=options.voice,
        version=options.version,
        alias=options.alias,
        models=config.flow.base_folder,
        prefix=config.registry.prefix,
    )


def _references(options: argparse.Namespace, config: "JobConfig") -> "References | None":
    from jobs.synth import References

    if not options.reference and not options.reference_text:
        return None
    return References(
        paths=tuple(options.reference or ()),
        text=options.reference_text,
        language=options.reference_language,
        engines=config.flow.engines,
        least_consistency=config.selection.bounds.least_speaker_consistency,
    )


def _delivery(options: argparse.Namespace) -> "Delivery":
    from gsv_core.synthesis.sampling import Sampling
    from jobs.synth import Delivery

    named = ("temperature", "top_k", "top_p", "repetition_penalty")
    told = {name: value for name in named if (value := getattr(options, name)) is not None}
    return Delivery(
        speed=options.speed,
        seed=options.seed,
        cut=options.cut,
        pause_s=options.pause,
        sampling=Sampling(**told) if told else None,
        steps=options.steps,
        guidance=options.guidance,
        rate_hz=options.rate_hz,
    )


def _text(options: argparse.Namespace) -> str:
    """From the command line, from a file, or, where neither is named, from standard input."""
    if options.text is not None and options.text_file is not None:
        raise ValueError("--text or --text-file, not both")
    if options.text is not None:
        return str(options.text)
    try:
        if options.text_file is not None and options.text_file != _STANDARD:
            data = options.text_file.read_bytes()
        elif options.text_file is None and sys.stdin.isatty():
            raise ValueError("gsv synth: give a --text, a --text-file, or the text on standard input")
        else:
            data = sys.stdin.buffer.read()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"--text-file {options.text_file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--text-file {options.text_file or '-'}: not UTF-8 text") from error


def _write(path: Path, data: bytes) -> None:
    from gsv_core.checkpoints.weights import write_atomically

    def put(temporary: Path) -> None:
        temporary.write_bytes(data)

    try:
        write_atomically(path, put)
    except OSError as error:
        raise ValueError(f"--out {path}: {error.strerror}") from error


def _stream(out: Path, pieces: "Iterable[Speech]", rate_hz: int) -> int:
    """Write each piece as soon as it is spoken; the number of samples."""
    from gsv_core.audio.wav import endless_header, pcm_bytes, sized_header

    samples, coming = 0, iter(pieces)
    first = next(coming)  # what cannot be spoken is said before a file is there
    with ExitStack() as stack:
        try:
            file: BinaryIO = sys.stdout.buffer if out == _STANDARD else stack.enter_context(out.open("wb"))
        except OSError as error:
            raise ValueError(f"--out {out}: {error.strerror}") from error
        file.write(endless_header(rate_hz))
        for piece in chain([first], coming):
            file.write(pcm_bytes(piece.wave))
            file.flush()
            samples += len(piece.wave)
        if out != _STANDARD:
            file.seek(0)
            file.write(sized_header(rate_hz, samples))
    return samples


def _add_manner(parser: argparse.ArgumentParser) -> None:
    """What synth and convert understand."""
    parser.add_argument("--style", help="one of the voice's Prompts; `default` is its own, with that Prompt's timbre")
    parser.add_argument(
        "--reference",
        type=Path,
        action="append",
        metavar="FILE",
        help="a recording of 3 to 10 s to follow instead; of several the timbres are averaged",
    )
    parser.add_argument("--reference-text", metavar="TEXT", help="what is said in the first one; else only its timbre")
    parser.add_argument("--reference-language", metavar="LANGUAGE", help="zh, en, ja, ko or yue")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="v3, v4: from noise to speech, more is cleaner [32 in v3, 8 in v4]")
    parser.add_argument("--guidance", type=float, help="v3, v4: more keeps closer to the text, at twice the work [0]")
    parser.add_argument("--rate-hz", type=int, help="resample to this rate [the release's: 32000, 24000 or 48000]")


def _add_synth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", help="needed but with a --table that names one in each row")
    parser.add_argument("--version", type=int, help="version of the voice [newest]")
    parser.add_argument("--alias", help="alias of the version, such as champion")
    add_tracking(parser)
    parser.add_argument("--text", help="what to say; else --text-file or standard input")
    parser.add_argument("--text-file", type=Path, metavar="FILE", help="UTF-8; - is standard input")
    parser.add_argument(
        "--table", type=Path, help="CSV, JSONL or Parquet with text, language[, voice, style, reference, speed, seed]"
    )
    parser.add_argument("--language", help="zh, en, ja, ko, yue or auto [auto]")
    parser.add_argument("--out", type=Path, help="WAV file to write, - for standard output; with --table a folder")
    parser.add_argument("--stream", action="store_true", help="write each piece as soon as it is spoken")
    parser.add_argument("--lexicon", type=Path, help="words and how they are said, before those the version holds")
    parser.add_argument("--speed", type=float, default=1.0, help="2 is twice as fast [1]")
    parser.add_argument("--pause", type=float, default=0.3, metavar="SECONDS", help="between two pieces [0.3]")
    parser.add_argument("--cut", default="cut5", help="cut0 (not) to cut5 (at every mark), as in GPT-SoVITS [cut5]")
    parser.add_argument("--temperature", type=float, help="more is livelier and less sure [1]")
    parser.add_argument("--top-k", type=int, help="tokens to draw from [15]")
    parser.add_argument("--top-p", type=float, help="share of the likelihood to draw from [1]")
    parser.add_argument("--repetition-penalty", type=float, help="above 1 against repeating [1.35]")
    parser.add_argument("--ray-address", help="with --table: a Ray cluster that is up; else one is started here")
    parser.add_argument("--cpus", type=int, help="with --table: CPUs to use [all]")
    _add_manner(parser)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="recording to convert, any audio or video file")
    add_version(parser)
    parser.add_argument("--out", type=Path, required=True, help="WAV file to write")
    parser.add_argument("--text", help="what the source says, for a clearer pronunciation")
    parser.add_argument("--language", help="of the source; without --text the recogniser listens where it can")
    _add_manner(parser)


def _add_blend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("parts", nargs="+", metavar="VOICE:SHARE", help="two voices or more, of one base")
    parser.add_argument("--name", required=True, help="of the new voice")
    parser.add_argument("--alias", help="take the versions this alias points to, such as champion [newest]")
    parser.add_argument("--dry-run", action="store_true", help="say what would be blended, and register nothing")
    add_tracking(parser)


COMMANDS = {
    "synth": Command(
        run=_synth,
        says="speak through a registered version: a text, or each row of a table",
        example='gsv synth --workspace work --voice anna --text "Good morning." --language en --out a.wav',
        add_arguments=_add_synth,
    ),
    "convert": Command(
        run=_convert,
        says="say in a registered voice what a recording says",
        example="gsv convert talk.mp3 --workspace work --voice anna --language en --out talk-anna.wav",
        add_arguments=_add_convert,
    ),
    "blend": Command(
        run=_blend,
        says="make a voice between registered ones",
        example="gsv blend anna:0.6 ben:0.4 --name annaben --workspace work",
        add_arguments=_add_blend,
    ),
}
