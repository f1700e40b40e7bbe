"""Score: what a pair of weights says → the numbers of each sentence, and what they come to.

Nothing here knows of a cluster: `jobs.evaluate` scores the saved pairs of many voices with it, the gate two registered
versions. A number that no engine here can judge, or that needs a recording of the same words, is null.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from gsv_core.audio.resample import resample
from gsv_core.checkpoints.base import load_base
from gsv_core.checkpoints.releases import Release
from gsv_core.features import RATE_HZ
from gsv_core.metrics.confidence import bootstrap_interval
from gsv_core.metrics.faults import cut_edges, longest_loop, longest_pause_s, repeated_share
from gsv_core.metrics.pitch import pitch_error, track_pitch
from gsv_core.metrics.recognition import character_error_rate, word_error_rate
from gsv_core.metrics.signal import cepstral_warping
from gsv_core.metrics.speaker import cosine
from gsv_core.synthesis.synthesiser import Prompt, Synthesiser
from gsv_core.synthesis.timbre import load_timbre
from gsv_core.text.lexicon import FILE_NAME as LEXICON_NAME
from gsv_core.text.lexicon import Lexicon
from gsv_core.text.mandarin_polyphones import load_polyphones
from pipelines.engines.choose import EngineConfig, load_quality, load_recogniser, load_speaker_verifier
from pipelines.rows import SelectionRow
from pipelines.shard_reader import StoredExample

NUMBERS = (
    "character_error_rate",
    "word_error_rate",
    "likeness",
    "quality",
    "mel_cepstral_distance",
    "pitch_error_cents",
    "voicing_error",
    "duration_ratio",
    "longest_pause_s",
    "repeated_share",
    "loop_s",
    "fault_share",
    "real_time_factor",
)
"""Of every sentence and, as means, of every pair."""
ENGINE_OF = {
    "character_error_rate": "recogniser",
    "word_error_rate": "recogniser",
    "repeated_share": "recogniser",
    "likeness": "speaker_verifier",
    "quality": "quality",
}
"""Measure → the role of the engine whose word it is; the others are our own arithmetic."""
LONGEST_PAUSE_S = 1.0
"""A longer one inside a sentence is a fault; a comma takes a third of it."""
LONGEST_LOOP_S = 2.0
MOST_REPEATED = 0.1
_TOKENS_PER_SECOND = 25
_LEAST_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A text to be spoken; `row` says which held-out clip it is the text of, if it is of one."""

    name: str
    text: str
    language: str
    row: SelectionRow | None = None


@dataclass(frozen=True, kw_only=True)
class Models:
    """What an evaluating worker keeps loaded; `names` by role."""

    recogniser: Any
    verifier: Any
    quality: Any
    base: Any
    polyphones: Any = None
    names: dict[str, str] = field(default_factory=dict)


def load_models(
    engines: EngineConfig, release: Release, folder: str | None, polyphones: str | None = None, *, likeness: str
) -> Models:
    """Load the base and the engines; `likeness` names the one that compares speakers.

    Raises:
        ValueError: a base or an engine is missing.
    """
    recogniser = load_recogniser(engines)
    verifier = load_speaker_verifier(replace(engines, speaker_verifier=likeness))
    quality = load_quality(engines)
    return Models(
        recogniser=recogniser,
        verifier=verifier,
        quality=quality,
        base=load_base(release, Path(folder) if folder else None),
        polyphones=load_polyphones(Path(polyphones)) if polyphones else None,
        names={
            "recogniser": recogniser.name,
            "speaker_verifier": verifier.name,
            **({"quality": quality.name} if quality else {}),
        },
    )


def likeness_engine(engines: EngineConfig, wanted: str | None = None) -> str:
    """The engine to measure likeness with: the `wanted` one, or one that did not screen, where one is on this machine.

    Resemblyzer comes in its package; ECAPA only where its folder was carried in.
    """
    if wanted is not None:
        return wanted
    if engines.speaker_verifier == "ecapa" or not Path(engines.speaker_verifier_model).is_dir():
        return "resemblyzer"
    return "ecapa"


