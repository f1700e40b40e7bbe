"""A wave to its text and the times of its words in many languages, by whisperX.

Bain et al. 2023, "WhisperX: time-accurate speech transcription of long-form audio", arXiv:2303.00747: neighbouring
stretches of speech are packed into windows of at most 30 s, which is what Whisper (Radford et al. 2022,
arXiv:2212.04356) pads everything to; batches of windows of one wave are read, and a wav2vec2 network with a CTC head
times the words. The only importer of whisperX. Models come from a local folder or the hub; temperature is 0, so the
same wave gives the same text. Axes: T samples.
"""

import contextlib
import io
import re
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
from pipelines.engines.protocols import WITHOUT_BLANKS, AlignmentError, Recognition, Span, VoiceActivity, written
from pipelines.engines.voice_activity import SileroVoiceActivity
from pipelines.rows import Word

_RATE_HZ = 16_000
# wav2vec2 attends over the whole of what it is given: memory grows with the square of the length.
_LONGEST_ALIGNED_S = 40.0
_LONGEST_WINDOW_S = 30.0
_LONGEST_GAP_S = 3.0  # a longer stretch without speech in a window invites text that nobody said
_LEAST_ANCHORED = 0.3
# whisperX times characters instead of words in these; Cantonese shares their script, so it is aligned as Chinese.
_ALIGNED_AS = {"yue": "zh"}
# A character is a word there, save for words and numbers in Latin letters.
_WORDS_WITHOUT_BLANKS = re.compile(r"[A-Za-z0-9'’-]+|\S")
_PUNKT_FILES = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")


