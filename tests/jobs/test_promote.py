"""The champion moves only to what is not worse, is consented to, and speaks; and it moves back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import jobs.promote
from jobs.config import GateConfig, JobConfig, RegistryConfig
from jobs.promote import Verdict, compare, consent_of, promote, rollback, speaks_alone, spoken_of, version_before
from jobs.register import describe_voice, register_voice
from jobs.tracking import Move, RegisteredVersion, Tracker
from jobs.workspace import Workspace
from tests.jobs.run_fixture import write_nano_run

CONFIG = JobConfig()
GOOD = (0.10, 0.12, 0.08, 0.11, 0.09, 0.10)
SENTENCES = ("One.", "Two.", "Three.", "Four.", "Five.", "Six.")


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", "corpus")


@pytest.fixture
def voice(request: pytest.FixtureRequest) -> str:
    return str(request.node.name).removeprefix("test_")


@pytest.fixture(autouse=True)
def speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate takes the word of a version that it speaks: the process in which it would takes seconds."""
    monkeypatch.setattr(jobs.promote, "speaks_alone", lambda *_, **__: {"seconds": 1.0, "level": 0.1})


def add(
    tracker: Tracker, folder: Path, voice: str, rates: tuple[float, ...], *, consent: Any = None, **changes: Any
) -> RegisteredVersion:
    """A version of `voice` whose sentences had these character error rates; `changes` go into `run.json`."""
    number = len(list(folder.glob("corpus/voices/*/runs/*")))
    run_dir = write_nano_run(folder / "corpus", voice=voice, run_id=f"{voice}-{number}", **changes)
    scores = json.loads((run_dir / "scores.json").read_text(encoding="utf-8"))
    for pair in scores["pairs"]:
        pair["utterances"] = [
            {
                "name": f"en-{number}",
                "text": text,
                "language": "en",
                "numbers": {"character_error_rate": rate, "likeness": 0.9 - rate, "quality": None},
            }
            for number, (text, rate) in enumerate(zip(SENTENCES, rates))
        ]
    (run_dir / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    return register_voice(tracker, run_dir, consent=consent)


def aliases(tracker: Tracker, voice: str) -> dict[str, int]:
    found = tracker.registry.aliases(voice)
    return {alias: version for alias, version in found.items() if alias.startswith("champion")}


def test_the_first_becomes_champion_and_a_worse_one_is_refused_with_numbers(
    tracker: Tracker, tmp_path: Path, voice: str
) -> None:
    first = add(tracker, tmp_path, voice, GOOD)
    verdict = promote(tracker.registry, voice, CONFIG)
    assert (verdict.moved, verdict.refusals) == (("champion-nano", "champion"), ())
    assert aliases(tracker, voice) == {"champion-nano": 1, "champion": 1}
    worse = add(tracker, tmp_path, voice, tuple(rate + 0.2 for rate in GOOD))
    verdict = promote(tracker.registry, voice, CONFIG)
    assert (verdict.version, verdict.moved, verdict.is_champion) == (worse.version, (), False)
    assert (
        "character error rate 0.300 against 0.100 on 6 sentences: worse by 0.2, at worst worse by 0.2; "
        "allowed is worse by 0.05" in verdict.refusals[0]
    )
    assert "likeness 0.600 against 0.800" in verdict.refusals[1]
    assert aliases(tracker, voice) == {"champion-nano": first.version, "champion": first.version}
    assert len(tracker.registry.moves(voice)) == 2


def test_an_equal_and_a_better_one_pass(tracker: Tracker, tmp_path: Path, voice: str) -> None:
    for number, change in enumerate((0.0, 0.0, -0.05), start=1):
        add(tracker, tmp_path, voice, tuple(rate + change for rate in GOOD))
        assert promote(tracker.registry, voice, CONFIG).is_champion
        assert aliases(tracker, voice)["champion"] == number


def test_one_that_may_be_worse_is_refused_although_its_mean_is_not(
    tracker: Tracker, tmp_path: Path, voice: str
) -> None:
    add(tracker, tmp_path, voice, GOOD)
    promote(tracker.registry, voice, CONFIG)
    wild = (0.0, 0.0, 0.0, 0.0, 0.0, 0.55)
    add(tracker, tmp_path, voice, wild)
    verdict = promote(tracker.registry, voice, CONFIG)
    (found, *_) = verdict.comparisons
    assert found.worse_by < 0 < 0.05 < found.worse_by_at_most
    assert not verdict.is_champion


def test_force_moves_it_with_the_reason_on_version_and_voice(tracker: Tracker, tmp_path: Path, voice: str) -> None:
    add(tracker, tmp_path, voice, GOOD)
    promote(tracker.registry, voice, CONFIG)
    add(tracker, tmp_path, voice, tuple(rate + 0.2 for rate in GOOD))
    verdict = promote(tracker.registry, voice, CONFIG, reason="the client prefers it")
    assert verdict.forced
    assert aliases(tracker, voice) == {"champion-nano": 2, "champion": 2}
    tags = tracker.registry.tags_of(tracker.registry.version_of(voice, alias="champion"))
    assert (tags["promoted.forced"], tags["promoted.why"]) == ("true", "the client prefers it")
    assert tags["promoted.by"]
    assert tags["promoted.when"].startswith("20")
    assert "worse than version 1" in tags["promoted.despite"]
    page = tracker.store.client.get_registered_model(f"gsv-{voice}").description
    assert "forced: the client prefers it" in page
    assert page == describe_voice(tracker.registry, voice)
    # Both aliases have moved twice, together: a line each time, and one for where they are.
    assert sum("champion" in line for line in page.splitlines() if line.startswith("| ")) == 1 + 1 + 2
    assert "champion, champion-nano" in page


def test_a_version_that_is_champion_already_stays_so_quietly(tracker: Tracker, tmp_path: Path, voice: str) -> None:
    add(tracker, tmp_path, voice, GOOD)
    promote(tracker.registry, voice, CONFIG)
    verdict = promote(tracker.registry, voice, CONFIG)
    assert (verdict.moved, verdict.is_champion) == ((), True)
    assert len(tracker.registry.moves(voice)) == 2


def test_a_dry_run_moves_nothing(tracker: Tracker, tmp_path: Path, voice: str) -> None:
    add(tracker, tmp_path, voice, GOOD)
    verdict = promote(tracker.registry, voice, CONFIG, dry_run=True)
    assert verdict.moved == ("champion-nano", "champion")
    assert aliases(tracker, voice) == {}
    assert tracker.registry.moves(voice) == []


def test_consent_counts_as_the_card_says_today_and_no_reason_overrules_it(
    tracker: Tracker, tmp_path: Path, voice: str
) -> None:
    strict = JobConfig(registry=RegistryConfig(require_consent=True))
    add(tracker, tmp_path, voice, GOOD, consent={"who": "Anna"})
    for consent, passes in ((None, True), ({}, False), ({"who": "Anna"}, True)):
        verdict = promote(tracker.registry, voice, strict, consent=consent, dry_run=True)
        assert verdict.is_champion == passes
    verdict = promote(tracker.registry, voice, strict, consent={}, reason="in a hurry")
    assert "has no consent" in verdict.refusals[0]
    assert aliases(tracker, voice) == {}
    workspace = Workspace.open(tmp_path / "work")
    assert consent_of(workspace, voice) is None
    assert consent_of(workspace, "../..") is None
    workspace.storage.write(f"voices/{voice}/voice.json", json.dumps({"voice": voice}).encode())
    assert consent_of(workspace, voice) == {}


def test_versions_without_sentences_in_common_are_refused(
    tracker: Tracker, tmp_path: Path, voice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.promote, "_compare_anew", lambda *_: [])
    add(tracker, tmp_path, voice, GOOD)
    promote(tracker.registry, voice, CONFIG)
    add(tracker, tmp_path, voice, GOOD[:3])
    (refusal,) = promote(tracker.registry, voice, CONFIG).refusals
    assert "fewer than 5 sentences in common" in refusal


@pytest.mark.slow
def test_versions_without_sentences_in_common_are_spoken_and_measured_anew(
    tracker: Tracker, tmp_path: Path, voice: str
) -> None:
    for _ in range(2):  # the same weights, so the same speech
        add(tracker, tmp_path, voice, ())
        verdict = promote(tracker.registry, voice, CONFIG)
        assert verdict.is_champion
    assert [found.measure for found in verdict.comparisons] == ["character_error_rate", "likeness", "quality"]
    assert all(found.worse_by == found.worse_by_at_most == 0 for found in verdict.comparisons)
    assert all(found.sentences >= CONFIG.registry.gate.fewest_sentences for found in verdict.comparisons)


def test_each_release_has_a_champion_and_all_have_one(tracker: Tracker, tmp_path: Path, voice: str) -> None:
    add(tracker, tmp_path, voice, GOOD)
    promote(tracker.registry, voice, CONFIG)
    add(tracker, tmp_path, voice, tuple(rate + 0.2 for rate in GOOD), release="v2")
    verdict = promote(tracker.registry, voice, CONFIG)
    assert verdict.moved == ("champion-v2",)
    assert "worse than version 1" in verdict.kept
    assert aliases(tracker, voice) == {"champion-nano": 1, "champion": 1, "champion-v2": 2}
    add(tracker, tmp_path, voice, GOOD, release="v2")
    assert promote(tracker.registry, voice, CONFIG).moved == ("champion-v2", "champion")
    moves = rollback(tracker.registry, voice, reason="sounds odd")
    assert {move.alias: (move.before, move.after) for move in moves} == {"champion": (3, 1), "champion-v2": (3, 2)}
    assert aliases(tracker, voice) == {"champion-nano": 1, "champion": 1, "champion-v2": 2}


def test_rollback_goes_back_step_by_step_and_says_when_there_is_no_more(
    tracker: Tracker, tmp_path: Path, voice: str
) -> None:
    for _ in range(3):
        add(tracker, tmp_path, voice, GOOD)
        promote(tracker.registry, voice, CONFIG)
    for expected in (2, 1):
        rollback(tracker.registry, voice)
        assert aliases(tracker, voice) == {"champion-nano": expected, "champion": expected}
    with pytest.raises(ValueError, match="champion is version 1, and there was none before it"):
        rollback(tracker.registry, voice)
    with pytest.raises(ValueError, match="has no champion-v2; champions: champion, champion-nano"):
        rollback(tracker.registry, voice, release="v2")
    with pytest.raises(ValueError, match="no voice 'nobody'"):
        rollback(tracker.registry, "nobody")
    with pytest.raises(ValueError, match="no voice 'nobody'"):
        promote(tracker.registry, "nobody", CONFIG)
    with pytest.raises(ValueError, match="has no version 9"):
        promote(tracker.registry, voice, CONFIG, version=9)


def move(after: int, before: int | None, kind: str = "promote") -> Move:
    return Move(alias="champion", before=before, after=after, when="", who="", why="", kind=kind)


@pytest.mark.parametrize(
    ("history", "now", "versions", "expected"),
    [
        ([], 4, [3, 4], None),
        ([move(1, None), move(2, 1)], 2, [1, 2], 1),
        ([move(1, None), move(2, 1), move(1, 2, "rollback")], 1, [1, 2], None),
        ([move(1, None), move(2, 1), move(1, 2, "rollback"), move(3, 1)], 3, [1, 2, 3], 1),
        ([move(1, None), move(2, 1), move(3, 2)], 3, [1, 3], 1),  # version 2 was deleted
        ([move(1, None), move(2, 1)], 5, [1, 2, 5], 2),  # moved by hand to 5
        ([move(1, None), move(4, 3)], 4, [1, 3, 4], 3),  # moved by hand to 3 before
    ],
)
def test_the_version_before_is_found_from_the_moves(
    history: list[Move], now: int, versions: list[int], expected: int | None
) -> None:
    assert version_before("champion", now, history, versions) == expected


def test_a_damaged_version_is_refused_before_it_is_loaded(tracker: Tracker, tmp_path: Path, voice: str) -> None:
    version = add(tracker, tmp_path, voice, GOOD)
    with tracker.registry.files_of(version) as folder:
        data = (folder / "wave.safetensors").read_bytes()
        (folder / "wave.safetensors").write_bytes(data[:-1])
        (refusal,) = promote(tracker.registry, voice, CONFIG, reason="whatever").refusals
        assert refusal == "its wave.safetensors is damaged in the registry"
        (folder / "semantic.safetensors").unlink()
        (refusal,) = promote(tracker.registry, voice, CONFIG).refusals
        assert refusal == "its semantic.safetensors is missing in the registry"


def test_measures_of_the_gate_count_towards_worse() -> None:
    champion = {(str(n), "text"): {"likeness": 0.8, "quality": 3.0} for n in range(6)}
    candidate = {(str(n), "text"): {"likeness": 0.9, "quality": 2.5} for n in range(6)}
    likeness, quality = compare(candidate, champion, GateConfig(), ("likeness", "quality", "character_error_rate"))
    assert (likeness.worse_by, likeness.passed) == (pytest.approx(-0.1), True)
    assert str(likeness).endswith("better by 0.1, at worst better by 0.1; allowed is worse by 0.03")
    assert (quality.worse_by, quality.passed) == (pytest.approx(0.5), False)
    other = {(str(n), "another text"): {"likeness": 0.9} for n in range(6)}
    assert compare(other, champion, GateConfig(), ("likeness",)) == []


def test_a_version_speaks_with_its_own_code_in_a_process_of_its_own(
    tracker: Tracker, tmp_path: Path, voice: str
) -> None:
    version = add(tracker, tmp_path, voice, GOOD)
    trial = speaks_alone(tracker.registry, version, models=None, timeout_s=300)
    assert trial["seconds"] > 0.1
    assert trial["rate_hz"] == 32_000
    assert "mlartifacts" in trial["code"], "its own gsv_core, not the one installed here"
    with tracker.registry.files_of(version) as folder:
        shutil.copyfile(folder / "semantic.safetensors", folder / "wave.safetensors")
    said = speaks_alone(tracker.registry, version, models=None, timeout_s=300)
    assert said.startswith("it does not load and speak in a process of its own: ValueError")
    assert speaks_alone(tracker.registry, version, models=None, timeout_s=0.01) == "it did not speak within 0.01 s"


def test_what_the_chosen_pair_alone_said_is_compared_too() -> None:
    numbers = {"character_error_rate": 0.1, "likeness": 0.9, "quality": None, "loop_s": 0.2}
    records = [{"name": f"en-{number}", "text": "Said.", "numbers": numbers} for number in range(5)]
    halves = {"semantic": "a", "wave": "b"}
    scores = {"best": halves, "pairs": [{**halves, "utterances": records[:1]}], "common": records[1:]}
    spoken = spoken_of(scores)
    assert spoken.keys() == {(f"en-{number}", "Said.") for number in range(5)}
    assert spoken["en-4", "Said."] == {"character_error_rate": 0.1, "likeness": 0.9}
    assert [found.sentences for found in compare(spoken, spoken, GateConfig(), ("likeness",))] == [5]
    assert spoken_of({**scores, "common": []}).keys() == {("en-0", "Said.")}


def test_a_verdict_is_json() -> None:
    verdict = Verdict(voice="anna", version=2, release="nano", before={"champion": None}, refusals=("no",))
    assert json.loads(json.dumps(verdict.record()))["is_champion"] is False
