"""Where models lie: inside an installed package (found without importing it), or in a folder that was named.

Several libraries carry their trained models with them; importing the library for the sake of one file would cost
seconds and drag in what is not needed.
"""

import hashlib
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


def packaged_file(package: str, relative: str) -> Path:
    """The path of `relative` inside `package`.

    Raises:
        ValueError: the package is not installed, or does not carry this file.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {package} is missing: pip install {package.replace('_', '-')}")
    path = Path(spec.submodule_search_locations[0]) / relative
    if not path.is_file():
        raise ValueError(
            f"{package} {package_version(package)} has no {relative}: install the version in requirements.lock"
        )
    return path


def package_version(package: str) -> str:
    """The installed version of a distribution, for an engine's name; "unknown" for a folder on the path."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def forget_lazy_modules() -> None:
    """Take speechbrain's placeholders for absent packages (k2 and others) out of the list of loaded modules.

    They raise ImportError at the touch of any attribute, so that whatever looks through that list (`inspect`, test
    tools) would fail long after and far from the import. pyannote, and so whisperX, imports speechbrain too.
    """
    for name, module in list(sys.modules.items()):
        kind = type(module)
        if kind.__name__ in ("LazyModule", "DeprecatedModuleRedirect") and kind.__module__.startswith("speechbrain."):
            del sys.modules[name]


def onnx_session(path: Path):  # type: ignore[no-untyped-def]  # onnxruntime ships no types
    """An onnxruntime session on one CPU thread: the same result whatever the machine, and no fight over cores."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("the package onnxruntime is missing: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])


def content_digest(model: str) -> str | None:
    """SHA-256 over the names and bytes of the files in a model's folder; None for a name of the hub.

    Read once per process, unless a size or a time of change differs.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        found = path.stat()
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(_file_digest(str(path), found.st_size, found.st_mtime_ns).encode())
    return digest.hexdigest()


@cache
def _file_digest(path: str, _size_bytes: int, _changed_ns: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_folder(model: str, what: str, member: str) -> None:
    """A path that is meant as a folder is checked at once; any other name is the hub's.

    Raises:
        ValueError: `member` is not in the folder.
    """
    path = Path(model)
    if (path.is_absolute() or path.is_dir() or model.startswith(".")) and not (path / member).is_file():
        raise ValueError(f"{what} is not in {model}: expected a folder with {member} in it")
