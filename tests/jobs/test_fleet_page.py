"""The morning page: read from the files of a corpus, beside the morning before, and looked at in a browser."""

import json
import shutil
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.fleet_page import Fleet, fleet_page, look, write_fleet_page
from jobs.tracking import Move, Registry, TrackingError
from jobs.workspace import Workspace
from pipelines.report.history import VoiceSummary
from pipelines.report.numbers import Outcome, record_outcomes
from tests.pipelines.report.made_corpus import HOSTILE, make_corpus

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NOW = datetime(2026, 11, 21, 6, 30, tzinfo=UTC)
MOVE = Move(
    alias="champion", before=1, after=2, when="2026-11-21T02:10:00+00:00", who="nightly", why=HOSTILE, kind="force"
)


class Asked(Registry):
    """A registry that answers without a store."""

    def __init__(self, moves: list[Move], *, down: bool = False) -> None:
        self._moves, self._down = moves, down

    def voices(self) -> list[str]:
        if self._down:
            raise TrackingError("MLflow store http://tracker: could not list the voices: refused")
        return ["ada", "cut_off", "mixed", "taken"]

    def aliases(self, voice: str) -> dict[str, int]:
        return {"champion": 2, "challenger": 3} if voice == "ada" else {}

    def moves(self, voice: str) -> list[Move]:
        return self._moves if voice == "ada" else []

    def versions(self, voice: str) -> dict[int, dict[str, str]]:
        if voice == "cut_off":
            return {}
        parents = [{"voice": HOSTILE, "share": 0.6}, {"voice": "linus", "share": 0.4}]
        return {1: {}, 2: {"lineage.parents": json.dumps(parents)} if voice == "mixed" else {"imported.from": "X"}}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.open(tmp_path / "work")
    make_corpus(workspace.corpus)
    outcomes = {
        "ada": Outcome(state="registered", run_id="7" * 20, model_name="gsv-ada", model_version="3"),
        "hostile": Outcome(state="failed", reason=f"ValueError: {HOSTILE}"),
        "linus": Outcome(state="too_little_data", reason="kept 3 of at least 4 Utterances"),
    }
    record_outcomes(workspace.corpus, outcomes)
    return workspace


def seen(workspace: Workspace, registry: Registry | None = None, now: datetime = NOW) -> Fleet:
    return look(workspace, registry, now, workspace.report.with_name("fleet.html"))


def remember(workspace: Workspace, *mornings: tuple[datetime, dict[str, str]]) -> None:
    """Mornings on which voices were in these states, with half of what is kept now."""
    history = []
    for at, states in mornings:
        voices = [
            asdict(
                VoiceSummary(
                    voice=voice,
                    seconds_in=10.0,
                    seconds_kept=5.0,
                    seconds_rejected=0.0,
                    state=state,
                    likeness=0.5,
                )
            )
            for voice, state in states.items()
        ]
        history.append({"at": at.isoformat(), "voices": voices, "costs": {"train_seconds": 11.2, "seconds_in": 20.0}})
    (workspace.corpus / "report" / "fleet.json").write_text(json.dumps(history))


def test_every_voice_with_its_state_its_cost_and_its_champion(workspace: Workspace) -> None:
    fleet = seen(workspace, Asked([MOVE]))
    assert {voice.voice: voice.state for voice in fleet.voices} == {
        "ada": "registered",
        "hostile": "failed",
        "linus": "too_little_data",
    }
    ada = fleet.voices[0]
    assert (ada.champion, ada.summary.model_version) == (2, "3")
    assert ada.summary.likeness == pytest.approx(0.44)
    assert ada.cost["train_seconds"] == 41.2
    assert ada.summary.seconds_in == pytest.approx(ada.summary.seconds_kept + 7.5, abs=0.11)
    assert [entry.move.after for entry in fleet.moves] == [2]
    both = seen(workspace, Asked([MOVE, Move(**{**asdict(MOVE), "alias": "champion-nano"})]))
    assert [aliases for _, aliases in both.moved] == ["champion, champion-nano"]
    assert "champion, champion-nano" in fleet_page(both)
    assert fleet.before is None
    assert fleet.changes == ()


