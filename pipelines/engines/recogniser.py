"""A wave to its text and the times of its words in many languages, by whisperX.

Bain et al. 2023, "WhisperX: time-accurate speech transcription of long-form audio", arXiv:2303.00747: voice activity
packs speech into windows of at most 30 s, faster-whisper (Radford et al. 2022, arXiv:2212.04356) reads each, and a
wav2vec2 network with a CTC head times the words. The only importer of whisperX. Models come from a local folder or the
hub; temperature is 0, so the same wave gives the same text. Axes: T samples.
"""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gsv_core.audio.resample import resample
from gsv_core.metrics.recognition import matching_pairs
from pipelines.engines.packaged import check_folder, forget_lazy_modules, package_version
from pipelines.engines.protocols import AlignmentError, Recognition, Span, VoiceActivity
from pipelines.engines.voice_activity import SileroVoiceActivity
from pipelines.rows import Word

_RATE_HZ = 16_000
# wav2vec2 attends over the whole of what it is given: memory grows with the square of the length.
_LONGEST_ALIGNED_S = 40.0
_LEAST_ANCHORED = 0.3
_WITHOUT_BLANKS = frozenset({"zh", "ja", "yue"})
# whisperX times characters instead of words in these; Cantonese shares their script, so it is aligned as Chinese.
_ALIGNED_AS = {"yue": "zh"}
_PUNKT_FILES = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")


@dataclass(frozen=True, kw_only=True)
class _Passage:
    """Tokens said between two places of the 16 kHz wave."""

    tokens: tuple[str, ...]
    start_s: float
    end_s: float


def check_models(model: str, align_models: Mapping[str, str]) -> None:
    """See that folders that are named hold models, without loading any.

    Raises:
        ValueError: one does not.
    """
    for language, folder in align_models.items():
        check_folder(folder, f"the alignment model for {language}", "preprocessor_config.json")
    check_folder(model, "the recogniser's model", "model.bin")


