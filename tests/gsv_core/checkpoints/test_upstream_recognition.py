from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import torch

from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.checkpoints.upstream import UpstreamFile
from gsv_core.checkpoints.upstream_recognition import Part, inspect_file, require
from gsv_core.checkpoints.upstream_settings import second_settings, semantic_settings
from gsv_core.checkpoints.upstream_writing import second_file, semantic_file, write_upstream
from gsv_core.checkpoints.weights import save_weights
from gsv_core.networks.bigvgan import BigVganVocoder
from gsv_core.networks.discriminators import Discriminators
from gsv_core.networks.lora import FLOW_TARGETS, add_lora, trained_state, upstream_names
from gsv_core.networks.semantic_to_mel import SemanticToMel
from gsv_core.networks.semantic_to_wave import SemanticToWave
from gsv_core.networks.speaker_encoder import SpeakerEncoder
from gsv_core.networks.text_to_semantic import TextToSemantic
from gsv_core.networks.vocoder import HifiGanVocoder

WAVE_RELEASES = (Release.V1, Release.V2, Release.V2_PRO, Release.V2_PRO_PLUS)


def cropped(network_class, config):
    """A state dict with all names of a full-size network and next to nothing in it; embeddings keep their rows."""
    with torch.device("meta"):
        state = network_class(config).state_dict()
    return crop(state)


def crop(state):
    return {
        name: torch.zeros(
            [length if axis == 0 and "embedding" in name else min(length, 2) for axis, length in enumerate(t.shape)]
        )
        for name, t in state.items()
    }


def wave_file(release, **changes):
    spec = RELEASES[release]
    weights = cropped(SemanticToWave, spec.semantic_to_wave) | changes.pop("weights", {})
    settings = second_settings(spec, "anna", epochs=8, batch_size=4)
    return replace(second_file(weights, settings, release, epochs=8, steps=200), **changes)


@pytest.fixture
def put(tmp_path):
    def write(file, name="a.pth"):
        write_upstream(tmp_path / name, file)
        return tmp_path / name

    return write


@pytest.mark.parametrize("release", WAVE_RELEASES)
def test_voices_of_each_release_are_recognised_whole_without_their_posterior_encoder(put, release):
    found = inspect_file(put(wave_file(release)))
    assert (found.part, found.releases, found.problems) == (Part.SEMANTIC_TO_WAVE, (release,), ())
    assert (found.epochs, found.steps, found.phonemes) == (8, 200, 322 if release is Release.V1 else 732)
    assert found.config_kind == "settings object"
    assert found.training_paths == {}
    require(found, release, Part.SEMANTIC_TO_WAVE)


def test_a_name_of_the_file_or_its_size_says_nothing(put):
    assert inspect_file(put(wave_file(Release.V2), "s2Gv1.pth")).releases == (Release.V2,)


def test_a_v1_file_given_as_v2_is_called_by_its_phonemes(put):
    found = inspect_file(put(wave_file(Release.V1)))
    with pytest.raises(ValueError, match="this is v1: 322 phonemes, 732 expected"):
        require(found, Release.V2, Part.SEMANTIC_TO_WAVE)
    spec = RELEASES[Release.V1]
    weights = {f"model.{name}": t for name, t in cropped(TextToSemantic, spec.text_to_semantic).items()}
    settings = semantic_settings(spec.text_to_semantic, "anna", epochs=15, batch_size=8)
    gpt = inspect_file(put(semantic_file(weights, settings, epochs=15), "a.ckpt"))
    assert (gpt.part, gpt.release, gpt.epochs, gpt.problems) == (Part.TEXT_TO_SEMANTIC, "v1", 15, ())
    with pytest.raises(ValueError, match="this is v1: 512 phonemes, 732 expected"):
        require(gpt, Release.V2_PRO, Part.TEXT_TO_SEMANTIC)
    with pytest.raises(ValueError, match=r"this is text-to-semantic .*; semantic-to-wave expected"):
        require(gpt, Release.V1, Part.SEMANTIC_TO_WAVE)


def test_gpt_of_v2_fits_all_that_came_after(put):
    spec = RELEASES[Release.V2]
    weights = {f"model.{name}": t for name, t in cropped(TextToSemantic, spec.text_to_semantic).items()}
    found = inspect_file(put(semantic_file(weights, {}, epochs=1)))
    assert found.release == "v2 or later"
    assert found.phonemes == 732  # of the rows: it has no settings
    require(found, Release.V4, Part.TEXT_TO_SEMANTIC)


