"""The fleet in the morning: a corpus, its runs and its registry → one self-contained page.

Voices by state, what changed since the day before, what failed and why, what waits, what it cost, which champions
moved. Read from the small files of a corpus alone, so that hundreds of voices take seconds. What each morning came to
is kept beside the report, as what the next one is compared with.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from jobs.evaluation_page import FILE_NAME as EVALUATION_NAME
from jobs.tracking import CHAMPION, Move, Registry, TrackingError
from jobs.workspace import Workspace
from pipelines.report import wording
from pipelines.report.charts import Line, line_chart, stacked_bar
from pipelines.report.history import Change, VoiceSummary, changes
from pipelines.report.numbers import STATES, Outcome, read_outcomes
from pipelines.report.page import change_cells, environment_of, put
from pipelines.report.tables import committed_units, current_units
from pipelines.rows import RATE_HZ
from pipelines.storage import Storage

_TEMPLATE = Path(__file__).with_name("fleet_page.html")
_STYLE = Path(__file__).with_name("fleet_page.css")
_HISTORY = "report/fleet.json"
_MOST_REMEMBERED = 400
"""Mornings, a year and a little."""
_RECENT = timedelta(days=1)
_COSTS = ("gpu_seconds", "train_seconds", "evaluate_seconds")
_WAITS_FOR = {
    "prepared": "to be trained",
    "training": "in training, or stopped in it",
    "trained": "to be evaluated",
    "evaluated": "to be registered",
}


@dataclass(frozen=True, kw_only=True)
class FleetVoice:
    """One voice as the morning finds it."""

    summary: VoiceSummary
    reason: str = ""
    stage: str = ""
    """How far it has come: a key of `_WAITS_FOR`, or `registered`."""
    champion: int | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    failed_since: str | None = None
    evaluation: str | None = None
    """Address of its page, from the fleet's."""

    @property
    def voice(self) -> str:
        return self.summary.voice

    @property
    def state(self) -> str:
        return self.summary.state

    @property
    def waits_for(self) -> str | None:
        return None if self.state in ("failed", "too_little_data") else _WAITS_FOR.get(self.stage)


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A move of a champion, and whose."""

    voice: str
    move: Move


@dataclass(frozen=True, kw_only=True)
class OtherVoice:
    """A registered voice of which this corpus has no recordings: a blend, an imported one, one of another corpus."""

    voice: str
    version: int
    made_of: str
    champion: int | None = None


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All that the page says. `before` is the morning it is compared with; None on the first."""

    name: str
    at: datetime
    voices: tuple[FleetVoice, ...]
    others: tuple[OtherVoice, ...] = ()
    moves: tuple[Champion, ...] = ()
    before: datetime | None = None
    changes: tuple[Change, ...] = ()
    costs_before: Mapping[str, float] = field(default_factory=dict)
    mornings: tuple[Mapping[str, Any], ...] = ()
    report: str | None = None
    """Address of the corpus report."""
    registry_says: str = ""
    """Why champions are not known, where the registry could not be asked."""

    @property
    def moved(self) -> list[tuple[Champion, str]]:
        """The moves, each with its aliases: that of the release and that of all mostly move together."""
        together: dict[tuple[Any, ...], list[Champion]] = {}
        for entry in self.moves:
            move = entry.move
            same = (entry.voice, move.before, move.after, move.kind, move.why, move.when[:16])
            together.setdefault(same, []).append(entry)
        return [(entries[0], ", ".join(sorted(entry.move.alias for entry in entries))) for entries in together.values()]

    @property
    def costs(self) -> dict[str, float]:
        return {name: sum(voice.cost.get(name, 0.0) for voice in self.voices) for name in _COSTS}

    def total(self, name: str) -> float:
        """The sum of a number of every voice's summary, such as `seconds_kept`."""
        return sum(getattr(voice.summary, name) for voice in self.voices)

    def of_state(self, state: str) -> list[FleetVoice]:
        return [voice for voice in self.voices if voice.state == state]

    @property
    def queue(self) -> list[tuple[str, list[FleetVoice]]]:
        """What is waited for, and by which voices, the next step last."""
        waiting = {says: [voice for voice in self.voices if voice.waits_for == says] for says in _WAITS_FOR.values()}
        return [(says, voices) for says, voices in waiting.items() if voices]


