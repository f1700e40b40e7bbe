"""Transcribe: say what is spoken in each Clip of a Recording, and store its audio.

A transcript that came with the recording is placed (by its subtitle times, or by alignment over the whole Recording)
and then checked by the recogniser instead of replaced by it. Without one the recogniser's words are taken. A clip edge
that falls inside a word is moved to the word's end. Positions are 32 kHz samples of the Recording.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from gsv_core.text.language_spans import split_languages
from pipelines.engines.choose import EngineConfig, load_recogniser
from pipelines.engines.flac import encode_flac
from pipelines.engines.protocols import AlignmentError, Recogniser, Recognition, Span
from pipelines.rows import RATE_HZ, Clip, LevelledRecording, Rejection, SpokenClip, Utterance, Word
from pipelines.stage import Stage
from pipelines.subtitles import read_cues

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

    def overlap(self, start: int, end: int) -> int:
        return max(0, min(end, self.end_sample) - max(start, self.start_sample))


@dataclass(frozen=True, kw_only=True)
class TranscribeClips(Stage[LevelledRecording, SpokenClip]):
    """One Recording with its Clips in, its spoken clips out, in time order.

    Rejects:
        no_recogniser: no transcript came, and no engine here speaks the language.
        no_words: the recogniser heard nothing, or the transcript says nothing at that place.
        no_aligner, unaligned: a text belongs to several clips, and what of it to which cannot be told.
        too_short: shorter than `shortest_s`, with its edges where they finally are.
    """

    name = "transcribe"
    engines: EngineConfig = field(default_factory=EngineConfig)
    shortest_s: float = 2.0
    longest_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0.1 <= self.shortest_s < self.longest_s:  # no feature can be had of less than 0.1 s
            raise ValueError(
                f"transcribe: need 0.1 <= shortest_s < longest_s, got {self.shortest_s} and {self.longest_s}"
            )

    def load(self) -> Recogniser:
        return load_recogniser(self.engines)

    def process(self, row: LevelledRecording, model: Recogniser) -> Iterator[SpokenClip | Rejection]:
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
        return [
            Piece(
                start_sample=start + word.start_sample,
                end_sample=start + word.start_sample + word.num_samples,
                text=word.text,
                passage=passage.passage,
            )
            for word in words
        ]

    def _given(
        self, row: LevelledRecording, model: Recogniser, language: str, pieces: list[Piece], spans: list[Span]
    ) -> Iterator[SpokenClip | Rejection]:
        texts = assigned(pieces, spans)
        torn = {index: piece for piece in pieces if len(found := holders(piece, spans)) > 1 for index in found}
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
            heard: Recognition | None = None
            words: tuple[Word, ...] = ()
            if model.speaks(language):
                heard = model.transcribe(wave, RATE_HZ, language)
                try:
                    words = model.align(wave, RATE_HZ, text, language)
                except AlignmentError:
                    words = ()  # the text still stands; the error rate in the screen says how well it fits
            yield self._spoken(row, clip, text, language, heard, words=words, given=True)

    def _recognised(
        self, row: LevelledRecording, model: Recogniser, language: str | None
    ) -> Iterator[SpokenClip | Rejection]:
        for clip in row.clips:
            if self._too_short(clip):
                yield self._rejected(row, clip, "too_short", self._how_short(clip))
                continue
            if not model.speaks(language):
                known = f"{model.name} does not speak {language}" if language else "the language is not known"
                remedy = "" if language else "; say `language:` in voice.yaml, or --language"
                yield self._rejected(row, clip, "no_recogniser", f"no transcript came, and {known}{remedy}")
                continue
            wave = row.wave[clip.start_sample : clip.start_sample + clip.num_samples]
            heard = model.transcribe(wave, RATE_HZ, language)
            text = heard.text.strip()
            if not text:
                yield self._rejected(row, clip, "no_words", f"{model.name} heard no words")
                continue
            yield self._spoken(row, clip, text, heard.language, heard, words=heard.words, given=False)

    def _too_short(self, clip: Clip) -> bool:
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
    comma, blank = ("，", "") if language in ("zh", "yue") else ("、", "") if language == "ja" else (",", " ")
    text = ""
    for before, piece in zip([None, *pieces], pieces, strict=False):
        if before is not None:
            pause = before.passage != piece.passage and not text.endswith(_END_MARKS)
            text += comma + blank if pause else blank
        text += piece.text
    return text


def dominant_language(text: str) -> str:
    """The language most of `text` is written in."""
    lengths: Counter[str] = Counter()
    for span in split_languages(text, "auto"):
        lengths[span.language] += len(span.text)
    return lengths.most_common(1)[0][0] if lengths else "en"
