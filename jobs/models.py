"""Base models on this machine: which releases there are, fetching their files, checking them against their lock."""

from dataclasses import dataclass
from pathlib import Path

from gsv_core.checkpoints.hub import LOCK_NAME, TEXT_FILES, pull, pull_text, verify
from gsv_core.checkpoints.releases import RELEASES, Release, release_of

TEXT = "text"
"""In a release's place: the files that read Mandarin by context (g2pW), which no release needs."""


@dataclass(frozen=True, kw_only=True)
class ListedRelease:
    """What a release needs, what of it is here (bytes per file), and where the rest comes from."""

    release: Release
    state: str
    here: dict[str, int]
    missing: tuple[str, ...]
    repository: str | None
    """On the hub; None where nothing is needed."""

    def record(self) -> dict[str, object]:
        """All of it as JSON values."""
        return {
            "release": str(self.release),
            "state": self.state,
            "files": len(self.here) + len(self.missing),
            "bytes": sum(self.here.values()),
            "here": self.here,
            "missing": list(self.missing),
            "from": self.repository,
        }


def list_releases(folder: Path, only: str | None = None) -> list[ListedRelease]:
    """Every release, or `only` one, and what of it lies in `folder`.

    Raises:
        ValueError: `only` is no release.
    """
    return [_listed(release, folder) for release in (RELEASES if only is None else (release_of(only),))]


def _listed(release: Release, folder: Path) -> ListedRelease:
    spec = RELEASES[release]
    here = {name: (folder / name).stat().st_size for name in spec.files if (folder / name).is_file()}
    missing = tuple(name for name in spec.files if name not in here)
    if not spec.files:
        state = "built in"
    elif not missing:
        state = "here, locked" if (folder / LOCK_NAME).is_file() else "here, not locked"
    else:
        state = f"{len(missing)} missing" if here else "not here"
    repository = spec.repository if spec.files else None
    return ListedRelease(release=release, state=state, here=here, missing=missing, repository=repository)


def pull_release(name: str, folder: Path, source: Path | None) -> list[str]:
    """Bring a release's files into `folder`, from the hub or from `source`, and lock them; their names."""
    if name == TEXT:
        pull_text(folder, source=source)
        return list(TEXT_FILES)
    release = release_of(name)
    if not RELEASES[release].files:
        raise ValueError(f"{release} needs no files: it is built in")
    pull(release, folder, source=source)
    return list(RELEASES[release].files)


def verify_release(name: str, folder: Path) -> list[str]:
    """Check a release's files against their lock; their names. Raises ValueError at the first that differs."""
    files = TEXT_FILES if name == TEXT else RELEASES[release_of(name)].files
    if files:
        verify(folder, files)
    return list(files)