def write_fleet_page(workspace: Workspace, registry: Registry | None, out: Path | None = None) -> Path:
    """Look at the workspace, write the page, and remember the morning; the page's place.

    Raises:
        ValueError: there is no corpus in the workspace.
    """
    place = out or workspace.report.with_name("fleet.html")
    fleet = look(workspace, registry, datetime.now(UTC), place)
    put(fleet_page(fleet), place)
    _remember(fleet, workspace.storage)
    return place


def look(workspace: Workspace, registry: Registry | None, now: datetime, place: Path) -> Fleet:
    """The fleet as it stands; `place` is where its page will lie.

    Raises:
        ValueError: there is no corpus in the workspace.
    """
    corpus = workspace.storage
    names = corpus.names("voices")
    if not names and not corpus.exists("corpus.json"):
        raise ValueError(f"{workspace.corpus_place}: no corpus here; `gsv prepare` or `gsv onboard` makes one")
    mornings = _mornings(corpus)
    # Several looks on one day are one morning: each is compared with the last of another day.
    earlier = [entry for entry in mornings if datetime.fromisoformat(entry["at"]).date() < now.date()]
    before = earlier[-1] if earlier else None
    outcomes, units = read_outcomes(corpus), current_units(corpus)
    known = {name for name in names if committed_units(corpus, f"voices/{name}", units)} | outcomes.keys()
    champions, moves, others, unknown = _in_the_registry(registry, known)
    voices = tuple(
        _voice(workspace, corpus, name, outcomes.get(name), units, champions.get(name), earlier, place)
        for name in sorted(known)
    )
    since = datetime.fromisoformat(before["at"]) if before else now - _RECENT
    then = [VoiceSummary(**entry) for entry in before["voices"]] if before else []
    return Fleet(
        name=workspace.root.name,
        at=now,
        voices=voices,
        others=others,
        moves=tuple(entry for entry in moves if datetime.fromisoformat(entry.move.when) >= since),
        before=since if before else None,
        changes=changes(then, [voice.summary for voice in voices]) if before else (),
        costs_before=before["costs"] if before else {},
        mornings=tuple(earlier),
        report=_address(workspace.report, place),
        registry_says=unknown,
    )


def fleet_page(fleet: Fleet) -> str:
    """The whole page as text."""
    environment = environment_of()
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        fleet=fleet,
        headline=_headline(fleet),
        bar=stacked_bar(
            [(wording.STATES[state][0], state, float(len(fleet.of_state(state)))) for state in STATES],
            title="Voices by state",
        ),
        present=[state for state in STATES if fleet.of_state(state)],
        changes=[change_cells(change) for change in fleet.changes],
        costs=_told_costs(fleet),
        chart=_over_time(fleet),
        champion=CHAMPION,
        style=Markup(_STYLE.read_text(encoding="utf-8")),
    )


def _headline(fleet: Fleet) -> str:
    """The one thing to know: what failed, or that nothing did."""
    failed, voices = len(fleet.of_state("failed")), len(fleet.voices)
    if not voices:
        return "No voices yet"
    if failed:
        return f"{failed} of {wording.count(voices, 'voice')} failed"
    ready = len(fleet.of_state("registered"))
    return f"{wording.count(voices, 'voice')}, {'all' if ready == voices else ready} registered, none failed"


