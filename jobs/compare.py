"""Compare two voices by ear: a blind page for people to listen to, and their votes → who is preferred, how surely.

Both say the same sentences at one loudness. Which of the two comes first is drawn for each sentence, each half of the
time; only the key, which stays in the workspace, knows. The page saves the votes as JSON; reading them back gives the
share of votes each got, its confidence interval and a binomial test, and writes them on both versions.
"""

import base64
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from gsv_core.audio.levels import loudness_lufs
from gsv_core.audio.wav import read_wav
from gsv_core.checkpoints.base import load_base
from gsv_core.checkpoints.weights import write_json
from gsv_core.metrics.confidence import binomial_test, wilson_interval
from gsv_core.synthesis.synthesiser import Prompt, Synthesiser
from gsv_core.synthesis.timbre import load_timbre
from gsv_core.text.lexicon import FILE_NAME as LEXICON_NAME
from gsv_core.text.lexicon import Lexicon
from gsv_core.training.draws import stable_seed
from jobs.run_folder import HALVES, RunFolder
from jobs.scoring import Sentence, fixed_sentences
from jobs.tracking import RegisteredVersion, Registry, Tracker
from jobs.workspace import Workspace
from pipelines.engines.flac import encode_flac
from pipelines.report import page as report_page

CHOICES = ("first", "second", "same")
_LOOKS = (
    Path(report_page.__file__).with_name("page.css"),
    *map(Path(__file__).with_name, ("review.css", "compare.css")),
)
_TEMPLATE = Path(__file__).with_name("compare.html")
_SCRIPT = Path(__file__).with_name("compare.js")
_LOUDNESS_LUFS = -20.0
_LARGEST_VOTES_BYTES = 1 << 20
_LONGEST_SENTENCE = 500


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two that are compared: a registered version, or a run that is not registered."""

    label: str
    name: str | None = None
    version: int | None = None
    run_id: str | None = None
    uri: str | None = None

    @property
    def registered(self) -> RegisteredVersion | None:
        if self.name is None or self.version is None or self.run_id is None or self.uri is None:
            return None
        return RegisteredVersion(name=self.name, version=self.version, run_id=self.run_id, uri=self.uri)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A sentence as both said it, in the order it is offered; `first` is `a` or `b`."""

    sentence: Sentence
    first: str
    audio: tuple[bytes, bytes] = (b"", b"")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was written: the page for listeners, and the key that stays here."""

    identity: str
    page: Path
    key: Path
    sentences: int


@dataclass(frozen=True, kw_only=True)
class Preference:
    """The votes on one comparison. `share` is that of `a` in the votes that preferred one; None without such a vote."""

    identity: str
    a: Side
    b: Side
    listeners: int
    for_a: int
    for_b: int
    same: int
    share: float | None
    interval: tuple[float, float]
    p_value: float

    def of(self, side: str) -> dict[str, float]:
        """The same from one side, as numbers to log."""
        mirrored = side == "b"
        low, high = self.interval
        votes = self.for_a + self.for_b
        share = 0.5 if self.share is None else self.share
        return {
            "preference/share": 1 - share if mirrored else share,
            "preference/low": 1 - high if mirrored else low,
            "preference/high": 1 - low if mirrored else high,
            "preference/votes": float(votes),
            "preference/same": float(self.same),
            "preference/p_value": self.p_value,
        }


def compare(
    workspace: Workspace,
    first: str,
    second: str,
    *,
    tracking_uri: str,
    prefix: str = "gsv-",
    models: str | None = None,
    sentences: Path | None = None,
    language: str | None = None,
    most: int = 8,
    seed: int = 0,
    out: Path | None = None,
) -> Comparison:
    """Let both sides say the same sentences and write the blind page about them.

    A side is `VOICE` (its newest version), `VOICE:3`, `VOICE@champion`, or the folder of a finished run. Sentences are
    the lines of a file, or the fixed ones of `language`, by default the language of the first side's Prompt.

    Raises:
        ValueError: a side that is not there, both are one, no sentence, or one that cannot be spoken.
    """
    if most < 1:
        raise ValueError(f"--most must be at least 1, got {most}")
    with ExitStack() as stack:
        registry = Registry(tracking_uri, prefix=prefix)
        sides, speakers = zip(*(_open_side(text, registry, models, stack) for text in (first, second)), strict=True)
        if sides[0] == sides[1]:
            raise ValueError(f"{first} and {second} are the same; there is nothing to compare")
        spoken_in = language or speakers[0].language
        chosen = _sentences(sentences, spoken_in)[:most]
        waves = [tuple(_levelled(*speaker.say(sentence, seed)) for speaker in speakers) for sentence in chosen]
    identity = _identity(sides, chosen, seed)
    trials = draw_trials(chosen, waves, stable_seed("compare", seed, identity))
    key = workspace.root / "comparisons" / f"{identity}.json"
    place = (out or workspace.root / "comparisons" / identity) / "index.html"
    write_json(
        key,
        {
            "schema_version": 1,
            "id": identity,
            "seed": seed,
            "a": asdict(sides[0]),
            "b": asdict(sides[1]),
            "trials": [
                {"sentence": trial.sentence.name, "text": trial.sentence.text, "first": trial.first} for trial in trials
            ],
        },
    )
    try:
        report_page.put(page(identity, trials), place)
    except OSError as error:
        raise ValueError(f"--out {place.parent}: {error.strerror}; give a folder you may write to") from error
    return Comparison(identity=identity, page=place, key=key, sentences=len(trials))


def draw_trials(
    sentences: Sequence[Sentence], waves: Sequence[Sequence[tuple[np.ndarray, int]]], seed: int
) -> list[Trial]:
    """Sentences in a drawn order, each side first half of the time; the same seed draws the same."""
    draw = random.Random(seed)
    firsts = [("a", "b")[place % 2] for place in range(len(sentences))]
    draw.shuffle(firsts)
    if len(firsts) % 2 and draw.random() < 0.5:  # the odd one falls to either
        firsts = ["b" if first == "a" else "a" for first in firsts]
    trials = []
    for sentence, pair, first in zip(sentences, waves, firsts, strict=True):
        ordered = pair if first == "a" else pair[::-1]
        audio = (encode_flac(*ordered[0]), encode_flac(*ordered[1]))
        trials.append(Trial(sentence=sentence, first=first, audio=audio))
    draw.shuffle(trials)
    return trials


def page(identity: str, trials: Sequence[Trial]) -> str:
    """The whole page as text. It allows itself its own script and nothing else, and names neither side."""
    script = _SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["audio"] = lambda data: f"data:audio/flac;base64,{base64.b64encode(data).decode()}"
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        identity=identity,
        trials=trials,
        css=Markup("".join(path.read_text(encoding="utf-8") for path in _LOOKS)),
        script=Markup(script),
        script_digest=digest,
    )


def read_votes(paths: Sequence[Path], workspace: Workspace) -> list[Preference]:
    """The votes in some files, by comparison. Of one listener the file named last counts.

    Raises:
        ValueError: a file is not what the page saves, or belongs to a comparison this workspace does not know.
    """
    by_listener: dict[str, dict[str, dict[str, str]]] = {}
    keys: dict[str, dict[str, Any]] = {}
    for path in paths:
        identity, listener, votes = _read_file(path)
        if identity not in keys:
            keys[identity] = _key(identity, workspace, path)
        names = {trial["sentence"] for trial in keys[identity]["trials"]}
        if unknown := sorted(votes.keys() - names):
            raise ValueError(f"{path}: a vote on {unknown[0]!r}, which is not in comparison {identity}")
        by_listener.setdefault(identity, {})[listener] = votes
    return [_preference(keys[identity], listeners) for identity, listeners in sorted(by_listener.items())]


def log_preference(found: Preference, tracking_uri: str, *, prefix: str = "gsv-") -> list[str]:
    """Write the votes on the registered sides, and as numbers on their runs; what was written on."""
    registry = Registry(tracking_uri, prefix=prefix)
    tracker = Tracker(tracking_uri, "", prefix=prefix)
    written = []
    for name, side, other in (("a", found.a, found.b), ("b", found.b, found.a)):
        version = side.registered
        if version is None:
            continue
        numbers = found.of(name)
        record = {"against": other.label, "listeners": found.listeners, **numbers}
        registry.tag(version, {f"preference.{found.identity}": json.dumps(record, ensure_ascii=False)})
        tracker.log_numbers(version.run_id, numbers)
        written.append(side.label)
    return written


@dataclass(frozen=True, kw_only=True)
class _Speaker:
    """What says a sentence with a seed: (T,) and its rate; `language` is that of its Prompt."""

    language: str
    say: Callable[[Sentence, int], tuple[np.ndarray, int]]


def _open_side(text: str, registry: Registry, models: str | None, stack: ExitStack) -> tuple[Side, _Speaker]:
    if (Path(text) / "done.json").is_file():
        return _open_run(Path(text), models)
    from jobs.voice_model import load_voice

    name, at, alias = text.partition("@")
    voice, colon, number = (name, "", "") if at or ":" not in name else name.rpartition(":")
    if colon and not number.isdigit():
        raise ValueError(f"{text}: expected VOICE, VOICE:VERSION, VOICE@ALIAS or the folder of a finished run")
    found = registry.version_of(voice, version=int(number) if colon else None, alias=alias if at else None)
    folder = stack.enter_context(registry.files_of(found))
    loaded = load_voice(folder, models=models)

    def say(sentence: Sentence, seed: int) -> tuple[np.ndarray, int]:
        return read_wav(loaded.speak(sentence.text, sentence.language, seed=seed)[0])

    side = Side(
        label=f"{found.name} version {found.version}",
        name=found.name,
        version=found.version,
        run_id=found.run_id,
        uri=found.uri,
    )
    prompt = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    return side, _Speaker(language=prompt["language"], say=say)


def _open_run(path: Path, models: str | None) -> tuple[Side, _Speaker]:
    run = RunFolder.read(path)
    base = load_base(run.run["release"], Path(models) if models else None)
    synthesiser = Synthesiser(base, *(run.weights_path(half) for half in HALVES))
    prompt, timbre = Prompt.load(path), load_timbre(path)
    mean = None if timbre is None else timbre[0]
    words = path.resolve().parents[1] / LEXICON_NAME
    lexicon = Lexicon.read(words) if words.is_file() else Lexicon()

    def say(sentence: Sentence, seed: int) -> tuple[np.ndarray, int]:
        speech = synthesiser.speak(sentence.text, sentence.language, prompt, timbre=mean, seed=seed, lexicon=lexicon)
        return speech.wave, speech.rate_hz

    return Side(label=f"{run.voice} run {run.run_id}"), _Speaker(language=prompt.language, say=say)


def _sentences(path: Path | None, language: str) -> list[Sentence]:
    if path is None:
        return fixed_sentences(language)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--sentences {path}: cannot be read as UTF-8 text: {error}") from error
    texts = list(dict.fromkeys(line.strip() for line in lines if 0 < len(line.strip()) <= _LONGEST_SENTENCE))
    if not texts:
        raise ValueError(f"--sentences {path}: no line of at most {_LONGEST_SENTENCE} characters")
    return [
        Sentence(name=hashlib.sha256(text.encode()).hexdigest()[:10], text=text, language=language) for text in texts
    ]


def _levelled(wave: np.ndarray, rate_hz: int) -> tuple[np.ndarray, int]:
    """At the loudness all are heard at: of two equal voices people prefer the louder."""
    loudness = loudness_lufs(wave, rate_hz)
    peak = float(np.abs(wave).max(initial=1e-6))
    gain = 1.0 if loudness is None else min(10.0 ** ((_LOUDNESS_LUFS - loudness) / 20.0), 0.99 / peak)
    return (wave * np.float32(gain)).astype(np.float32), rate_hz


def _identity(sides: Sequence[Side], sentences: Sequence[Sentence], seed: int) -> str:
    named = [[side.label for side in sides], [sentence.text for sentence in sentences], seed]
    return hashlib.sha256(json.dumps(named, ensure_ascii=False).encode()).hexdigest()[:12]


def _read_file(path: Path) -> tuple[str, str, dict[str, str]]:
    """Comparison, listener, and sentence → choice."""
    wrong = f"{path}: not what the comparison page saves"
    try:
        if path.stat().st_size > _LARGEST_VOTES_BYTES:
            raise ValueError(f"{wrong} (larger than {_LARGEST_VOTES_BYTES} bytes)")
        record = json.loads(path.read_text(encoding="utf-8"))
        identity, listener = record["comparison"], record["listener"]
        votes = {vote["sentence"]: vote["choice"] for vote in record["votes"]}
    except OSError as error:
        raise ValueError(f"--read {path}: {error.strerror}") from error
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{wrong} ({type(error).__name__})") from error
    texts = [identity, listener, *votes]
    if not all(isinstance(text, str) for text in texts) or not all(choice in CHOICES for choice in votes.values()):
        raise ValueError(f"{wrong} (a choice is one of {', '.join(CHOICES)})")
    return identity, listener, votes


def _key(identity: str, workspace: Workspace, path: Path) -> dict[str, Any]:
    key = workspace.root / "comparisons" / f"{identity}.json"
    # The name comes out of a file that anybody may have written.
    if not identity.isalnum() or not key.is_file():
        raise ValueError(
            f"{path}: votes on comparison {identity[:20]!r}, which --workspace {workspace.root} did not make"
        )
    return json.loads(key.read_text(encoding="utf-8"))


def _preference(key: Mapping[str, Any], listeners: Mapping[str, Mapping[str, str]]) -> Preference:
    first_of = {trial["sentence"]: trial["first"] for trial in key["trials"]}
    counts = {"a": 0, "b": 0, "same": 0}
    for votes in listeners.values():
        for sentence, choice in votes.items():
            other = "b" if first_of[sentence] == "a" else "a"
            counts[{"first": first_of[sentence], "second": other, "same": "same"}[choice]] += 1
    decided = counts["a"] + counts["b"]
    return Preference(
        identity=key["id"],
        a=Side(**key["a"]),
        b=Side(**key["b"]),
        listeners=len(listeners),
        for_a=counts["a"],
        for_b=counts["b"],
        same=counts["same"],
        share=counts["a"] / decided if decided else None,
        interval=wilson_interval(counts["a"], decided),
        p_value=binomial_test(counts["a"], decided),
    )
