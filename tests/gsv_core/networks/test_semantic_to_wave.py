import dataclasses

import pytest
import torch

from gsv_core.networks.semantic_to_wave import SemanticToWave, SemanticToWaveConfig

CONFIG = SemanticToWaveConfig(
    phoneme_count=30,
    content_width=8,
    codebook_size=32,
    spectrogram_bins=33,
    reference_bins=20,
    latent=4,
    width=8,
    filter_width=12,
    layers=2,
    dropout=0.0,
    join_width=12,
    join_heads=2,
    timbre_width=6,
    speaker_vector_width=10,
    reference_width=8,
    reference_dropout=0.0,
    posterior_layers=2,
    flow_couplings=2,
    flow_layers=2,
    generator_channels=8,
    upsample_rates=(4, 2),
    upsample_kernels=(8, 4),
    block_kernels=(3,),
    block_dilations=((1, 3),),
    segment_frames=6,
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = SemanticToWave(CONFIG).eval()
    network.set_codebook(torch.randn(32, 8, 2))
    return network


@pytest.fixture(scope="module")
def batch():
    draw = torch.Generator().manual_seed(1)
    return {
        "content": torch.randn(2, 8, 16, generator=draw),
        "spectrogram": torch.rand(2, 33, 16, generator=draw),
        "lengths": torch.tensor([16, 11]),
        "phoneme_ids": torch.randint(30, (2, 5), generator=draw),
        "phoneme_lengths": torch.tensor([5, 3]),
        "speaker_vectors": torch.randn(2, 10, generator=draw),
    }


def _draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_training_pass_has_its_shapes(network, batch):
    forward = network(**batch, generator=_draw())
    assert forward.wave.shape == (2, 1, CONFIG.segment_frames * CONFIG.hop)
    assert forward.mask.sum(dim=(1, 2)).tolist() == [16, 11]
    for name in ("latent", "prior_latent", "prior_mean", "prior_log_scale", "posterior_mean", "posterior_log_scale"):
        values = getattr(forward, name)
        assert values.shape == (2, 4, 16)
        assert values[1, :, 11:].abs().max() == 0
    assert (forward.slice_starts + 6 <= batch["lengths"]).all()
    assert forward.commitment == 0


def test_draws_follow_from_the_generator_alone(network, batch):
    first, again = network(**batch, generator=_draw(3)), network(**batch, generator=_draw(3))
    assert torch.equal(first.wave, again.wave)
    assert torch.equal(first.slice_starts, again.slice_starts)
    assert not torch.equal(first.latent, network(**batch, generator=_draw(4)).latent)


def test_more_padding_changes_nothing_for_an_item_that_has_some(network, batch):
    # The reference encoder's convolutions reach four frames into the padding, so an item needs as many to begin with.
    noise = torch.randn(2, 4, 16, generator=_draw())
    starts = torch.tensor([0, 0])
    forward = network(**batch, noise=noise, slice_starts=starts)
    wider = {
        name: torch.nn.functional.pad(value, (0, 4)) if name in ("content", "spectrogram", "phoneme_ids") else value
        for name, value in batch.items()
    }
    padded = network(**wider, noise=torch.nn.functional.pad(noise, (0, 4)), slice_starts=starts)
    torch.testing.assert_close(padded.prior_mean[1, :, :11], forward.prior_mean[1, :, :11], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(padded.latent[1, :, :11], forward.latent[1, :, :11], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(padded.wave[1], forward.wave[1], atol=1e-5, rtol=1e-4)


def test_every_weight_but_the_frozen_projection_gets_a_gradient(batch):
    torch.manual_seed(0)
    network = SemanticToWave(CONFIG)
    network.set_codebook(torch.randn(32, 8, 2))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".post." in name:  # zero at the start, which would hide the layers before it
                parameter.normal_(std=0.1)
    forward = network(**batch, generator=_draw())
    (forward.wave.square().sum() + forward.prior_latent.square().sum() + forward.prior_mean.square().sum()).backward()
    missing = {n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    # A bias of the keys moves all scores of a query alike: its gradient is zero but for rounding.
    missing = {name for name in missing if not name.endswith(("conv_k.bias", "w_ks.bias"))}
    assert missing == {"ssl_proj.weight", "ssl_proj.bias"}


def test_two_content_frames_make_a_token_and_an_odd_one_is_dropped(network):
    content = torch.randn(1, 8, 9, generator=_draw())
    tokens = network.encode_tokens(content)
    assert tokens.shape == (1, 4)
    assert torch.equal(tokens, network.encode_tokens(content[..., :8]))
    assert torch.equal(tokens[:, :2], network.encode_tokens(content[..., :4]))


def test_a_codebook_of_examples_tells_them_apart(network):
    examples = torch.randn(32, 8, 2, generator=_draw(5))
    torch.manual_seed(0)
    fresh = SemanticToWave(CONFIG)
    fresh.set_codebook(examples)
    assert fresh.encode_tokens(examples).squeeze(1).tolist() == list(range(32))


@pytest.mark.parametrize("speed, frames", [(1.0, 10), (2.0, 6)])
def test_decoding_gives_two_frames_per_token(network, batch, speed, frames):
    tokens = torch.randint(32, (1, 5), generator=_draw())
    wave = network.decode(
        tokens,
        batch["phoneme_ids"][:1],
        [batch["spectrogram"][:1]],
        [batch["speaker_vectors"][:1]],
        speed=speed,
        generator=_draw(),
    )
    assert wave.shape == (1, 1, frames * CONFIG.hop)
    assert wave.abs().max() <= 1


def test_a_given_timbre_replaces_the_references(network, batch):
    tokens, phonemes = torch.randint(32, (1, 5), generator=_draw()), batch["phoneme_ids"][:1]
    spectrogram, vector = batch["spectrogram"][:1], batch["speaker_vectors"][:1]
    timbre = network.timbre(spectrogram, None, vector)
    from_reference = network.decode(tokens, phonemes, [spectrogram], [vector], generator=_draw())
    assert torch.equal(network.decode(tokens, phonemes, timbre=timbre, generator=_draw()), from_reference)
    other = network.decode(tokens, phonemes, timbre=timbre + 1, generator=_draw())
    assert not torch.allclose(other, from_reference)


def test_what_does_not_fit_is_refused(network, batch):
    tokens, phonemes = torch.zeros(1, 3, dtype=torch.int64), batch["phoneme_ids"][:1]
    with pytest.raises(ValueError, match="reference spectrogram or a timbre"):
        network.decode(tokens, phonemes)
    with pytest.raises(ValueError, match="needs a speaker vector"):
        network.decode(tokens, phonemes, [batch["spectrogram"][:1]])
    with pytest.raises(ValueError, match="one speaker vector per reference"):
        network.decode(tokens, phonemes, [batch["spectrogram"][:1]], [])
    with pytest.raises(ValueError, match="speed must be positive"):
        network.decode(tokens, phonemes, timbre=torch.zeros(1, 6, 1), speed=0)
    with pytest.raises(ValueError, match="6 frames or more"):
        network(**(batch | {"lengths": torch.tensor([16, 5])}))
    with pytest.raises(ValueError, match="does not belong"):
        network(**(batch | {"content": batch["content"][..., :10]}), generator=_draw())


def test_without_speaker_vectors_the_timbre_joins_as_it_is(batch):
    torch.manual_seed(0)
    network = SemanticToWave(dataclasses.replace(CONFIG, speaker_vector_width=None, timbre_width=12))
    assert network(**(batch | {"speaker_vectors": None}), generator=_draw()).wave.shape[0] == 2
    with pytest.raises(ValueError, match="takes no speaker vector"):
        network(**batch, generator=_draw())


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"speaker_vector_width": None}, "must equal join_width"),
        ({"latent": 3}, "even latent"),
        ({"heads": 3}, "3 heads"),
        ({"reference_bins": 40}, "within 33 bins"),
        ({"upsample_kernels": (8, 3)}, "even number"),
        ({"block_kernels": (3, 5)}, "one tuple of dilations"),
        ({"generator_channels": 2}, "cannot be halved"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **sizes)
