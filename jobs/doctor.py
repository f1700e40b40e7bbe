"""Doctor: what this machine can and cannot do, before a job finds out the hard way."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gsv_core.checkpoints.releases import RELEASES
from jobs.config import JobConfig, available_cpus
from jobs.workspace import Workspace

_LEAST_DISK_GB = 5
_LEAST_MEMORY_GB = 4
_NEEDED = ("torch", "torchaudio", "ray", "pyarrow", "webdataset", "mlflow", "transformers", "av", "soxr")
_ENGINES = {
    "whisperx": "whisperx",
    "speechbrain": "speechbrain",
    "pocketsphinx": "pocketsphinx",
    "resemblyzer": "resemblyzer",
    "dnsmos": "speechmos",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at. What is not `needed` is told and fails nothing."""

    what: str
    ok: bool
    says: str
    remedy: str = ""
    needed: bool = True


def examine(config: JobConfig, workspace: Path) -> list[Finding]:
    """Look at everything a job needs; nothing is changed but the workspace folder, which is made."""
    return [
        _python(),
        *(_package(name) for name in _NEEDED),
        *(_package(name, label=f"engine {engine}", needed=False) for engine, name in _ENGINES.items()),
        _machine(),
        _gpu(),
        _workspace(workspace),
        _base(config),
    ]


def _python() -> Finding:
    ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Finding(what="python", ok=ok, says=platform.python_version(), remedy="" if ok else "use Python 3.11 or 3.12")


def _package(name: str, *, label: str = "", needed: bool = True) -> Finding:
    try:
        return Finding(what=label or name, ok=True, says=f"{name} {version(name)}", needed=needed)
    except PackageNotFoundError:
        return Finding(
            what=label or name,
            ok=False,
            says="not installed",
            remedy="run `make install`",
            needed=needed,
        )


def _machine() -> Finding:
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    ok = gigabytes >= _LEAST_MEMORY_GB
    return Finding(
        what="machine",
        ok=ok,
        says=f"{available_cpus()} CPUs, {gigabytes:.0f} GB memory",
        remedy="" if ok else f"{_LEAST_MEMORY_GB} GB are needed",
    )


def _gpu() -> Finding:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding(
        what="gpu",
        ok=bool(names),
        says=", ".join(names) or "none: training runs on the CPU, which is enough for nano alone",
        needed=False,
    )


def _workspace(folder: Path) -> Finding:
    try:
        workspace = Workspace.open(folder)
    except ValueError as error:
        return Finding(what="workspace", ok=False, says=str(error), remedy="give another --workspace")
    free = shutil.disk_usage(workspace.root).free / 1e9
    ok = free >= _LEAST_DISK_GB
    return Finding(
        what="workspace",
        ok=ok,
        says=f"{workspace.root}: {free:.0f} GB free",
        remedy="" if ok else f"{_LEAST_DISK_GB} GB are needed",
    )


def _base(config: JobConfig) -> Finding:
    spec = RELEASES[config.flow.release]
    folder = Path(config.flow.base_folder) if config.flow.base_folder else None
    missing = [name for name in spec.files if folder is None or not (folder / name).is_file()]
    what = f"base {spec.release}"
    if missing:
        return Finding(
            what=what,
            ok=False,
            says=f"{len(missing)} of {len(spec.files)} files are missing, the first is {missing[0]}",
            remedy=f"gsv models pull {spec.release} --models DIR, then --models DIR with every verb",
        )
    return Finding(what=what, ok=True, says=spec.note or f"{len(spec.files)} files")
