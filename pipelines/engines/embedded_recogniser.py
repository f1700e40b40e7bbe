"""An English wave to its text, and a known English text to the times of its words, by pocketsphinx.

The model comes inside the package (CMU Sphinx, en-us, PTM acoustic model, 39 ARPAbet phones, trigram language model).
Alignment is a forced one over the whole wave: the decoder may only pass through the given words, with silence between.
Where it finds no way through, or one that fits the sound badly, and in waves of many minutes, the text is anchored on
what was recognised and aligned piece by piece. Weak beside Whisper, but it runs anywhere. Axes: T samples.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from gsv_core.audio.levels import remove_dc
from gsv_core.audio.resample import resample
from gsv_core.metrics.recognition import matching_pairs
from pipelines.engines.packaged import package_version
from pipelines.engines.protocols import AlignmentError, Recognition, Span, moved
from pipelines.rows import Word

_RATE_HZ = 16_000
_FRAMES_PER_SECOND = 100
_LANGUAGE = "en"
_PEAK = 0.8  # of 16 bits: the decoder takes integers
# The search keeps paths within this ratio of the best one; the second, wider one is tried where the first loses all.
_BEAMS = (1e-48, 1e-120)
# Bounds per frame of the free search: a third less work at the same error rate on our recordings.
_MOST_STATES = 3_000
_MOST_WORDS = 10
# Median over words of the log score per frame. Fitting texts of our recordings lie above -2.9, foreign ones below -3.9.
_LEAST_FIT = -3.4
_LONGEST_FORCED_S = 240.0  # the work of one pass grows with words times frames
_SHORTEST_PAUSE_FRAMES = 12
_LONGEST_PAUSE_FRAMES = 150  # a longer one may hold words that nobody recognised
_APART_FRAMES = 800
_LEAST_ANCHORED = 0.3  # share of words that must be recognised, where only anchors are left
_LONGEST_WINDOW_S = 30.0
_FILLER = re.compile(r"^[<\[+]")  # <s>, <sil>, [NOISE], ++BREATH++
_MARKUP = re.compile(r"<[^<>]*>")  # transcripts write noises as <VOCNOISE>
_VARIANT = re.compile(r"\(\d+\)$")  # the second pronunciation of "read" is written read(2)


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """One word of a search result, in frames; `fit` is its log score per frame."""

    word: str
    start: int
    end: int
    fit: float
    probability: float


class PocketsphinxRecogniser:
    """English only. Recognising and aligning each have a decoder of their own, so that neither shifts the other."""

    def __init__(self) -> None:
        self.name = f"pocketsphinx {package_version('pocketsphinx')} en-us"
        self._recogniser = _decoder(maxhmmpf=_MOST_STATES, maxwpf=_MOST_WORDS)
        self._aligners = tuple(_decoder(lm=None, beam=beam, wbeam=beam * 1e10, pbeam=beam) for beam in _BEAMS)

    def speaks(self, language: str | None) -> bool:
        """English and nothing else; it would hear English words in any language."""
        return language == _LANGUAGE

    def transcribe(self, wave: np.ndarray, rate_hz: int, language: str | None) -> Recognition:
        """`wave` (T,) float32; words in samples of `wave`, with posterior probabilities. Silence gives an empty text.

        Raises:
            ValueError: another language than English was asked for.
        """
        if language not in (None, _LANGUAGE):
            raise ValueError(f"pocketsphinx speaks English (en), got {language!r}: choose recogniser whisperx")
        segments = self._recognise(_pcm(wave, rate_hz))
        words = tuple(_word(segment.word, segment, rate_hz, len(wave), segment.probability) for segment in segments)
        return Recognition(
            text=" ".join(word.text for word in words),
            language=_LANGUAGE,
            words=words,
            confidence=float(np.mean([segment.probability for segment in segments])) if segments else None,
        )

    def transcribe_clips(
        self, wave: np.ndarray, rate_hz: int, clips: Sequence[Span], language: str | None
    ) -> list[Recognition]:
        """Clip by clip: the decoder's time grows with what it hears, so there is nothing to share."""
        heard = [self.transcribe(wave[clip.start_sample : clip.end_sample], rate_hz, language) for clip in clips]
        return [moved(recognition, clip.start_sample) for recognition, clip in zip(heard, clips, strict=True)]

    def align(self, wave: np.ndarray, rate_hz: int, text: str, language: str) -> tuple[Word, ...]:
        """Times of the whitespace-separated words of `text` in `wave` (T,), however long.

        What is not spoken (a dash) has no length.

        Raises:
            AlignmentError: another language, nothing to align, or a text that is not in the wave.
        """
        if language != _LANGUAGE:
            raise AlignmentError(f"pocketsphinx aligns English (en) only, got {language!r}")
        tokens = text.split()
        spoken = [spoken_words(token) for token in tokens]
        flat = [word for words in spoken for word in words]
        if not flat:
            raise AlignmentError("the text has no word that can be spoken")
        if not len(wave) or not wave.any():
            raise AlignmentError("the wave is silent")
        pcm = _pcm(wave, rate_hz)
        whole = self._forced(pcm, flat) if len(pcm) <= _LONGEST_FORCED_S * _RATE_HZ else None
        segments = whole or self._anchored(pcm, flat)
        return _per_token(tokens, spoken, segments, rate_hz, len(wave))

    def _recognise(self, pcm: np.ndarray) -> list[_Segment]:
        """Words heard, in windows of bounded length: the decoder's time and memory grow with an utterance."""
        segments = []
        for start, end in _windows(pcm):
            offset = start * _FRAMES_PER_SECOND // _RATE_HZ
            segments += [_moved(segment, offset) for segment in _search(self._recogniser, pcm[start:end])]
        return segments

    def _forced(self, pcm: np.ndarray, words: Sequence[str]) -> list[_Segment] | None:
        """One segment per word, or None where no path leads through all of them or it fits badly."""
        for aligner in self._aligners:
            _teach(aligner, words)
            try:
                aligner.set_align_text(" ".join(words))
                segments = _search(aligner, pcm)
            except RuntimeError:  # pocketsphinx's own word for "no path survived"
                continue
            if [segment.word for segment in segments] == list(words):
                fits = median(segment.fit for segment in segments) >= _LEAST_FIT
                return segments if fits else None
        return None

    def _anchored(self, pcm: np.ndarray, words: Sequence[str]) -> list[_Segment]:
        """One segment per word: recognised words where they were heard, the others spread in between.

        Then each stretch between two sure pauses is aligned by force; where that fails, it stays as it was.
        """
        heard = self._recognise(pcm)
        pairs = matching_pairs([segment.word for segment in heard], words)
        anchors = {index: heard[place] for place, index in pairs}
        if len(anchors) < _LEAST_ANCHORED * len(words):
            raise AlignmentError(f"the text does not fit the wave: {len(anchors)} of its {len(words)} words were heard")
        segments = _interpolate(words, anchors, first=heard[0].start, last=heard[-1].end)
        cuts = [(0, 0), *_sure_pauses(anchors), (len(words), len(pcm) * _FRAMES_PER_SECOND // _RATE_HZ)]
        per_frame = _RATE_HZ // _FRAMES_PER_SECOND
        for (first, start), (last, end) in pairwise(cuts):
            if end - start <= _LONGEST_FORCED_S * _FRAMES_PER_SECOND:
                finer = self._forced(pcm[start * per_frame : end * per_frame], words[first:last])
                segments[first:last] = [_moved(segment, start) for segment in finer or ()] or segments[first:last]
        return segments


def spoken_words(token: str) -> list[str]:
    """The lower-case words a token is spoken as: `Twenty-one,` -> `twenty`, `one`; none for a dash or <noise>."""
    from gsv_core.text.english_normalisation import normalise

    spoken, _ = normalise(_MARKUP.sub("", token).replace("&", " and "))
    words = (word.strip("'") for word in re.findall(r"[a-z']+", spoken.lower()))
    return [word for word in words if word]


def _decoder(**options: Any) -> Any:
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise ValueError("the package pocketsphinx is missing: pip install pocketsphinx") from error
    return Decoder(samprate=_RATE_HZ, loglevel="FATAL", **options)


def _pcm(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """(T,) float32 at any rate -> 16-bit samples at 16 kHz, without offset and at one level."""
    if wave.ndim != 1:
        raise ValueError(f"pocketsphinx: expected a mono wave (T,), got shape {wave.shape}")
    audio = remove_dc(resample(wave, rate_hz, _RATE_HZ))
    peak = float(np.abs(audio).max(initial=0.0))
    return np.rint(audio * (_PEAK * 32767.0 / peak if peak else 0.0)).astype(np.int16)


def _windows(pcm: np.ndarray) -> list[tuple[int, int]]:
    """Consecutive windows of at most 30 s that end in the quietest tenth of a second of their second half."""
    longest, step = round(_LONGEST_WINDOW_S * _RATE_HZ), _RATE_HZ // 10
    windows, start = [], 0
    while len(pcm) - start > longest:
        half = start + longest // 2
        blocks = pcm[half : half + (longest // 2) // step * step].astype(np.float64).reshape(-1, step)
        end = half + int(np.argmin((blocks**2).sum(axis=1))) * step + step // 2
        end -= end % (_RATE_HZ // _FRAMES_PER_SECOND)
        windows.append((start, end))
        start = end
    windows.append((start, len(pcm)))
    return windows


def _search(decoder: Any, pcm: np.ndarray) -> list[_Segment]:
    """The words of the decoder's best path; what earlier waves left in its noise estimate is forgotten first."""
    if not pcm.any():
        return []
    decoder.reinit_feat()
    decoder.start_utt()
    decoder.process_raw(pcm.tobytes(), full_utt=True)
    decoder.end_utt()
    if decoder.hyp() is None:
        return []
    segments = []
    for entry in decoder.seg():
        if _FILLER.match(entry.word):
            continue
        frames = entry.end_frame - entry.start_frame + 1
        segments.append(
            _Segment(
                word=_VARIANT.sub("", entry.word),
                start=entry.start_frame,
                end=entry.end_frame + 1,
                fit=math.log(max(entry.ascore, 1e-300)) / frames,
                probability=min(1.0, max(0.0, entry.prob)),
            )
        )
    return segments


def _teach(decoder: Any, words: Sequence[str]) -> None:
    """Give every word that the packaged dictionary lacks a pronunciation by rule."""
    unknown = sorted({word for word in words if decoder.lookup_word(word) is None})
    if not unknown:
        return
    from gsv_core.text.english import pronounce

    for word in unknown:
        phones = [phone.rstrip("012") for phone in pronounce(word)]
        decoder.add_word(word, " ".join(phone for phone in phones if phone.isalpha()) or "AH", word == unknown[-1])


def _moved(segment: _Segment, frames: int) -> _Segment:
    return replace(segment, start=segment.start + frames, end=segment.end + frames)


def _sure_pauses(anchors: dict[int, _Segment]) -> list[tuple[int, int]]:
    """(word, frame) of pauses between two neighbouring words that were both heard, well apart from each other."""
    pauses: list[tuple[int, int]] = []
    for index in sorted(anchors):
        if index - 1 not in anchors:
            continue
        before, after = anchors[index - 1].end, anchors[index].start
        middle = (before + after) // 2
        latest = pauses[-1][1] if pauses else 0
        if _SHORTEST_PAUSE_FRAMES <= after - before <= _LONGEST_PAUSE_FRAMES and middle - latest >= _APART_FRAMES:
            pauses.append((index, middle))
    return pauses


def _interpolate(words: Sequence[str], anchors: dict[int, _Segment], *, first: int, last: int) -> list[_Segment]:
    """Fill the gaps between anchors in proportion to the letters of the missing words."""
    segments: list[_Segment] = []
    index = 0
    while index < len(words):
        if index in anchors:
            segments.append(anchors[index])
            index += 1
            continue
        gap_end = next((at for at in range(index, len(words)) if at in anchors), len(words))
        start = segments[-1].end if segments else first
        end = max(start, anchors[gap_end].start if gap_end < len(words) else last)
        letters = np.cumsum([0] + [len(word) for word in words[index:gap_end]])
        edges = [start + round((end - start) * int(count) / int(letters[-1])) for count in letters]
        segments += [
            _Segment(word=word, start=edges[at], end=edges[at + 1], fit=0.0, probability=0.0)
            for at, word in enumerate(words[index:gap_end])
        ]
        index = gap_end
    return segments


def _per_token(
    tokens: Sequence[str], spoken: Sequence[Sequence[str]], segments: Sequence[_Segment], rate_hz: int, num_samples: int
) -> tuple[Word, ...]:
    """Join the segments of each token's spoken words."""
    words: list[Word] = []
    at = 0
    for token, parts in zip(tokens, spoken, strict=True):
        if parts:
            first, last = segments[at], segments[at + len(parts) - 1]
            joined = _Segment(word=token, start=first.start, end=last.end, fit=0.0, probability=0.0)
            words.append(_word(token, joined, rate_hz, num_samples, None))
        else:
            end = words[-1].start_sample + words[-1].num_samples if words else 0
            words.append(Word(text=token, start_sample=end, num_samples=0))
        at += len(parts)
    return tuple(words)


def _word(text: str, segment: _Segment, rate_hz: int, num_samples: int, confidence: float | None) -> Word:
    start, end = (min(num_samples, frame * rate_hz // _FRAMES_PER_SECOND) for frame in (segment.start, segment.end))
    return Word(text=text, start_sample=start, num_samples=end - start, confidence=confidence)
