"""What the verbs of the command line share: their form, their exit codes, and options more than one of them has."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.config import JobConfig

DONE, FAILED, WRONG_USE, TROUBLED = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Command:
    """One verb: `run` takes the parsed options and returns the exit code."""

    run: Callable[[argparse.Namespace], int]
    says: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every verb understands."""
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help="folder of the job [./workspace]")
    parser.add_argument("--base", help="base release: nano, v1, v2, v2Pro, v2ProPlus, v3, v4 [nano]")
    parser.add_argument("--models", type=Path, help="folder of the base models' files")
    parser.add_argument("--config", type=Path, help="YAML with settings")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.add_argument("--verbose", action="store_true", help="log what happens, with tracebacks")


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """What verbs that start work on Ray understand."""
    parser.add_argument("--ray-address", help="a Ray cluster that is up; else one is started here")
    parser.add_argument("--cpus", type=int, help="CPUs to use [all]")
    parser.add_argument("--seed", type=int, help="seed of the training [0]")


def add_budget(parser: argparse.ArgumentParser) -> None:
    """What verbs that train understand."""
    parser.add_argument("--max-hours", type=float, metavar="H", help="save and stop training after so many hours")
    parser.add_argument("--max-gpu-hours", type=float, metavar="H", help="the same, counted over all GPUs it holds")


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """What verbs that use the registry understand."""
    parser.add_argument("--tracking-uri", help="MLflow store [SQLite in the workspace; MLFLOW_TRACKING_URI]")


def add_version(parser: argparse.ArgumentParser) -> None:
    """What verbs that use one registered version understand."""
    parser.add_argument("--voice", required=True)
    parser.add_argument("--version", type=int, help="version of the voice [newest]")
    parser.add_argument("--alias", help="alias of the version, such as champion")
    add_tracking(parser)


def config_of(options: argparse.Namespace) -> "JobConfig":
    """The YAML, then `--set`, then the options that have a name of their own."""
    from jobs.config import load_config

    named = {
        "flow.release": options.base,
        "flow.base_folder": options.models and str(options.models),
        "corpus_uri": getattr(options, "corpus", None),
        "corrections": getattr(options, "corrections", None),
        "language": getattr(options, "language", None) if options.verb in ("onboard", "prepare") else None,
        "cluster.ray_address": getattr(options, "ray_address", None),
        "cluster.cpus": getattr(options, "cpus", None),
        "cluster.max_hours": getattr(options, "max_hours", None),
        "cluster.max_gpu_hours": getattr(options, "max_gpu_hours", None),
        "registry.tracking_uri": getattr(options, "tracking_uri", None) or os.environ.get("MLFLOW_TRACKING_URI"),
        "training.seed": getattr(options, "seed", None) if options.verb != "synth" else None,
    }
    return load_config(options.config, options.set, {name: value for name, value in named.items() if value is not None})


def tracking_uri_of(options: argparse.Namespace, config: "JobConfig") -> str:
    """The MLflow store that was named, or the one in the workspace."""
    from jobs.workspace import Workspace

    return config.registry.tracking_uri or Workspace.open(options.workspace).default_tracking_uri


@contextmanager
def core_log(workspace: Path, options: argparse.Namespace) -> Iterator[None]:
    """Send what Ray's C++ core writes past Python, straight to descriptor 2, into a file of the workspace.

    Python's own standard error stays where it was: progress and errors are seen. Ray's driver prints what it hears of
    dying workers on standard output, where programs expect our JSON and nothing else: that goes into the file, too.
    """
    if options.verbose:
        yield
        return
    sys.stderr.flush()
    terminal, before = os.dup(2), sys.stderr
    log_file = workspace / "ray-core.log"
    with log_file.open("a", encoding="utf-8", buffering=1) as log, os.fdopen(terminal, "w", buffering=1) as shown:
        os.dup2(log.fileno(), 2)
        # A test or a program may have put something else in the place of the terminal.
        sys.stderr = shown if before.isatty() or before is sys.__stderr__ else before
        try:
            with redirect_stdout(log):
                yield
        finally:
            sys.stderr = before
            os.dup2(terminal, 2)