def _told_costs(fleet: Fleet) -> list[dict[str, Any]]:
    """Audio and computing: so much in all, and so much more than the morning before."""
    lines = [
        ("Recordings handed in", fleet.total("seconds_in"), "seconds_in"),
        ("Speech kept", fleet.total("seconds_kept"), "seconds_kept"),
        ("GPU time", fleet.costs["gpu_seconds"], "gpu_seconds"),
        ("Training", fleet.costs["train_seconds"], "train_seconds"),
        ("Evaluation", fleet.costs["evaluate_seconds"], "evaluate_seconds"),
    ]
    return [
        {"name": name, "value": value, "more": value - fleet.costs_before[key] if key in fleet.costs_before else None}
        for name, value, key in lines
    ]


def _over_time(fleet: Fleet) -> Markup:
    """Voices and registered voices over the mornings; nothing before there are two."""
    days = [(entry["at"], len(entry["voices"]), _registered(entry["voices"])) for entry in fleet.mornings]
    days.append((fleet.at.isoformat(), len(fleet.voices), len(fleet.of_state("registered"))))
    if len(days) < 2:
        return Markup("")
    first = datetime.fromisoformat(days[0][0])
    at = [(datetime.fromisoformat(when) - first) / timedelta(days=1) for when, *_ in days]
    lines = [
        Line(
            name="all",
            css="train",
            points=tuple((day, float(count)) for day, (_, count, _) in zip(at, days, strict=True)),
        ),
        Line(
            name="registered",
            css="held-out",
            points=tuple((day, float(count)) for day, (*_, count) in zip(at, days, strict=True)),
        ),
    ]
    return line_chart(lines, title="Voices", x_name="days")


def _registered(voices: Sequence[Mapping[str, Any]]) -> int:
    return sum(entry["state"] == "registered" for entry in voices)


def _voice(
    workspace: Workspace,
    corpus: Storage,
    name: str,
    outcome: Outcome | None,
    units: set[str] | None,
    champion: int | None,
    mornings: Sequence[Mapping[str, Any]],
    place: Path,
) -> FleetVoice:
    accounts = [account for done in committed_units(corpus, f"voices/{name}", units) for account in done.accounts]
    run, begun = _runs(workspace, name, outcome)
    stage = _stage(begun)
    state = outcome.state if outcome else {"registered": "registered", "evaluated": "trained"}.get(_stage(run), "")
    best = _best(run)
    summary = VoiceSummary(
        voice=name,
        seconds_in=round(sum(account.duration_samples for account in accounts) / RATE_HZ, 1),
        seconds_kept=round(sum(account.kept_samples for account in accounts) / RATE_HZ, 1),
        seconds_rejected=round(sum(account.rejected_samples for account in accounts) / RATE_HZ, 1),
        state=state or ("trained" if stage == "trained" else "prepared"),
        model_version=outcome.model_version if outcome else None,
        character_error_rate=best.get("character_error_rate"),
        likeness=best.get("likeness"),
        quality=best.get("quality"),
    )
    return FleetVoice(
        summary=summary,
        reason=outcome.reason if outcome else "",
        stage=stage,
        champion=champion,
        cost=_cost(workspace, name),
        failed_since=_failed_since(name, mornings) if summary.state == "failed" else None,
        evaluation=_address(run / EVALUATION_NAME, place) if run else None,
    )


def _runs(workspace: Workspace, voice: str, outcome: Outcome | None) -> tuple[Path | None, Path | None]:
    """The run to show, finished if one is, and the one that says how far the voice is: that of the last job, or else
    the one begun last."""
    if outcome and outcome.run_id and (named := workspace.run(voice, outcome.run_id)).is_dir():
        return named, named
    begun = [path.parent for path in (workspace.voice(voice) / "runs").glob("*/run.json")]
    newest = max(begun, key=_begun_at, default=None)
    return max((path for path in begun if (path / "done.json").is_file()), key=_begun_at, default=newest), newest


def _begun_at(run: Path) -> tuple[float, str]:
    return (run / "run.json").stat().st_mtime, run.name


def _stage(run: Path | None) -> str:
    if run is None:
        return "prepared"
    marks = (("registered", "registered.json"), ("evaluated", "done.json"), ("trained", "trained.json"))
    return next((stage for stage, mark in marks if (run / mark).is_file()), "training")


