import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel

from gsv_core.networks.content_encoder import HubertContentEncoder, MelContentEncoder, buckets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A HuBERT of toy width in transformers' own format, built from a seed."""
    path = tmp_path_factory.mktemp("hubert-toy")
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    HubertModel(config).save_pretrained(path)
    return path


def _wave(samples=16_000, seed=0):
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * 0.1


def test_hubert_gives_fifty_frames_per_second(folder):
    encoder = HubertContentEncoder(folder)
    content = encoder.encode(_wave())
    assert content.shape == (49, 16)
    assert content.dtype == torch.float32
    assert encoder.width == 16
    assert encoder.encode(_wave(encoder.shortest)).shape == (1, 16)
    with pytest.raises(ValueError, match="400 samples or more"):
        encoder.encode(_wave(encoder.shortest - 1))


def test_hubert_gives_what_transformers_gives(folder):
    network = HubertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = network(torch.from_numpy(_wave()).unsqueeze(0)).last_hidden_state[0]
    torch.testing.assert_close(HubertContentEncoder(folder).encode(_wave()), theirs, atol=1e-5, rtol=0)


def test_hubert_hears_the_same_at_any_level(folder):
    encoder = HubertContentEncoder(folder)
    torch.testing.assert_close(encoder.encode(_wave() * 5), encoder.encode(_wave()), atol=1e-2, rtol=1e-2)


def test_hubert_of_the_pickled_format_is_the_same(folder, tmp_path):
    network = HubertModel.from_pretrained(folder)
    network.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "pytorch_model.bin").exists()
    pickled, plain = HubertContentEncoder(tmp_path), HubertContentEncoder(folder)
    assert torch.equal(pickled.encode(_wave()), plain.encode(_wave()))
    assert len(plain.digest) == 64
    assert pickled.digest != plain.digest


def test_an_incomplete_hubert_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="need config"):
        HubertContentEncoder(tmp_path)
    weights = HubertModel.from_pretrained(folder).state_dict()
    weights.pop("feature_projection.projection.weight")
    HubertModel.from_pretrained(folder).save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"1 weights are missing .*feature_projection"):
        HubertContentEncoder(tmp_path).ready()


def test_mel_bands_are_normalised_over_the_clip():
    encoder = MelContentEncoder(24)
    content = encoder.encode(_wave(16_000))
    assert content.shape == (50, 24)
    torch.testing.assert_close(content.mean(dim=0), torch.zeros(24), atol=1e-4, rtol=0)
    torch.testing.assert_close(content.std(dim=0, correction=0), torch.ones(24), atol=1e-3, rtol=0)
    torch.testing.assert_close(encoder.encode(torch.from_numpy(_wave()) * 3), content, atol=1e-2, rtol=1e-2)


def test_silence_is_zero_and_finite():
    assert MelContentEncoder(8).encode(np.zeros(8000, np.float32)).abs().max() == 0


def test_a_digest_names_the_arithmetic():
    assert MelContentEncoder(24).digest == MelContentEncoder(24).digest != MelContentEncoder(32).digest


@pytest.mark.parametrize("wave", [np.zeros((2, 8000), np.float32), np.zeros(100, np.float32)])
def test_waves_that_do_not_fit_are_refused(wave):
    with pytest.raises(ValueError, match=r"expected a wave \(T,\)"):
        MelContentEncoder(8).encode(wave)


def _clips():
    """Waves of very different length and level, in no order of either."""
    return [
        _wave(samples, seed) * level
        for seed, (samples, level) in enumerate(
            [(16_000, 1.0), (7_321, 500.0), (400, 1.0), (33_000, 0.01), (12_001, 3.0)]
        )
    ]


@pytest.mark.parametrize("longest_batch_s", [1, 3, 160])
def test_hubert_hears_a_clip_alone_as_in_any_batch(folder, longest_batch_s):
    encoder = HubertContentEncoder(folder)
    encoder.longest_batch_s = longest_batch_s
    clips = _clips()
    alone = [encoder.encode(clip) for clip in clips]
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2], [4, 2]):
        together = encoder.encode_batch([clips[number] for number in order])
        for number, batched in zip(order, together, strict=True):
            torch.testing.assert_close(batched, alone[number], atol=1e-4, rtol=1e-4)


def test_padding_would_change_a_clip_without_valid_statistics(folder):
    """What the own first layer is for: transformers' takes its mean over the padding, too."""
    encoder = HubertContentEncoder(folder)
    short, long = _wave(8_000), _wave(32_000, 1)
    padded = torch.zeros(2, 32_000)
    padded[0, :8_000], padded[1] = torch.from_numpy(short), torch.from_numpy(long)
    mask = torch.zeros(2, 32_000, dtype=torch.long)
    mask[0, :8_000], mask[1] = 1, 1
    with torch.inference_mode():
        theirs = encoder._network(padded, attention_mask=mask).last_hidden_state[0, :24]
    alone = encoder.encode(short)
    assert (theirs - alone).abs().max() > 1e-2
    torch.testing.assert_close(encoder.encode_batch([short, long])[0], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_hubert_of_full_size_hears_a_clip_alone_as_in_a_batch(tmp_path):
    torch.manual_seed(0)
    HubertModel(HubertConfig()).save_pretrained(tmp_path)
    encoder = HubertContentEncoder(tmp_path)
    clips = [_wave(16_000) * 100, _wave(9_000, 1)]
    for clip, batched in zip(clips, encoder.encode_batch(clips), strict=True):
        torch.testing.assert_close(batched, encoder.encode(clip), atol=1e-4, rtol=1e-4)


def test_buckets_hold_clips_of_like_length_and_no_more_than_fits():
    assert buckets([5, 9, 5, 1, 10], most=20) == [[4, 1], [0, 2, 3]]
    assert buckets([30, 2], most=20) == [[0], [1]]
    assert buckets([], most=20) == []
