"""Transcribe: say what is spoken in each Clip of a Recording, and store its audio.

A transcript that came with the recording is placed (by its subtitle times, or by alignment over the whole Recording)
and then checked by the recogniser instead of replaced by it. Without one the recogniser's words are taken, unless they
look like what recognisers write where nobody speaks. What a person corrected is final. A clip edge that falls inside a
word is moved to the word's end. Positions are 32 kHz samples of the Recording.
"""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from gsv_core.text.language_spans import split_languages
from pipelines.corrections import Correction, Corrections
from pipelines.engines.choose import EngineConfig, load_recogniser
from pipelines.engines.flac import encode_flac
from pipelines.engines.protocols import WITHOUT_BLANKS, AlignmentError, Recogniser, Recognition, Span, written
from pipelines.rows import RATE_HZ, Clip, LevelledRecording, Rejection, SpokenClip, Utterance, Word
from pipelines.stage import Stage
from pipelines.subtitles import read_cues

_UNSPACED_LETTERS = WITHOUT_BLANKS | {"ko"}
"""Written in characters that are each a syllable or more: fewer of them are said in a second."""
_LONGEST_LOOP = 10
_END_MARKS = tuple(",.!?;:…，。！？；：、—-")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some known text and where in the Recording it is spoken: a subtitle, or a single word.

    `passage` numbers the subtitle it belongs to; words of one passage follow each other without a mark between.
    `trouble` says why a piece that belongs to several clips could not be broken up into words.
    """

    start_sample: int
    end_sample: int
    text: str
    passage: int = 0
    trouble: str = ""
    confidence: float | None = None

    def overlap(self, start: int, end: int) -> int:
        return max(0, min(end, self.end_sample) - max(start, self.start_sample))


@dataclass(frozen=True, kw_only=True)
class Guards:
    """When a recognised text is taken for the recogniser's invention. None: never. Given texts are not judged so."""

    most_compression_ratio: float | None = 2.4
    """Bytes of the text over bytes of it deflated: what Whisper's authors take for a loop."""
    most_repeats: int | None = 5
    """Times the same words follow each other, where they make up half of the text."""
    least_letters_per_second: float | None = 1.0
    most_letters_per_second: float | None = 30.0
    """Speech has 10 to 20. Half of both bounds where a character is a syllable."""
    most_no_speech_probability: float | None = 0.6
    least_confidence: float | None = 0.37
    """A text is taken for none where nobody seems to speak *and* it was heard with less confidence: Whisper's e^-1."""

    def doubt(self, heard: Recognition, seconds: float) -> tuple[str, str] | None:
        """(reason, sentence with the number) why `heard` is no transcript of so many seconds; None where it may be."""
        return self._no_speech(heard) or self._repetition(heard) or self._rate(heard, seconds)

    def _no_speech(self, heard: Recognition) -> tuple[str, str] | None:
        silence, confidence = heard.no_speech_probability, heard.confidence
        if None in (silence, confidence, self.most_no_speech_probability, self.least_confidence):
            return None
        assert silence is not None and confidence is not None  # noqa: PT018
        assert self.most_no_speech_probability is not None and self.least_confidence is not None  # noqa: PT018
        if silence <= self.most_no_speech_probability or confidence >= self.least_confidence:
            return None
        return "no_speech", f"the probability that nobody speaks is {silence:.2f}, the confidence {confidence:.2f}"

    def _repetition(self, heard: Recognition) -> tuple[str, str] | None:
        ratio = compression_ratio(heard.text)
        if self.most_compression_ratio is not None and ratio > self.most_compression_ratio:
            return "repetition", f"the text repeats itself: compression ratio {ratio:.2f}"
        unspaced = heard.language in WITHOUT_BLANKS
        words = [word.strip("".join(_END_MARKS)) for word in (heard.text if unspaced else heard.text.split())]
        times, share = longest_loop([word.casefold() for word in words if word.strip()])
        if self.most_repeats is not None and times > self.most_repeats and share >= 0.5:
            return "repetition", f"the same words follow each other {times} times, {share:.0%} of the text"
        return None

    def _rate(self, heard: Recognition, seconds: float) -> tuple[str, str] | None:
        rate = sum(letter.isalnum() for letter in heard.text) / seconds
        factor = 0.5 if heard.language in _UNSPACED_LETTERS else 1.0
        least, most = self.least_letters_per_second, self.most_letters_per_second
        if (least is None or rate >= factor * least) and (most is None or rate <= factor * most):
            return None
        return "speech_rate", f"{rate:.2f} letters per second"


