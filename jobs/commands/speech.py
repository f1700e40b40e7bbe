"""synth: text to a wave, through a registered version."""

import argparse
from pathlib import Path

from jobs.command import DONE, Command, add_version, config_of, tracking_uri_of
from jobs.terminal import say, say_json


def _synth(options: argparse.Namespace) -> int:
    from gsv_core.checkpoints.weights import write_atomically
    from jobs.synth import speak

    config = config_of(options)
    spoken = speak(
        tracking_uri_of(options, config),
        options.voice,
        options.text,
        options.language or "auto",
        version=options.version,
        alias=options.alias,
        seed=options.seed,
        speed=options.speed,
        models=config.flow.base_folder,
        prefix=config.registry.prefix,
        lexicon=options.lexicon,
        steps=options.steps,
        guidance=options.guidance,
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
        say_json({"out": str(options.out), "seconds": round(seconds, 3), **facts})
    else:
        say(f"{options.out}  {seconds:.2f} s at {spoken.rate_hz} Hz")
        if spoken.note:
            say(spoken.note)
    return DONE


def _add_synth(parser: argparse.ArgumentParser) -> None:
    add_version(parser)
    parser.add_argument("--text", required=True)
    parser.add_argument("--language", help="zh, en, ja, ko, yue or auto [auto]")
    parser.add_argument("--out", type=Path, required=True, help="WAV file to write")
    parser.add_argument("--lexicon", type=Path, help="words and how they are said, before those the version holds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", type=float, default=1.0, help="2 is twice as fast [1]")
    parser.add_argument("--steps", type=int, help="v3, v4: from noise to speech, more is cleaner [32 in v3, 8 in v4]")
    parser.add_argument("--guidance", type=float, help="v3, v4: more keeps closer to the text, at twice the work [0]")


COMMANDS = {
    "synth": Command(
        run=_synth,
        says="speak through a registered version",
        example='gsv synth --workspace work --voice anna --text "Good morning." --language en --out a.wav',
        add_arguments=_add_synth,
    ),
}
