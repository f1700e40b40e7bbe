"""What a run comes to: states, exit codes, and the parts run alone. The whole of it is in tests/end_to_end."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.config import ClusterConfig, JobConfig, TrainingConfig
from jobs.onboard import Registrar, Summary, VoiceSummary, choose, onboard, run_step, summaries, summarise
from jobs.prepare import PreparedVoice
from jobs.progress import Silent
from jobs.promote import Verdict
from jobs.tracking import Registry
from jobs.workspace import Workspace
from pipelines.voice_card import VoiceCard
from tests.jobs.conftest import CONFIG, MadeCorpus, ScoredCorpus
from tests.jobs.run_fixture import write_nano_run

GOOD = VoiceSummary(voice="ada", state="registered", seconds_kept=60.0, model="gsv-ada", version=1)
SHORT = VoiceSummary(voice="grace", state="too_little_data", seconds_kept=3.0)
FAILED = VoiceSummary(voice="linus", state="failed", reason="ValueError: a shard is damaged")


def summary_of(made: MadeCorpus, *voices: VoiceSummary, config: JobConfig = CONFIG) -> Summary:
    registrar = Registrar(made.workspace, config)
    return summarise(list(voices), made.prepared, registrar, Path("index.html"), config, 1.0, False)


def test_exit_code_0_when_every_usable_voice_is_registered(made: MadeCorpus) -> None:
    assert summary_of(made, GOOD).exit_code == 0
    assert summary_of(made, GOOD, SHORT).exit_code == 0


def test_exit_code_3_when_a_voice_failed(made: MadeCorpus) -> None:
    assert summary_of(made, GOOD, FAILED).exit_code == 3


def test_exit_code_3_when_none_is_registered(made: MadeCorpus) -> None:
    assert summary_of(made, SHORT).exit_code == 3
    assert summary_of(made).exit_code == 3


@pytest.mark.parametrize(("rejected", "code"), [(59.0, 0), (60.0, 0), (61.0, 3)])
def test_exit_code_3_when_more_speech_is_rejected_than_allowed(made: MadeCorpus, rejected: float, code: int) -> None:
    summary = summary_of(made, replace(GOOD, seconds_rejected=rejected))
    assert summary.exit_code == code
    assert summary.rejected_share == pytest.approx(rejected / (60 + rejected), abs=1e-4)
    tolerant = replace(CONFIG, most_rejected_share=1.0)
    assert summary_of(made, replace(GOOD, seconds_rejected=rejected), config=tolerant).exit_code == 0


def test_a_summary_is_json_and_says_what_the_base_cannot_do(made: MadeCorpus) -> None:
    record = json.loads(json.dumps(summary_of(made, GOOD, FAILED).record()))
    assert [voice["state"] for voice in record["voices"]] == ["registered", "failed"]
    assert "not speech" in record["speech"]
    assert record["engines"]["recogniser"] == "pocketsphinx"


def states(made: MadeCorpus, failures: dict[str, str], voices: dict[str, PreparedVoice]) -> dict[str, VoiceSummary]:
    prepared = replace(made.prepared, voices=voices)
    selections, tasks = choose(prepared, made.workspace, CONFIG)
    registrar = Registrar(made.workspace, CONFIG)
    lines = summaries(prepared, selections, tasks, registrar, failures, set(), CONFIG, made.workspace)
    return {line.voice: line for line in lines}


def test_each_voice_says_what_became_of_it(made: MadeCorpus) -> None:
    lines = states(made, {"ada": "ValueError: no"}, made.prepared.voices)
    assert (lines["ada"].state, lines["ada"].reason) == ("failed", "ValueError: no")
    assert lines["ada"].utterances > 4
    grace = lines["grace"]
    assert grace.state == "too_little_data"
    assert grace.rejections == {"unreadable": 1}
    assert "0 of at least 4 Utterances" in grace.reason


def test_a_unit_that_could_not_be_made_fails_its_voice(made: MadeCorpus) -> None:
    broken = replace(made.prepared.voices["grace"], failed_units=("MemoryError: too long",))
    grace = states(made, {}, {"grace": broken})["grace"]
    assert (grace.state, grace.reason) == ("failed", "MemoryError: too long")


def test_nothing_usable_ends_with_exit_code_3_and_a_report(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    (recordings / "nobody").mkdir(parents=True)
    (recordings / "nobody" / "notes.txt").write_text("no recording here")
    (recordings / "linked").mkdir()
    (recordings / "linked" / "a.wav").symlink_to("nowhere")
    summary = onboard(recordings, Workspace.open(tmp_path / "w"), CONFIG, Silent())
    assert summary.exit_code == 3
    lines = {voice.voice: voice for voice in summary.voices}
    assert {name: line.state for name, line in lines.items()} == {
        "linked": "too_little_data",
        "nobody": "too_little_data",
    }
    assert lines["linked"].rejections == {"broken_link": 1}
    assert lines["nobody"].reason == "no recordings in its folder"
    assert "nobody" in Path(summary.report).read_text(encoding="utf-8")
    assert not (tmp_path / "w" / "mlflow.db").exists()


@pytest.mark.parametrize("step", ["train", "evaluate"])
def test_a_part_run_alone_does_nothing_that_is_done(scored: ScoredCorpus, step: str) -> None:
    (line,) = run_step(step, scored.workspace, CONFIG, Silent(), only=["ada"])
    told = {"voice": "ada", "run_id": scored.tasks["ada"].run_id, "outcome": "done", "failed": False}
    if step == "train":
        assert line == told
        return
    assert told.items() <= line.items()
    whats = [entry["what"] for entry in line["scores"]]
    assert whats == ["GPT 6 + SoVITS 6", "GPT 12 + SoVITS 6", "base, untuned", "recordings"]
    assert line["chosen"] in whats[:2]
    assert line["scores"][-1]["likeness"] > line["scores"][0]["likeness"]
    assert Path(line["page"]).is_file()


@pytest.mark.parametrize(("step", "outcome"), [("evaluate", "not trained yet"), ("register", "not evaluated yet")])
def test_a_part_run_too_early_says_what_comes_before(made: MadeCorpus, step: str, outcome: str) -> None:
    other = replace(CONFIG, training=TrainingConfig(seed=7))
    lines = run_step(step, made.workspace, other, Silent())
    assert [(line["voice"], line["outcome"], line["failed"]) for line in lines] == [
        ("ada", outcome, False),
        ("grace", "kept 0 of at least 4 Utterances, 0.0 of at least 10 s", False),
        ("linus", outcome, False),
    ]


def test_a_part_for_a_voice_that_is_not_there_is_refused(made: MadeCorpus) -> None:
    with pytest.raises(ValueError, match="--voice nobody: not in the corpus; there are ada, grace, linus"):
        run_step("train", made.workspace, CONFIG, Silent(), only=["nobody"])


def test_an_address_where_nothing_answers_is_refused_before_any_work(made: MadeCorpus, tmp_path: Path) -> None:
    config = replace(CONFIG, cluster=ClusterConfig(ray_address="127.0.0.1:1"))
    with pytest.raises(ValueError, match="ray start --head"):
        onboard(made.recordings, Workspace.open(tmp_path), config, Silent())
    assert not (tmp_path / "corpus").exists()


def test_a_version_counts_only_in_the_store_that_holds_it(made: MadeCorpus, tmp_path: Path) -> None:
    task = made.task("ada", tmp_path / "run")
    workspace = Workspace.open(tmp_path / "w")
    registrar = Registrar(workspace, CONFIG)
    assert registrar.registered(task) is None
    record = {"tracking_uri": registrar.uri, "name": "gsv-ada", "version": 1}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "registered.json").write_text(json.dumps(record))
    assert registrar.registered(task) is None  # the store was thrown away
    (workspace.root / "mlflow.db").touch()
    assert registrar.registered(task) == record
    elsewhere = replace(CONFIG, registry=replace(CONFIG.registry, tracking_uri="http://elsewhere:5000"))
    assert Registrar(workspace, elsewhere).registered(task) is None


def test_a_registry_that_does_not_answer_is_refused_before_registering(made: MadeCorpus) -> None:
    config = replace(CONFIG, registry=replace(CONFIG.registry, tracking_uri="http://127.0.0.1:1"))
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:1"):
        run_step("register", made.workspace, config, Silent())


@pytest.mark.parametrize("passes", [True, False])
def test_a_new_version_goes_through_the_gate_by_itself_where_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: bool
) -> None:
    asked = []

    def gate(registry: Registry, voice: str, config: JobConfig, **wanted: Any) -> Verdict:
        asked.append((registry.prefix, voice, wanted))
        return Verdict(voice=voice, version=1, release="nano", before={}, refusals=() if passes else ("it is worse",))

    monkeypatch.setattr("jobs.promote.promote", gate)
    workspace = Workspace.open(tmp_path / "work")
    run_dir = write_nano_run(workspace.corpus, voice="ada")
    (workspace.corpus / "corpus.json").write_text("{}")
    monkeypatch.setattr("jobs.onboard.report_runs", lambda *_: None)
    card = VoiceCard(voice="ada", display_name="Ada", consent={"by": "Ada"})
    prepared: Any = SimpleNamespace(
        voices={"ada": SimpleNamespace(card=card)}, corpus_digest="c", base=SimpleNamespace(release="nano")
    )
    task: Any = SimpleNamespace(voice="ada", run_dir=str(run_dir))
    failures: dict[str, str] = {}
    for promote, expected in (("manual", None), ("auto", "is champion" if passes else "is not champion: it is worse")):
        config = replace(CONFIG, registry=replace(CONFIG.registry, promote=promote))
        registrar = Registrar(workspace, config)
        (run_dir / "registered.json").unlink(missing_ok=True)
        assert registrar.register([task], prepared, failures, Silent()) == {"ada"}
        assert registrar.promotions.get("ada") == expected
    assert asked == [("gsv-", "ada", {"version": 1, "consent": {"by": "Ada"}})]
    assert failures == {}


def test_a_password_is_not_written_beside_a_run(tmp_path: Path) -> None:
    uri = "postgresql://gsv:not-to-be-shown@db/mlflow"
    registrar = Registrar(
        Workspace.open(tmp_path), replace(CONFIG, registry=replace(CONFIG.registry, tracking_uri=uri))
    )
    assert (registrar.uri, registrar.place) == (uri, "postgresql://db/mlflow")
