"""Report: what a corpus and its runs came to → one HTML page, and one for each run.

`coverage` says which sounds of its languages a voice lacks, and which sentences of a file would bring them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from gsv_core.text.coverage import Coverage, Proposal, Sentence, propose_sentences
from gsv_core.text.front_end import phonemise
from jobs.evaluation_page import FILE_NAME as EVALUATION_PAGE
from pipelines.report.closeup import look_closely
from pipelines.report.history import remember
from pipelines.report.numbers import collect, collect_coverage
from pipelines.report.page import write_report
from pipelines.report.voice_page import write_voice_page
from pipelines.storage import Storage, open_storage
from pipelines.voice_card import stored_lexicon

_LARGEST_FILE_BYTES = 64 << 20
_LONGEST_SENTENCE = 500
_LEAST_SPOKEN = 0.1
"""Of all phonemes heard: a language spoken less is one of borrowed words, whose other sounds nobody misses."""


@dataclass(frozen=True, kw_only=True)
class VoiceCoverage:
    """What a voice covers of each language it speaks; what to record, where sentences were given to choose from.

    `unusable` counts the lines of that file that cannot be spoken, or are too long to be recorded in one go.
    """

    voice: str
    languages: tuple[Coverage, ...]
    proposal: Proposal | None = None
    unusable: int = 0


def report(corpus: Path | Storage, out: Path | None = None) -> Path:
    """Write the page about `corpus`, and one about each voice in `voices/` beside it; the place of the first.

    Raises ValueError where there is no corpus.
    """
    numbers = collect(corpus)
    storage = open_storage(corpus)
    place = out or Path(storage.root, "report", "index.html")
    pages = {}
    for voice in numbers.voices:
        if voice.recordings:
            pages[voice.voice] = f"voices/{quote(voice.voice)}.html"
            write_voice_page(voice, look_closely(corpus, voice.voice), place.parent / "voices" / f"{voice.voice}.html")
    evaluations = {
        voice.voice: address
        for voice in numbers.voices
        if voice.trained and (address := _evaluation_of(storage, place, voice.voice, voice.trained.run_id))
    }
    return write_report(numbers, place, pages=pages, evaluations=evaluations, changes=remember(numbers, storage))


def report_runs(corpus: Path | Storage, runs: Mapping[str, Path]) -> None:
    """Write `report.html` into the run folder of each voice: the part of the corpus report that is about it."""
    numbers = collect(corpus)
    for voice in numbers.voices:
        if voice.voice in runs:
            place = runs[voice.voice] / "report.html"
            beside = {voice.voice: EVALUATION_PAGE} if place.with_name(EVALUATION_PAGE).is_file() else {}
            write_report(replace(numbers, voices=(voice,)), place, evaluations=beside)


def _evaluation_of(storage: Storage, place: Path, voice: str, run_id: str) -> str | None:
    """The page about the scores of a run as a link from the report at `place`; None where there is none."""
    page = Path(storage.root, "voices", voice, "runs", run_id, EVALUATION_PAGE)
    return quote(os.path.relpath(page.resolve(), place.resolve().parent)) if page.is_file() else None


def coverage(corpus: Path | Storage, voice: str, sentences: Path | None = None, *, most: int = 20) -> VoiceCoverage:
    """What the clips of `voice` cover, and at most `most` of the `sentences` (a text file, one a line) that add to it.

    Sentences are chosen for the languages the voice really speaks, not for those of single borrowed words.

    Raises:
        ValueError: no such corpus or voice, nothing of it has phonemes, or the file cannot be read.
    """
    languages = collect_coverage(corpus, voice)
    if not languages:
        raise ValueError(f"voice {voice!r} has no clip with phonemes: there is nothing to measure")
    if sentences is None:
        return VoiceCoverage(voice=voice, languages=languages)
    heard = sum(entry.phonemes_heard for entry in languages)
    spoken = [entry for entry in languages if entry.phonemes_heard >= _LEAST_SPOKEN * heard]
    mode = spoken[0].language if len(spoken) == 1 else "auto"
    if mode == "auto" and any(entry.language == "yue" for entry in spoken):
        mode = "auto_yue"
    lexicon = stored_lexicon(open_storage(corpus), voice)
    candidates, unusable = [], 0
    for line in _lines(sentences):
        try:
            if len(line) > _LONGEST_SENTENCE:
                raise ValueError(f"{len(line)} characters")
            spans = phonemise(line, mode, lexicon=lexicon).spans
        except ValueError:
            unusable += 1
            continue
        candidates.append(Sentence.of(line, [(span.language, span.phonemes) for span in spans]))
    missing = {unit: weight for entry in spoken for unit, weight in entry.missing.items()}
    proposal = propose_sentences(missing, candidates, most=most)
    return VoiceCoverage(voice=voice, languages=languages, proposal=proposal, unusable=unusable)


def _lines(path: Path) -> list[str]:
    """The lines of a text file that hold something, each once, without control characters."""
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise ValueError(f"--sentences {path}: larger than {_LARGEST_FILE_BYTES} bytes; give a part of it")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"--sentences {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--sentences {path}: not UTF-8; save the file as UTF-8") from error
    shown = ("".join(letter if letter.isprintable() else " " for letter in line) for line in text.split("\n"))
    return list(dict.fromkeys(filter(None, map(str.strip, shown))))