def test_missing_and_left_over_names_are_told_and_refused(put):
    file = wave_file(Release.V2)
    del file.weights["dec.conv_pre.weight"]
    file.weights["surprise"] = torch.zeros(1)
    found = inspect_file(put(file))
    assert found.problems == ("1 missing (dec.conv_pre.weight); 1 not expected (surprise)",)
    with pytest.raises(ValueError, match=r"is not whole: 1 missing \(dec\.conv_pre\.weight\)"):
        require(found, Release.V2, Part.SEMANTIC_TO_WAVE)


def test_part_of_a_posterior_encoder_is_no_harmless_absence(put):
    found = inspect_file(put(replace(wave_file(Release.V2), weights=cropped_with_half_a_posterior())))
    assert "missing (enc_q." in found.problems[0]


def cropped_with_half_a_posterior():
    weights = cropped(SemanticToWave, RELEASES[Release.V2].semantic_to_wave)
    return {name: t for name, t in weights.items() if not name.startswith("enc_q.enc.")}


def test_a_header_that_contradicts_the_tensors_is_told(put):
    found = inspect_file(put(replace(wave_file(Release.V2), header=b"05")))
    assert found.releases == (Release.V2,)
    assert found.problems == ("its first two bytes say v2Pro, its tensors do not",)
    unknown = wave_file(Release.V2, weights={"enc_p.text_embedding.weight": torch.zeros(400, 2)})
    assert "400 phonemes; GPT-SoVITS has 322 or 732" in inspect_file(put(unknown)).problems[0]


@pytest.mark.parametrize("release", [Release.V3, Release.V4])
def test_lora_files_say_their_rank_and_release(put, release):
    spec = RELEASES[release]
    with torch.device("meta"):
        network = SemanticToMel(replace(spec.semantic_to_mel, flow_layers=2))
        add_lora(network.cfm, FLOW_TARGETS, rank=4)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora" in name or not name.startswith(("cfm", "enc_p", "ssl_proj")))
    weights = upstream_names(crop(trained_state(network)))
    settings = second_settings(spec, "anna", epochs=2, batch_size=4, lora_rank=4)
    path = put(second_file(weights, settings, release, epochs=2, steps=8, lora_rank=4))
    found = inspect_file(path)
    assert (found.part, found.releases, found.lora_rank, found.problems) == (Part.LORA, (release,), 4, ())
    lacking = {name: t for name, t in weights.items() if "to_v.lora_B" not in name}
    lacking_file = second_file(lacking, settings, release, epochs=2, steps=8, lora_rank=4)
    assert inspect_file(put(lacking_file)).problems[0].startswith("2 missing (cfm.base_model.model.")


def test_whole_files_of_v3_and_v4_differ_in_settings_alone(put):
    weights = cropped(SemanticToMel, RELEASES[Release.V3].semantic_to_mel)
    for release in (Release.V3, Release.V4):
        settings = second_settings(RELEASES[release], "anna", epochs=1, batch_size=1)
        found = inspect_file(put(UpstreamFile(weights=weights, config=settings, config_is_object=True)))
        assert (found.part, found.releases, found.problems) == (Part.SEMANTIC_TO_MEL, (release,), ())
    silent = inspect_file(put(UpstreamFile(weights=weights)))
    assert silent.releases == (Release.V3, Release.V4)
    assert "nothing in it says which" in silent.evidence


@pytest.mark.parametrize(
    ("network", "config", "part", "releases"),
    [
        (Discriminators, RELEASES["v2"].discriminators, Part.DISCRIMINATORS, (Release.V1, Release.V2)),
        (Discriminators, RELEASES["v2Pro"].discriminators, Part.DISCRIMINATORS, (Release.V2_PRO, Release.V2_PRO_PLUS)),
        (HifiGanVocoder, RELEASES["v4"].vocoder, Part.VOCODER, (Release.V4,)),
        (BigVganVocoder, RELEASES["v3"].vocoder, Part.VOCODER, (Release.V3,)),
        (
            SpeakerEncoder,
            RELEASES["v2Pro"].speaker_encoder,
            Part.SPEAKER_ENCODER,
            (Release.V2_PRO, Release.V2_PRO_PLUS),
        ),
    ],
)
def test_the_other_parts_are_recognised(put, network, config, part, releases):
    table = {Discriminators: "weight", BigVganVocoder: "generator"}.get(network)
    found = inspect_file(put(UpstreamFile(weights=cropped(network, config), table=table)))
    assert (found.part, found.releases, found.problems) == (part, releases, ())


