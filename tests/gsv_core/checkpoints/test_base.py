import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, HubertConfig, HubertModel

from gsv_core.checkpoints.base import MissingBase, build_nano, load_base, load_published, tensors_digest
from gsv_core.checkpoints.hub import LOCK_NAME, file_digest
from gsv_core.checkpoints.releases import BERT_FOLDER, HUBERT_FOLDER, RELEASES, Release
from gsv_core.features import extract_features, text_vectors_of
from gsv_core.networks.content_encoder import HubertContentEncoder
from gsv_core.text.front_end import phonemise
from tests.gsv_core.made_items import made_wave
from tests.shared import shared_path

NANO = RELEASES[Release.NANO]
assert NANO.semantic_to_wave is not None


def test_nano_is_the_same_whatever_was_drawn_before():
    first = load_base("nano")
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = load_base(Release.NANO)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.digest == second.digest
    assert first.token_digest == second.token_digest
    assert build_nano(NANO, seed=1).digest != first.digest


def test_nano_is_the_same_in_another_process():
    code = "import torch; torch.manual_seed(5); from gsv_core.checkpoints.base import load_base; b = load_base('nano');"
    other = subprocess.run(
        [sys.executable, "-c", f"{code} import json; print(json.dumps([b.digest, b.token_digest]))"],
        capture_output=True,
        text=True,
        check=True,
    )
    base = load_base("nano")
    assert json.loads(other.stdout) == [base.digest, base.token_digest]


def test_a_digest_covers_names_types_shapes_and_values():
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    changed = [
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.float64), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.full((1,), 1.0000001)},
    ]
    digests = {tensors_digest(table) for table in (tensors, *changed)}
    assert len(digests) == 5
    assert tensors_digest(dict(reversed(tensors.items()))) == tensors_digest(tensors)


def test_tokens_follow_from_their_own_tensors_only():
    base = load_base("nano")
    network = base.semantic_to_wave
    with torch.no_grad():
        network.dec.conv_pre.weight += 1
    assert (
        tensors_digest({k: v for k, v in network.state_dict().items() if k.split(".")[0] in ("ssl_proj", "quantizer")})
        == base.token_digest
    )


def test_nanos_tokens_spread_over_real_speech():
    """Random directions serve as tokens only if speech uses many of them, none of them most of the time."""
    import soundfile

    from gsv_core.audio.resample import resample

    base = load_base("nano")
    tokens = []
    for path in sorted(shared_path("recordings/voices/lj/clips").glob("*.wav")):
        wave, rate_hz = soundfile.read(path, dtype="float32")
        tokens.append(torch.from_numpy(extract_features(base, resample(wave, rate_hz, 32_000), None).tokens))
    counts = torch.cat(tokens).long().bincount(minlength=1024)
    shares = counts[counts > 0] / counts.sum()
    assert int((counts > 0).sum()) > 200  # of some 800 tokens
    assert float(shares.max()) < 0.15
    assert float((-(shares * shares.log()).sum()).exp()) > 100


def test_missing_files_are_all_named_with_the_command_that_gets_them(tmp_path):
    (tmp_path / "s1v3.ckpt").write_bytes(b"")
    with pytest.raises(MissingBase, match=r"v2Pro/s2Gv2Pro\.pth, .*run `gsv models pull v2Pro`") as error:
        load_base("v2Pro", tmp_path)
    assert "s1v3.ckpt" not in error.value.missing
    assert isinstance(error.value, ValueError)
    with pytest.raises(MissingBase, match="no models folder was given"):
        load_base("v2")
    with pytest.raises(ValueError, match="v9"):
        load_base("v9")


