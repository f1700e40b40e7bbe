"""Phonemise: the text of each Utterance as the phonemes, and the ids, that the base model was trained with."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gsv_core.text.front_end import UnspeakableText, phonemise
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

    def process(self, row: SpokenClip, model: None) -> Iterator[SpokenClip | Rejection]:  # noqa: ARG002
        utterance = row.utterance
        try:
            spoken = phonemise(utterance.text, utterance.language, self.symbols)
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