def _best(run: Path | None) -> dict[str, Any]:
    """The numbers of the chosen pair."""
    if run is None or not (run / "scores.json").is_file():
        return {}
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    chosen = [scores["best"][half] for half in ("semantic", "wave")]
    return next((pair for pair in scores["pairs"] if [pair["semantic"], pair["wave"]] == chosen), {})


def _cost(workspace: Workspace, voice: str) -> dict[str, float]:
    """What all runs of a voice took together."""
    costs = [json.loads(path.read_text()) for path in (workspace.voice(voice) / "runs").glob("*/cost.json")]
    return {name: sum(float(cost.get(name) or 0.0) for cost in costs) for name in _COSTS}


def _failed_since(voice: str, mornings: Sequence[Mapping[str, Any]]) -> str | None:
    """The first of the mornings up to now on which it had failed already; None where it failed today."""
    since = None
    for entry in reversed(mornings):
        states = {told["voice"]: told["state"] for told in entry["voices"]}
        if states.get(voice) != "failed":
            break
        since = entry["at"][:10]
    return since


def _address(page: Path, place: Path) -> str | None:
    """`page` as a link from a page at `place`, where it is there."""
    if not page.is_file():
        return None
    return quote(os.path.relpath(page.resolve(), place.resolve().parent))


def _in_the_registry(
    registry: Registry | None, known: Collection[str]
) -> tuple[dict[str, int], list[Champion], tuple[OtherVoice, ...], str]:
    """Voice → champion, all moves, the voices that are not `known`; and why nothing of it is, where the registry does
    not answer."""
    champions: dict[str, int] = {}
    moves: list[Champion] = []
    others: list[OtherVoice] = []
    if registry is None:
        return champions, moves, (), ""
    try:
        for voice in registry.voices():
            aliases = registry.aliases(voice)
            if CHAMPION in aliases:
                champions[voice] = aliases[CHAMPION]
            moves += [Champion(voice=voice, move=move) for move in registry.moves(voice)]
            # A name without a version is what a registration that was cut off leaves: nothing that could speak.
            if voice not in known and (versions := registry.versions(voice)):
                newest, tags = max(versions.items(), key=lambda item: item[0])
                made_of = _made_of(tags)
                others.append(OtherVoice(voice=voice, version=newest, made_of=made_of, champion=champions.get(voice)))
    except (TrackingError, ValueError) as error:
        return {}, [], (), str(error)
    moves.sort(key=lambda entry: entry.move.when, reverse=True)
    return champions, moves, tuple(sorted(others, key=lambda other: other.voice)), ""


def _made_of(tags: Mapping[str, str]) -> str:
    if parents := tags.get("lineage.parents"):
        return "blend of " + ", ".join(
            f"{parent['voice']} {parent['share']:.0%}".replace("%", " %") for parent in json.loads(parents)
        )
    if source := tags.get("imported.from"):
        return f"imported from {source}"
    return f"corpus {tags.get('corpus_digest', 'unknown')[:12]}"


def _mornings(corpus: Storage) -> list[dict[str, Any]]:
    return json.loads(corpus.read(_HISTORY)) if corpus.exists(_HISTORY) else []


def _remember(fleet: Fleet, corpus: Storage) -> None:
    """Keep this look as the morning of its day."""
    mornings = [entry for entry in _mornings(corpus) if datetime.fromisoformat(entry["at"]).date() != fleet.at.date()]
    mornings.append(
        {
            "at": fleet.at.isoformat(timespec="seconds"),
            "voices": [asdict(voice.summary) for voice in fleet.voices],
            "costs": {
                **fleet.costs,
                "seconds_in": fleet.total("seconds_in"),
                "seconds_kept": fleet.total("seconds_kept"),
            },
        }
    )
    corpus.write(_HISTORY, json.dumps(mornings[-_MOST_REMEMBERED:], indent=1, sort_keys=True).encode())
