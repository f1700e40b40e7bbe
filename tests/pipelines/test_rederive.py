import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gsv_core.checkpoints.base import BaseModel, load_base, load_published
from gsv_core.checkpoints.releases import Release
from jobs.config import JobConfig
from jobs.prepare import derived_from
from pipelines.flow import Flow, build_flow
from pipelines.rederive import Deriver, NotDerivable
from pipelines.rows import Rejection, SpokenClip
from pipelines.runner import _Work
from pipelines.stages import features, transcribe
from pipelines.storage import LocalStorage
from pipelines.units import Committed, Unit, commit, done_path, file_digests, plan, read_plan
from tests.gsv_core.made_bases import small_mel_release, write_mel_release
from tests.pipelines.conftest import source_of


def flow_for(base: BaseModel, symbols: str | None = None) -> Flow:
    config = JobConfig()
    made_by = derived_from(base, config)
    if symbols:
        made_by["phonemes"] = f"symbols {symbols}"
    return build_flow(
        replace(config.flow, release=base.release),
        base_digest=base.digest,
        symbols=symbols or base.spec.symbols,
        derived_from=made_by,
    )


@dataclass(frozen=True)
class Heard:
    """A recording with one clip said to be Mandarin, as far as transcribe; and what the later stages load."""

    work: _Work
    models: dict[str, Any]

    def finish(self, flow: Flow, corpus: LocalStorage) -> Unit:
        """Take the rows through the rest of `flow`, and commit."""
        work = copy.deepcopy(self.work)
        work.unit = Unit.of(work.unit.sources, flow.digest, flow.heard_digest)
        for stage in flow.stages[4:]:
            if stage.name == "features" or stage.name not in self.models:
                self.models[stage.name] = stage.load()
            work.advance(stage, self.models[stage.name], lambda _: None, lambda _: None)
        unit = work.unit
        files = flow.writer.files(unit.voice, unit.unit_id, work.rows, work.rejections, flow.derived_from)
        mark = Committed(
            unit_id=unit.unit_id,
            voice=unit.voice,
            config_digest=unit.config_digest,
            files=file_digests(files),
            accounts=tuple(work.ledger.settle(work.rows, work.rejections)),
            kept=len(work.rows),
            rejected=len(work.rejections),
            counts=work.counts,
        )
        commit(unit, files, mark, corpus)
        return unit


@pytest.fixture(scope="module")
def nano() -> BaseModel:
    return load_base("nano")


@pytest.fixture(scope="module")
def heard(demo_voices: Path, nano: BaseModel) -> Heard:
    path = demo_voices / "ada" / "day_1.wav"
    source = source_of(path, language="en", transcript=path.with_suffix(".txt").read_text(encoding="utf-8").strip())
    work = _Work(unit=Unit.of([source], "none yet"), rows=[source])
    for stage in flow_for(nano).stages[:4]:
        work.advance(stage, stage.load(), lambda _: None, lambda _: None)
    first = work.rows[0]
    assert isinstance(first, SpokenClip)
    work.rows[0] = replace(first, utterance=replace(first.utterance, text="你好吗" * 8, language="zh"))
    return Heard(work, {})


@pytest.fixture
def v3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    """A tiny v3 in published files, which the stage loads where it is asked for v3."""
    spec = small_mel_release(Release.V3)
    write_mel_release(tmp_path / "v3", spec)
    base = load_published(spec, tmp_path / "v3")

    def load(release: Release, folder: Path | None) -> BaseModel:
        return load_published(spec, tmp_path / "v3") if release is Release.V3 else load_base(release, folder)

    monkeypatch.setattr(features, "load_base", load)
    return base


