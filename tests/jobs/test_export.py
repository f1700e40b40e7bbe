import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import jobs.export
from gsv_core.audio.wav import read_wav
from gsv_core.checkpoints.base import BaseModel
from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.checkpoints.upstream import read_upstream
from gsv_core.checkpoints.upstream_recognition import Part, inspect_file, require
from gsv_core.checkpoints.upstream_settings import why_upstream_cannot_build
from gsv_core.checkpoints.weights import save_weights
from gsv_core.networks.semantic_to_mel import SemanticToMel
from gsv_core.synthesis.synthesiser import Prompt
from gsv_core.training.batches import TrainingItem
from gsv_core.training.schedules import PhasePlan, Trains
from gsv_core.training.semantic_trainer import SemanticTrainer
from jobs.cli import main
from jobs.export import Trained, adapted, export_run, merged, write_pair
from jobs.register import register_voice
from jobs.tracking import Tracker
from pipelines.sources import _from_table
from tests.gsv_core.made_bases import small_mel_release
from tests.jobs.made_voices import close, small_base
from tests.jobs.run_fixture import PAIRS, tone, write_nano_run, write_run


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return small_base(Release.V2_PRO)


def write_v2pro_run(corpus: Path, base: BaseModel) -> Path:
    """A run whose voice changes one bias of each network."""
    folder = write_run(corpus, base_digest=base.digest, release="v2Pro")
    for name, key, network in zip(
        PAIRS[1], ("bert_proj.bias", "dec.conv_pre.bias"), (base.text_to_semantic, base.acoustic)
    ):
        tensor = network.state_dict()[key] + 0.5
        metadata = {"base_digest": base.digest, "step": str(int(name.rpartition("s")[2]))}
        save_weights(folder / "weights" / f"{name}.safetensors", {key: tensor}, metadata)
    Prompt(
        text="Good morning,\nA|B.",
        language="en",
        phoneme_ids=torch.arange(5),
        tokens=torch.arange(75),
        wave=torch.from_numpy(tone(3.0)),
    ).save(folder)
    return folder


def test_a_run_becomes_the_two_files_under_upstreams_names(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.export, "load_base", lambda *_: base)
    run_dir = write_v2pro_run(tmp_path / "corpus", base)
    exported = export_run(run_dir, tmp_path / "out")
    # 40 steps of 8 clips and 60 of 4, over 9 clips, in passes.
    assert [path.name for path in exported.files] == ["alice-e36.ckpt", "alice_e27_s60.pth"]
    semantic, wave = map(read_upstream, exported.files)
    assert wave.header == b"05"
    own = base.acoustic.state_dict()
    assert wave.weights.keys() == {name for name in own if not name.startswith("enc_q.")}
    assert close(wave.weights["dec.conv_pre.bias"], own["dec.conv_pre.bias"] + 0.5)
    assert close(wave.weights["dec.conv_post.weight"], own["dec.conv_post.weight"])
    assert close(semantic.weights["model.bert_proj.bias"], base.text_to_semantic.state_dict()["bert_proj.bias"] + 0.5)
    for path, part in zip(exported.files, (Part.TEXT_TO_SEMANTIC, Part.SEMANTIC_TO_WAVE)):
        require(inspect_file(path), Release.V2_PRO, part)
        assert inspect_file(path).training_paths == {}
    assert str(tmp_path) not in str(wave.config) + str(semantic.config)
    assert "utils" not in sys.modules
    recording, line = exported.reference
    samples, rate_hz = read_wav(recording.read_bytes())
    assert (rate_hz, len(samples)) == (32_000, 96_000)
    assert abs(samples - tone(3.0)).max() < 2e-5
    (found,) = _from_table(line)
    assert found.card.voice == "alice"
    # The text keeps its `|`, and a line stays a line.
    assert found.files == [(str(recording), {"language": "en", "transcript": "Good morning, A|B."})]


def test_a_registered_version_gives_the_same_files(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs.export, "load_base", lambda *_: base)
    run_dir = write_v2pro_run(tmp_path / "corpus", base)
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "corpus")
    register_voice(tracker, run_dir)
    ours = export_run(run_dir, tmp_path / "out")
    assert main(["export", "--workspace", str(tmp_path), "--voice", "alice", "--out", str(tmp_path / "again")]) == 0
    assert "alice_e27_s60.pth" in capsys.readouterr().out
    for path in ours.files:
        theirs = read_upstream(tmp_path / "again" / path.name)
        assert theirs.info == read_upstream(path).info
        assert all(torch.equal(theirs.weights[name], t) for name, t in read_upstream(path).weights.items())
    other = replace(base, digest="0" * 64)
    monkeypatch.setattr(jobs.export, "load_base", lambda *_: other)
    assert main(["export", "--workspace", str(tmp_path), "--voice", "alice"]) == 2
    assert "was trained on base v2Pro" in capsys.readouterr().err