@dataclass(frozen=True, kw_only=True)
class TranscribeClips(Stage[LevelledRecording, SpokenClip]):
    """One Recording with its Clips in, its spoken clips out, in time order.

    Rejects:
        no_recogniser: no transcript came, and no engine here speaks the language.
        no_words: the recogniser heard nothing, or the transcript says nothing at that place.
        no_speech, repetition, speech_rate: what was heard is taken for the recogniser's invention (see `Guards`).
        no_aligner, unaligned: a text belongs to several clips, and what of it to which cannot be told.
        too_short: shorter than `shortest_s`, with its edges where they finally are.
        corrected: a person said so.
    """

    name = "transcribe"
    version = 2
    engines: EngineConfig = field(default_factory=EngineConfig)
    guards: Guards = field(default_factory=Guards)
    shortest_s: float = 2.0
    longest_s: float = 10.0
    corrections: Corrections = field(default_factory=Corrections)

    def __post_init__(self) -> None:
        if not 0.1 <= self.shortest_s < self.longest_s:  # no feature can be had of less than 0.1 s
            raise ValueError(
                f"transcribe: need 0.1 <= shortest_s < longest_s, got {self.shortest_s} and {self.longest_s}"
            )

    def load(self) -> Recogniser:
        return load_recogniser(self.engines)

    def fingerprint(self) -> dict[str, Any]:
        """Without the corrections: a Source carries the digest of its own, so that they redo no other's."""
        fingerprint = super().fingerprint()
        fingerprint.pop("corrections")
        return fingerprint

    def process(self, row: LevelledRecording, model: Recogniser) -> Iterator[SpokenClip | Rejection]:
        for result in self._understood(row, model):
            identity = result.row_id if isinstance(result, Rejection) else result.utterance.clip_id
            correction = self.corrections.by_clip.get(identity)
            if correction is None or (isinstance(result, Rejection) and result.reason == "too_short"):
                yield result
            else:
                yield self._corrected(row, result, correction, model)

    def _corrected(
        self, row: LevelledRecording, result: SpokenClip | Rejection, correction: Correction, model: Recogniser
    ) -> SpokenClip | Rejection:
        """A clip as a person said it is, whatever was heard in it: nothing is left to judge the text by."""
        place = result if isinstance(result, Rejection) else result.utterance
        assert place.start_sample is not None and place.num_samples is not None  # noqa: PT018
        clip = Clip.of(row.recording, start_sample=place.start_sample, num_samples=place.num_samples)
        if correction.rejected:
            return self._rejected(row, clip, "corrected", "a person left it out")
        before = row.recording.language if isinstance(result, Rejection) else result.utterance.language
        language = correction.language or before or dominant_language(correction.text)
        words: tuple[Word, ...] = ()
        if model.speaks(language):
            try:
                wave = row.wave[clip.start_sample : clip.start_sample + clip.num_samples]
                words = model.align(wave, RATE_HZ, correction.text, language)
            except AlignmentError:
                words = ()
        return self._spoken(row, clip, correction.text, language, None, words=words, given=True)

    def _understood(self, row: LevelledRecording, model: Recogniser) -> Iterator[SpokenClip | Rejection]:
        transcript, language = row.recording.transcript, row.recording.language
        if transcript is None:
            yield from self._recognised(row, model, language)
            return
        srt = row.recording.transcript_format == "srt"
        pieces = [
            Piece(start_sample=cue.start_sample, end_sample=cue.end_sample, text=cue.text, passage=number)
            for number, cue in enumerate(read_cues(transcript) if srt else [])
        ]
        said = " ".join(piece.text for piece in pieces) if srt else " ".join(transcript.split())
        language = language or dominant_language(said)
        if not said:
            yield from (self._rejected(row, clip, "no_words", "the transcript is empty") for clip in row.clips)
            return
        spans = [Span(start_sample=clip.start_sample, num_samples=clip.num_samples) for clip in row.clips]
        if srt:
            pieces = self._broken_up(row, pieces, spans, language, model)
        else:
            pieces = self._whole(row, said, spans, language, model)
        yield from self._given(row, model, language, pieces, recut(spans, pieces, round(self.longest_s * RATE_HZ)))

    def _whole(
        self, row: LevelledRecording, said: str, spans: Sequence[Span], language: str, model: Recogniser
    ) -> list[Piece]:
        """A transcript without times: the text of the only clip, or words placed by alignment, or one torn piece."""
        if len(spans) == 1:
            return [Piece(start_sample=spans[0].start_sample, end_sample=spans[0].end_sample, text=said)]
        whole = Piece(start_sample=0, end_sample=len(row.wave), text=said)
        return self._words(row, model, whole, language)

    def _broken_up(
        self, row: LevelledRecording, cues: Sequence[Piece], spans: Sequence[Span], language: str, model: Recogniser
    ) -> list[Piece]:
        """Subtitles, those that belong to two clips as single words where the engine can place them."""
        return [
            piece
            for cue in cues
            for piece in (self._words(row, model, cue, language) if len(holders(cue, spans)) > 1 else [cue])
        ]

    def _words(self, row: LevelledRecording, model: Recogniser, passage: Piece, language: str) -> list[Piece]:
        """Every word of a passage as a piece of its own; the passage as it is where it cannot be aligned."""
        start = passage.start_sample
        wave = row.wave[start : min(passage.end_sample, len(row.wave))]
        if not model.speaks(language):
            return [replace(passage, trouble="no_aligner")]
        try:
            words = model.align(wave, RATE_HZ, passage.text, language)
        except AlignmentError:
            return [replace(passage, trouble="unaligned")]
        return pieces_of(words, language, start=start, passage=passage.passage)

    def _given(
        self, row: LevelledRecording, model: Recogniser, language: str, pieces: list[Piece], spans: list[Span]
    ) -> Iterator[SpokenClip | Rejection]:
        texts = assigned(pieces, spans)
        torn = {index: piece for piece in pieces if len(found := holders(piece, spans)) > 1 for index in found}
        heard = self._heard(row, model, language, [span for span in spans if not self._too_short(span)])
        for index, (span, mine) in enumerate(zip(spans, texts, strict=True)):
            clip = Clip.of(row.recording, start_sample=span.start_sample, num_samples=span.num_samples)
            if self._too_short(clip):
                yield self._rejected(row, clip, "too_short", self._how_short(clip))
                continue
            if index in torn and torn[index].trouble:
                detail = (
                    f"the text spans several clips and {model.name} cannot place it in them; deliver an .srt with "
                    f"times, or one recording per sentence: {torn[index].text[:60]!r}"
                )
                yield self._rejected(row, clip, torn[index].trouble, detail)
                continue
            if not mine:
                yield self._rejected(row, clip, "no_words", "the transcript says nothing at this place")
                continue
            text = joined(mine, language)
            wave = row.wave[span.start_sample : span.end_sample]
            words: tuple[Word, ...] = ()
            if model.speaks(language):
                try:
                    words = model.align(wave, RATE_HZ, text, language)
                except AlignmentError:
                    words = ()  # the text still stands; the error rate in the screen says how well it fits
            yield self._spoken(row, clip, text, language, heard.get(span), words=words, given=True)

    def _recognised(
        self, row: LevelledRecording, model: Recogniser, language: str | None
    ) -> Iterator[SpokenClip | Rejection]:
        if not model.speaks(language):
            yield from self._not_spoken(row, model, language)
            return
        clips = [Span(start_sample=clip.start_sample, num_samples=clip.num_samples) for clip in row.clips]
        heard = self._heard(row, model, language, clips)
        pieces = [
            piece
            for number, clip in enumerate(clips)
            for piece in pieces_of(heard[clip].words, heard[clip].language, start=0, passage=number)
        ]
        spans = recut(clips, pieces, round(self.longest_s * RATE_HZ))
        for span, mine in zip(spans, assigned(pieces, spans), strict=True):
            clip = Clip.of(row.recording, start_sample=span.start_sample, num_samples=span.num_samples)
            recognition = heard[most_shared(span, clips)]
            if mine:
                text = written([piece.text for piece in mine], recognition.language)
            else:  # heard, but not timed; or nothing at all
                text = "" if recognition.words else recognition.text.strip()
            recognition = replace(recognition, text=text)
            if self._too_short(clip):
                yield self._rejected(row, clip, "too_short", self._how_short(clip))
            elif not text:
                yield self._rejected(row, clip, "no_words", f"{model.name} heard no words")
            elif doubt := self.guards.doubt(recognition, clip.num_samples / RATE_HZ):
                reason, detail = doubt
                yield self._rejected(row, clip, reason, f"{detail}: {text[:80]!r}")
            else:
                words = words_of(mine, span)
                yield self._spoken(row, clip, text, recognition.language, recognition, words=words, given=False)

    def _not_spoken(self, row: LevelledRecording, model: Recogniser, language: str | None) -> Iterator[Rejection]:
        known = f"{model.name} does not speak {language}" if language else "the language is not known"
        remedy = "" if language else "; say `language:` in voice.yaml, or --language"
        for clip in row.clips:
            if self._too_short(clip):
                yield self._rejected(row, clip, "too_short", self._how_short(clip))
            else:
                yield self._rejected(row, clip, "no_recogniser", f"no transcript came, and {known}{remedy}")

    def _heard(
        self, row: LevelledRecording, model: Recogniser, language: str | None, spans: Sequence[Span]
    ) -> dict[Span, Recognition]:
        """What the engine hears in each span; nothing where it does not speak the language."""
        if not model.speaks(language):
            return {}
        return dict(zip(spans, model.transcribe_clips(row.wave, RATE_HZ, spans, language), strict=True))

    def _too_short(self, clip: Clip | Span) -> bool:
        return clip.num_samples < self.shortest_s * RATE_HZ

    def _how_short(self, clip: Clip) -> str:
        return f"{clip.num_samples / RATE_HZ:.2f} s, shorter than {self.shortest_s:g} s"

    def _spoken(
        self,
        row: LevelledRecording,
        clip: Clip,
        text: str,
        language: str,
        heard: Recognition | None,
        *,
        words: tuple[Word, ...],
        given: bool,
    ) -> SpokenClip:
        wave = row.wave[clip.start_sample : clip.start_sample + clip.num_samples]
        return SpokenClip(
            utterance=Utterance(
                clip_id=clip.clip_id,
                recording_id=clip.recording_id,
                voice=clip.voice,
                start_sample=clip.start_sample,
                num_samples=clip.num_samples,
                text=text,
                language=language,
                confidence=heard.confidence if heard else None,
                language_probability=heard.language_probability if heard else None,
                words=words,
                given=given,
                recognised_text=heard.text if heard else None,
            ),
            flac=encode_flac(wave, RATE_HZ),
            uri=row.recording.uri,
            gain_db=row.gain_db,
            treatment=row.treatment,
        )

    def _rejected(self, row: LevelledRecording, clip: Clip, reason: str, detail: str) -> Rejection:
        return Rejection(
            row_id=clip.clip_id,
            voice=clip.voice,
            uri=row.recording.uri,
            stage=self.name,
            reason=reason,
            detail=detail,
            start_sample=clip.start_sample,
            num_samples=clip.num_samples,
        )


