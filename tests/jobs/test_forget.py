"""A voice whose consent was withdrawn: nothing of it is left anywhere, and the other voices are whole."""

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from jobs.config import JobConfig, RegistryConfig
from jobs.forget import forget
from jobs.register import register_voice
from jobs.tracking import Registry, Tracker
from jobs.workspace import Workspace
from pipelines.engines.flac import encode_flac
from pipelines.forgotten import read_forgotten
from pipelines.rows import RATE_HZ, SCHEMA_VERSION
from pipelines.sources import gather
from pipelines.storage import JoinedStorage, LocalStorage
from pipelines.units import read_plan
from pipelines.verify import verify_corpus
from pipelines.voice_card import VoiceCard
from tests.jobs.run_fixture import write_nano_run
from tests.jobs.stores import postgres
from tests.pipelines import made_corpus
from tests.pipelines.made_corpus import commit_unit

SECRET = b"only anna says this"
CONSENT = {"by": "Anna", "when": "2026-01-02"}


@pytest.fixture(autouse=True)
def clips_that_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report draws every voice's clips, so they must hold audio."""
    wave = np.sin(np.arange(96_000) * 0.05).astype(np.float32) / 4
    silent, flac = made_corpus.example, encode_flac(wave, RATE_HZ)
    monkeypatch.setattr(made_corpus, "example", lambda *which: replace(silent(*which), flac=flac))


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/workspace/mlflow.db"
        return
    with tempfile.TemporaryDirectory(prefix="gsv-pg-") as folder:
        Path(folder).chmod(0o755)
        with postgres(Path(folder) / "server") as address:
            yield address


def files_with(word: bytes, root: Path) -> list[str]:
    return [str(path) for path in root.rglob("*") if path.is_file() and word in path.read_bytes()]


def a_workspace(root: Path) -> tuple[Workspace, LocalStorage]:
    """Two voices with a committed unit each, their cards, an inventory and a report."""
    workspace = Workspace.open(root)
    corpus = LocalStorage(workspace.corpus)
    recordings = root.parent / "recordings"
    for voice in ("anna", "ben"):
        (recordings / voice).mkdir(parents=True)
        (recordings / voice / "1.wav").write_bytes(voice.encode())
    (recordings / "anna" / "voice.yaml").write_text(json.dumps({"consent": CONSENT}))
    gather(recordings, corpus)
    units = []
    for voice, consent in (("anna", CONSENT), ("ben", None)):
        unit = commit_unit(corpus, voice=voice)
        units.append(unit.unit_id)
        card = VoiceCard(voice=voice, display_name=voice, consent=consent)
        corpus.write(f"voices/{voice}/voice.json", json.dumps(asdict(card)).encode())
    corpus.write("voices/anna/lexicon.tsv", SECRET)
    description = {
        "schema_version": SCHEMA_VERSION,
        "corpus_digest": "0" * 64,
        "release": "nano",
        "engines": {},
        "voices": ["anna", "ben"],
        "units": sorted(units),
        "counts": {"voices": 2, "utterances": 6, "seconds_in": 18.75},
    }
    corpus.write("corpus.json", json.dumps(description).encode())
    corpus.write("report/index.html", SECRET)
    corpus.write("report/voices/anna.html", SECRET)
    (root / "review").mkdir()
    (root / "review" / "index.html").write_bytes(SECRET)
    return workspace, corpus


def config_for(store: str) -> JobConfig:
    return JobConfig(registry=RegistryConfig(tracking_uri=store))


def test_a_voice_of_a_corpus_in_a_store_is_erased_there_and_its_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = a_workspace(tmp_path / "workspace")
    workspace.corpus.rename(tmp_path / "store")
    corpus = JoinedStorage(LocalStorage(tmp_path / "store"), LocalStorage(workspace.corpus))
    workspace.corpus.mkdir()
    (tmp_path / "store" / "report").rename(workspace.report.parent)
    monkeypatch.setattr(Workspace, "storage", corpus)
    run_dir = write_nano_run(workspace.corpus, voice="anna", run_id="r1")
    (run_dir / "report.html").write_bytes(SECRET)
    erasure = forget("anna", workspace, config_for(workspace.default_tracking_uri), really=True)
    assert erasure.counts["runs"] == 1
    assert erasure.counts["utterances"] == 3
    assert files_with(SECRET, tmp_path) == []
    assert corpus.names("voices") == ["ben"]
    assert [record.voice for record in read_forgotten(corpus)] == ["anna"]
    assert "anna" not in workspace.report.read_text(encoding="utf-8")


