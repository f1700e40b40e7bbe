"""Phonemise: the text of each Utterance as the phonemes, and the ids, that the base model was trained with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from gsv_core.text.front_end import TextError, phonemise
from gsv_core.text.lexicon import Lexicon
from gsv_core.text.mandarin_polyphones import Polyphones, load_polyphones
from pipelines.rows import Rejection, SpokenClip, TextSpan
from pipelines.stage import Stage


@dataclass(frozen=True, kw_only=True)
class PhonemiseUtterances(Stage[SpokenClip, SpokenClip]):
    """One spoken clip in, the same with its phonemes out.

    Rejects:
        unspeakable: nothing in the text can be said.
        text_too_long: more characters than one text has.
        unsupported_language: no front end for it.
    """

    name = "phonemise"
    version: ClassVar[int] = 2
    symbols: str = "v2"
    """Whose inventory the ids belong to: `v1` or `v2` (all later releases)."""
    lexicons: Mapping[str, Lexicon] = field(default_factory=dict)
    """The user's words of each voice that has some."""
    polyphones: str | None = None
    """The folder of g2pW on every worker; without it pypinyin alone reads Mandarin."""
    polyphones_digest: str | None = None
    """Of the files in it: another model of that name is refused."""

    def fingerprint(self) -> dict[str, Any]:
        """Without the lexicons: a Source carries the digest of its own, so that one voice's words redo no other's.

        Nor with the inventory, which `derived_from` names, since it is the base's.
        """
        chosen = {"polyphones": self.polyphones_digest} if self.polyphones_digest else {}
        return {"stage": self.name, "version": self.version, **chosen}

    def load(self) -> Polyphones | None:
        if self.polyphones is None:
            return None
        return load_polyphones(Path(self.polyphones), expected=self.polyphones_digest)

    def process(self, row: SpokenClip, model: Polyphones | None) -> Iterator[SpokenClip | Rejection]:
        utterance = row.utterance
        try:
            lexicon = self.lexicons.get(utterance.voice)
            spoken = phonemise(utterance.text, utterance.language, self.symbols, lexicon=lexicon, polyphones=model)
        except TextError as error:
            # Any other ValueError is a wrong setup, such as a dictionary that is not there: it stops the unit.
            yield Rejection(
                row_id=utterance.clip_id,
                voice=utterance.voice,
                uri=row.uri,
                stage=self.name,
                reason=error.reason,
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
                dropped=spoken.dropped or None,
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