@dataclass(frozen=True, kw_only=True)
class _Passage:
    """Tokens said between two places of the 16 kHz wave."""

    tokens: tuple[str, ...]
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class _Heard:
    """What was read in one window: its text, its place in seconds, and the two numbers Whisper judges itself by."""

    text: str
    start_s: float
    end_s: float
    probability: float
    """Mean probability of a token."""
    no_speech_probability: float


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
        windows = self._read(audio, _windows_of(spans), language)
        passages = [_passage(heard, language) for heard in windows]
        return Recognition(
            text=written([heard.text for heard in windows if heard.text], language),
            language=language,
            words=self._times([passage for passage in passages if passage.tokens], audio, language, rate_hz, len(wave)),
            confidence=_weighted([heard.probability for heard in windows], windows),
            language_probability=probability,
            no_speech_probability=_weighted([heard.no_speech_probability for heard in windows], windows),
        )

    def transcribe_clips(
        self, wave: np.ndarray, rate_hz: int, clips: Sequence[Span], language: str | None
    ) -> list[Recognition]:
        """One Recognition per clip of `wave` (T,): neighbours share windows, and words are dealt out by their times.

        A clip's confidence is its window's. Where no word of a window can be timed, its clips are heard one by one.

        Raises:
            ValueError: the model does not speak `language`, or no alignment model for it can be loaded.
        """
        if not self.speaks(language):
            raise ValueError(
                f"{self.name} does not speak {language!r}: name a multilingual model in engines.recogniser_model"
            )
        if not clips:
            return []
        audio = resample(wave, rate_hz, _RATE_HZ)
        spans = [_at_rate(clip, rate_hz, len(audio)) for clip in clips]
        probability = None
        if language is None:
            language, probability = self._detect(
                np.concatenate([audio[span.start_sample : span.end_sample] for span in spans])
            )
        groups = _groups(spans)
        shared = self._read(audio, [_over(spans, group) for group in groups], language)
        found: list[Recognition] = []
        for group, heard in zip(groups, shared, strict=True):
            words = self._times([_passage(heard, language)], audio, language, rate_hz, len(wave))
            if len(group) > 1 and words and not any(word.num_samples for word in words):
                alone = self._read(audio, [spans[index] for index in group], language)
                for window in alone:
                    timed = self._times([_passage(window, language)], audio, language, rate_hz, len(wave))
                    found.append(_recognition(timed, window, language, probability))
                continue
            dealt = _dealt(words, [clips[index] for index in group])
            found += [_recognition(mine, heard, language, probability) for mine in dealt]
        return found

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
            heard = [_passage(found, language) for found in self._read(audio, _windows_of(spans), language)]
            passages = _share_out(tokens, heard, language)
        return self._times(passages, audio, language, rate_hz, len(wave), must_fit=True)

    def _detect(self, audio: np.ndarray) -> tuple[str, float | None]:
        if not self._multilingual:
            return "en", None
        language, probability, _ = self._pipeline.model.detect_language(audio)
        return language, float(probability)

    def _read(self, audio: np.ndarray, windows: Sequence[Span], language: str) -> list[_Heard]:
        """What Whisper reads in each window, in batches of whisperX's own features, options and prompt.

        whisperX's `transcribe` would pack the windows anew, and keep no probability that nobody speaks.
        """
        from faster_whisper.tokenizer import Tokenizer

        model, options = self._pipeline.model, self._pipeline.options
        tokenizer = Tokenizer(model.hf_tokenizer, self._multilingual, task="transcribe", language=language)
        prompt = model.get_prompt(tokenizer, [], without_timestamps=options.without_timestamps)
        heard: list[_Heard] = []
        for first in range(0, len(windows), self._batch_size):
            batch = windows[first : first + self._batch_size]
            results = model.model.generate(
                model.encode(self._features(audio, batch)),
                [prompt] * len(batch),
                beam_size=options.beam_size,
                patience=options.patience,
                length_penalty=options.length_penalty,
                max_length=model.max_length,
                suppress_blank=options.suppress_blank,
                suppress_tokens=options.suppress_tokens,
                return_scores=True,
                return_no_speech_prob=True,
            )
            for window, result in zip(batch, results, strict=True):
                tokens = result.sequences_ids[0]
                log_probability = result.scores[0] * len(tokens) ** options.length_penalty / (len(tokens) + 1)
                heard.append(
                    _Heard(
                        text=tokenizer.decode([token for token in tokens if token < tokenizer.eot]).strip(),
                        start_s=window.start_sample / _RATE_HZ,
                        end_s=window.end_sample / _RATE_HZ,
                        probability=float(np.exp(log_probability)),
                        no_speech_probability=float(result.no_speech_prob),
                    )
                )
        return heard

    def _features(self, audio: np.ndarray, windows: Sequence[Span]) -> np.ndarray:
        """Log-mel spectrograms of the windows, each padded to 30 s: (B, M, L)."""
        from whisperx.audio import N_SAMPLES, log_mel_spectrogram

        bands = self._pipeline.model.feat_kwargs.get("feature_size") or 80
        parts = [audio[window.start_sample : window.end_sample] for window in windows]
        return np.stack(
            [log_mel_spectrogram(part, n_mels=bands, padding=N_SAMPLES - len(part)).numpy() for part in parts]
        )

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
        joint = "" if aligned_as in WITHOUT_BLANKS else " "
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

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that the voice activity model was given
            return whisperx.load_model(
                model,
                device,
                compute_type=compute_type,
                asr_options={"temperatures": [0.0]},
                vad_model=Vad(0.5),  # stands where whisperX would load its own: the windows are ours
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


def _passage(heard: _Heard, language: str) -> _Passage:
    tokens = _WORDS_WITHOUT_BLANKS.findall(heard.text) if language in WITHOUT_BLANKS else heard.text.split()
    return _Passage(tokens=tuple(tokens), start_s=heard.start_s, end_s=heard.end_s)


def _at_rate(clip: Span, rate_hz: int, num_samples: int) -> Span:
    """A clip in samples at 16 kHz."""
    start, end = (min(num_samples, at * _RATE_HZ // rate_hz) for at in (clip.start_sample, clip.end_sample))
    return Span(start_sample=start, num_samples=end - start)


def _groups(spans: Sequence[Span]) -> list[list[int]]:
    """Numbers of the spans that share a window: neighbours, 30 s at most from first to last, no long gap between."""
    groups: list[list[int]] = []
    for index, span in enumerate(spans):
        if groups:
            first, last = spans[groups[-1][0]], spans[groups[-1][-1]]
            fits = span.end_sample - first.start_sample <= _LONGEST_WINDOW_S * _RATE_HZ
            if fits and span.start_sample - last.end_sample <= _LONGEST_GAP_S * _RATE_HZ:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups


def _over(spans: Sequence[Span], group: Sequence[int]) -> Span:
    start = spans[group[0]].start_sample
    return Span(start_sample=start, num_samples=spans[group[-1]].end_sample - start)


def _windows_of(spans: Sequence[Span]) -> list[Span]:
    """Windows over stretches of speech; one that is too long for a window is cut into several."""
    longest = round(_LONGEST_WINDOW_S * _RATE_HZ)
    short = [
        Span(start_sample=start, num_samples=min(longest, span.end_sample - start))
        for span in spans
        for start in range(span.start_sample, span.end_sample, longest)
    ]
    return [_over(short, group) for group in _groups(short)]


def _dealt(words: Sequence[Word], clips: Sequence[Span]) -> list[list[Word]]:
    """Each word to the clip that holds most of it, or lies nearest to it; the order of the words is kept."""
    mine: list[list[Word]] = [[] for _ in clips]
    owner = 0
    for word in words:
        end = word.start_sample + word.num_samples
        if word.num_samples:  # one without a time stays with the word before
            overlaps = [min(end, clip.end_sample) - max(word.start_sample, clip.start_sample) for clip in clips]
            owner = max(owner, overlaps.index(max(overlaps)))
        mine[owner].append(word)
    return mine


def _recognition(words: Sequence[Word], heard: _Heard, language: str, probability: float | None) -> Recognition:
    return Recognition(
        text=written([word.text for word in words], language),
        language=language,
        words=tuple(words),
        confidence=heard.probability,
        language_probability=probability,
        no_speech_probability=heard.no_speech_probability,
    )


def _spoken(token: str) -> str:
    """A token without its punctuation: empty for a dash. Apostrophes and hyphens inside a word stay."""
    letters = "".join(letter for letter in token if letter.isalnum() or letter in "'’-")
    return letters.replace("’", "'").strip("'-")


def _share_out(tokens: Sequence[str], heard: Sequence[_Passage], language: str) -> list[_Passage]:
    """Cut `tokens` into the passages they were heard in.

    Where words are not divided by blanks, each token heard is a letter, and the given ones are taken apart likewise;
    a passage begins with the token that holds its first match.
    """
    by_letter = language in WITHOUT_BLANKS
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


def _weighted(values: Sequence[float], windows: Sequence[_Heard]) -> float | None:
    """The mean of a number of each window, weighted by their lengths."""
    weights = [window.end_s - window.start_s for window in windows]
    return float(np.average(values, weights=weights)) if sum(weights) else None
