"""The corpus that the package's fixture made, looked at, opened again, and prepared again."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gsv_core.checkpoints.base import load_base
from jobs.cluster import Cluster
from jobs.prepare import Prepared, derived_from, forecast, left_out, open_prepared, prepare
from jobs.progress import Silent
from jobs.workspace import Workspace
from pipelines.rows import RATE_HZ
from pipelines.storage import LocalStorage
from tests.jobs.conftest import CONFIG, MadeCorpus


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def same(one: Prepared, other: Prepared) -> None:
    """Equal but for where the recordings lay: a unit is known by what is inside."""
    assert one.corpus_digest == other.corpus_digest
    assert one.base.digest == other.base.digest
    assert list(one.voices) == list(other.voices)
    for mine, its in zip(one.voices.values(), other.voices.values(), strict=True):
        assert [unit.unit_id for unit in mine.units] == [unit.unit_id for unit in its.units]
        assert replace(mine, units=()) == replace(its, units=())


@pytest.fixture
def copied(made: MadeCorpus, tmp_path: Path) -> Workspace:
    shutil.copytree(made.workspace.root, tmp_path / "copy")
    return Workspace.open(tmp_path / "copy")


def test_the_corpus_accounts_for_what_came_in(made: MadeCorpus) -> None:
    description = json.loads((made.workspace.corpus / "corpus.json").read_text())
    counts, voices = description["counts"], made.prepared.voices
    assert sorted(voices) == ["ada", "grace", "linus"]
    assert counts["voices"] == 3
    assert counts["seconds_in"] == pytest.approx(sum(voice.seconds_in for voice in voices.values()), abs=1e-3)
    assert made.prepared.units_made == len(description["units"]) > 0
    for name in ("ada", "linus"):
        voice = voices[name]
        assert voice.failed_units == ()
        assert 30 < voice.seconds_kept <= voice.seconds_in
        lengths = [
            line["num_samples"]
            for unit in voice.units
            for line in pq.read_table(
                made.workspace.voice(name) / "manifest" / f"{unit.unit_id}.parquet", columns=["num_samples"]
            ).to_pylist()
        ]
        assert voice.seconds_kept == pytest.approx(sum(lengths) / RATE_HZ)
    assert description["derived_from"] == derived_from(made.base, CONFIG)


def test_a_file_that_cannot_be_read_is_a_row_with_a_reason(made: MadeCorpus) -> None:
    voice, corpus = made.prepared.voices["grace"], LocalStorage(made.workspace.corpus)
    assert voice.seconds_kept == voice.seconds_in == 0
    assert [(entry.reason, entry.count) for entry in left_out(voice, corpus)] == [("unreadable", 1)]
    assert voice.rejections == 1


def test_opened_again_it_is_what_prepare_returned(made: MadeCorpus) -> None:
    again = open_prepared(made.workspace, CONFIG)
    same(again, made.prepared)
    assert again.voices == made.prepared.voices


def test_prepared_again_nothing_is_done_and_no_ray_started(made: MadeCorpus, copied: Workspace, tmp_path: Path) -> None:
    before = files_of(copied.corpus)
    unused = Cluster(CONFIG.cluster, tmp_path)
    again = prepare(made.recordings, copied, CONFIG, unused, Silent())
    assert not unused.started
    assert again.units_made == 0
    assert again.units_done_before == made.prepared.units_made
    same(again, made.prepared)
    assert files_of(copied.corpus) == before
    record = forecast(made.recordings, copied, CONFIG, Silent())
    assert (record.voices, record.units_to_do, record.units_done) == (3, 0, made.prepared.units_made)


def test_a_link_to_nowhere_stands_in_the_inventory_until_it_is_gone(
    made: MadeCorpus, copied: Workspace, tmp_path: Path
) -> None:
    recordings = tmp_path / "recordings"
    shutil.copytree(made.recordings, recordings)
    (recordings / "ada" / "gone.wav").symlink_to("nowhere")
    cluster = Cluster(CONFIG.cluster, tmp_path)
    with_bad = prepare(recordings, copied, CONFIG, cluster, Silent())
    path = copied.voice("ada") / "rejected" / "inventory.parquet"
    (row,) = pq.read_table(path).to_pylist()
    assert (Path(row["uri"]).name, row["stage"], row["reason"]) == ("gone.wav", "ingest", "broken_link")
    assert with_bad.voices["ada"].rejections == made.prepared.voices["ada"].rejections + 1
    lost = {entry.reason: entry for entry in left_out(with_bad.voices["ada"], LocalStorage(copied.corpus))}
    assert lost["broken_link"].count == 1
    assert lost["broken_link"].detail
    same(open_prepared(copied, CONFIG), with_bad)
    (recordings / "ada" / "gone.wav").unlink()
    same(prepare(recordings, copied, CONFIG, cluster, Silent()), made.prepared)
    assert not path.exists()
    assert not cluster.started


def test_a_voice_that_is_taken_away_is_no_longer_of_the_corpus(
    made: MadeCorpus, copied: Workspace, tmp_path: Path
) -> None:
    recordings = tmp_path / "recordings"
    shutil.copytree(made.recordings, recordings)
    shutil.rmtree(recordings / "linus")
    without = prepare(recordings, copied, CONFIG, Cluster(CONFIG.cluster, tmp_path), Silent())
    assert sorted(without.voices) == ["ada", "grace"]
    same(open_prepared(copied, CONFIG), without)


def test_no_corpus_and_a_corpus_of_another_base_are_refused(copied: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gsv prepare RECORDINGS"):
        open_prepared(Workspace.open(tmp_path / "empty"), CONFIG)
    path = copied.corpus / "corpus.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_digest": "0" * 64, "release": "v2"}))
    with pytest.raises(ValueError, match="made for base v2"):
        open_prepared(copied, CONFIG)


def test_what_made_a_member_is_named() -> None:
    base = load_base("nano")
    assert derived_from(base, CONFIG)["semantic"] == base.token_digest
    engines = replace(CONFIG.flow.engines, speaker_verifier="ecapa")
    other = replace(CONFIG, flow=replace(CONFIG.flow, engines=engines))
    changed = {key for key, value in derived_from(base, other).items() if value != derived_from(base, CONFIG)[key]}
    assert changed == {"speaker"}


def test_a_word_in_a_lexicon_makes_again_only_what_it_may_change(
    made: MadeCorpus, copied: Workspace, tmp_path: Path
) -> None:
    recordings = tmp_path / "recordings"
    shutil.copytree(made.recordings, recordings)
    done = made.prepared.units_made
    words = recordings / "ada" / "lexicon.tsv"
    transcripts = [file.read_text(encoding="utf-8") for file in (recordings / "ada").glob("*.txt")]
    words.write_text(f"{transcripts[0].split()[0].strip('.,')}\tN OW1\n", encoding="utf-8")
    record = forecast(recordings, copied, CONFIG, Silent())
    assert record.units_to_do == len(made.prepared.voices["ada"].units) < done
    # For all voices, a word that no transcript holds redoes only what a recogniser writes down.
    shared = tmp_path / "words.tsv"
    shared.write_text("Xyzzy\tZ IH1 Z IY0\n", encoding="utf-8")
    words.unlink()
    unwritten = [
        voice
        for voice, made_voice in made.prepared.voices.items()
        if any(source.transcript is None for unit in made_voice.units for source in unit.sources)
    ]
    record = forecast(recordings, copied, replace(CONFIG, lexicon=str(shared)), Silent())
    assert record.units_to_do == sum(len(made.prepared.voices[voice].units) for voice in unwritten)
