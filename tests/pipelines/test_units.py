from dataclasses import replace
from pathlib import Path

from pipelines.rows import Account, Source
from pipelines.storage import LocalStorage
from pipelines.units import Committed, Unit, commit, done_path, file_digests, plan, read_committed


def source(number: int, voice: str = "anna", **changes: object) -> Source:
    values = {"voice": voice, "uri": f"/{voice}/{number}.wav", "digest": f"{number:064x}", "size_bytes": 30 << 20}
    return Source(**{**values, **changes})


def finish(unit: Unit, corpus: LocalStorage) -> None:
    files = {f"voices/{unit.voice}/shards/{unit.unit_id}-00000.tar": b"tar"}
    mark = Committed(
        unit_id=unit.unit_id,
        voice=unit.voice,
        config_digest=unit.config_digest,
        files=file_digests(files),
        accounts=(),
        kept=1,
        rejected=0,
        counts={},
    )
    commit(unit, files, mark, corpus)


def test_a_finished_plan_has_nothing_to_do(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    sources = [source(number) for number in range(7)] + [source(1, "ben")]
    first = plan(sources, "config", corpus)
    assert {unit.voice for unit in first.to_do} == {"anna", "ben"}
    assert sum(len(unit.sources) for unit in first.to_do) == 8
    for unit in first.to_do:
        finish(unit, corpus)
    again = plan(reversed(sources), "config", corpus)
    assert not again.to_do
    assert {unit.unit_id for unit in again.done} == {unit.unit_id for unit in first.to_do}


def test_a_new_recording_adds_a_unit_and_shifts_none(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    # The new digest falls between the others: packing all again would shift them.
    before = plan([source(number) for number in (1, 2, 5, 6)], "config", corpus)
    for unit in before.to_do:
        finish(unit, corpus)
    after = plan([source(number) for number in (1, 2, 4, 5, 6)], "config", corpus)
    assert {unit.unit_id for unit in after.done} == {unit.unit_id for unit in before.to_do}
    assert [entry.digest for unit in after.to_do for entry in unit.sources] == [source(4).digest]


def test_a_renamed_file_is_not_new_and_a_changed_one_is(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    for unit in plan([source(1), source(2)], "config", corpus).to_do:
        finish(unit, corpus)
    renamed = plan([source(1, uri="/anna/other.wav"), source(2)], "config", corpus)
    assert not renamed.to_do
    assert "/anna/other.wav" in {entry.uri for unit in renamed.done for entry in unit.sources}
    assert plan([source(3), source(2)], "config", corpus).to_do
    assert plan([source(1, transcript="corrected"), source(2)], "config", corpus).to_do


def test_another_config_makes_other_units_and_leaves_the_old(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    (unit,) = plan([source(1)], "config", corpus).to_do
    finish(unit, corpus)
    (other,) = plan([source(1)], "another", corpus).to_do
    assert other.unit_id != unit.unit_id
    assert corpus.exists(done_path(unit))
    assert not plan([source(1)], "config", corpus).to_do


def test_a_unit_and_its_mark_survive_their_files(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    unit = Unit.of([replace(source(2), copies=("/x.wav",)), source(1)], "config")
    assert Unit.from_json(unit.to_json()) == unit
    account = Account(
        recording_id="r",
        voice="anna",
        uri="u",
        digest="d",
        duration_samples=3,
        kept_samples=1,
        rejected_samples=1,
        non_speech_samples=1,
    )
    mark = Committed(
        unit_id=unit.unit_id,
        voice="anna",
        config_digest="config",
        files={},
        accounts=(account,),
        kept=1,
        rejected=0,
        counts={"ingest": 2},
    )
    commit(unit, {}, mark, corpus)
    assert read_committed(unit, corpus) == mark


def test_another_lexicon_makes_the_units_of_its_recordings_again_and_no_other(tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    for unit in plan([source(1), source(2, "ben")], "config", corpus).to_do:
        finish(unit, corpus)
    again = plan([source(1, lexicon="words"), source(2, "ben")], "config", corpus)
    assert [unit.voice for unit in again.to_do] == ["anna"]
    assert [unit.voice for unit in again.done] == ["ben"]
    assert Unit.from_json(again.to_do[0].to_json()) == again.to_do[0]
