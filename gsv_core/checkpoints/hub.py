"""Base model files: fetched once, locked by their SHA-256, and checked against that lock whenever they are used.

Files come from the release's Hugging Face repository (`HF_ENDPOINT` names a mirror) or a folder carried in by hand.
`files.lock.json` beside them holds, per file, its digest and size; what was locked once never changes silently.
"""

import hashlib
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gsv_core.checkpoints.releases import BERT_FOLDER, RELEASES, REPOSITORY, Release
from gsv_core.checkpoints.weights import write_atomically, write_json

LOCK_NAME = "files.lock.json"

TEXT_FOLDER = "G2PWModel"
TEXT_FILES = tuple(
    f"{TEXT_FOLDER}/{name}"
    for name in (
        "g2pW.onnx",
        "POLYPHONIC_CHARS.txt",
        "MONOPHONIC_CHARS.txt",
        "bopomofo_to_pinyin_wo_tune_dict.json",
        "tokenizer.json",
    )
)
"""What reads Mandarin characters of several readings by context: g2pW, and the token list of its BERT."""
_TEXT_REPOSITORY = "XXXXRT/GPT-SoVITS-Pretrained"
_TEXT_ARCHIVE = "G2PWModel.zip"
_TOKENS = f"{BERT_FOLDER}/tokenizer.json"
_LARGEST_TEXT_FILE = 1 << 30


def pull(
    release: Release,
    folder: Path,
    *,
    source: Path | None = None,
    endpoint: str | None = None,
    on_file: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Bring all files of `release` into `folder` and lock them; those already there and unchanged stay.

    `source` is a folder to copy from instead of the hub, `endpoint` another hub than `HF_ENDPOINT` says.

    Raises:
        ValueError: a file cannot be had, or is not the one locked earlier.
    """
    spec = RELEASES[release]
    lock = _read_lock(folder)
    paths = []
    for name in spec.files:
        path = folder / name
        if not (path.is_file() and name in lock and lock[name] == _entry_of(path)):
            on_file(name)
            if source is not None:
                _copy(source, name, path)
            else:
                _download(spec.repository, name, folder, endpoint)
            entry = _entry_of(path)
            if lock.setdefault(name, entry) != entry:
                raise ValueError(
                    f"{path} has SHA-256 {entry['sha256']}, but {LOCK_NAME} holds {lock[name]['sha256']}; if the new "
                    "file is wanted, remove its entry there and pull again"
                )
            write_json(folder / LOCK_NAME, {"schema_version": 1, "files": lock})
        paths.append(path)
    return paths


def pull_text(
    folder: Path,
    *,
    source: Path | None = None,
    endpoint: str | None = None,
    on_file: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Bring `TEXT_FILES` into `folder` and lock them; `source` holds the published zip or its files.

    Raises:
        ValueError: a file cannot be had, is not the one locked earlier, or the zip is not what it should be.
    """
    lock = _read_lock(folder)
    paths = [folder / name for name in TEXT_FILES]
    if all(path.is_file() and lock.get(name) == _entry_of(path) for name, path in zip(TEXT_FILES, paths, strict=True)):
        return paths
    with tempfile.TemporaryDirectory(dir=_made(folder)) as temporary:
        fetched = Path(temporary)
        for repository, name in ((_TEXT_REPOSITORY, _TEXT_ARCHIVE), (REPOSITORY, _TOKENS)):
            on_file(name)
            if source is None:
                _download(repository, name, fetched, endpoint)
            elif name == _TOKENS or (source / name).is_file():
                _copy(source, name, fetched / name)
        archive = fetched / _TEXT_ARCHIVE
        for name, path in zip(TEXT_FILES, paths, strict=True):
            part = fetched / "part"
            if name.endswith(Path(_TOKENS).name):
                part = fetched / _TOKENS
            elif archive.is_file():
                _unpack(archive, Path(name).name, part)
            else:
                assert source is not None
                _copy(source, name, part)
            entry = _entry_of(part)
            if lock.setdefault(name, entry) != entry:
                raise ValueError(
                    f"{name} has SHA-256 {entry['sha256']}, but {LOCK_NAME} holds {lock[name]['sha256']}; if the new "
                    "file is wanted, remove its entry there and pull again"
                )
            write_atomically(path, lambda target, found=part: _copy_bytes(found, target))  # type: ignore[misc]
            write_json(folder / LOCK_NAME, {"schema_version": 1, "files": lock})
    return paths


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _unpack(archive: Path, name: str, target: Path) -> None:
    """The one member of `archive` with that file name, whatever folder the zip says it is in; nothing else is read."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if Path(member.filename).name == name]
            if len(members) != 1:
                raise ValueError(f"{archive.name} holds {len(members)} files {name}, expected one; fetch it again")
            if members[0].file_size > _LARGEST_TEXT_FILE:
                raise ValueError(f"{archive.name}: {name} would take {members[0].file_size} bytes; fetch it again")
            # The zip's word for the size is checked while it is unpacked: zipfile stops there.
            with opened.open(members[0]) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{archive.name} is no whole zip archive ({error}); fetch it again") from error


def verify(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 of each locked file of `folder` (or of `names`), after comparing each with the lock.

    Raises:
        ValueError: a file is missing, was never locked, or differs from what was locked.
    """
    lock = _read_lock(folder)
    digests = {}
    for name in sorted(lock if names is None else names):
        path = folder / name
        if name not in lock:
            raise ValueError(f"{path} is not in {folder / LOCK_NAME}; bring it in with `gsv models pull --from`")
        if not path.is_file():
            raise ValueError(f"{path} is locked but missing; pull its release again")
        entry = _entry_of(path)
        if entry != lock[name]:
            raise ValueError(
                f"{path} changed since it was locked: SHA-256 {entry['sha256']}, expected {lock[name]['sha256']}; "
                "remove the file and pull its release again"
            )
        digests[name] = entry["sha256"]
    return digests


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of `path`, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_lock(folder: Path) -> dict[str, Any]:
    path = folder / LOCK_NAME
    if not path.exists():
        return {}
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        files: dict[str, Any] = lock["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no lock of model files; remove it and pull again") from error
    if lock["schema_version"] > 1:
        raise ValueError(f"{path} was written by a newer gsv-fleet (schema {lock['schema_version']}, known: 1)")
    return files


def _entry_of(path: Path) -> dict[str, Any]:
    return {"sha256": file_digest(path), "bytes": path.stat().st_size}


def _copy(source: Path, name: str, path: Path) -> None:
    """Copy `name`, or a file of its last name part, from `source`."""
    found = next((place for place in (source / name, source / Path(name).name) if place.is_file()), None)
    if found is None:
        raise ValueError(f"{source} holds no {name}")
    original = found
    write_atomically(path, lambda temporary: _copy_bytes(original, temporary))


def _copy_bytes(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _download(repository: str, name: str, folder: Path, endpoint: str | None) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        huggingface_hub.hf_hub_download(repository, name, local_dir=folder, endpoint=endpoint)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name} could not be fetched from {repository}: {reason}; set HF_ENDPOINT to a mirror, or bring the files "
            "in with --from DIR"
        ) from error
