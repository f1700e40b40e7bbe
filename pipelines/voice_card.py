"""What is said of a voice before it is heard: its `voice.yaml` and its `lexicon.tsv`.

Both are hostile until checked: links are not followed out of the voice's folder, and YAML is read with the safe loader.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gsv_core.text.lexicon import FILE_NAME as LEXICON_NAME
from gsv_core.text.lexicon import Lexicon
from pipelines.storage import Storage

CARD_NAME = "voice.yaml"


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


def read_card(folder: Path, voice: str) -> VoiceCard:
    """The `voice.yaml` in `folder`, or an empty card."""
    path = folder / CARD_NAME
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
    reference = text_of(sheet.get("reference"))
    return VoiceCard(
        voice=voice,
        display_name=folder.name,
        language=lower(text_of(sheet.get("language"))),
        pronunciation=text_of(sheet.get("pronunciation")) or "keep",
        licence=text_of(sheet.get("licence") or sheet.get("license")),
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


def text_of(value: Any) -> str | None:
    """A plain value of a sheet or table as text."""
    return None if value is None else str(value)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list | set | bytes)


def lower(language: str | None) -> str | None:
    """A language as it is written everywhere below."""
    return language and language.strip().lower()


def named_reference(folder: Path) -> str | None:
    """The `reference:` of a card that was fetched, before the card is checked."""
    try:
        sheet = yaml.safe_load((folder / CARD_NAME).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return None  # `read_card` says what is wrong with it
    reference = sheet.get("reference") if isinstance(sheet, dict) else None
    return reference if isinstance(reference, str) and ".." not in reference.split("/") else None


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
