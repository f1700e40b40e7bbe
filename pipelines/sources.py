"""What was handed in, a folder (or prefix) with one per voice in it or a table, becomes Sources and the voices' cards.

A file is known by the SHA-256 of its bytes. File names and tables are hostile until checked: links are not followed out
of a voice's folder, and names become paths only through `rows.voice_name`.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from gsv_core.text.lexicon import FILE_NAME as LEXICON_NAME
from gsv_core.text.lexicon import Lexicon
from pipelines.corrections import FILE_NAME as CORRECTIONS_NAME
from pipelines.corrections import Corrections
from pipelines.inventory import take_digests
from pipelines.objects import ObjectStamp, list_objects, object_address, read_object
from pipelines.rows import Rejection, Source, recording_id, voice_name
from pipelines.storage import Storage
from pipelines.tables import decode_text, table_rows
from pipelines.voice_card import CARD_NAME, VoiceCard, lower, named_reference, read_card, read_lexicon, text_of

# fmt: off
MEDIA_SUFFIXES = frozenset((
    ".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".m4b", ".aac", ".wma", ".webm",
    ".mkv", ".mka", ".mp4", ".mov", ".avi", ".aif", ".aiff", ".aifc", ".caf", ".au", ".amr", ".3gp", ".ac3",
    ".w64", ".rf64", ".wv", ".ape", ".tta", ".mpg", ".mpeg", ".ts", ".flv",
))
# fmt: on
_SIDECARS = (".srt", ".lab", ".txt")
_LONGEST_TEXT_BYTES = 4 << 20
_LONGEST_REFERENCE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class HandedIn:
    """Everything found: the voices' cards, the Sources worth opening, and what could not even be read.

    `lexicons` holds the words of every voice that has some, by voice.
    """

    cards: tuple[VoiceCard, ...]
    sources: tuple[Source, ...]
    rejections: tuple[Rejection, ...] = ()
    lexicons: Mapping[str, Lexicon] = field(default_factory=dict)
    references: Mapping[str, Path] = field(default_factory=dict)
    """Where the reference recording of each voice that has one lies."""
    corrections: Corrections = field(default_factory=Corrections)
    withdrawn: tuple[str, ...] = ()
    """Voices left out, because their consent was withdrawn."""


class _RefusedError(Exception):
    """A recording that cannot be taken as it lies there: a Rejection's reason and detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass
class _Found:
    """Files of one voice before their bytes were read."""

    card: VoiceCard
    files: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    folder: Path | None = None
    """Where the voice's own lexicon would be."""
    stamps: dict[str, ObjectStamp] = field(default_factory=dict)
    """Of the objects that a listing of their store has shown."""


def gather(
    recordings: Path,
    corpus: Storage,
    *,
    language: str | None = None,
    lexicon: Lexicon | None = None,
    corrections: Corrections | None = None,
    forgotten: Mapping[str, str | None] | None = None,
    on_file: Callable[[int, int], None] | None = None,
) -> HandedIn:
    """Find every recording under `recordings`, a folder, a table or an `s3://bucket/prefix`, and take its digest.

    `language` is assumed for voices that do not state one. `on_file(done, total)` is called as digests arrive. Words of
    a `lexicon.tsv` in a voice's folder count before those of one in `recordings`, and those before `lexicon`; so it is
    with a `corrections.tsv`. `forgotten` says which voices withdrew which consent: nothing of them is read, unless
    their card holds another one.

    Raises:
        ValueError: nothing is there, or a table, `voice.yaml`, `lexicon.tsv` or `corrections.tsv` cannot be understood.
    """
    address = object_address(recordings)
    handed_in = address or recordings
    if address:
        recordings, found = _from_objects(address)
    elif recordings.is_dir():
        found = _from_folder(recordings)
    elif recordings.is_file():
        found = _from_table(recordings)
    else:
        raise ValueError(
            f"{recordings}: no such folder or table. Give a folder with one sub-folder per voice, or a CSV, JSONL, "
            "Parquet or .list file"
        )
    if recordings.is_file() and not found:
        raise ValueError(f"{recordings}: no row in it. Expected one row per recording, with `voice` and `uri`")
    if not any(entry.files or entry.rejections for entry in found):
        raise ValueError(
            f"{handed_in}: no recordings in it. Expected one sub-folder per voice with audio files inside, "
            "such as RECORDINGS/anna/monday.wav"
        )
    withdrawn = {entry.card.voice for entry in found if _is_withdrawn(entry.card, forgotten or {})}
    found = [entry for entry in found if entry.card.voice not in withdrawn]
    corrected = _corrections_in([recordings, *(entry.folder for entry in found)], corrections)
    stamps = {uri: stamp for entry in found for uri, stamp in entry.stamps.items()}
    digests, unreadable = take_digests([uri for entry in found for uri, _ in entry.files], stamps, corpus, on_file)
    cards: list[VoiceCard] = []
    sources: list[Source] = []
    rejections: list[Rejection] = []
    lexicons: dict[str, Lexicon] = {}
    references: dict[str, Path] = {}
    for entry in found:
        card = entry.card if entry.card.language else replace(entry.card, language=language)
        cards.append(card)
        if card.reference and entry.folder:
            references[card.voice] = entry.folder / card.reference
        words = lexicon or Lexicon()
        # A voice whose recordings lie in `recordings` itself finds its own there.
        for folder in dict.fromkeys(place for place in (recordings, entry.folder) if place and place.is_dir()):
            words = read_lexicon(folder, card.language).over(words)
        if words:
            lexicons[card.voice] = words
        rejections += entry.rejections
        rejections += [
            _rejected(card.voice, uri, "unreadable", unreadable[uri]) for uri, _ in entry.files if uri in unreadable
        ]
        sources += _without_copies(_sources_of(entry, card, words, corrected, digests))
    return HandedIn(
        cards=tuple(cards),
        sources=tuple(sources),
        rejections=tuple(rejections),
        lexicons=lexicons,
        references=references,
        corrections=corrected,
        withdrawn=tuple(sorted(withdrawn)),
    )


