"""Base models on this machine: which releases there are, fetching their files, checking them against their lock."""

from pathlib import Path

from gsv_core.checkpoints.hub import LOCK_NAME, pull, verify
from gsv_core.checkpoints.releases import RELEASES, release_of


def list_releases(folder: Path) -> list[dict[str, str | int]]:
    """Every release, how many files it needs, and whether they lie in `folder`."""
    rows: list[dict[str, str | int]] = []
    for release, spec in RELEASES.items():
        missing = [name for name in spec.files if not (folder / name).is_file()]
        if not spec.files:
            state = "built in"
        elif not missing:
            state = "here, locked" if (folder / LOCK_NAME).is_file() else "here, not locked"
        else:
            state = "not here" if len(missing) == len(spec.files) else f"{len(missing)} files missing"
        rows.append({"release": str(release), "state": state, "files": len(spec.files)})
    return rows


def pull_release(name: str, folder: Path, source: Path | None) -> list[str]:
    """Bring a release's files into `folder`, from the hub or from `source`, and lock them; their names."""
    release = release_of(name)
    if not RELEASES[release].files:
        raise ValueError(f"{release} needs no files: it is built in")
    pull(release, folder, source=source)
    return list(RELEASES[release].files)


def verify_release(name: str, folder: Path) -> list[str]:
    """Check a release's files against their lock; their names. Raises ValueError at the first that differs."""
    files = RELEASES[release_of(name)].files
    if files:
        verify(folder, files)
    return list(files)
