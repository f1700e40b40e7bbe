"""The records that travel through the flow, and the Arrow schema each is stored with.

Positions count samples of the *normalised* Recording: 32 kHz, mono. Seconds appear only in configs, logs and
listening tools. Every table on disk carries `schema_version` in its metadata; a reader refuses a newer one.
"""

import hashlib
import re
import unicodedata
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 1
RATE_HZ = 32_000
"""Sample rate of every normalised Recording, Clip and shard."""


@dataclass(frozen=True, kw_only=True, slots=True)  # a driver holds one for every file
class Source:
    """A file somebody handed in, before anything in it was read but its bytes.

    `digest` is the SHA-256 of those bytes: the identity of what is inside, whatever its name. `copies` are further
    places where the same bytes were found.
    """

    voice: str
    uri: str
    digest: str
    size_bytes: int
    language: str | None = None
    transcript: str | None = None
    """Plain text, or the whole content of an `.srt` when `transcript_format` says so."""
    transcript_format: str = "text"
    licence: str | None = None
    consent_id: str | None = None
    copies: tuple[str, ...] = ()
    lexicon: str | None = None
    """Digest of the user's words that may decide how it is read; None where there are none."""
    corrections: str | None = None
    """Digest of what people corrected in its clips; None where they did not."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One continuous piece of audio with an identity. `duration_samples` counts 32 kHz samples after normalising."""

    recording_id: str
    voice: str
    uri: str
    digest: str
    duration_samples: int
    rate_hz: int
    channels: int
    codec: str
    licence: str | None = None
    consent_id: str | None = None
    language: str | None = None
    transcript: str | None = None
    transcript_format: str = "text"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A span of one Recording, not yet understood."""

    clip_id: str
    recording_id: str
    voice: str
    start_sample: int
    num_samples: int

    @classmethod
    def of(cls, recording: Recording, *, start_sample: int, num_samples: int) -> Self:
        """The clip of `recording` at that place; the same id in every retry, because it follows from the content."""
        return cls(
            clip_id=clip_id(recording.voice, recording.digest, start_sample, num_samples),
            recording_id=recording.recording_id,
            voice=recording.voice,
            start_sample=start_sample,
            num_samples=num_samples,
        )


@dataclass(frozen=True, kw_only=True)
class Word:
    """One spoken word, placed relative to the start of its clip (or of the wave handed to an engine)."""

    text: str
    start_sample: int
    num_samples: int
    confidence: float | None = None


@dataclass(frozen=True, kw_only=True)
class TextSpan:
    """A stretch of an Utterance's text in one language, with its alignment where that language keeps one (zh, yue).

    `num_phonemes` of the Utterance's phonemes are its own: text vectors for another base need no second reading.
    """

    language: str
    normal_text: str
    num_phonemes: int
    phonemes_per_character: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A Clip with one speaker, a transcript and its language; after phonemise also phonemes."""

    clip_id: str
    recording_id: str
    voice: str
    start_sample: int
    num_samples: int
    text: str
    language: str
    confidence: float | None
    language_probability: float | None = None
    words: tuple[Word, ...] = ()
    given: bool = False
    """The text came with the recording; the recogniser only checked it."""
    recognised_text: str | None = None
    normal_text: str | None = None
    phonemes: tuple[str, ...] = ()
    phoneme_ids: tuple[int, ...] = ()
    phonemes_per_character: tuple[int, ...] = ()
    spans: tuple[TextSpan, ...] = ()
    dropped: str | None = None
    """Characters of the text that ought to be heard and have no sound here."""