def test_resume_states_say_their_epoch(tmp_path):
    content = {"model": {"0.weight": torch.ones(2)}, "iteration": 7, "optimizer": {}, "learning_rate": 1e-4}
    torch.save(content, tmp_path / "G_233333333333.pth")
    found = inspect_file(tmp_path / "G_233333333333.pth")
    assert (found.part, found.epochs) == (Part.RESUME_STATE, 7)


def test_our_own_files_are_described(tmp_path):
    metadata = {"release": "v2", "base_digest": "b" * 64, "phase": "wave", "step": "200"}
    save_weights(tmp_path / "wave.safetensors", {"dec.a": torch.ones(2, 3)}, metadata)
    found = inspect_file(tmp_path / "wave.safetensors")
    assert (found.part, found.release, found.steps, found.values) == (Part.VOICE_WEIGHTS, "v2", 200, 6)
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    assert inspect_file(tmp_path / "other.safetensors").part is Part.TENSORS
    whole = (tmp_path / "wave.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-4])
    with pytest.raises(ValueError, match="damaged safetensors"):
        inspect_file(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of git-lfs"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"hello, this is a note\n", "this is text"),
        (b"IwFl" + bytes(40), "search index of RVC"),
        (b"GGUF" + bytes(40), "GGUF"),
        (b"RIFF" + bytes(40), "recording"),
        (b"\x1f\x8b" + bytes(40), "gzip"),
        (b"\x08\x07\x12\x07pytorch" + bytes(40), "ONNX"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
        (b"\x01\x02\x03\x04" + bytes(40), "no file of torch's"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, content, says):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        inspect_file(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"weight": {"enc_p.emb_phone.weight": torch.ones(1)}, "config": [1025, 32], "sr": "40k", "f0": 1}, "RVC"),
        ({"model": {"enc_p.emb_pitch.weight": torch.ones(1)}, "iteration": 1}, "RVC"),
        ({"model": {"emb_g.weight": torch.ones(1), "f0_decoder.x": torch.ones(1)}, "iteration": 1}, "so-vits-svc"),
        ({"model": {"emb_g.weight": torch.ones(1), "enc_p.emb.weight": torch.ones(1)}}, "VITS"),
        ({"unet.conv.weight": torch.ones(1)}, "is no file of GPT-SoVITS: 1 tensors, such as unet.conv.weight"),
        ({"names": ["a"]}, "holds no table of tensors"),
        ([1, 2, 3], "holds no table of tensors"),
    ],
)
def test_files_of_other_families_are_named(tmp_path, content, says):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=says):
        inspect_file(tmp_path / "a.pth")


def test_what_a_terminal_would_obey_is_not_repeated(put):
    file = wave_file(Release.V2)
    file.weights["\x1b[2Jevil"] = torch.zeros(1)
    config = {**file.config, "exp_dir": "/home/\x1b[31m\nx"}
    found = inspect_file(put(replace(file, config=config, info="1epoch\n\x1b]0;x")))
    shown = [*found.problems, found.info, *found.training_paths.values()]
    assert all(text.isprintable() for text in shown)


def test_settings_out_of_range_do_not_count(put):
    config = {"model": {"n_layers": 10**9, "resblock_kernel_sizes": "x", "upsample_rates": [0]}}
    assert inspect_file(put(wave_file(Release.V2, config=config))).problems == ()


def test_a_record_is_json(put):
    import json

    record = json.loads(json.dumps(inspect_file(put(wave_file(Release.V2_PRO))).record()))
    assert record["releases"] == ["v2Pro"]
    assert record["config"]["model"]["gin_channels"] == 1024


def test_a_state_of_an_unknown_network_is_a_resume_state_only_with_what_resuming_takes(tmp_path):
    path, table = tmp_path / "x.pth", {"0.weight": torch.ones(2)}
    torch.save({"model": table, "iteration": 3, "optimizer": {}, "learning_rate": 1e-4}, path)
    assert inspect_file(path).part is Part.RESUME_STATE
    torch.save({"state_dict": table}, path)
    with pytest.raises(ValueError, match=r"no file of GPT-SoVITS: 1 tensors, such as 0\.weight"):
        inspect_file(path)
