"""Where models lie: inside an installed package (found without importing it), or in a folder that was named.

Several libraries carry their trained models with them; importing the library for the sake of one file would cost
seconds and drag in what is not needed.
"""

import sys
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


def check_folder(model: str, what: str, member: str) -> None:
    """A path that is meant as a folder is checked at once; any other name is the hub's.

    Raises:
        ValueError: `member` is not in the folder.
    """
    path = Path(model)
    if (path.is_absolute() or path.is_dir() or model.startswith(".")) and not (path / member).is_file():
        raise ValueError(f"{what} is not in {model}: expected a folder with {member} in it")
