from dataclasses import replace
from pathlib import Path

import pytest
import torch

import jobs.export
import jobs.import_
import jobs.voice_model
from gsv_core.checkpoints.base import BaseModel
from gsv_core.checkpoints.releases import Release
from gsv_core.checkpoints.upstream import read_upstream
from gsv_core.checkpoints.upstream_writing import write_upstream
from gsv_core.checkpoints.weights import load_weights
from gsv_core.networks.lora import upstream_names
from gsv_core.networks.semantic_to_mel import SemanticToMel
from jobs.cli import main
from jobs.export import export_version
from jobs.import_ import Reference, changed_wave, import_voice, plan_import
from jobs.tracking import Registry, Tracker
from jobs.workspace import Workspace
from tests.gsv_core.made_bases import small_mel_release
from tests.jobs.made_voices import small_base, small_release, write_trained
from tests.jobs.run_fixture import tone_wav

TEXT = "Good morning."


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return small_base(Release.V2)


@pytest.fixture
def loaded(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    """`base` wherever a job would load it from a models folder."""
    for module in (jobs.import_, jobs.export, jobs.voice_model):
        monkeypatch.setattr(module, "load_base", lambda *_: base)
    return base


@pytest.fixture(scope="module")
def trained(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_trained(tmp_path_factory.mktemp("trained"), base, small_release(Release.V2))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    path = tmp_path_factory.mktemp("reference") / "a.wav"
    path.write_bytes(tone_wav(3.5))
    return Reference(path=path, text=TEXT, language="en")


def test_two_files_become_a_version_that_loads_and_goes_out_as_it_came(
    loaded: BaseModel, trained: tuple[Path, Path], reference: Reference, tmp_path: Path
) -> None:
    workspace = Workspace.open(tmp_path)
    uri = workspace.default_tracking_uri
    plan = plan_import(*trained, voice="anna", reference=reference)
    assert plan.release is Release.V2
    version = import_voice(plan, workspace, Tracker(uri, "imported"))
    assert import_voice(plan, workspace, Tracker(uri, "imported")) == version
    (found,) = Registry(uri).store.client.search_model_versions("name = 'gsv-anna'")
    assert found.tags["imported"] == "true"
    assert found.tags["imported.wave.file"] == "anna_e8_s200.pth"
    assert len(found.tags["imported.semantic.sha256"]) == 64
    assert found.tags["base_digest"] == loaded.digest
    with Registry(uri).files_of(version) as folder:
        changed, metadata = load_weights(folder / "wave.safetensors")
        # Only what differs: rounding to half precision is no change, and enc_q stays the base's.
        assert changed.keys() == {"dec.conv_pre.bias", "enc_p.proj.bias"}
        assert metadata["step"] == "200"
        assert load_weights(folder / "semantic.safetensors")[0].keys() == {"bert_proj.bias", "ar_predict_layer.weight"}
        voice = jobs.voice_model.load_voice(folder)  # with both halves in their networks
        assert (voice.prompt.text, voice.synthesiser.rate_hz) == (TEXT, 32_000)
    exported = export_version(uri, "anna", tmp_path / "out")
    for path, original in zip(exported.files, trained):
        assert path.name == original.name
        ours, theirs = read_upstream(path), read_upstream(original)
        assert (ours.header, ours.info, list(ours.weights)) == (theirs.header, theirs.info, list(theirs.weights))
        assert all(torch.equal(tensor, theirs.weights[name]) for name, tensor in ours.weights.items())


def test_a_dry_run_describes_and_registers_nothing(
    trained: tuple[Path, Path], reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--voice", "anna", "--reference", str(reference.path), "--text", TEXT, "--language", "en"]
    command = ["import", *map(str, trained), *options, "--workspace", str(tmp_path / "w"), "--dry-run"]
    assert main(command) == 0
    assert "would be registered as voice 'anna' on base v2" in capsys.readouterr().out
    assert not (tmp_path / "w").exists()
    assert main([*command[:2], str(trained[0]), *command[3:]]) == 2
    assert "this is text-to-semantic (v2 or later); semantic-to-wave" in capsys.readouterr().err


def test_files_that_do_not_belong_together_are_refused(
    trained: tuple[Path, Path], reference: Reference, tmp_path: Path
) -> None:
    first, _ = write_trained(tmp_path, small_base(Release.V1), small_release(Release.V1), "old")
    with pytest.raises(ValueError, match="this is v1: 512 phonemes, 732 expected"):
        plan_import(first, trained[1], voice="anna", reference=reference)
    with pytest.raises(ValueError, match="this is v2: 732 phonemes, 322 expected"):
        plan_import(*trained, voice="anna", reference=reference, release="v1")
    with pytest.raises(ValueError, match="no such file"):
        plan_import(*trained, voice="anna", reference=replace(reference, path=tmp_path / "absent.wav"))


def changed_file(path: Path, target: Path, name: str, tensor: torch.Tensor) -> Path:
    file = read_upstream(path)
    write_upstream(target, replace(file, weights=file.weights | {name: tensor}))
    return target


def test_a_voice_of_another_base_is_refused_by_its_tokens(
    base: BaseModel, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    name = "quantizer.vq.layers.0._codebook.embed"
    tensor = read_upstream(trained[1]).weights[name] + 1
    with pytest.raises(ValueError, match="was trained from another base than the v2 here: its tokens differ"):
        changed_wave(changed_file(trained[1], tmp_path / "a.pth", name, tensor), base)
    for tensor, says in (
        (torch.full((16,), float("nan")), "no numbers|expected"),
        (torch.zeros(3), r"is \(3,\), .* expected"),
    ):
        with pytest.raises(ValueError, match=says):
            changed_wave(changed_file(trained[1], tmp_path / "b.pth", "dec.conv_pre.bias", tensor), base)
    with pytest.raises(ValueError, match=r"1 not expected \(surprise\)"):
        changed_wave(changed_file(trained[1], tmp_path / "c.pth", "surprise", torch.zeros(3)), base)


def test_a_reference_of_another_length_is_refused(
    loaded: BaseModel, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    assert loaded.release is Release.V2
    (tmp_path / "short.wav").write_bytes(tone_wav(1.0))
    short = Reference(path=tmp_path / "short.wav", text=TEXT, language="en")
    workspace = Workspace.open(tmp_path)
    plan = plan_import(*trained, voice="anna", reference=short)
    with pytest.raises(ValueError, match=r"should last 3 to 10 s, got 1\.0 s"):
        import_voice(plan, workspace, Tracker(workspace.default_tracking_uri, "imported"))
    assert not (tmp_path / "imported").exists()


def test_adapters_are_taken_over_as_they_are(base: BaseModel, tmp_path: Path) -> None:
    config = small_mel_release(Release.V3).semantic_to_mel
    assert config is not None
    flow = SemanticToMel(config).requires_grad_(False)
    mel_base = replace(base, release=Release.V3, semantic_to_mel=flow)
    name = "cfm.estimator.transformer_blocks.1.attn.to_v"
    outputs, inputs = flow.state_dict()[f"{name}.weight"].shape
    factors = {f"{name}.lora_A": torch.ones(2, inputs), f"{name}.lora_B": torch.full((outputs, 2), 0.5)}
    unused = {key.replace("to_v", "to_k"): torch.zeros_like(tensor) for key, tensor in factors.items()}
    plain = {"bridge.0.bias": flow.state_dict()["bridge.0.bias"] + 1, "wns1.proj.bias": flow.wns1.proj.bias.detach()}
    weights = {key: tensor.half() for key, tensor in upstream_names(plain | factors | unused).items()}
    path = tmp_path / "a.pth"
    write_upstream(path, replace(read_upstream_of(weights, path), header=b"03", lora_rank=2))
    changed = changed_wave(path, mel_base)
    assert changed.keys() == {"bridge.0.bias", *factors}
    assert torch.equal(changed[f"{name}.lora_B"], factors[f"{name}.lora_B"])
    wrong = upstream_names({**factors, f"{name}.lora_B": torch.ones(outputs + 1, 2)})
    write_upstream(path, replace(read_upstream_of(wrong, path), header=b"03", lora_rank=2))
    with pytest.raises(ValueError, match=f"the adapter of {name} belongs to no matrix"):
        changed_wave(path, mel_base)


def read_upstream_of(weights: dict[str, torch.Tensor], path: Path):
    from gsv_core.checkpoints.upstream import UpstreamFile

    write_upstream(path, UpstreamFile(weights=weights))
    return read_upstream(path)