def pieces_of(words: Sequence[Word], language: str, *, start: int, passage: int) -> list[Piece]:
    """Words as pieces of the Recording, from `start` on. One without a time, such as a dash, joins the word before."""
    pieces: list[Piece] = []
    waiting: list[str] = []
    for word in words:
        if word.num_samples:
            pieces.append(
                Piece(
                    start_sample=start + word.start_sample,
                    end_sample=start + word.start_sample + word.num_samples,
                    text=written([*waiting, word.text], language),
                    passage=passage,
                    confidence=word.confidence,
                )
            )
            waiting = []
        elif pieces:
            pieces[-1] = replace(pieces[-1], text=written([pieces[-1].text, word.text], language))
        else:
            waiting.append(word.text)
    return pieces


def words_of(pieces: Sequence[Piece], span: Span) -> tuple[Word, ...]:
    """Pieces as words relative to the clip they are in; what reaches over its edges is cut off there."""
    words = []
    for piece in pieces:
        start, end = max(piece.start_sample, span.start_sample), min(piece.end_sample, span.end_sample)
        words.append(
            Word(
                text=piece.text,
                start_sample=start - span.start_sample,
                num_samples=end - start,
                confidence=piece.confidence,
            )
        )
    return tuple(words)


def most_shared(span: Span, others: Sequence[Span]) -> Span:
    """Which of the others shares most with a span."""
    return max(
        others,
        key=lambda other: min(span.end_sample, other.end_sample) - max(span.start_sample, other.start_sample),
    )


