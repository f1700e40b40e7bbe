"""Phonemise: the text of each Utterance as the phonemes, and the ids, that the base model was trained with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gsv_core.text.front_end import UnspeakableText, phonemise
from gsv_core.text.lexicon import Lexicon
from pipelines.rows import Rejection, SpokenClip, TextSpan
from pipelines.stage import Stage


@dataclass(frozen=True, kw_only=True)
class PhonemiseUtterances(Stage[SpokenClip, SpokenClip]):
    """One spoken clip in, the same with its phonemes out.

    Rejects:
        unspeakable: nothing in the text can be said.
        unsupported_language: no front end for it.
    """

    name = "phonemise"
    symbols: str = "v2"
    """Whose inventory the ids belong to: `v1` or `v2` (all later releases)."""
    lexicons: Mapping[str, Lexicon] = field(default_factory=dict)
    """The user's words of each voice that has some."""

    def fingerprint(self) -> dict[str, Any]:
        """Without the lexicons: a Source carries the digest of its own, so that one voice's words redo no other's."""
        return {"stage": self.name, "version": self.version, "symbols": self.symbols}

    def process(self, row: SpokenClip, model: None) -> Iterator[SpokenClip | Rejection]:  # noqa: ARG002
        utterance = row.utterance
        try:
            lexicon = self.lexicons.get(utterance.voice)
            spoken = phonemise(utterance.text, utterance.language, self.symbols, lexicon=lexicon)
        except ValueError as error:
            reason = "unspeakable" if isinstance(error, UnspeakableText) else "unsupported_language"
            yield Rejection(
                row_id=utterance.clip_id,
                voice=utterance.voice,
                uri=row.uri,
                stage=self.name,
                reason=reason,
                detail=str(error),
                start_sample=utterance.start_sample,
                num_samples=utterance.num_samples,
            )
            return
        yield replace(
            row,
            utterance=replace(
                utterance,
                normal_text=spoken.normal_text,
                phonemes=spoken.phonemes,
                phoneme_ids=spoken.ids,
                phonemes_per_character=spoken.phonemes_per_character,
                spans=tuple(
                    TextSpan(
                        language=span.language,
                        normal_text=span.normal_text,
                        num_phonemes=len(span.phonemes),
                        phonemes_per_character=span.phonemes_per_character,
                    )
                    for span in spoken.spans
                ),
            ),
        )
