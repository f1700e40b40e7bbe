"""What was handed in, a folder (or prefix) with one per voice in it or a table, becomes Sources and the voices' cards.

A file is known by the SHA-256 of its bytes. The inventory remembers (place, size, time of change) → digest, so that a
second look rereads nothing. File names, tables and YAML are hostile until checked: links are not followed out of a
voice's folder, names become paths only through `rows.voice_name`, and YAML is read with the safe loader.
"""

import atexit
import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from gsv_core.text.lexicon import FILE_NAME as LEXICON_NAME
from gsv_core.text.lexicon import Lexicon
from pipelines.corrections import FILE_NAME as CORRECTIONS_NAME
from pipelines.corrections import Corrections
from pipelines.objects import ObjectStamp, list_objects, object_address, object_digest, read_object, stamp_of
from pipelines.rows import Rejection, Source, recording_id, voice_name
from pipelines.storage import Storage

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
_INVENTORY = "inventory.parquet"
_INVENTORY_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("changed_ns", pa.int64()),
        ("digest", pa.string()),
        ("etag", pa.string()),
    ]
)
_Known = dict[tuple[str, int, int, str | None], str]


@dataclass(frozen=True, kw_only=True)
class VoiceCard:
    """What is known of a voice before it is heard: the content of its `voice.yaml`."""

    voice: str
    display_name: str
    language: str | None = None
    pronunciation: str = "keep"
    licence: str | None = None
    consent: dict[str, Any] | None = None
    reference: str | None = None
    """A recording of nobody else, by its path within the voice's folder: only its speaker's clips are kept."""
    reference_digest: str | None = None
    """SHA-256 of its bytes."""

    def __post_init__(self) -> None:
        if self.pronunciation not in ("keep", "standard", "mixed"):
            raise ValueError(
                f"voice {self.display_name!r}: pronunciation is {self.pronunciation!r}, "
                "expected keep, standard or mixed"
            )

    @property
    def consent_id(self) -> str | None:
        """A short digest that names the consent in every row and model version; None without one."""
        if not self.consent:
            return None
        return hashlib.sha256(json.dumps(self.consent, sort_keys=True, default=str).encode()).hexdigest()[:16]


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
    digests, unreadable = _digests([uri for entry in found for uri, _ in entry.files], stamps, corpus, on_file)
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
        by_digest: dict[str, Source] = {}
        for uri, known in entry.files:
            if uri in unreadable:
                rejections.append(_rejected(card.voice, uri, "unreadable", unreadable[uri]))
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
            source = replace(source, lexicon=_lexicon_digest(words, source))
            first = by_digest.get(digest)
            if first is None:
                by_digest[digest] = source
            elif source.transcript is not None and first.transcript is None:
                by_digest[digest] = replace(source, copies=(*first.copies, first.uri))
            else:
                by_digest[digest] = replace(first, copies=(*first.copies, uri))
        sources += by_digest.values()
    return HandedIn(
        cards=tuple(cards),
        sources=tuple(sources),
        rejections=tuple(rejections),
        lexicons=lexicons,
        references=references,
        corrections=corrected,
        withdrawn=tuple(sorted(withdrawn)),
    )


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


def read_lexicon(folder: Path, language: str | None = None) -> Lexicon:
    """The `lexicon.tsv` in `folder`, or an empty one. `language` is that of Chinese characters without another.

    Raises:
        ValueError: a line of it is wrong, or it is a link out of the folder.
    """
    path = folder / LEXICON_NAME
    if not path.is_file():
        return Lexicon()
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path}: the link leaves its folder; copy the file in")
    return Lexicon.read(path, language)


def stored_lexicon(corpus: Storage, voice: str) -> Lexicon:
    """The words that a voice of `corpus` is read with; an empty lexicon where there are none."""
    path = f"voices/{voice}/{LEXICON_NAME}"
    return Lexicon.parse(corpus.read(path), path) if corpus.exists(path) else Lexicon()


def _lexicon_digest(lexicon: Lexicon, source: Source) -> str | None:
    """Names the words that may decide how a recording is read: those in its transcript if that is all, else all."""
    part = lexicon if source.transcript is None or source.corrections else lexicon.part_for(source.transcript)
    return part.digest if part else None


