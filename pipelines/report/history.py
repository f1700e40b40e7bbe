"""What each corpus came to, kept beside the report, so that the next one can be compared with it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipelines.report.numbers import CorpusNumbers, VoiceNumbers
from pipelines.storage import Storage

_PATH = "report/history.json"
_LONGEST = 50
"""Corpora that are remembered."""


@dataclass(frozen=True, kw_only=True)
class VoiceSummary:
    """One voice of one corpus; scores are those of its best pair."""

    voice: str
    seconds_in: float
    seconds_kept: float
    seconds_rejected: float
    state: str
    model_version: str | None = None
    character_error_rate: float | None = None
    likeness: float | None = None
    quality: float | None = None

    @classmethod
    def of(cls, voice: VoiceNumbers) -> "VoiceSummary":
        best = voice.trained.best if voice.trained else None
        numbers = best.numbers if best else {}
        return cls(
            voice=voice.voice,
            seconds_in=round(voice.seconds_in, 1),
            seconds_kept=round(voice.seconds_kept, 1),
            seconds_rejected=round(voice.seconds_rejected, 1),
            state=voice.state,
            model_version=voice.model_version,
            character_error_rate=numbers.get("character_error_rate"),
            likeness=numbers.get("likeness"),
            quality=numbers.get("quality"),
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of one voice since the corpus before; None where it was not there, or is not any more."""

    voice: str
    before: VoiceSummary | None
    now: VoiceSummary | None


def remember(corpus: CorpusNumbers, storage: Storage) -> tuple[Change, ...]:
    """Note what `corpus` came to; the voices that differ from the corpus before it, none for the first."""
    history = json.loads(storage.read(_PATH)) if storage.exists(_PATH) else []
    now = [VoiceSummary.of(voice) for voice in corpus.voices]
    if not history or history[-1]["corpus_digest"] != corpus.digest:
        history.append({"corpus_digest": corpus.digest, "voices": []})
    history[-1]["voices"] = [asdict(summary) for summary in now]
    storage.write(_PATH, json.dumps(history[-_LONGEST:], indent=1, sort_keys=True).encode())
    return changes([VoiceSummary(**entry) for entry in history[-2]["voices"]], now) if len(history) > 1 else ()


def changes(before: Sequence[VoiceSummary], now: Sequence[VoiceSummary]) -> tuple[Change, ...]:
    """Voices that came, went, or are not what they were, by name."""
    then, today = ({summary.voice: summary for summary in summaries} for summaries in (before, now))
    return tuple(
        Change(voice=voice, before=then.get(voice), now=today.get(voice))
        for voice in sorted(then.keys() | today.keys())
        if then.get(voice) != today.get(voice)
    )