def compression_ratio(text: str) -> float:
    """Bytes of a text over bytes of it deflated: above 2 it says the same again and again."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def longest_loop(words: Sequence[str]) -> tuple[int, float]:
    """How often one to ten words are said in a row, where that is most of the text, and the share they are of it."""
    times, share = 1, 0.0
    for length in range(1, min(_LONGEST_LOOP, len(words) // 2) + 1):
        run = 0
        for index in range(length, len(words)):
            run = run + 1 if words[index] == words[index - length] else 0
            covered = (run + length) / len(words)
            if run >= length and covered > share:
                times, share = run // length + 1, covered
    return times, share


def recut(spans: Sequence[Span], pieces: Sequence[Piece], longest: int) -> list[Span]:
    """Clip spans whose edges no longer fall inside a piece: each goes whole to the clip that holds more of it."""
    edges = [[span.start_sample, span.end_sample] for span in spans]
    for piece in pieces:
        shares = [piece.overlap(start, end) for start, end in edges]
        if not any(shares):
            continue
        owner = max(range(len(edges)), key=lambda index: shares[index])
        start, end = edges[owner]
        grown = max(end, piece.end_sample) - min(start, piece.start_sample)
        if len(edges) == 1 or grown > longest:
            continue
        start, end = min(start, piece.start_sample), max(end, min(piece.end_sample, edges[-1][1]))
        # What the piece covers of other clips is taken from them, down to nothing.
        edges[:owner] = [[min(low, start), min(high, start)] for low, high in edges[:owner]]
        edges[owner + 1 :] = [[max(low, end), max(high, end)] for low, high in edges[owner + 1 :]]
        edges[owner] = [start, end]
    return [Span(start_sample=start, num_samples=end - start) for start, end in edges if end > start]


def holders(piece: Piece, spans: Sequence[Span]) -> list[int]:
    """Which spans hold more than a tenth of a piece: less is a subtitler's slack, not speech."""
    least = 0.1 * (piece.end_sample - piece.start_sample)
    return [index for index, span in enumerate(spans) if piece.overlap(span.start_sample, span.end_sample) > least]


def assigned(pieces: Sequence[Piece], spans: Sequence[Span]) -> list[list[Piece]]:
    """For each span the pieces that are mostly in it, in order of time."""
    mine: list[list[Piece]] = [[] for _ in spans]
    for piece in sorted(pieces, key=lambda piece: piece.start_sample):
        shares = [piece.overlap(span.start_sample, span.end_sample) for span in spans]
        if shares and max(shares) > 0:
            mine[shares.index(max(shares))].append(piece)
    return mine


def joined(pieces: Sequence[Piece], language: str) -> str:
    """The pieces as one text. Where one subtitle follows another there was a pause, so a comma is put if no mark is."""
    comma = "，" if language in ("zh", "yue") else "、" if language == "ja" else ","
    texts = [piece.text for piece in pieces]
    for index, (before, after) in enumerate(pairwise(pieces)):
        if before.passage != after.passage and not before.text.endswith(_END_MARKS):
            texts[index] += comma
    return written(texts, language)


def dominant_language(text: str) -> str:
    """The language most of `text` is written in."""
    lengths: Counter[str] = Counter()
    for span in split_languages(text, "auto"):
        lengths[span.language] += len(span.text)
    return lengths.most_common(1)[0][0] if lengths else "en"