@pytest.fixture
def no_recogniser(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the recogniser was loaded")

    monkeypatch.setattr(transcribe, "load_recogniser", refuse)


def contents(unit: Unit, corpus: LocalStorage) -> dict[str, bytes]:
    mark = Committed.from_json(corpus.read(done_path(unit)))
    return {path: corpus.read(path) for path in (*mark.files, done_path(unit))}


def derived_and_made(
    heard: Heard, before: Flow, after: Flow, tmp_path: Path
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of a unit for `after`: derived from one for `before`, and made by the whole flow."""
    corpus, fresh = LocalStorage(tmp_path / "corpus"), LocalStorage(tmp_path / "fresh")
    earlier = heard.finish(before, corpus)
    unit = Unit.of(earlier.sources, after.digest, after.heard_digest)
    Deriver(after).derive(unit, earlier, corpus)
    return contents(unit, corpus), contents(heard.finish(after, fresh), fresh)


@pytest.mark.usefixtures("no_recogniser")
def test_another_base_gives_the_files_that_the_whole_flow_gives(
    heard: Heard, nano: BaseModel, v3: BaseModel, tmp_path: Path
) -> None:
    derived, made = derived_and_made(heard, flow_for(nano), flow_for(v3), tmp_path)
    assert derived == made
    (shard,) = (data for path, data in made.items() if path.endswith(".tar"))
    assert b"bert.npy" in shard  # of the clip in Mandarin
    assert b"sv.npy" not in shard  # v3 has no speaker encoder


@pytest.mark.usefixtures("no_recogniser")
def test_and_the_way_back_brings_the_speaker_vectors(
    heard: Heard, nano: BaseModel, v3: BaseModel, tmp_path: Path
) -> None:
    derived, made = derived_and_made(heard, flow_for(v3), flow_for(nano), tmp_path)
    assert derived == made


@pytest.mark.usefixtures("no_recogniser")
def test_another_inventory_reads_the_stored_text_again(heard: Heard, nano: BaseModel, tmp_path: Path) -> None:
    before, after = flow_for(nano), flow_for(nano, symbols="v1")
    derived, made = derived_and_made(heard, before, after, tmp_path)
    assert derived == made


def test_only_what_differs_is_computed(heard: Heard, nano: BaseModel, tmp_path: Path) -> None:
    """A base with another codebook needs no encoder: neither the FLAC nor the models behind it are touched."""
    corpus = LocalStorage(tmp_path)
    before = flow_for(nano)
    after = replace(before, derived_from={**before.derived_from, "semantic": "another codebook"})
    earlier = heard.finish(before, corpus)
    unit = Unit.of(earlier.sources, after.digest, after.heard_digest)
    deriver = Deriver(after)
    silent = replace(nano, content_encoder=None, speaker_encoder=None)  # type: ignore[arg-type]
    deriver.__dict__["_base"] = silent
    derived = deriver.derive(unit, earlier, corpus)
    assert derived.kept == len(heard.work.rows)
    assert derived.unit_id != earlier.unit_id


@pytest.mark.parametrize(
    ("stage", "reason", "symbols", "derivable"),
    [
        ("slice", "too_short", "v1", True),
        ("screen", "snr_db", None, True),
        ("screen", "phonemes_per_second", "v1", False),
        ("features", "not_finite", None, False),
    ],
)
def test_a_clip_that_might_now_be_kept_sends_its_unit_through_the_whole_flow(
    heard: Heard, nano: BaseModel, tmp_path: Path, stage: str, reason: str, symbols: str | None, derivable: bool
) -> None:
    corpus = LocalStorage(tmp_path)
    clip = heard.work.rows[-1].utterance
    left_out = Rejection(
        row_id=clip.clip_id,
        voice=clip.voice,
        uri=heard.work.rows[-1].uri,
        stage=stage,
        reason=reason,
        start_sample=clip.start_sample,
        num_samples=clip.num_samples,
    )
    work = copy.deepcopy(heard.work)
    work.rows, work.rejections = work.rows[:-1], [*work.rejections, left_out]
    earlier = Heard(work, heard.models).finish(flow_for(nano), corpus)
    after = flow_for(nano, symbols=symbols)
    after = replace(after, derived_from={**after.derived_from, "semantic": "another codebook"})
    unit = Unit.of(earlier.sources, after.digest, after.heard_digest)
    if derivable:
        assert Deriver(after).derive(unit, earlier, corpus).rejected == len(work.rejections)
        return
    with pytest.raises(NotDerivable, match=reason):
        Deriver(after).derive(unit, earlier, corpus)
    assert not corpus.exists(done_path(unit))


def test_planning_keeps_together_what_can_be_derived(heard: Heard, nano: BaseModel, tmp_path: Path) -> None:
    corpus = LocalStorage(tmp_path)
    before, after = flow_for(nano), flow_for(nano, symbols="v1")
    (source,) = heard.work.unit.sources
    other = replace(source, digest="0" * 64, uri="/other.wav")

    def planned(flow: Flow, *sources: Any) -> Any:
        return plan(sources, flow.digest, corpus, heard_digest=flow.heard_digest)

    assert not planned(before, source).earlier
    earlier = heard.finish(before, corpus)
    assert [unit.unit_id for unit in planned(before, source).done] == [earlier.unit_id]
    for _ in range(2):  # the second time, as after a kill, from the plan that was written
        found = planned(after, source, other)
        assert {unit.sources for unit in found.to_do} == {(source,), (other,)}
        assert found.earlier == {unit.unit_id: earlier for unit in found.to_do if unit.sources == (source,)}
    assert len({unit.unit_id for unit in read_plan(corpus)}) == 3
    # Another way of slicing is heard anew.
    louder = replace(after, writer=replace(after.writer, most_examples=7))
    assert not planned(louder, source).earlier