def _sources_of(
    entry: _Found, card: VoiceCard, words: Lexicon, corrected: Corrections, digests: Mapping[str, tuple[int, str]]
) -> Iterator[Source]:
    """A Source for every file of a voice that could be read."""
    for uri, known in entry.files:
        if uri not in digests:
            continue
        size, digest = digests[uri]
        source = Source(
            voice=card.voice,
            uri=uri,
            digest=digest,
            size_bytes=size,
            language=known.get("language") or card.language,
            transcript=known.get("transcript"),
            transcript_format=known.get("transcript_format", "text"),
            licence=card.licence,
            consent_id=card.consent_id,
        )
        source = replace(source, corrections=corrected.digest_of(recording_id(source.voice, source.digest)))
        yield replace(source, lexicon=_lexicon_digest(words, source))


def _without_copies(sources: Iterable[Source]) -> list[Source]:
    """One Source for each content: the first one with a transcript, or the first; the others' places are its copies."""
    by_digest: dict[str, Source] = {}
    for source in sources:
        first = by_digest.setdefault(source.digest, source)
        if first is source:
            continue
        if source.transcript is not None and first.transcript is None:
            by_digest[source.digest] = replace(source, copies=(*first.copies, first.uri))
        else:
            by_digest[source.digest] = replace(first, copies=(*first.copies, source.uri))
    return list(by_digest.values())


def _is_withdrawn(card: VoiceCard, forgotten: Mapping[str, str | None]) -> bool:
    return card.voice in forgotten and card.consent_id in (None, forgotten[card.voice])


def _corrections_in(folders: Sequence[Path | None], others: Corrections | None) -> Corrections:
    """The tables in some folders, each counting before those ahead of it, and all before `others`."""
    corrections = others or Corrections()
    for folder in dict.fromkeys(folder for folder in folders if folder and folder.is_dir()):
        path = folder / CORRECTIONS_NAME
        if not path.is_file():
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path}: the link leaves its folder; copy the file in")
        corrections = Corrections.read(path).over(corrections)
    return corrections


def _lexicon_digest(lexicon: Lexicon, source: Source) -> str | None:
    """Names the words that may decide how a recording is read: those in its transcript if that is all, else all."""
    part = lexicon if source.transcript is None or source.corrections else lexicon.part_for(source.transcript)
    return part.digest if part else None


def _rejected(voice: str, uri: str, reason: str, detail: str) -> Rejection:
    return Rejection(
        row_id=recording_id(voice, uri), voice=voice, uri=uri, stage="ingest", reason=reason, detail=detail
    )


# --- a folder with one sub-folder per voice ---------------------------------------------------------------------------