def test_without_a_word_of_a_job_states_follow_from_files(workspace: Workspace) -> None:
    (workspace.corpus / "report" / "outcomes.json").unlink()
    fleet = seen(workspace)
    states = {voice.voice: (voice.state, voice.waits_for) for voice in fleet.voices}
    assert states == {
        "ada": ("trained", "in training, or stopped in it"),
        "hostile": ("prepared", "to be trained"),
        "linus": ("prepared", "to be trained"),
    }
    run = workspace.run("ada", "6" * 20)
    for mark, says in (("trained", "to be evaluated"), ("done", "to be registered"), ("registered", None)):
        (run / f"{mark}.json").write_text("{}")
        (run / "run.json").touch()
        assert seen(workspace).voices[0].waits_for == says
    assert dict(seen(workspace).queue).keys() == {"to be trained"}


def test_compared_with_the_last_morning_of_another_day(workspace: Workspace) -> None:
    remember(
        workspace,
        (NOW - timedelta(days=3), {"hostile": "failed", "gone": "trained"}),
        (NOW - timedelta(days=1), {"hostile": "failed", "ada": "prepared"}),
        (NOW - timedelta(hours=2), {"ada": "registered"}),  # today already
    )
    old = Move(**{**asdict(MOVE), "when": "2026-11-19T02:10:00+00:00"})
    fleet = seen(workspace, Asked([old, MOVE]))
    assert fleet.before == NOW - timedelta(days=1)
    assert [change.voice for change in fleet.changes] == ["ada", "hostile", "linus"]
    assert [entry.move for entry in fleet.moves] == [MOVE]
    assert fleet.voices[1].failed_since == "2026-11-18"
    text = fleet_page(fleet)
    assert "Prepared → Registered" in text
    assert "+30.0 s" in text  # of training: 41.2 s now, 11.2 s then
    assert "1 of 3 voices failed" in text
    assert "since 2026-11-18" in text


def test_a_morning_is_kept_once_a_day(workspace: Workspace) -> None:
    for _ in range(2):
        page = write_fleet_page(workspace, None)
    history = json.loads((workspace.corpus / "report" / "fleet.json").read_text())
    assert len(history) == 1
    assert [entry["voice"] for entry in history[0]["voices"]] == ["ada", "hostile", "linus"]
    assert page == workspace.report.with_name("fleet.html")
    assert "first morning" in page.read_text(encoding="utf-8")


def test_a_registry_that_is_down_is_said_and_hides_nothing_else(workspace: Workspace) -> None:
    text = fleet_page(seen(workspace, Asked([], down=True)))
    assert "Champions are not known: MLflow store http://tracker" in text
    assert "ada" in text


def test_an_empty_corpus_and_none(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "w")
    with pytest.raises(ValueError, match="gsv prepare"):
        seen(workspace)
    workspace.corpus.mkdir()
    (workspace.corpus / "corpus.json").write_text("{}")
    assert "No voices yet" in fleet_page(seen(workspace))


def test_voices_of_other_origin_are_listed_with_what_they_are_made_of(workspace: Workspace) -> None:
    fleet = seen(workspace, Asked([MOVE]))
    assert fleet.registry_says == ""
    assert [(other.voice, other.version, other.champion) for other in fleet.others] == [
        ("mixed", 2, None),
        ("taken", 2, None),
    ]
    assert [other.made_of for other in fleet.others] == [f"blend of {HOSTILE} 60 %, linus 40 %", "imported from X"]
    text = fleet_page(fleet)
    assert "Registered, of other origin" in text
    assert HOSTILE not in text
    assert "of other origin" not in fleet_page(seen(workspace))


def test_hostile_text_is_text_and_links_lead_somewhere(workspace: Workspace) -> None:
    (workspace.run("ada", "7" * 20) / "evaluation.html").write_text("x")
    fleet = seen(workspace, Asked([MOVE]))
    text = fleet_page(fleet)
    assert "<script" not in text
    assert "src=" not in text
    ada = fleet.voices[0]
    assert ada.evaluation == f"../voices/ada/runs/{'7' * 20}/evaluation.html"
    assert f'href="{ada.evaluation}"' in text
    assert 'href="index.html"' not in text  # there is no corpus report yet


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_looked_at_in_a_browser(workspace: Workspace, width: int, scheme: str) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine's path")
    playwright = pytest.importorskip("playwright.sync_api")
    remember(workspace, (NOW - timedelta(days=1), {"ada": "prepared", "hostile": "trained"}))
    place = workspace.report.with_name("fleet.html")
    place.write_text(fleet_page(seen(workspace, Asked([MOVE]))), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.goto(place.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("h1").text_content() == "1 of 3 voices failed"
        browser.close()
    assert said == []
