"""Ingest: open each Source and say what Recording is in it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipelines.engines.decoder import DecodeLimits, UndecodableError, probe
from pipelines.rows import RATE_HZ, Recording, Rejection, Source, recording_id
from pipelines.stage import Stage


@dataclass(frozen=True, kw_only=True)
class IngestSources(Stage[Source, Recording]):
    """One Source in, its Recording out. Its length is the header's word until normalise has decoded it.

    Rejects:
        empty, unreadable, no_audio, too_many_channels: as the decoder found. Length is checked where it is certain.
        duplicate: the same bytes stand in the voice under another name already.
    """

    name = "ingest"
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    def process(self, row: Source, model: None) -> Iterator[Recording | Rejection]:  # noqa: ARG002
        identity = recording_id(row.voice, row.digest)
        for copy in row.copies:
            yield Rejection(
                row_id=identity,
                voice=row.voice,
                uri=copy,
                stage=self.name,
                reason="duplicate",
                detail=f"byte for byte the same as {row.uri}",
            )
        try:
            found = probe(row.uri, limits=self.limits)
        except UndecodableError as error:
            yield Rejection(
                row_id=identity, voice=row.voice, uri=row.uri, stage=self.name, reason=error.reason, detail=error.detail
            )
            return
        yield Recording(
            recording_id=identity,
            voice=row.voice,
            uri=row.uri,
            digest=row.digest,
            duration_samples=round((found.duration_s or 0.0) * RATE_HZ),
            rate_hz=found.rate_hz,
            channels=found.channels,
            codec=found.codec,
            licence=row.licence,
            consent_id=row.consent_id,
            language=row.language,
            transcript=row.transcript,
            transcript_format=row.transcript_format,
        )