def _from_folder(root: Path) -> list[_Found]:
    try:
        entries = sorted(root.iterdir(), key=lambda path: os.fsencode(path.name))
    except OSError as error:
        raise ValueError(f"{root}: {error.strerror}") from error
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    found: dict[str, _Found] = {}
    for folder in folders:
        entry = _voice_folder(folder, recursive=True)
        # Two spellings of one name in Unicode are one voice.
        _merge(found.setdefault(entry.card.voice, _Found(card=entry.card)), entry)
    loose = _voice_folder(Path(os.path.abspath(root)), recursive=False)  # noqa: PTH100 - `.` has no name, links keep theirs
    if loose.files or loose.rejections:
        _merge(found.setdefault(loose.card.voice, _Found(card=loose.card)), loose)
    return list(found.values())


def _merge(into: _Found, more: _Found) -> None:
    into.files += more.files
    into.rejections += more.rejections
    into.stamps |= more.stamps
    into.folder = into.folder or more.folder


def _voice_folder(folder: Path, *, recursive: bool) -> _Found:
    voice = voice_name(os.fsdecode(folder.name))
    if not os.access(folder, os.R_OK | os.X_OK):
        card = VoiceCard(voice=voice, display_name=folder.name)
        return _Found(
            card=card, rejections=[_rejected(voice, _printable(folder), "unreadable", "the folder is closed")]
        )
    found = _Found(card=read_card(folder, voice), folder=folder)
    root = folder.resolve()

    def closed(error: OSError) -> None:
        detail = error.strerror or str(error)
        found.rejections.append(_rejected(voice, _printable(Path(error.filename)), "unreadable", detail))

    for path in (
        _walk(folder, closed) if recursive else sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
    ):
        if path.is_dir() and not path.resolve().is_relative_to(root) and recursive:
            found.rejections.append(
                _rejected(
                    voice, _printable(path), "link_outside", "the link leaves the voice's folder; copy the folder in"
                )
            )
        if path.name.startswith(".") or path.suffix.lower() not in MEDIA_SUFFIXES or path.is_dir():
            continue
        uri = str(path.absolute())
        try:
            uri.encode()
        except UnicodeEncodeError:
            found.rejections.append(
                _rejected(found.card.voice, _printable(path), "bad_name", "the file name is not UTF-8; rename the file")
            )
            continue
        if path.is_symlink() and not path.exists():
            found.rejections.append(_rejected(found.card.voice, uri, "broken_link", "the link points nowhere"))
        elif not path.resolve().is_relative_to(root):
            found.rejections.append(
                _rejected(found.card.voice, uri, "link_outside", "the link leaves the voice's folder; copy the file in")
            )
        elif path.is_file():
            try:
                found.files.append((uri, _sidecar(path, root)))
            except _RefusedError as error:
                found.rejections.append(_rejected(found.card.voice, uri, error.reason, error.detail))
    return found