def test_nano_and_other_sizes_are_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_nano_run(tmp_path / "corpus")
    assert main(["export", "--run", str(run_dir), "--out", str(tmp_path / "out")]) == 2
    assert "GPT-SoVITS cannot speak with a voice of nano" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    spec = RELEASES[Release.V2]
    assert why_upstream_cannot_build(spec) is None
    assert spec.semantic_to_wave is not None
    wider = replace(spec, semantic_to_wave=replace(spec.semantic_to_wave, posterior_layers=4))
    assert why_upstream_cannot_build(wider) == "posterior_layers is 4, there it is always 16"
    assert all(why_upstream_cannot_build(RELEASES[name]) is None for name in Release if name is not Release.NANO)
    assert main(["export"]) == 2
    assert "name a voice with --voice" in capsys.readouterr().err


def test_a_gpt_trained_by_lora_becomes_a_whole_file(base: BaseModel, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    items = [
        TrainingItem(
            clip_id=f"clip{number}",
            phoneme_ids=torch.randint(1, 300, (12 + number,), generator=draw),
            tokens=torch.randint(1024, (20 + 3 * number,), generator=draw),
            content=torch.zeros(40, 768),
            wave=torch.zeros(40 * 640),
        )
        for number in range(3)
    ]
    plan = PhasePlan(steps=6, batch_size=3, learning_rate=2e-2, trains=Trains.LOW_RANK, rank=4)
    trainer = SemanticTrainer(base, plan, voice="anna")
    before = trainer.evaluate(items)["cross_entropy"]
    for _ in range(6):
        trainer.step(trainer.collate(items))
    after = trainer.evaluate(items)["cross_entropy"]
    assert after < before - 0.1
    trained = Trained(tensors=trainer.weights(), steps=6, epochs=2, batch_size=3)
    nothing = Trained(tensors={}, steps=0, epochs=0, batch_size=4)
    exported = write_pair("anna", base, trained, nothing, tmp_path)
    assert exported.lora_rank is None
    written = read_upstream(exported.files[0]).weights
    assert written.keys() == {f"model.{name}" for name in base.text_to_semantic.state_dict()}
    whole = SemanticTrainer(base, replace(plan, trains=Trains.EVERYTHING), voice="anna")
    whole.network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in written.items()})
    assert whole.evaluate(items)["cross_entropy"] == pytest.approx(after, rel=2e-3)


@pytest.fixture(scope="module")
def flow() -> SemanticToMel:
    config = small_mel_release(Release.V3).semantic_to_mel
    assert config is not None
    torch.manual_seed(0)
    return SemanticToMel(replace(config, condition_layers=8)).requires_grad_(False)


def factors_of(flow: SemanticToMel, rank: int = 2) -> dict[str, torch.Tensor]:
    name = "cfm.estimator.transformer_blocks.0.attn.to_q"
    outputs, inputs = flow.state_dict()[f"{name}.weight"].shape
    return {f"{name}.lora_A": torch.ones(rank, inputs), f"{name}.lora_B": torch.ones(outputs, rank)}


def test_adapters_are_added_to_the_matrices_they_belong_to(flow: SemanticToMel) -> None:
    name = "cfm.estimator.transformer_blocks.0.attn.to_q"
    state = merged(flow, factors_of(flow))
    assert torch.allclose(state[f"{name}.weight"], flow.state_dict()[f"{name}.weight"] + 2)
    with pytest.raises(ValueError, match="not a pair that belongs to it"):
        merged(flow, {"elsewhere.lora_A": torch.ones(2, 2), "elsewhere.lora_B": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="expected no such tensor"):
        merged(flow, {"elsewhere": torch.ones(2)})


@pytest.mark.parametrize("release", [Release.V3, Release.V4])
def test_a_voice_with_adapters_becomes_a_lora_file(flow: SemanticToMel, release: Release, tmp_path: Path) -> None:
    class Base:
        spec = RELEASES[release]
        text_to_semantic = small_base(Release.V2).text_to_semantic
        acoustic = semantic_to_mel = flow
        semantic_to_wave = None

    tensors = factors_of(flow) | {"bridge.0.bias": flow.state_dict()["bridge.0.bias"] + 1}
    nothing = Trained(tensors={}, steps=0, epochs=0, batch_size=8)
    wave = Trained(tensors=tensors, steps=8, epochs=2, batch_size=4)
    exported = write_pair("anna", Base(), nothing, wave, tmp_path)  # type: ignore[arg-type]
    assert exported.files[1].name == "anna_e2_s8_l2.pth"
    found = inspect_file(exported.files[1])
    assert (found.part, found.releases, found.lora_rank, found.problems) == (Part.LORA, (release,), 2, ())
    whole = Trained(tensors={}, steps=8, epochs=2, batch_size=4)
    second = write_pair("whole", Base(), nothing, whole, tmp_path).files[1]  # type: ignore[arg-type]
    # GPT-SoVITS would take a whole file of v4 for one of v3.
    assert second.name == ("whole_e2_s8.pth" if release is Release.V3 else "whole_e2_s8_l1.pth")


def test_what_a_lora_file_cannot_hold_is_named(flow: SemanticToMel) -> None:
    with pytest.raises(ValueError, match=r"also changes cfm\.estimator\.proj_out\.weight"):
        adapted(flow, {"cfm.estimator.proj_out.weight": torch.ones(1)}, rank=2)
