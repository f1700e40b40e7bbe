import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gsv_core.checkpoints.releases import Release
from pipelines.engines.choose import EngineConfig
from pipelines.flow import Flow, FlowConfig, build_flow
from pipelines.stages.screen import Bounds
from pipelines.stages.separate import SeparationConfig
from pipelines.stages.shard import ShardWriter
from pipelines.stages.transcribe import Guards


def flow(config: FlowConfig | None = None, **changes: Any) -> Flow:
    made_of = {"base_digest": "b", "symbols": "v2", "derived_from": {"content": "c"}, **changes}
    return build_flow(config or FlowConfig(), **made_of)


def test_the_stages_come_in_the_order_of_the_design() -> None:
    names = [stage.name for stage in flow().stages]
    assert names == ["ingest", "normalise", "slice", "transcribe", "phonemise", "features", "screen"]
    assert isinstance(flow().writer, ShardWriter)


def test_settings_reach_the_stages_they_are_for() -> None:
    config = FlowConfig(target_lufs=-20.0, shortest_s=1.5, longest_s=8.0, bounds=Bounds(least_snr_db=9.0))
    stages = {stage.name: vars(stage) for stage in flow(config, symbols="v1").stages}
    assert stages["normalise"]["target_lufs"] == -20.0
    assert (stages["slice"]["shortest_s"], stages["slice"]["longest_s"]) == (1.5, 8.0)
    assert (stages["transcribe"]["shortest_s"], stages["transcribe"]["longest_s"]) == (1.5, 8.0)
    assert stages["phonemise"]["symbols"] == "v1"
    assert stages["features"]["base_digest"] == "b"
    assert stages["screen"]["bounds"].least_snr_db == 9.0


def test_a_gpu_goes_to_the_stages_with_models_and_leaves_the_digest_alone() -> None:
    with_gpu = flow(FlowConfig(gpus=0.5))
    assert [stage.name for stage in with_gpu.stages if stage.resources.gpus] == ["transcribe", "features", "screen"]
    assert with_gpu.digest == flow().digest


def test_separation_is_a_stage_of_its_own_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.flow.separator_versions", lambda engine: {engine: "1"})
    with_it = flow(FlowConfig(separation=SeparationConfig(mode="auto")))
    assert [stage.name for stage in with_it.stages][1:4] == ["normalise", "separate", "slice"]
    assert with_it.engine_versions["rnnoise"] == "1"
    assert with_it.digest != flow().digest
    assert flow(FlowConfig(separation=SeparationConfig(mode="off", least_gain=9.0))).digest == flow().digest


def test_where_models_lie_and_how_many_windows_are_read_at_once_decide_nothing(tmp_path: Path) -> None:
    digests = set()
    for number, name in enumerate(("one", "two"), start=1):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_bytes(b"weights")
        engines = EngineConfig(recogniser="whisperx", recogniser_model=str(tmp_path / name), recogniser_batch=number)
        digests.add(flow(FlowConfig(engines=engines)).digest)
    (tmp_path / "two" / "model.bin").write_bytes(b"other weights")
    assert len(digests) == 1
    assert flow(FlowConfig(engines=engines)).digest not in digests


@pytest.mark.parametrize(
    "other",
    [
        flow(FlowConfig(target_lufs=-18.0)),
        flow(FlowConfig(bounds=Bounds(least_snr_db=6.0))),
        flow(FlowConfig(engines=EngineConfig(quality="none"))),
        flow(derived_from={"content": "other"}),
        replace(flow(), writer=ShardWriter(most_examples=10)),
        replace(flow(), engine_versions={"pocketsphinx": "0"}),
    ],
)
def test_whatever_decides_the_result_changes_the_digest(other: Flow) -> None:
    assert other.digest != flow().digest


def test_where_the_base_lies_does_not_change_the_digest() -> None:
    assert flow(FlowConfig(base_folder="/models")).digest == flow().digest


@pytest.mark.parametrize("other", [flow(derived_from={"content": "other"}), flow(FlowConfig(release=Release.V2))])
def test_what_was_heard_stays_when_the_base_changes(other: Flow) -> None:
    assert other.heard_digest == flow().heard_digest


def test_what_was_heard_depends_on_how() -> None:
    for other in (flow(FlowConfig(shortest_s=3.0)), flow(FlowConfig(guards=Guards(most_repeats=None)))):
        assert other.heard_digest != flow().heard_digest


def test_the_flow_travels_and_its_fingerprint_can_be_stored() -> None:
    there = pickle.loads(pickle.dumps(flow()))
    assert there == flow()
    assert there.digest == flow().digest
    assert json.loads(json.dumps(flow().fingerprint()))["engines"].keys() >= {"pocketsphinx", "resemblyzer"}


def test_lengths_that_fit_no_stage_are_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="slice: need"):
        flow(FlowConfig(shortest_s=9.0, longest_s=8.0))