def fixed_sentences(language: str) -> list[Sentence]:
    """The sentences every voice of a language is compared on. Raises ValueError for a language without any."""
    known = yaml.safe_load(files("jobs.configs").joinpath("sentences.yaml").read_text(encoding="utf-8"))
    if language not in known:
        raise ValueError(f"no evaluation sentences for language {language!r}; there are {', '.join(sorted(known))}")
    return [
        Sentence(name=f"{language}-{number}", text=text, language=language)
        for number, text in enumerate(known[language], start=1)
    ]


def score_version(
    folder: Path,
    sentences: Sequence[Sentence],
    models: Models,
    *,
    seed: int = 0,
    centre: np.ndarray | None = None,
    keep: Callable[[Sentence, np.ndarray, int], str | None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """The records of what a registered version says: `name`, `text`, `language`, `recognised`, `faults`, `numbers`.

    Args:
        folder: the version's files, as `Registry.files_of` gives them.
        centre: (K,) by `models.verifier` that the voice should be like; the version's own Prompt where not given. Two
            versions are compared by one centre.
        keep: is handed each sentence's wave and rate, and answers where the audio was put.

    Raises:
        ValueError: the version belongs to another base than `models` holds, a file is damaged, or a sentence cannot be
            spoken.
    """
    description = json.loads((folder / "voice.json").read_text(encoding="utf-8"))
    if description["base_digest"] != models.base.digest:
        raise ValueError(
            f"version of {description['voice']!r} speaks on base {description['release']} "
            f"{str(description['base_digest'])[:12]}, but {models.base.release} {models.base.digest[:12]} is loaded"
        )
    prompt, timbre = Prompt.load(folder), load_timbre(folder)
    words = folder / LEXICON_NAME
    return speak_and_measure(
        Synthesiser(
            models.base, folder / "semantic.safetensors", folder / "wave.safetensors", polyphones=models.polyphones
        ),
        prompt,
        sentences,
        models,
        timbre=None if timbre is None else timbre[0],
        centre=models.verifier.embed(prompt.wave.numpy(), RATE_HZ) if centre is None else centre,
        seed=seed,
        lexicon=Lexicon.read(words) if words.is_file() else Lexicon(),
        keep=keep,
    )


def speak_and_measure(
    synthesiser: Synthesiser,
    prompt: Prompt,
    sentences: Sequence[Sentence],
    models: Models,
    *,
    timbre: Tensor | None,
    centre: np.ndarray,
    seed: int,
    lexicon: Lexicon | None = None,
    recordings: Mapping[str, StoredExample] | None = None,
    keep: Callable[[Sentence, np.ndarray, int], str | None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Let a pair say every sentence in `timbre` (G,), or the Prompt's where that is None, and measure it.

    Against the recording of the same name, where there is one.
    """
    records = []
    for sentence in sentences:
        began = time.monotonic()
        speech = synthesiser.speak(sentence.text, sentence.language, prompt, timbre=timbre, seed=seed, lexicon=lexicon)
        factor = (time.monotonic() - began) / max(speech.seconds, 1e-3)
        against = (recordings or {}).get(sentence.name)
        record = measure(speech.wave, speech.rate_hz, sentence, centre, models, against, speech.tokens)
        record["numbers"]["real_time_factor"] = factor
        records.append({**record, "audio": keep(sentence, speech.wave, speech.rate_hz)})
    return records


def measure(
    wave: np.ndarray,
    rate_hz: int,
    sentence: Sentence,
    centre: np.ndarray,
    models: Models,
    against: StoredExample | None = None,
    tokens: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """The record of one spoken sentence; null where no engine here can judge."""
    numbers: dict[str, float | None] = dict.fromkeys(NUMBERS)
    heard = None
    if models.recogniser.speaks(sentence.language):
        heard = models.recogniser.transcribe(wave, rate_hz, sentence.language).text
        numbers["character_error_rate"] = character_error_rate(sentence.text, heard, sentence.language)
        numbers["word_error_rate"] = word_error_rate(sentence.text, heard, sentence.language)
        numbers["repeated_share"] = repeated_share(sentence.text, heard, sentence.language)
    audible = len(wave) >= _LEAST_S * rate_hz and bool(wave.any())
    if audible:  # silence has no speaker
        numbers["likeness"] = cosine(models.verifier.embed(wave, rate_hz), centre)
    if models.quality and len(wave):
        numbers["quality"] = models.quality.predict(wave, rate_hz)
    numbers["longest_pause_s"] = longest_pause_s(wave, rate_hz)
    if tokens:
        numbers["loop_s"] = max(map(longest_loop, tokens)) / _TOKENS_PER_SECOND
    if against is not None and audible:
        numbers |= _beside(against, wave, rate_hz)
    faults = _faults(numbers, cut_edges(wave, rate_hz), audible)
    numbers["fault_share"] = float(bool(faults))
    return {
        "name": sentence.name,
        "clip_id": sentence.name,
        "text": sentence.text,
        "language": sentence.language,
        "held_out": sentence.row is not None,
        "recognised": heard,
        "seconds": round(len(wave) / rate_hz, 3),
        "faults": faults,
        "numbers": numbers,
    }


def summarise(records: Sequence[Mapping[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """Means over the sentences that have a number, between what they lie (`intervals`), and the `score`."""
    columns = {
        name: [record["numbers"][name] for record in records if record["numbers"].get(name) is not None]
        for name in NUMBERS
    }
    means = {name: round(statistics.fmean(values), 6) if values else None for name, values in columns.items()}
    intervals = {
        name: [round(end, 6) for end in interval]
        for name, values in columns.items()
        if (interval := bootstrap_interval(values, seed=seed)) is not None
    }
    return {
        **means,
        "score": round(pair_score(means), 6),
        "intervals": intervals,
        "utterances": [_rounded(record) for record in records],
    }


def pair_score(numbers: Mapping[str, float | None]) -> float:
    """One number to rank by, after `evaluate.RULE`; higher is better."""
    errors, likeness, quality = (numbers[name] for name in ("character_error_rate", "likeness", "quality"))
    parts = [
        None if errors is None else 1.0 - errors,
        likeness,
        None if quality is None else quality / 5.0,
    ]
    return mean_of_known(parts)


def mean_of_known(parts: Sequence[float | None]) -> float:
    """The mean of those that are known, each held within 0 and 1; 0 where none is."""
    known = [min(1.0, max(0.0, part)) for part in parts if part is not None]
    return statistics.fmean(known) if known else 0.0


def _beside(recording: StoredExample, wave: np.ndarray, rate_hz: int) -> dict[str, float | None]:
    """What needs the recording of the same words. v3 and v4 speak at other rates than recordings have."""
    spoken = resample(wave, rate_hz, recording.rate_hz)
    warping = cepstral_warping(recording.wave, spoken, recording.rate_hz)
    melody = pitch_error(
        track_pitch(recording.wave, recording.rate_hz), track_pitch(spoken, recording.rate_hz), warping.path
    )
    return {
        "mel_cepstral_distance": warping.mean_cost,
        "pitch_error_cents": melody.rmse_cents,
        "voicing_error": melody.voicing_error,
        "duration_ratio": len(spoken) / len(recording.wave),
    }


def _faults(numbers: Mapping[str, float | None], cut: tuple[bool, bool], audible: bool) -> list[str]:
    found = {
        "silent": not audible,
        "long_pause": (numbers["longest_pause_s"] or 0.0) > LONGEST_PAUSE_S,
        "cut_beginning": cut[0],
        "cut_end": cut[1],
        "repeated_words": (numbers["repeated_share"] or 0.0) > MOST_REPEATED,
        "looping_tokens": (numbers["loop_s"] or 0.0) > LONGEST_LOOP_S,
    }
    return [name for name, is_there in found.items() if is_there]


def _rounded(record: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {
        name: round(value, 6) if value is not None and math.isfinite(value) else None
        for name, value in record["numbers"].items()
    }
    return {**record, "numbers": numbers}
