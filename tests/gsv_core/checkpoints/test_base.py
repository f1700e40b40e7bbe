import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from gsv_core.checkpoints.base import MissingBase, build_nano, load_base, load_published, tensors_digest
from gsv_core.checkpoints.hub import LOCK_NAME, file_digest
from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.features import extract_features, text_vectors_of
from gsv_core.networks.content_encoder import HubertContentEncoder
from gsv_core.networks.semantic_to_wave import SemanticToWave
from gsv_core.text.front_end import phonemise
from tests.gsv_core.made_bases import (
    ENCODER_FILES,
    bigvgan_settings,
    small_mel_release,
    write,
    write_encoders,
    write_mel_release,
    write_text_to_semantic,
)
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
    **ENCODER_FILES,
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
    write_text_to_semantic(folder / PUBLISHED.text_to_semantic_file, base.text_to_semantic)
    semantic_to_wave, discriminators = base.wave_networks()
    files = {
        PUBLISHED.generator_file: {"weight": semantic_to_wave.state_dict(), "config": None, "info": ""},
        PUBLISHED.discriminator_file: {"weight": discriminators.state_dict()},
        PUBLISHED.speaker_encoder_file: base.speaker_encoder.state_dict(),
    }
    for name, content in files.items():
        write(folder / name, content)
    write_encoders(folder)
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


def test_a_file_of_another_release_is_called_by_its_name(published, tmp_path):
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    small = replace(PUBLISHED.semantic_to_wave, speaker_vector_width=None)
    early = replace(small, phoneme_count=322, reference_bins=1025)
    write(tmp_path / PUBLISHED.generator_file, {"weight": SemanticToWave(early).state_dict()})
    with pytest.raises(ValueError, match=r"s2Gv2Pro\.pth: this is v1: 322 phonemes, 732 expected"):
        load_published(PUBLISHED, tmp_path)
    shutil.copy(tmp_path / PUBLISHED.discriminator_file, tmp_path / PUBLISHED.generator_file)
    with pytest.raises(ValueError, match=r"s2Gv2Pro\.pth: this is discriminators .*; semantic-to-wave expected"):
        load_published(PUBLISHED, tmp_path)


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


def test_the_digest_of_a_base_never_changes_its_meaning():
    """Corpora and voices name their base by it: the tensors of these networks in this order, and nothing else."""
    base = load_base("nano")
    assert base.speaker_encoder is not None
    networks = (base.text_to_semantic, *base.wave_networks(), base.speaker_encoder)
    assert base.digest == tensors_digest(*(network.state_dict() for network in networks))


@pytest.fixture(scope="module", params=[Release.V3, Release.V4])
def mel_release(request, tmp_path_factory):
    """Spec, folder and networks of a release that predicts mel spectrograms."""
    folder, spec = tmp_path_factory.mktemp(request.param), small_mel_release(request.param)
    return spec, folder, write_mel_release(folder, spec)


def test_releases_with_a_vocoder_become_the_networks_they_hold(mel_release):
    spec, folder, networks = mel_release
    base = load_published(spec, folder)
    assert base.semantic_to_mel is base.acoustic
    for name in ("semantic_to_mel", "vocoder"):
        loaded = getattr(base, name)
        stored = networks[name].state_dict()
        assert loaded.state_dict().keys() == stored.keys()
        assert all(torch.equal(tensor, stored[key]) for key, tensor in loaded.state_dict().items())
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert base.semantic_to_wave is None
    assert base.discriminators is None
    assert base.speaker_encoder is None

    features = extract_features(base, made_wave(0, 1.0).numpy(), None)
    assert features.tokens.shape == (24,)
    assert features.speaker_vector is None
    assert len(set(features.tokens.tolist())) > 1


def test_the_digest_covers_the_vocoder_and_the_tokens_do_not(mel_release, tmp_path):
    spec, folder, networks = mel_release
    base = load_published(spec, folder)
    halves = networks["text_to_semantic"].half().float()
    tables = (halves.state_dict(), networks["semantic_to_mel"].state_dict(), networks["vocoder"].state_dict())
    assert base.digest == tensors_digest(*tables)
    network, vocoder = base.mel_networks()
    with torch.no_grad():
        vocoder.conv_post.bias = torch.nn.Parameter(torch.ones(1))
    assert tensors_digest(tables[0], network.state_dict(), vocoder.state_dict()) != base.digest
    tokens = {k: v for k, v in network.state_dict().items() if k.split(".")[0] in ("ssl_proj", "quantizer")}
    assert base.token_digest == tensors_digest(tokens)


def test_a_base_says_which_networks_it_has_not(mel_release):
    spec, folder, _ = mel_release
    with pytest.raises(ValueError, match=rf"base {spec.release} predicts mel spectrograms; use v1, v2, v2Pro"):
        load_published(spec, folder).wave_networks()
    with pytest.raises(ValueError, match="base nano predicts no mel spectrograms; use v3 or v4"):
        load_base("nano").mel_networks()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"upsample_rates": [4, 4, 4, 2, 2, 1]},
            r"config\.json describes no vocoder that can be built: need an upsample",
        ),
        ({"upsample_initial_channel": 128}, r"is not the vocoder of v3: .*channels=128.*, not .*channels=64"),
        ({"sampling_rate": 22050}, r"is not the vocoder of v3: sampling_rate 22050, not 24000"),
        ({"fmax": 8000, "hop_size": 300}, "hop_size 300, not 256; fmax 8000, not None"),
        ({"activation": "snake"}, "activation 'snake' is not known here"),
        (None, "it is no table of settings"),
    ],
)
def test_settings_of_another_vocoder_are_refused(tmp_path, change, message):
    spec = small_mel_release(Release.V3)
    write_mel_release(tmp_path, spec)
    settings = [] if change is None else bigvgan_settings(spec) | change
    (tmp_path / spec.vocoder_files[0]).write_text(json.dumps(settings), "utf-8")
    with pytest.raises(ValueError, match=message):
        load_published(spec, tmp_path)


@pytest.mark.parametrize("release", [release for release in Release if RELEASES[release].vocoder is not None])
def test_mel_frames_of_a_release_become_speech_at_its_rate(release):
    spec = RELEASES[release]
    assert spec.vocoder is not None
    assert spec.mel_spectrogram is not None
    assert spec.semantic_to_mel is not None
    frames_per_second = spec.mel_spectrogram.rate_hz / spec.mel_spectrogram.hop
    assert spec.vocoder.hop * frames_per_second == spec.output_rate_hz
    assert spec.semantic_to_mel.frames_per_token * 25 == frames_per_second
    assert spec.vocoder.mel_bands == spec.mel_spectrogram.mel_bands == spec.semantic_to_mel.mel_bands