class WhisperXRecogniser:
    """faster-whisper and wav2vec2 behind whisperX's own calls."""

    def __init__(
        self,
        model: str,
        *,
        align_models: Mapping[str, str] | None = None,
        compute_type: str = "int8",
        device: str = "cpu",
        batch_size: int = 1,
        voice_activity: VoiceActivity | None = None,
    ) -> None:
        """`model`: a folder in CTranslate2's format or a name on the hub; `align_models`: language → folder or name.

        Raises:
            ValueError: the model is in neither place, or whisperx is not installed.
        """
        self.name = f"whisperx {package_version('whisperx')} {Path(model).name}"
        self._align_models = dict(align_models or {})
        self._aligners: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._device = device
        self._batch_size = batch_size
        self._voice_activity = voice_activity or SileroVoiceActivity()
        check_models(model, self._align_models)
        self._pipeline = _load_pipeline(model, device, compute_type)
        self._multilingual = bool(self._pipeline.model.model.is_multilingual)

    def speaks(self, language: str | None) -> bool:
        """Whether the model has a token for `language`. None is detected, or English to an English model."""
        if not self._multilingual or language is None:
            return language in (None, "en")
        return self._pipeline.model.hf_tokenizer.token_to_id(f"<|{language}|>") is not None

    def transcribe(self, wave: np.ndarray, rate_hz: int, language: str | None) -> Recognition:
        """`wave` (T,) float32; words in samples of `wave`. Where nobody speaks the text is empty.

        Raises:
            ValueError: the model does not speak `language`, or no alignment model for it can be loaded.
        """
        if not self.speaks(language):
            raise ValueError(
                f"{self.name} does not speak {language!r}: name a multilingual model in engines.recogniser_model"
            )
        audio = resample(wave, rate_hz, _RATE_HZ)
        spans = self._voice_activity.speech(audio, _RATE_HZ)
        if not spans:
            return Recognition(text="", language=language or "en")
        probability = None
        if language is None:
            language, probability = self._detect(audio)
        segments = self._segments(audio, spans, language)
        joint = "" if language in _WITHOUT_BLANKS else " "
        passages = [_passage(segment, language) for segment in segments]
        return Recognition(
            text=joint.join(text for segment in segments if (text := segment["text"].strip())),
            language=language,
            words=self._times([passage for passage in passages if passage.tokens], audio, language, rate_hz, len(wave)),
            confidence=_confidence(segments),
            language_probability=probability,
        )

    def align(self, wave: np.ndarray, rate_hz: int, text: str, language: str) -> tuple[Word, ...]:
        """Times of the whitespace-separated words of `text` in `wave` (T,); what is not spoken has no length.

        A wave too long for one pass is recognised first, and the text shared out among the passages it was heard in.

        Raises:
            AlignmentError: nothing to align, or the text is not in the wave.
        """
        tokens = tuple(text.split())
        if not any(_spoken(token) for token in tokens):
            raise AlignmentError("the text has no word that can be spoken")
        audio = resample(wave, rate_hz, _RATE_HZ)
        spans = self._voice_activity.speech(audio, _RATE_HZ)
        if not spans:
            raise AlignmentError("nobody speaks in the wave")
        if len(audio) <= _LONGEST_ALIGNED_S * _RATE_HZ:
            passages = [_Passage(tokens=tokens, start_s=0.0, end_s=len(audio) / _RATE_HZ)]
        else:
            heard = [_passage(found, language) for found in self._segments(audio, spans, language)]
            passages = _share_out(tokens, heard, language)
        return self._times(passages, audio, language, rate_hz, len(wave), must_fit=True)

    def _detect(self, audio: np.ndarray) -> tuple[str, float | None]:
        if not self._multilingual:
            return "en", None
        language, probability, _ = self._pipeline.model.detect_language(audio)
        return language, float(probability)

    def _segments(self, audio: np.ndarray, spans: Sequence[Span], language: str) -> list[dict[str, Any]]:
        """whisperX's own segments: text, start, end, avg_logprob."""
        self._pipeline.vad_model.spans = spans
        return self._pipeline.transcribe(audio, batch_size=self._batch_size, language=language)["segments"]

    def _times(
        self,
        passages: Sequence[_Passage],
        audio: np.ndarray,
        language: str,
        rate_hz: int,
        num_samples: int,
        *,
        must_fit: bool = False,
    ) -> tuple[Word, ...]:
        """One Word per token of all passages, in order."""
        words: list[Word] = []
        scale = rate_hz
        for passage in passages:
            timed = self._align_passage(passage, audio, language)
            if must_fit and not any(timed) and any(_spoken(token) for token in passage.tokens):
                raise AlignmentError(f"no way through the text from {passage.start_s:.1f} s to {passage.end_s:.1f} s")
            end_s = passage.start_s
            for token, time in zip(passage.tokens, timed, strict=True):
                start_s, end_s, score = time if time is not None else (end_s, end_s, None)
                start = min(num_samples, round(start_s * scale))
                end = min(num_samples, max(start, round(end_s * scale)))
                words.append(Word(text=token, start_sample=start, num_samples=end - start, confidence=score))
        return tuple(words)

    def _align_passage(
        self, passage: _Passage, audio: np.ndarray, language: str
    ) -> list[tuple[float, float, float | None] | None]:
        """(start, end, score) of each token; None for what whisperX could not place."""
        import whisperx

        spoken = [_spoken(token) for token in passage.tokens]
        aligned_as = _ALIGNED_AS.get(language, language)
        joint = "" if aligned_as in _WITHOUT_BLANKS else " "
        text = joint.join(word for word in spoken if word)
        if not text:
            return [None] * len(spoken)
        network, metadata = self._aligner(aligned_as)
        segment = {"text": text, "start": passage.start_s, "end": passage.end_s}
        with _punkt_without_data():
            found = whisperx.align([segment], network, metadata, audio, self._device)["word_segments"]
        # whisperX answers one entry per word, or per character where it knows no blanks.
        pieces = [len(word) if not joint else 1 for word in spoken if word]
        if len(found) != sum(pieces):
            return [None] * len(spoken)
        edges = [0, *accumulate(pieces)]
        times = iter([_joined(found[first:last]) for first, last in pairwise(edges)])
        return [next(times) if word else None for word in spoken]

    def _aligner(self, language: str) -> tuple[Any, dict[str, Any]]:
        if language not in self._aligners:
            import whisperx

            model = self._align_models.get(language)
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # whisperX prints its errors
                    self._aligners[language] = whisperx.load_align_model(language, self._device, model_name=model)
            except (OSError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"no alignment model for {language!r} could be loaded ({model or 'whisperX default'}): "
                    f"put a wav2vec2 folder under engines.align_models.{language}"
                ) from error
        return self._aligners[language]