@dataclass(frozen=True, kw_only=True)
class Screening:
    """The numbers a clip is judged by. None: could not be computed here, so no bound applies to it."""

    snr_db: float | None = None
    clipped_share: float | None = None
    silence_share: float | None = None
    bandwidth_hz: float | None = None
    phonemes_per_second: float | None = None
    character_error_rate: float | None = None
    quality: float | None = None
    level_lufs: float | None = None
    speaker_consistency: float | None = None
    """How alike the speaker is before and after the place where the clip changes most; low where two take turns."""


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What normalise met in a Recording and did to it, beside the gain; every manifest line says it."""

    source_rate_hz: int
    """Rate of the file: other than 32 kHz was resampled."""
    source_channels: int
    source_codec: str
    channels_used: str
    """Numbers of the channels that were mixed, from 1; `loudest` where the mix follows whoever speaks."""
    dc_offset: float
    """The largest mean of a channel, in units of full scale; it was taken away."""
    source_lufs: float | None
    """Loudness before the gain; None where a recording has none, being shorter than 0.4 s."""
    source_peak_db: float
    shortfall_db: float
    """By how much it stays below the target, because its peaks leave no more room."""
    warnings: tuple[str, ...] = ()
    separator: str | None = None
    """The engine that took noise out of it, and its version; None where it was left as it is."""
    snr_before_db: float | None = None
    """Of the recording before and after the separator, also where it was not kept; None where none was asked for."""
    snr_after_db: float | None = None
    quality_before: float | None = None
    quality_after: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelledRecording:
    """A Recording with its normalised audio: `wave` (T,) float32, T = `recording.duration_samples`."""

    recording: Recording
    wave: np.ndarray
    gain_db: float
    treatment: Treatment | None = None
    clips: tuple[Clip, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class SpokenClip:
    """An Utterance with its audio as it will be stored: 32 kHz, mono, 16-bit FLAC."""

    utterance: Utterance
    flac: bytes
    uri: str
    gain_db: float
    treatment: Treatment | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """An Utterance with its features: what a trainer reads. Shapes as in the shard's members."""

    utterance: Utterance
    flac: bytes
    uri: str
    gain_db: float
    content: np.ndarray
    """(L, C) float16."""
    tokens: np.ndarray
    """(S,) int16 semantic tokens."""
    speaker: np.ndarray
    """(D,) float32 of unit length, from the speaker verifier."""
    text_vectors: np.ndarray | None = None
    """(P, W) float16, where the text has a Mandarin span and the base a text encoder."""
    speaker_vector: np.ndarray | None = None
    """(K,) float16, what the Pro releases condition on."""
    screening: Screening = field(default_factory=Screening)
    treatment: Treatment | None = None
    fingerprint: bytes | None = None
    """(L,) little-endian uint32, by which a copy of the same audio is known."""
    not_finite: tuple[str, ...] = ()
    """Numbers that a model answered with NaN or infinity: they are None."""
    wave: np.ndarray | None = None
    """(T,) float32, the FLAC decoded, while a next stage needs it; not stored."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A row that was left out, and why."""

    row_id: str
    voice: str
    uri: str
    stage: str
    reason: str
    detail: str = ""
    start_sample: int | None = None
    num_samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class Account:
    """Where every sample of one Recording went: duration = kept + rejected + non-speech."""

    recording_id: str
    voice: str
    uri: str
    digest: str
    duration_samples: int
    kept_samples: int
    rejected_samples: int
    non_speech_samples: int

    def __post_init__(self) -> None:
        total = self.kept_samples + self.rejected_samples + self.non_speech_samples
        if total != self.duration_samples or min(self.kept_samples, self.rejected_samples, self.non_speech_samples) < 0:
            raise AssertionError(
                f"{self.uri}: {self.duration_samples} samples came in, but kept {self.kept_samples} + rejected "
                f"{self.rejected_samples} + non-speech {self.non_speech_samples} = {total}"
            )


@dataclass(frozen=True, kw_only=True)
class SelectionRow:
    """What a voice does with one of its Utterances. `split` is `train` or `held_out`; `prompt` marks a candidate.

    `copy_of` is the clip that stands for all with the same audio, `pronunciation` is `standard` or `accented` where a
    voice keeps both.
    """

    clip_id: str
    unit_id: str
    keep: bool
    reason: str
    split: str
    prompt: bool
    num_samples: int
    centroid_cosine: float | None = None
    copy_of: str | None = None
    copy_distance: float | None = None
    phoneme_error_rate: float | None = None
    pronunciation: str | None = None


def clip_id(voice: str, recording_digest: str, start_sample: int, num_samples: int) -> str:
    """The first 20 hex digits of SHA-256 over (voice, recording digest, start, length)."""
    key = f"{voice}\n{recording_digest}\n{start_sample}\n{num_samples}"
    return hashlib.sha256(key.encode()).hexdigest()[:20]


def recording_id(voice: str, digest: str) -> str:
    """The id of the Recording with these bytes in this voice: 20 hex digits."""
    return hashlib.sha256(f"{voice}\n{digest}".encode()).hexdigest()[:20]