def _printable(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _walk(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """Every file below `folder`, and the links to folders in it, which are not followed."""
    for place, folders, files in os.walk(folder, followlinks=False, onerror=on_error):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=os.fsencode)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted([*files, *links], key=os.fsencode):
            yield Path(place) / name


def _sidecar(path: Path, root: Path | None = None) -> dict[str, Any]:
    """The transcript beside a recording: `a.srt`, `a.lab` or `a.txt`, the most precise first.

    Raises:
        _RefusedError: it is a link out of `root`, too long, or cannot be read.
    """
    for suffix in _SIDECARS:
        beside = path.with_suffix(suffix)
        try:
            if not beside.is_file():
                continue
            if root is not None and not beside.resolve().is_relative_to(root):
                raise _RefusedError(
                    "link_outside", f"its transcript {beside.name} is a link that leaves the voice's folder"
                )
            if beside.stat().st_size > _LONGEST_TEXT_BYTES:
                raise _RefusedError(
                    "unreadable", f"its transcript {beside.name} is longer than {_LONGEST_TEXT_BYTES} bytes"
                )
            text = decode_text(beside.read_bytes()).strip()
        except OSError as error:
            raise _RefusedError("unreadable", f"its transcript {beside.name}: {error.strerror}") from error
        else:
            if text:
                return {"transcript": text, "transcript_format": "srt" if suffix == ".srt" else "text"}
    return {}


# --- an object store --------------------------------------------------------------------------------------------------


def _from_objects(address: str) -> tuple[Path, list[_Found]]:
    """A prefix of an object store as if it were a folder, and the folder where what is said of its voices now lies.

    Cards, transcripts, lexicons and references are fetched, so that they are read as those of a folder are; recordings
    stay where they are.
    """
    prefix = address.rstrip("/")
    staged = Path(tempfile.mkdtemp(prefix="gsv-objects-")) / (prefix.rsplit("/", 1)[-1] or "recordings")
    staged.mkdir()
    atexit.register(shutil.rmtree, staged.parent, ignore_errors=True)
    objects = {}
    for stamp in list_objects(prefix):
        parts = stamp.uri.removeprefix(prefix).strip("/").split("/")
        if not any(part.startswith(".") or not part for part in parts):
            objects[PurePosixPath(*parts)] = stamp
    media = {name for name in objects if name.suffix.lower() in MEDIA_SUFFIXES}
    texts = {name.with_suffix(suffix) for name in media for suffix in _SIDECARS}
    texts |= {
        name for name in objects if name.name in (CARD_NAME, LEXICON_NAME, CORRECTIONS_NAME) and len(name.parts) <= 2
    }
    unfit = _stage({name: objects[name] for name in texts if name in objects}, staged)
    found: dict[str, _Found] = {}
    for name in sorted(media, key=str):
        folder = staged / name.parts[0] if len(name.parts) > 1 else staged
        folder.mkdir(exist_ok=True)
        voice = voice_name(folder.name)
        if voice not in found:
            path = PurePosixPath(folder.relative_to(staged)) / (named_reference(folder) or "")
            if path in objects:
                _stage({path: objects[path]}, staged, most_bytes=_LONGEST_REFERENCE_BYTES)
            found[voice] = _Found(card=read_card(folder, voice), folder=folder)
        entry, stamp = found[voice], objects[name]
        beside = next((text for suffix in _SIDECARS if (text := name.with_suffix(suffix)) in unfit), None)
        try:
            if beside is not None:
                raise _RefusedError("unreadable", f"its transcript {beside.name}: {unfit[beside]}")
            entry.files.append((stamp.uri, _sidecar(staged / name, staged)))
        except _RefusedError as error:
            entry.rejections.append(_rejected(voice, stamp.uri, error.reason, error.detail))
        else:
            entry.stamps[stamp.uri] = stamp
    return staged, list(found.values())


def _stage(
    objects: Mapping[PurePosixPath, ObjectStamp], staged: Path, *, most_bytes: int = _LONGEST_TEXT_BYTES
) -> dict[PurePosixPath, str]:
    """Fetch objects below `staged` under their own names; why, for those that cannot be."""

    def fetch(name: PurePosixPath) -> str | None:
        if objects[name].size_bytes > most_bytes:
            return f"longer than {most_bytes} bytes"
        try:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(read_object(objects[name].uri))
        except (OSError, ValueError) as error:  # a name that no disk takes
            return str(error)
        return None

    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = dict(zip(objects, pool.map(fetch, objects), strict=True))
    return {name: answer for name, answer in answers.items() if answer is not None}


# --- a table ----------------------------------------------------------------------------------------------------------


def _from_table(path: Path) -> list[_Found]:
    found: dict[str, _Found] = {}
    for number, row in enumerate(table_rows(path), start=1):
        raw, uri = text_of(row.get("voice")), text_of(row.get("uri"))
        if not raw or not uri:
            raise ValueError(f"{path}, row {number}: `voice` and `uri` are needed, got {sorted(map(str, row))}")
        voice = voice_name(raw)
        entry = found.setdefault(voice, _Found(card=VoiceCard(voice=voice, display_name=raw)))
        place = Path(uri) if Path(uri).is_absolute() else path.parent / uri
        address = object_address(uri) if "://" in uri else None
        if "://" in uri and address is None:
            entry.rejections.append(
                _rejected(voice, uri, "bad_name", "recordings are read from disks and object stores")
            )
            continue
        if "\0" in uri:
            entry.rejections.append(_rejected(voice, uri, "bad_name", "the file name holds a NUL"))
            continue
        known = {key: text_of(row[key]) for key in ("language", "transcript") if row.get(key)}
        if "language" in known:
            known["language"] = lower(known["language"])
        if address is not None:
            entry.files.append((address, known))
            continue
        try:
            beside = {} if "transcript" in known else _sidecar(place)
        except _RefusedError as error:
            entry.rejections.append(_rejected(voice, str(place.absolute()), error.reason, error.detail))
            continue
        entry.files.append((str(place.absolute()), {**beside, **known}))
    return list(found.values())