def test_nothing_of_a_forgotten_voice_is_left(store: str, tmp_path: Path) -> None:
    workspace, corpus = a_workspace(tmp_path / "workspace")
    artefacts = tmp_path / "artefacts"
    tracker = Tracker(store, "corpus", artifact_root=artefacts.as_uri())
    with tracker.parent_run("onboard") as parent:
        for voice in ("anna", "ben"):
            run_dir = write_nano_run(workspace.corpus, voice=voice, run_id=voice * 5)
            (run_dir / "report.html").write_bytes(SECRET if voice == "anna" else b"of ben")
            tracker.log_voice(parent, run_dir)
            register_voice(tracker, run_dir)
        tracker.log_files(parent, workspace.report, "report")
    assert len(files_with(SECRET, tmp_path)) > 5
    before = {path: path.read_bytes() for path in workspace.voice("ben").rglob("*") if path.is_file()}
    traces = Registry(store).traces("anna")
    assert (traces.versions, len(traces.runs), len(traces.logged_models), list(traces.reports)) == (1, 1, 1, [parent])

    planned = forget("anna", workspace, config_for(store))
    assert not planned.done
    assert planned.counts["utterances"] == 3
    assert planned.counts["versions"] == 1
    assert len(files_with(SECRET, tmp_path)) > 5
    assert read_forgotten(corpus) == []

    done = forget("anna", workspace, config_for(store), reason="asked to", really=True)
    assert done.done
    assert done.complete
    assert done.counts == planned.counts
    assert files_with(SECRET, tmp_path) == []
    assert not workspace.voice("anna").exists()
    assert [unit.voice for unit in read_plan(corpus)] == ["ben"]
    description = json.loads(corpus.read("corpus.json"))
    assert description["voices"] == ["ben"]
    assert description["counts"] == {"voices": 1, "utterances": 3, "seconds_in": 9.375}
    assert "anna" not in workspace.report.read_text(encoding="utf-8")
    (record,) = read_forgotten(corpus)
    assert (record.voice, record.reason, record.counts) == ("anna", "asked to", planned.counts)
    assert record.consent_id == VoiceCard(voice="anna", display_name="", consent=CONSENT).consent_id

    assert Registry(store).voices() == ["ben"]
    after = Registry(store).traces("anna")
    assert not after.registered
    assert not after.runs
    assert not after.logged_models
    for place in (*traces.runs.values(), *traces.logged_models.values()):
        assert not list(Path(place.removeprefix("file://")).rglob("*.*"))
    if store.startswith("sqlite"):
        with sqlite3.connect(store.removeprefix("sqlite:///")) as database:
            runs = [row[0] for row in database.execute("select run_uuid from runs")]
        assert set(runs).isdisjoint(traces.runs)
    others = Registry(store).traces("ben")
    assert (others.versions, len(others.runs), len(others.logged_models)) == (1, 1, 1)
    assert {path: path.read_bytes() for path in workspace.voice("ben").rglob("*") if path.is_file()} == before
    assert verify_corpus(corpus).damage == ()

    again = forget("anna", workspace, config_for(store), really=True)
    assert again.counts["files"] == 0
    assert read_forgotten(corpus) == [record]


def test_its_recordings_are_left_out_until_there_is_a_new_consent(tmp_path: Path) -> None:
    workspace, corpus = a_workspace(tmp_path / "workspace")
    forget("anna", workspace, config_for(workspace.default_tracking_uri), really=True)
    forgotten = {record.voice: record.consent_id for record in read_forgotten(corpus)}
    recordings = tmp_path / "recordings"
    handed_in = gather(recordings, corpus, forgotten=forgotten)
    assert handed_in.withdrawn == ("anna",)
    assert [card.voice for card in handed_in.cards] == ["ben"]
    assert files_with(b"anna", workspace.corpus) == [str(workspace.corpus / "forgotten" / "anna.json")]
    (recordings / "anna" / "voice.yaml").unlink()
    assert gather(recordings, corpus, forgotten=forgotten).withdrawn == ("anna",)
    (recordings / "anna" / "voice.yaml").write_text(json.dumps({"consent": {**CONSENT, "when": "2026-11-21"}}))
    handed_in = gather(recordings, corpus, forgotten=forgotten)
    assert handed_in.withdrawn == ()
    assert [source.voice for source in handed_in.sources] == ["anna", "ben"]


@pytest.mark.parametrize("voice", ["nobody", "..", "", "a/b"])
def test_a_voice_that_is_not_there_is_named(tmp_path: Path, voice: str) -> None:
    workspace, _ = a_workspace(tmp_path / "workspace")
    with pytest.raises(ValueError, match=r"not in|no name of a voice"):
        forget(voice, workspace, config_for(workspace.default_tracking_uri), really=True)
    assert workspace.voice("anna").is_dir()
    assert workspace.voice("ben").is_dir()