def voice_name(raw: str) -> str:
    """A name that is safe as a path segment, a URL part and a registry name.

    Letters and digits of any script, `-` and `_` stay; everything else becomes `_`. A name that had to change gets six
    hex digits of its own digest behind it, so that two names never fall together.
    """
    normal = unicodedata.normalize("NFC", raw)
    safe = re.sub(r"[^\w-]+", "_", normal).strip("_-")[:48]
    if safe == normal and safe:
        return safe
    tail = hashlib.sha256(raw.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return f"{safe}_{tail}" if safe else f"voice_{tail}"


_STRINGS = pa.list_(pa.string())
_INTEGERS = pa.list_(pa.int32())
_WORDS = pa.list_(
    pa.struct(
        [("text", pa.string()), ("start_sample", pa.int64()), ("num_samples", pa.int64()), ("confidence", pa.float64())]
    )
)
_SPANS = pa.list_(
    pa.struct(
        [
            ("language", pa.string()),
            ("normal_text", pa.string()),
            ("num_phonemes", pa.int32()),
            ("phonemes_per_character", _INTEGERS),
        ]
    )
)


def _schema(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(list(columns), metadata={"schema_version": str(SCHEMA_VERSION)})


_TREATMENT: tuple[tuple[str, pa.DataType], ...] = (
    ("source_rate_hz", pa.int32()),
    ("source_channels", pa.int32()),
    ("source_codec", pa.string()),
    ("channels_used", pa.string()),
    ("dc_offset", pa.float64()),
    ("source_lufs", pa.float64()),
    ("source_peak_db", pa.float64()),
    ("shortfall_db", pa.float64()),
    ("warnings", _STRINGS),
    ("separator", pa.string()),
    ("snr_before_db", pa.float64()),
    ("snr_after_db", pa.float64()),
    ("quality_before", pa.float64()),
    ("quality_after", pa.float64()),
)

_PLACE: tuple[tuple[str, pa.DataType], ...] = (
    ("clip_id", pa.string()),
    ("recording_id", pa.string()),
    ("voice", pa.string()),
    ("start_sample", pa.int64()),
    ("num_samples", pa.int64()),
)

UTTERANCE_SCHEMA = _schema(
    *_PLACE,
    ("text", pa.string()),
    ("language", pa.string()),
    ("confidence", pa.float64()),
    ("language_probability", pa.float64()),
    ("words", _WORDS),
    ("given", pa.bool_()),
    ("recognised_text", pa.string()),
    ("normal_text", pa.string()),
    ("phonemes", _STRINGS),
    ("phoneme_ids", _INTEGERS),
    ("phonemes_per_character", _INTEGERS),
    ("spans", _SPANS),
    ("dropped", pa.string()),
)

MANIFEST_SCHEMA = _schema(
    *((entry.name, entry.type) for entry in UTTERANCE_SCHEMA),
    *((entry.name, pa.float64()) for entry in fields(Screening)),
    ("uri", pa.string()),
    ("gain_db", pa.float64()),
    ("shard", pa.string()),
    ("speaker", pa.list_(pa.float32())),
    ("fingerprint", pa.binary()),
    ("not_finite", _STRINGS),
    *_TREATMENT,
)
"""One line per Example of a unit: the Utterance, its screening numbers, its shard, its speaker embedding and its
fingerprint. Columns are only ever added; a reader takes a missing one for null."""

REJECTION_SCHEMA = _schema(
    ("row_id", pa.string()),
    ("voice", pa.string()),
    ("uri", pa.string()),
    ("stage", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("start_sample", pa.int64()),
    ("num_samples", pa.int64()),
)

SELECTION_SCHEMA = _schema(
    ("clip_id", pa.string()),
    ("unit_id", pa.string()),
    ("keep", pa.bool_()),
    ("reason", pa.string()),
    ("split", pa.string()),
    ("prompt", pa.bool_()),
    ("num_samples", pa.int64()),
    ("centroid_cosine", pa.float64()),
    ("copy_of", pa.string()),
    ("copy_distance", pa.float64()),
    ("phoneme_error_rate", pa.float64()),
    ("pronunciation", pa.string()),
)


def table_of(rows: list[Any], schema: pa.Schema) -> pa.Table:
    """Dataclass rows (or mappings) as one Arrow table with exactly `schema`."""
    return pa.Table.from_pylist([row if isinstance(row, dict) else asdict(row) for row in rows], schema=schema)


def utterance_of(record: dict[str, Any]) -> Utterance:
    """The Utterance inside a manifest line or a shard's `.json` member; other keys are left alone."""
    values = {entry.name: record[entry.name] for entry in fields(Utterance) if entry.name in record}
    values["words"] = tuple(Word(**word) for word in values.get("words") or ())
    values["spans"] = tuple(
        TextSpan(**{**span, "phonemes_per_character": tuple(span["phonemes_per_character"])})
        for span in values.get("spans") or ()
    )
    for name in ("phonemes", "phoneme_ids", "phonemes_per_character"):
        values[name] = tuple(values.get(name) or ())
    return Utterance(**values)
