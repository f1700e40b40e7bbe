"""The scores of a run → `evaluation.html` beside them: one table, one chart, and the audio to judge them by.

Self-contained: no script, no request, everything inside. Reads `scores.json`, `prompts.json` and the audio of the run.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jobs.measures import MEASURES
from pipelines.report import wording
from pipelines.report.charts import Mark, interval_chart
from pipelines.report.listening import AudioSample, within_budget
from pipelines.report.numbers import save_name
from pipelines.report.page import environment_of, put

FILE_NAME = "evaluation.html"
_TEMPLATE = Path(__file__).with_name("evaluation.html")
_STYLE = Path(__file__).with_name("evaluation.css")
_AUDIO_BYTES = 4_000_000  # base64 makes 5.3 MB of it; every run has such a page
_COMPARED = (("base", "Base, untuned"), ("ceiling", "Recordings"))
_FAULTS = {
    "silent": "silent",
    "long_pause": "a pause over 1 s",
    "cut_beginning": "beginning cut off",
    "cut_end": "end cut off",
    "repeated_words": "words said again",
    "looping_tokens": "tokens in a circle",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A pair, the base or the recordings: a row of the table, of the chart, and of what can be heard."""

    label: str
    css: str
    record: Mapping[str, Any]

    def interval(self, key: str) -> tuple[float, float] | None:
        found = (self.record.get("intervals") or {}).get(key)
        return (found[0], found[1]) if found else None


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What one row made of a sentence, and its audio, where there was room for it."""

    row: Row
    record: Mapping[str, Any]
    audio: AudioSample | None = None

    @property
    def faults(self) -> str:
        return ", ".join(_FAULTS.get(fault, fault) for fault in self.record.get("faults") or ())


def write_evaluation_page(
    run_dir: Path, run: Mapping[str, Any], scores: Mapping[str, Any], cost: Mapping[str, Any]
) -> Path:
    """Write the page about a run's `scores` into its folder; its place."""
    return put(evaluation_page(run_dir, run, scores, cost), run_dir / FILE_NAME)


def evaluation_page(run_dir: Path, run: Mapping[str, Any], scores: Mapping[str, Any], cost: Mapping[str, Any]) -> str:
    """The whole page as text."""
    rows = _rows(scores)
    chosen = next(row for row in rows if row.css == "chosen")
    prompts = _prompts(run_dir)
    heard = _listen(run_dir, rows, scores.get("common") or [], [sample for _, sample in prompts])
    environment = environment_of()
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        run=run,
        cost=cost,
        rows=rows,
        chosen=chosen,
        compared=[row for row in rows if row.css in dict(_COMPARED)],
        pairs=sum(row.css in ("pair", "chosen") for row in rows),
        shown=[measure for measure in MEASURES if any(row.record.get(measure.key) is not None for row in rows)],
        charts=_charts(rows),
        engines=scores.get("engines") or {},
        measures=scores.get("measures") or {},
        note=scores.get("speech"),
        rule=scores["best"].get("rule", ""),
        prompts=heard.prompts,
        candidates=_candidates(run_dir),
        sentences=heard.sentences,
        interval_of=_interval_of,
        style=Markup(_STYLE.read_text(encoding="utf-8")),
    )


@dataclass(frozen=True, kw_only=True)
class _Audio:
    prompts: list[AudioSample]
    sentences: list[tuple[Mapping[str, Any], list[Heard], list[Heard]]]
    """Each sentence: its record, what is heard first, and what the other pairs made of it."""


def _rows(scores: Mapping[str, Any]) -> list[Row]:
    """The pairs in order of their steps, then what they are compared with."""
    best = scores["best"]
    rows = [
        Row(
            label=f"{save_name(pair['semantic'])} + {save_name(pair['wave'])}",
            css="chosen" if (pair["semantic"], pair["wave"]) == (best["semantic"], best["wave"]) else "pair",
            record=pair,
        )
        for pair in scores["pairs"]
    ]
    return rows + [Row(label=label, css=key, record=scores[key]) for key, label in _COMPARED if scores.get(key)]


def _charts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    charts = []
    for measure in wording.HEADLINE_MEASURES:
        known = [(row, row.record[measure.key]) for row in rows if row.record.get(measure.key) is not None]
        marks = [
            Mark(name=row.label, css=row.css, value=value, interval=row.interval(measure.key)) for row, value in known
        ]
        if marks:
            chart = interval_chart(marks, title=measure.name, show=measure.show, tick=partial(_tick, measure))
            charts.append({"measure": measure, "chart": chart})
    return charts


def _interval_of(row: Row, measure: wording.Measure) -> str:
    """`31.0 – 45.2 %`; empty where one sentence alone was measured, or all gave the same."""
    interval = row.interval(measure.key)
    if interval is None or interval[0] == interval[1]:
        return ""
    low, high = map(measure.show, interval)
    return f"{low.removesuffix(' %')} \N{EN DASH} {high}"


def _tick(measure: wording.Measure, value: float) -> str:
    return f"{100 * value:g} %" if measure.form == "share" else f"{value:g}"


def _prompts(run_dir: Path) -> list[tuple[str, AudioSample]]:
    """The default and each style's Prompt, with their recordings."""
    folders = [("Default Prompt", run_dir)]
    folders += [
        (f"Prompt, {folder.name}", folder) for folder in sorted((run_dir / "prompts").glob("*")) if folder.is_dir()
    ]
    found = []
    for title, folder in folders:
        if (folder / "prompt.flac").is_file():
            told = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
            data = (folder / "prompt.flac").read_bytes()
            found.append((title, AudioSample(title=title, text=told["text"], language=told["language"], data=data)))
    return found


def _candidates(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "prompts.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _listen(
    run_dir: Path, rows: Sequence[Row], common: Sequence[Mapping[str, Any]], prompts: Sequence[AudioSample]
) -> _Audio:
    """Each sentence by the recording, the chosen pair and the base; by the other pairs as far as there is room.

    Those in `common` were said by the chosen pair alone.
    """
    first: list[Heard] = []
    others: list[Heard] = []
    for row in sorted(rows, key=lambda row: ("ceiling", "chosen", "base", "pair").index(row.css)):
        for record in row.record["utterances"]:
            (others if row.css == "pair" else first).append(Heard(row=row, record=record))
    chosen = next(row for row in rows if row.css == "chosen")
    first += [Heard(row=chosen, record=record) for record in common]
    spoken = [entry for entry in (*first, *others) if _path(run_dir, entry) is not None]
    samples = [*prompts, *(_sample(run_dir, entry) for entry in spoken)]
    fitting = within_budget(samples, _AUDIO_BYTES)
    audio = {id(entry.record): sample for entry, sample in zip(spoken, fitting[len(prompts) :], strict=False)}

    def of(record: Mapping[str, Any], entries: Sequence[Heard]) -> Iterator[Heard]:
        for entry in entries:
            if entry.record["name"] == record["name"]:
                yield Heard(row=entry.row, record=entry.record, audio=audio.get(id(entry.record)))

    return _Audio(
        prompts=list(fitting[: len(prompts)]),
        sentences=[
            (record, list(of(record, first)), list(of(record, others)))
            for record in (*chosen.record["utterances"], *common)
        ],
    )


def _path(run_dir: Path, entry: Heard) -> Path | None:
    place = entry.record.get("audio")
    return run_dir / place if place and (run_dir / place).is_file() else None


def _sample(run_dir: Path, entry: Heard) -> AudioSample:
    path = _path(run_dir, entry)
    assert path is not None
    record = entry.record
    return AudioSample(title=entry.row.label, text=record["text"], language=record["language"], data=path.read_bytes())
