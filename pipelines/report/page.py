"""CorpusNumbers to one self-contained HTML page: no script, no request, everything inside.

The page forbids itself scripts and requests by a content security policy, so that text out of a recording's name or
transcript can be nothing but text.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import jinja2
from markupsafe import Markup

from gsv_core.text.coverage import RARE, Coverage
from pipelines.report import wording
from pipelines.report.charts import Line, histogram, line_chart, stacked_bar
from pipelines.report.history import Change
from pipelines.report.listening import AudioSample
from pipelines.report.numbers import CorpusNumbers, Curve, PairScores, TrainedNumbers, VoiceNumbers

_FOLDER = Path(__file__).parent


def write_report(
    corpus: CorpusNumbers,
    out: Path,
    *,
    pages: Mapping[str, str] | None = None,
    evaluations: Mapping[str, str] | None = None,
    changes: Sequence[Change] = (),
) -> Path:
    """Write the page to `out`, all or nothing, and give `out` back.

    `pages`: voice → address of a page of its own; `evaluations`: voice → address of the page about its scores.
    """
    return put(page(corpus, pages=pages, evaluations=evaluations, changes=changes), out)


def put(text: str, out: Path) -> Path:
    """Write a page to `out`, all or nothing, and give `out` back."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.partial")
    # A file name that is not UTF-8 arrives with lone surrogates, which no page can hold.
    temporary.write_bytes(text.encode("utf-8", "replace"))
    temporary.replace(out)
    return out


def page(
    corpus: CorpusNumbers,
    *,
    pages: Mapping[str, str] | None = None,
    evaluations: Mapping[str, str] | None = None,
    changes: Sequence[Change] = (),
) -> str:
    """The whole page as text."""
    environment = environment_of()
    anchors = {voice.voice: f"voice-{index}" for index, voice in enumerate(corpus.voices, start=1)}
    template = environment.get_template("page.html")
    return template.render(
        corpus=corpus,
        anchors=anchors,
        pages=pages or {},
        evaluations=evaluations or {},
        changes=[*map(change_cells, changes)],
    )


