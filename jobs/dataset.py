"""Datasets of GPT-SoVITS's: a voice of a corpus → the folder its training reads, and back to recordings of ours."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from jobs.config import JobConfig
from jobs.prepare import open_prepared
from jobs.select import wanted_of
from jobs.workspace import Workspace
from pipelines.interchange import read_dataset, write_dataset
from pipelines.rows import voice_name
from pipelines.selection import select
from pipelines.shard_reader import read_examples

SPLITS = ("train", "held_out", "all")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A dataset that was written: `clips` of `voice`, with features of `release`."""

    folder: Path
    voice: str
    release: str
    clips: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Recordings made of a dataset: `folder` is one for `gsv prepare`, with the voice's own in it."""

    folder: Path
    voice: str
    recordings: int
    languages: tuple[str, ...]


def export_dataset(workspace: Workspace, config: JobConfig, voice: str, out: Path, *, split: str = "train") -> Exported:
    """Write what selection keeps of `voice` into the new folder `out`.

    Raises:
        ValueError: no such voice, nothing of it is kept, `split` is none, or `out` is there already.
    """
    if split not in SPLITS:
        raise ValueError(f"--split is {split!r}, expected one of {', '.join(SPLITS)}")
    corpus = workspace.storage
    with workspace.lease():
        prepared = open_prepared(workspace, config)
        if voice not in prepared.voices:
            raise ValueError(
                f"--voice {voice}: not in the corpus; there are {', '.join(sorted(prepared.voices)) or 'none'}"
            )
        found = prepared.voices[voice]
        selection = select(voice, found.units, corpus, config.selection, wanted_of(found.card, corpus, config))
        rows = selection.kept(None if split == "all" else split)

        def write(folder: Path) -> int:
            # Unit by unit: a voice may be larger than memory.
            units = sorted({row.unit_id for row in rows})
            return write_dataset(
                (
                    example
                    for unit_id in units
                    for example in read_examples(voice, [row for row in rows if row.unit_id == unit_id], corpus)
                ),
                folder,
            )

        clips = _whole_or_not_at_all(out, write)
    seconds = selection.seconds(None if split == "all" else split)
    return Exported(folder=out, voice=voice, release=str(prepared.base.release), clips=clips, seconds=seconds)


def import_dataset(dataset: Path, workspace: Workspace, voice: str, out: Path | None = None) -> Imported:
    """Copy the recordings of a dataset, with their texts beside them, into `out` as the folder of `voice`.

    Audio, text and language are taken. Features are left: `gsv prepare` makes its own from what it stores.

    Raises:
        ValueError: the dataset cannot be understood, or `out` holds the voice already.
    """
    name = voice_name(voice)
    said = read_dataset(dataset)
    if not said:
        raise ValueError(f"{dataset}: no recordings in it")
    folder = out or workspace.root / "imported"
    languages = sorted({entry.language for entry in said if entry.language})

    def write(target: Path) -> int:
        names: set[str] = set()
        target.mkdir()
        for number, entry in enumerate(said):
            stem = entry.path.stem
            if stem in names:
                stem = f"{stem}-{number}"
            names.add(stem)
            shutil.copyfile(entry.path, target / f"{stem}{entry.path.suffix}")
            (target / f"{stem}.txt").write_text(entry.text + "\n", encoding="utf-8")
        if len(languages) == 1 and all(entry.language for entry in said):
            card = {"language": languages[0]}
            (target / "voice.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
        return len(said)

    recordings = _whole_or_not_at_all(folder / name, write)
    return Imported(folder=folder, voice=name, recordings=recordings, languages=tuple(languages))


def _whole_or_not_at_all(out: Path, write: Callable[[Path], int]) -> int:
    """Let `write` fill a folder beside `out`, and give it its name when it is whole."""
    if out.exists():
        raise ValueError(f"{out}: is there already; give a new folder, or remove it")
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            written = write(partial)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ValueError(f"{out}: {error.strerror}; give a folder you may write to") from error
    return written
