"""`gsv <verb>`: what a person or a scheduler types. One table, verb → command.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 finished, but a voice failed or more speech was rejected than allowed.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence

from jobs.command import DONE, FAILED, WRONG_USE, Command, add_common
from jobs.commands import bench, corpus, dataset, files, onboarding, pages, registry, selecting, speech
from jobs.terminal import complain

VERBS: Mapping[str, Command] = {
    verb: command
    for group in (onboarding, selecting, registry, speech, pages, corpus, dataset, files, bench)
    for verb, command in group.COMMANDS.items()
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the process's exit code."""
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        verb = options.verb
        parser.exit(
            2, f"gsv: {verb} does not understand {' '.join(unknown)!r}; `gsv {verb} --help` says what it takes\n"
        )
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
        complain(f"gsv: {_one_line(error)}")
        return WRONG_USE
    except (KeyboardInterrupt, SystemExit):
        # Ray turns SIGTERM into SystemExit.
        complain("gsv: interrupted; run the same command again to go on")
        return FAILED
    except BrokenPipeError:
        # Whoever read, such as `head`, has had enough; Python would complain again while it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:  # noqa: BLE001 - the last line says what went wrong; --verbose shows where
        return _failed(error, options)


def _is_ours(error: ValueError) -> bool:
    """Whether it was raised to tell a user something; a library's own kind of ValueError means something is broken."""
    kind = type(error)
    return kind is ValueError or kind.__module__.split(".")[0] in ("gsv_core", "pipelines", "jobs")


def _failed(error: BaseException, options: argparse.Namespace) -> int:
    if options.verbose:
        logging.getLogger(__name__).error("failed", exc_info=error)
    complain(f"gsv: {type(error).__name__}: {_one_line(error)} (--verbose shows where)")
    return FAILED


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gsv", description="Onboard a fleet of voices for GPT-SoVITS: recordings in, registered voices out."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, command in VERBS.items():
        one = verbs.add_parser(
            verb, help=command.says, description=f"{command.says}.", epilog=f"example: {command.example}"
        )
        one.set_defaults(run=command.run)
        add_common(one)
        if command.add_arguments:
            command.add_arguments(one)
    return parser


if __name__ == "__main__":
    sys.exit(main())