def read_card(folder: Path, voice: str) -> VoiceCard:
    """The `voice.yaml` in `folder`, or an empty card."""
    path = folder / "voice.yaml"
    if not path.is_file():
        return VoiceCard(voice=voice, display_name=folder.name)
    try:
        sheet = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(sheet, dict):
        raise ValueError(f"{path}: expected `key: value` lines, got a {type(sheet).__name__}")
    consent = sheet.get("consent")
    if consent is not None and not isinstance(consent, dict):
        raise ValueError(f"{path}: consent must be a mapping (by, when, purpose, reference)")
    # Nested values could be aliases of aliases, which grow without bound when written out.
    for key in ("language", "pronunciation", "licence", "license", "reference"):
        if not _is_plain(sheet.get(key)):
            raise ValueError(f"{path}: {key} must be one value")
    for key, value in (consent or {}).items():
        if not isinstance(key, str) or not all(map(_is_plain, value if isinstance(value, list) else [value])):
            raise ValueError(f"{path}: consent.{key} must be one value or a list of values")
    reference = _text(sheet.get("reference"))
    return VoiceCard(
        voice=voice,
        display_name=folder.name,
        language=_lower(_text(sheet.get("language"))),
        pronunciation=_text(sheet.get("pronunciation")) or "keep",
        licence=_text(sheet.get("licence") or sheet.get("license")),
        consent=consent,
        reference=reference,
        reference_digest=_reference_digest(path, folder, reference),
    )


def _reference_digest(path: Path, folder: Path, reference: str | None) -> str | None:
    """The digest of the file that `reference:` in the card at `path` names. Raises ValueError if it cannot be used."""
    if reference is None:
        return None
    named = f"{path}: reference is {reference!r}"
    if "\0" in reference:
        raise ValueError(f"{named}, which cannot be read (no file name holds a zero byte)")
    try:
        target = (folder / reference).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise ValueError(f"{named}, which lies outside the voice's folder; copy the recording in")
        if not target.is_file():
            raise ValueError(f"{named}, but there is no such file in the voice's folder")
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{named}, which cannot be read ({error.strerror})") from error


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list | set | bytes)


def _lower(language: str | None) -> str | None:
    return language and language.strip().lower()


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
            text = _decode_text(beside.read_bytes()).strip()
        except OSError as error:
            raise _RefusedError("unreadable", f"its transcript {beside.name}: {error.strerror}") from error
        else:
            if text:
                return {"transcript": text, "transcript_format": "srt" if suffix == ".srt" else "text"}
    return {}


