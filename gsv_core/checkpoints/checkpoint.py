"""Checkpoints: all that is needed to go on with a run at the step where it stood.

One folder per phase of a run holds `step-000040.pt`; the two newest stay. A file is written under another name, flushed
and renamed, so that a kill at any moment leaves whole files only. Reading is `weights_only`: tensors, numbers, strings
and containers of them, nothing that could execute.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gsv_core.checkpoints.weights import write_atomically

KEPT = 2
_NAME = re.compile(r"step-(\d{6,})\.pt")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a run after `step` steps. `identity` says which run: release, base, voice, phase, plan."""

    step: int
    identity: dict[str, str]
    state: dict[str, Any]
    records: list[dict[str, Any]]
    """The curves up to here, so that a resumed run tells its whole story."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` into `folder` and remove all but the newest two."""
    path = folder / f"step-{checkpoint.step:06d}.pt"
    content = {
        "step": checkpoint.step,
        "identity": checkpoint.identity,
        "state": checkpoint.state,
        "records": checkpoint.records,
    }
    write_atomically(path, lambda temporary: torch.save(content, temporary))
    for old in _by_step(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def latest_checkpoint(folder: Path, identity: dict[str, str]) -> Checkpoint | None:
    """The newest checkpoint of `folder`; None where there is none.

    Raises:
        ValueError: the file cannot be read, or belongs to a run with another identity.
    """
    paths = _by_step(folder)
    if not paths:
        return None
    path = paths[-1]
    try:
        checkpoint = Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint; remove it to go on from an older one") from error
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
    return checkpoint


def _by_step(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda pair: int(pair[0].group(1)))]