def _load_pipeline(model: str, device: str, compute_type: str) -> Any:
    try:
        with warnings.catch_warnings():  # pyannote warns of codecs that arrays do not need
            warnings.simplefilter("ignore")
            import whisperx
            from whisperx.vads import Vad
        forget_lazy_modules()
    except ImportError as error:
        raise ValueError(f"the package whisperx is missing or broken ({error}): pip install whisperx") from error

    class SpansAsVad(Vad):
        """Our own spans in the shape whisperX asks its voice activity model for."""

        spans: Sequence[Span] = ()

        def __init__(self) -> None:
            super().__init__(0.5)

        def __call__(self, _audio: Mapping[str, Any], **_kwargs: Any) -> list[Any]:
            from whisperx.diarize import Segment

            return [Segment(span.start_sample / _RATE_HZ, span.end_sample / _RATE_HZ, "UNKNOWN") for span in self.spans]

        @staticmethod
        def preprocess_audio(audio: np.ndarray) -> np.ndarray:
            return audio

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that the voice activity model was given
            return whisperx.load_model(
                model,
                device,
                compute_type=compute_type,
                asr_options={"temperatures": [0.0]},
                vad_model=SpansAsVad(),
                threads=1,
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"whisper model {model!r} could not be loaded ({reason}): "
            "name a folder in CTranslate2's format, or let the hub be reached"
        ) from error


@contextlib.contextmanager
def _punkt_without_data() -> Iterator[None]:
    """Give NLTK a sentence splitter without data, which whisperX asks for and would otherwise download.

    It needs none, since passages hold no sentence marks. The folder is on NLTK's path only as long as the call lasts.
    """
    import nltk
    from whisperx.utils import PUNKT_LANGUAGES

    with tempfile.TemporaryDirectory(prefix="gsv-nltk-") as root:
        for language in {"english", *PUNKT_LANGUAGES.values()}:
            folder = Path(root) / "tokenizers" / "punkt_tab" / language
            folder.mkdir(parents=True)
            for name in _PUNKT_FILES:
                (folder / name).touch()
        nltk.data.path.insert(0, root)
        try:
            yield
        finally:
            nltk.data.path.remove(root)


def _passage(segment: Mapping[str, Any], language: str) -> _Passage:
    text = segment["text"].strip()
    tokens = [letter for letter in text if not letter.isspace()] if language in _WITHOUT_BLANKS else text.split()
    return _Passage(tokens=tuple(tokens), start_s=float(segment["start"]), end_s=float(segment["end"]))


def _spoken(token: str) -> str:
    """A token without its punctuation: empty for a dash. Apostrophes and hyphens inside a word stay."""
    letters = "".join(letter for letter in token if letter.isalnum() or letter in "'’-")
    return letters.replace("’", "'").strip("'-")


def _share_out(tokens: Sequence[str], heard: Sequence[_Passage], language: str) -> list[_Passage]:
    """Cut `tokens` into the passages they were heard in.

    Where words are not divided by blanks, each token heard is a letter, and the given ones are taken apart likewise;
    a passage begins with the token that holds its first match.
    """
    by_letter = language in _WITHOUT_BLANKS
    given = [(part, index) for index, token in enumerate(tokens) for part in _parts(token, by_letter)]
    found = [
        (part, index)
        for index, passage in enumerate(heard)
        for token in passage.tokens
        for part in _parts(token, by_letter)
    ]
    pairs = matching_pairs([part for part, _ in found], [part for part, _ in given])
    if len(pairs) < _LEAST_ANCHORED * len(given):
        raise AlignmentError(f"the text does not fit the wave: {len(pairs)} of its {len(given)} parts were heard")
    first_token: dict[int, int] = {}
    for place, index in pairs:
        first_token.setdefault(found[place][1], given[index][1])
    starts = sorted(first_token.items())
    passages = []
    for place, (index, first) in enumerate(starts):
        first = 0 if place == 0 else first
        last = starts[place + 1][1] if place + 1 < len(starts) else len(tokens)
        if last > first:
            end_s = heard[index].end_s
            passages.append(_Passage(tokens=tuple(tokens[first:last]), start_s=heard[index].start_s, end_s=end_s))
    return passages


def _parts(token: str, by_letter: bool) -> list[str]:
    spoken = _spoken(token).casefold()
    return list(spoken) if by_letter else [spoken] if spoken else []


def _joined(found: Sequence[Mapping[str, Any]]) -> tuple[float, float, float | None] | None:
    placed = [entry for entry in found if "start" in entry and "end" in entry]
    if not placed:
        return None
    scores = [float(entry["score"]) for entry in placed if "score" in entry]
    return float(placed[0]["start"]), float(placed[-1]["end"]), float(np.mean(scores)) if scores else None


def _confidence(segments: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean probability of a token, segments weighted by their length."""
    weights = [segment["end"] - segment["start"] for segment in segments]
    if not sum(weights):
        return None
    return float(np.average([np.exp(segment["avg_logprob"]) for segment in segments], weights=weights))