def _decode_text(data: bytes) -> str:
    """UTF-8 (with or without a mark) or, failing that, UTF-16 where a mark says so, else Latin-1."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


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
        name for name in objects if name.name in ("voice.yaml", LEXICON_NAME, CORRECTIONS_NAME) and len(name.parts) <= 2
    }
    unfit = _stage({name: objects[name] for name in texts if name in objects}, staged)
    found: dict[str, _Found] = {}
    for name in sorted(media, key=str):
        folder = staged / name.parts[0] if len(name.parts) > 1 else staged
        folder.mkdir(exist_ok=True)
        voice = voice_name(folder.name)
        if voice not in found:
            path = PurePosixPath(folder.relative_to(staged)) / (_named_reference(folder) or "")
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


def _named_reference(folder: Path) -> str | None:
    """The `reference:` of a card that was fetched, before the card is checked."""
    try:
        sheet = yaml.safe_load((folder / "voice.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return None  # `read_card` says what is wrong with it
    reference = sheet.get("reference") if isinstance(sheet, dict) else None
    return reference if isinstance(reference, str) and ".." not in reference.split("/") else None


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
    for number, row in enumerate(_table_rows(path), start=1):
        raw, uri = _text(row.get("voice")), _text(row.get("uri"))
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
        known = {key: _text(row[key]) for key in ("language", "transcript") if row.get(key)}
        if "language" in known:
            known["language"] = _lower(known["language"])
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


def _table_rows(path: Path) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if suffix == ".parquet":
        try:
            yield from pq.read_table(io.BytesIO(data)).to_pylist()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: not a Parquet file ({error})") from error
        return
    text = _decode_text(data)
    if suffix == ".csv":
        try:
            yield from csv.DictReader(io.StringIO(text))
        except csv.Error as error:
            raise ValueError(f"{path}: not readable as CSV ({error})") from error
    elif suffix == ".jsonl":
        # Not splitlines(): JSON may hold U+2028 and its like inside a text as they are.
        for number, line in enumerate(filter(str.strip, text.split("\n")), start=1):
            try:
                row = json.loads(line)
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{path}, line {number}: half a surrogate pair is no text") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
            yield row
    elif suffix == ".list":
        for number, line in enumerate(filter(str.strip, text.split("\n")), start=1):
            parts = line.rstrip("\r").split("|", 3)  # a `|` inside the text belongs to the text
            if len(parts) != 4:
                raise ValueError(f"{path}, line {number}: expected path|speaker|language|text")
            yield {"uri": parts[0], "voice": parts[1], "language": parts[2].strip().lower(), "transcript": parts[3]}
    else:
        raise ValueError(f"{path}: expected a folder or a .csv, .jsonl, .parquet or .list table")


# --- the inventory ----------------------------------------------------------------------------------------------------


def _digests(
    uris: list[str],
    stamps: Mapping[str, ObjectStamp],
    corpus: Storage,
    on_file: Callable[[int, int], None] | None,
) -> tuple[dict[str, tuple[int, str]], dict[str, str]]:
    """(size, digest) of every file, and why of those that cannot be read; unchanged files come from the inventory."""
    known = _load_inventory(corpus)
    digests: dict[str, tuple[int, str]] = {}
    unreadable: dict[str, str] = {}
    lines = []
    with ThreadPoolExecutor(max_workers=4) as pool:
        for done, (uri, line) in enumerate(
            zip(uris, pool.map(lambda uri: _digest_of(uri, stamps, known), uris)), start=1
        ):
            if isinstance(line, str):
                unreadable[uri] = line
            else:
                lines.append(line)
                digests[uri] = (line["size_bytes"], line["digest"])
            if on_file is not None:
                on_file(done, len(uris))
    table = pa.Table.from_pylist(sorted(lines, key=lambda line: line["uri"]), schema=_INVENTORY_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    if not known or known != {_inventory_key(line): line["digest"] for line in lines}:
        corpus.write(_INVENTORY, buffer.getvalue())
    return digests, unreadable


def _load_inventory(corpus: Storage) -> _Known:
    if not corpus.exists(_INVENTORY):
        return {}
    rows = pq.read_table(io.BytesIO(corpus.read(_INVENTORY))).to_pylist()
    return {_inventory_key(row): row["digest"] for row in rows}


def _inventory_key(row: dict[str, Any]) -> tuple[str, int, int, str | None]:
    return row["uri"], row["size_bytes"], row["changed_ns"], row.get("etag")


def _digest_of(uri: str, stamps: Mapping[str, ObjectStamp], known: _Known) -> dict[str, Any] | str:
    if object_address(uri) == uri:
        return _digest_of_object(uri, stamps.get(uri), known)
    try:
        status = os.stat(uri)  # noqa: PTH116 - as below
        digest = known.get((uri, status.st_size, status.st_mtime_ns, None))
        if digest is None:
            with open(uri, "rb") as file:  # noqa: PTH123 - the name may be stranger than Path allows
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return error.strerror or str(error)
    return {"uri": uri, "size_bytes": status.st_size, "changed_ns": status.st_mtime_ns, "digest": digest}


def _digest_of_object(uri: str, stamp: ObjectStamp | None, known: _Known) -> dict[str, Any] | str:
    try:
        stamp = stamp or stamp_of(uri)
        line = {"uri": uri, "size_bytes": stamp.size_bytes, "changed_ns": 0, "etag": stamp.etag}
        # Without a stamp nothing tells a changed object from the one that was read.
        digest = known.get(_inventory_key(line)) if stamp.etag else None
        return {**line, "digest": digest or object_digest(uri)}
    except (FileNotFoundError, PermissionError) as error:
        return str(error) or type(error).__name__
