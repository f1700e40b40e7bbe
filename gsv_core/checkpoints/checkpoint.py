"""Checkpoints: all that is needed to go on with a run at the step where it stood.

One folder per phase of a run holds `step-000040.pt`; the two newest stay. A file is written under another name, flushed
and renamed, so that a kill at any moment leaves whole files only. Reading is `weights_only`: tensors, numbers, strings
and containers of them, nothing that could execute.
"""

import logging
import pickle
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gsv_core.checkpoints.weights import write_atomically

logger = logging.getLogger(__name__)

KEPT = 2
PAUSES_S = (0.5, 2.0, 8.0)
"""Between attempts to write where the storage fails: a full disk or a lost mount may come right."""
_NAME = re.compile(r"step-(\d{6,})\.pt")


class SaveError(OSError):
    """What has to be saved cannot be, however often it was tried; what was saved before is untouched. One line."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a run after `step` steps. `identity` says which run: release, base, voice, phase, plan."""

    step: int
    identity: dict[str, str]
    state: dict[str, Any]
    records: list[dict[str, Any]]
    """The curves up to here, so that a resumed run tells its whole story."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` into `folder` and remove all but the newest two.

    Raises:
        SaveError: the storage failed in every attempt; the checkpoints before it are still there.
    """
    path = folder / f"step-{checkpoint.step:06d}.pt"
    content = {
        "step": checkpoint.step,
        "identity": checkpoint.identity,
        "state": checkpoint.state,
        "records": checkpoint.records,
    }
    save_patiently(path, lambda: write_atomically(path, lambda temporary: torch.save(content, temporary)))
    for old in _by_step(folder)[:-KEPT]:
        with suppress(OSError):  # it is in nobody's way, and the next save removes it
            old.unlink()
    return path


def save_patiently(path: Path, write: Callable[[], None]) -> None:
    """Call `write`, which fills `path`, until the storage takes it.

    Raises:
        SaveError: it failed in every attempt.
    """
    for pause in (*PAUSES_S, None):
        try:
            return write()
        except (OSError, RuntimeError) as error:  # torch raises a RuntimeError where the disk is full
            cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            if pause is None:
                raise SaveError(
                    f"{path} cannot be written ({cause}); what was saved before is kept: free the disk or mend the "
                    "mount, and run the same command again to go on from there"
                ) from error
            logger.warning("%s could not be written (%s); trying again in %g s", path, cause, pause)
            time.sleep(pause)


def latest_checkpoint(folder: Path, identity: dict[str, str]) -> Checkpoint | None:
    """The newest checkpoint of `folder` that can be read; None where there is none.

    A damaged one is passed over: an older one of the same run leads to the same weights, some steps later.

    Raises:
        ValueError: none of the files can be read, or the newest belongs to a run with another identity.
    """
    damaged = []
    for path in reversed(_by_step(folder)):
        try:
            checkpoint = Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError):
            logger.warning("%s cannot be read as a checkpoint; trying an older one", path, exc_info=True)
            damaged.append(path)
            continue
        _check_identity(path, checkpoint, identity)
        return checkpoint
    if damaged:
        raise ValueError(
            f"{damaged[0]} cannot be read as a checkpoint, nor can an older one; remove the folder {folder} to begin "
            "this phase again"
        )
    return None


def _check_identity(path: Path, checkpoint: Checkpoint, identity: dict[str, str]) -> None:
    changed = sorted(
        name
        for name in identity.keys() | checkpoint.identity.keys()
        if identity.get(name) != checkpoint.identity.get(name)
    )
    if changed:
        raise ValueError(
            f"{path} belongs to another run (differs in {', '.join(changed)}); a changed config is a new run: "
            "use another folder"
        )


def _by_step(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda pair: int(pair[0].group(1)))]