def environment_of() -> jinja2.Environment:
    """What both kinds of pages are made with."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        duration=wording.duration,
        heading=wording.heading,
        words=wording.words,
        audio=_audio_address,
        pretty=_pretty,
        public=_without_secrets,
    )
    environment.globals.update(
        css=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        count=wording.count,
        share=wording.share,
        measures=wording.MEASURES,
        headline_measures=wording.HEADLINE_MEASURES,
        states=wording.STATES,
        phases=wording.PHASES,
        roles=wording.ROLES,
        languages=wording.LANGUAGES,
        covered=_covered,
        rare=RARE,
        split_bar=_split_bar,
        histograms=histograms,
        first_charts=_first_charts,
        further_charts=_further_charts,
        shown_measures=_shown_measures,
        headline=_headline,
    )
    return environment


def change_cells(change: Change) -> dict[str, Any]:
    """What became of a voice, as cells: (text, whether it is better, worse or neither)."""
    before, now = change.before, change.now
    if before is None or now is None:
        return {"voice": change.voice, "cells": [("new" if before is None else "gone", "")]}
    cells = []
    kept = now.seconds_kept - before.seconds_kept
    if kept:
        sign = "+" if kept > 0 else "\N{MINUS SIGN}"
        cells.append((f"{sign}{wording.duration(abs(kept))} kept", "better" if kept > 0 else "worse"))
    for measure in wording.HEADLINE_MEASURES:
        old, new = getattr(before, measure.key), getattr(now, measure.key)
        if old is not None and new is not None and measure.show(old) != measure.show(new):
            rises = new > old
            better = rises == (measure.better == "higher is better")
            said = f"{measure.name} {measure.show(old)} \N{RIGHTWARDS ARROW} {measure.show(new)}"
            cells.append((said, "better" if better else "worse"))
    if before.model_version != now.model_version and now.model_version:
        cells.append((f"version {now.model_version}", ""))
    if before.state != now.state:
        said = f"{wording.STATES[before.state][0]} \N{RIGHTWARDS ARROW} {wording.STATES[now.state][0]}"
        cells.append((said, {"registered": "better", "failed": "worse"}.get(now.state, "")))
    return {"voice": change.voice, "cells": cells or [("other numbers, as before to people", "")]}


def _headline(corpus: CorpusNumbers) -> str:
    """What happened, in one line."""
    voices = len(corpus.voices)
    if not voices:
        return "No voices came in"
    parts = []
    for state, told in (
        ("registered", "registered"),
        ("trained", "trained"),
        ("prepared", "prepared"),
        ("too_little_data", "with too little data"),
        ("failed", "failed"),
    ):
        amount = corpus.count(state)
        if amount:
            parts.append(f"{amount} {told}")
    if len(parts) == 1:
        return f"{wording.count(voices, 'voice')} {parts[0].partition(' ')[2]}"
    return f"{wording.count(voices, 'voice')}: {', '.join(parts)}"


def _split_bar(item: Any, title: str) -> Markup:
    """Kept, rejected and non-speech of a voice, or of the whole corpus."""
    amounts = item.total if isinstance(item, CorpusNumbers) else lambda name: getattr(item, name)
    parts = [
        ("kept", "kept", amounts("seconds_kept")),
        ("rejected", "rejected", amounts("seconds_rejected")),
        ("non-speech", "non-speech", amounts("seconds_non_speech")),
    ]
    return stacked_bar(parts, title=title)


def histograms(voice: VoiceNumbers) -> list[dict[str, Any]]:
    result = []
    for distribution in voice.distributions:
        name, unit = wording.DISTRIBUTIONS[distribution.key]
        chart = histogram(distribution.values, title=f"{name}, clips", unit=unit)
        result.append({"name": name, "engine": distribution.engine, "missing": distribution.missing, "chart": chart})
    return [entry for entry in result if entry["chart"]]


def _covered(coverage: Coverage) -> list[dict[str, Any]]:
    """A line for each kind of sound: its name, a bar of what part of running speech was heard, and what is missing."""
    lines = []
    for kind in coverage.kinds:
        name, one = wording.COVERED[kind.kind]
        if (coverage.language, kind.kind) == ("en", "tones"):
            name, one = "Stressed and weak vowels", "vowel"
        share = kind.weighted_share
        percent = math.floor(1000 * share) / 10  # what lacks something is never called all
        bar = stacked_bar(
            [("heard", "kept", share), ("missing", "non-speech", 1 - share)], title=f"{name}, by how common they are"
        )
        lines.append({"name": name, "one": one, "bar": bar, "kind": kind, "percent": f"{percent:g} %"})
    return lines


def _first_charts(trained: TrainedNumbers) -> list[dict[str, Any]]:
    return _charts(trained.curves, list(wording.FIRST_METRICS))


def _further_charts(trained: TrainedNumbers) -> list[dict[str, Any]]:
    keys = dict.fromkeys((curve.phase, curve.metric) for curve in trained.curves)
    return _charts(trained.curves, [key for key in keys if key not in wording.FIRST_METRICS])


def _charts(curves: Sequence[Curve], keys: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    names = {"train": "train", "held_out": "held out"}
    result = []
    for phase, metric in keys:
        lines = [
            Line(name=names.get(curve.kind, curve.kind), css=curve.kind.replace("_", "-"), points=curve.points)
            for curve in sorted(curves, key=lambda curve: curve.kind, reverse=True)
            if (curve.phase, curve.metric) == (phase, metric)
        ]
        name = wording.METRICS.get(metric, wording.heading(metric))
        chart = line_chart(lines, title=name, x_name="steps")
        if chart:
            result.append({"name": name, "phase": phase, "chart": chart})
    return result


def _shown_measures(rows: Sequence[PairScores]) -> list[wording.Measure]:
    """The measures that at least one row knows of, be it as null."""
    return [measure for measure in wording.MEASURES if any(measure.key in row.numbers for row in rows)]


def _audio_address(sample: AudioSample) -> str:
    return f"data:{sample.media_type};base64,{base64.b64encode(sample.data).decode()}"


def _pretty(value: Any) -> str:
    """A setting, as people write it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{wording.words(str(key))} {_pretty(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_pretty, value))
    return "\N{EN DASH}" if value is None else str(value)


def _without_secrets(uri: str) -> str:
    """An address without the name and password it may carry."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=parts.fragment))