PUBLISHED = replace(
    RELEASES[Release.V2_PRO],
    text_to_semantic=replace(NANO.text_to_semantic, text_vector_width=16),
    semantic_to_wave=replace(NANO.semantic_to_wave, content_width=16),
    discriminators=NANO.discriminators,
    speaker_encoder=NANO.speaker_encoder,
    content_encoder_files=(f"{HUBERT_FOLDER}/config.json", f"{HUBERT_FOLDER}/model.safetensors"),
    text_encoder_files=(f"{BERT_FOLDER}/config.json", f"{BERT_FOLDER}/model.safetensors"),
)
"""v2Pro at toy width, for files in the published formats."""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A models folder with every file of `PUBLISHED`, from a seed, as the published ones are laid out."""
    folder = tmp_path_factory.mktemp("models")
    base = build_nano(
        replace(NANO, text_to_semantic=PUBLISHED.text_to_semantic, semantic_to_wave=PUBLISHED.semantic_to_wave)
    )
    assert base.speaker_encoder is not None
    files = {
        PUBLISHED.text_to_semantic_file: {
            "weight": {f"model.{name}": tensor.half() for name, tensor in base.text_to_semantic.state_dict().items()},
            "config": {"model": {"n_layer": 3}},
            "info": "GPT-e1",
        },
        PUBLISHED.generator_file: {"weight": base.semantic_to_wave.state_dict(), "config": None, "info": ""},
        PUBLISHED.discriminator_file: {"weight": base.discriminators.state_dict()},
        PUBLISHED.speaker_encoder_file: base.speaker_encoder.state_dict(),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        torch.save(content, folder / name)
    torch.manual_seed(0)
    hubert = HubertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    HubertModel(hubert).save_pretrained(folder / HUBERT_FOLDER)
    bert = folder / BERT_FOLDER
    bert.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"你好吗"]
    (bert / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    BertTokenizerFast(vocab_file=str(bert / "vocab.txt")).save_pretrained(bert)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(bert)
    return folder


def test_published_files_become_the_networks_they_hold(published):
    base = load_published(PUBLISHED, published)
    stored = torch.load(published / PUBLISHED.generator_file, weights_only=True)["weight"]
    assert all(torch.equal(tensor, stored[name]) for name, tensor in base.semantic_to_wave.state_dict().items())
    assert isinstance(base.content_encoder, HubertContentEncoder)
    assert not base.text_to_semantic.training
    assert not any(parameter.requires_grad for parameter in base.semantic_to_wave.parameters())

    text = phonemise("你好", "zh", release="v2")
    features = extract_features(base, made_wave(0, 1.0).numpy(), text)
    assert features.content.shape == (49, 16)
    assert features.tokens.shape == (24,)
    assert features.text_vectors is not None
    assert features.text_vectors.shape == (len(text.phonemes), 16)
    assert features.speaker_vector is not None
    assert features.speaker_vector.shape == (640,)


def test_only_mandarin_has_text_vectors(published):
    base = load_published(PUBLISHED, published)
    mixed = phonemise("你好 hello", "zh", release="v2")
    vectors = text_vectors_of(base, mixed)
    assert vectors is not None
    assert len(vectors) == len(mixed.phonemes)
    rows = iter(vectors)
    for span in mixed.spans:
        for _ in span.phonemes:
            assert next(rows).any() == (span.language == "zh")
    assert {span.language for span in mixed.spans} == {"zh", "en"}
    assert text_vectors_of(base, phonemise("hello", "en")) is None


def test_a_file_that_holds_another_network_is_named(published):
    wider = replace(PUBLISHED, text_to_semantic=replace(PUBLISHED.text_to_semantic, layers=4))
    with pytest.raises(ValueError, match=r"s1v3\.ckpt does not hold this network: .*h\.layers\.3"):
        load_published(wider, published)


def test_a_locked_file_that_changed_is_refused(published):
    names = PUBLISHED.files
    entries = {
        name: {"sha256": file_digest(published / name), "bytes": (published / name).stat().st_size} for name in names
    }
    lock = published / LOCK_NAME
    lock.write_text(json.dumps({"schema_version": 1, "files": entries}))
    load_published(PUBLISHED, published)
    entries[names[0]]["sha256"] = "0" * 64
    lock.write_text(json.dumps({"schema_version": 1, "files": entries}))
    with pytest.raises(ValueError, match=r"s1v3\.ckpt changed since it was locked"):
        load_published(PUBLISHED, published)
    lock.unlink()


def test_releases_whose_second_network_does_not_exist_yet_say_so(tmp_path):
    for name in RELEASES[Release.V4].files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be built yet"):
        load_base("v4", tmp_path)
