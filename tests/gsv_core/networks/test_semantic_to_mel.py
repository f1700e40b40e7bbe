import dataclasses

import pytest
import torch
from torch.nn.functional import pad

from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.networks.flow_matching import FlowDraws
from gsv_core.networks.lora import FLOW_TARGETS, add_lora, merge_lora, trained_state
from gsv_core.networks.semantic_to_mel import SemanticToMel, SemanticToMelConfig, denormalise_mel, normalise_mel

CONFIG = SemanticToMelConfig(
    phoneme_count=30,
    content_width=8,
    codebook_size=32,
    reference_bins=20,
    latent=4,
    width=8,
    filter_width=12,
    layers=2,
    dropout=0.0,
    join_width=12,
    join_heads=2,
    timbre_width=12,
    reference_width=8,
    reference_dropout=0.0,
    condition_width=10,
    condition_layers=2,
    mel_bands=5,
    flow_width=16,
    flow_heads=2,
    flow_head_width=4,
    flow_layers=2,
    flow_filter_width=24,
    flow_condition_layers=1,
    flow_position_kernel=5,
    flow_position_groups=4,
    flow_dropout=0.0,
)
FASTER = dataclasses.replace(CONFIG, stretch=2.0, most_frames_per_token=4.0)


def _network(config=CONFIG):
    """Random in every weight: what starts at zero would hide the rest."""
    torch.manual_seed(0)
    network = SemanticToMel(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("cfm."):
                parameter.normal_(std=0.2)
    return network


@pytest.fixture(scope="module")
def network():
    return _network().eval()


@pytest.fixture(scope="module")
def batch():
    """16 and 10 content frames: 30 and 18 mel frames."""
    draw = torch.Generator().manual_seed(1)
    return {
        "content": torch.randn(2, 8, 16, generator=draw),
        "spectrogram": torch.rand(2, 33, 16, generator=draw),
        "lengths": torch.tensor([16, 10]),
        "mel": torch.randn(2, 5, 30, generator=draw),
        "mel_lengths": torch.tensor([30, 18]),
        "phoneme_ids": torch.randint(30, (2, 5), generator=draw),
        "phoneme_lengths": torch.tensor([5, 3]),
    }


def _draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_one_number_per_item_and_the_recorded_one(network, batch):
    losses = network(**batch, generator=_draw())
    torch.testing.assert_close(losses, torch.tensor([2.6483, 2.1616]), atol=1e-4, rtol=1e-4)


def test_draws_follow_from_the_generator_alone(network, batch):
    first = network(**batch, generator=_draw(3))
    assert torch.equal(first, network(**batch, generator=_draw(3)))
    assert not torch.equal(first, network(**batch, generator=_draw(4)))
    draws = FlowDraws.of(batch["mel"], batch["mel_lengths"], _draw(3))
    assert torch.equal(first, network(**batch, draws=draws))


@pytest.mark.parametrize("halvings", [None, torch.tensor([2, 6])])
def test_more_padding_changes_nothing_for_an_item_that_has_some(network, batch, halvings):
    # The reference encoder's convolutions reach four frames into the padding, so an item needs as many to begin with.
    noise = torch.randn(2, 5, 30, generator=_draw())
    shared = {"time": torch.tensor([0.3, 0.6]), "prompt_lengths": torch.tensor([4, 9]), "halvings": halvings}
    loss = network(**batch, draws=FlowDraws(noise=noise, **shared))
    wider = {
        name: pad(value, (0, 8 if name == "mel" else 4)) if value.ndim > 1 else value for name, value in batch.items()
    }
    padded = network(**wider, draws=FlowDraws(noise=pad(noise, (0, 7)), **shared))
    torch.testing.assert_close(padded[1], loss[1], atol=1e-5, rtol=1e-4)


def test_padding_leaks_where_that_is_asked_for(batch):
    draws = FlowDraws.of(batch["mel"], batch["mel_lengths"], _draw())
    apart, leaking = (_network(dataclasses.replace(CONFIG, padding_leaks=leaks)).eval() for leaks in (False, True))
    ours, upstreams = apart(**batch, draws=draws), leaking(**batch, draws=draws)
    torch.testing.assert_close(ours[0], upstreams[0])
    assert not torch.allclose(ours[1], upstreams[1], rtol=1e-4)


def test_mel_and_condition_are_cut_to_the_shorter(network, batch):
    draws = FlowDraws.of(batch["mel"], batch["mel_lengths"], _draw())
    longer = network(**(batch | {"mel": pad(batch["mel"], (0, 9))}), draws=draws)
    torch.testing.assert_close(longer, network(**batch, draws=draws))


def test_the_trained_parts_get_a_gradient_and_the_frozen_ones_none(batch):
    network = _network().train()
    network(**batch, generator=_draw()).mean().backward()
    missing = {n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"enc_p", "ssl_proj"}
    # A timbre is only looked at; linear_mel is in the files without any use.
    assert {name.split(".")[0] for name in missing - frozen} == {"ref_enc", "linear_mel"}
    assert frozen < missing


def test_frozen_parts_have_no_dropout_in_training():
    network = SemanticToMel(dataclasses.replace(CONFIG, dropout=0.5)).train()
    assert network.cfm.training
    assert not network.enc_p.training
    assert not any(module.training for module in network.enc_p.modules())


def test_two_content_frames_make_a_token_and_an_odd_one_is_dropped(network):
    content = torch.randn(1, 8, 9, generator=_draw())
    tokens = network.encode_tokens(content)
    assert tokens.shape == (1, 4)
    assert torch.equal(tokens, network.encode_tokens(content[..., :8]))


@pytest.mark.parametrize(
    "config, speed, frames", [(CONFIG, 1.0, 22), (FASTER, 1.0, 24), (CONFIG, 2.0, 13), (FASTER, 2.0, 14)]
)
def test_tokens_become_frames_at_the_releases_rate(config, speed, frames):
    network = _network(config).eval()
    condition = network.condition(torch.arange(6)[None], torch.arange(4)[None], torch.zeros(1, 12, 1), speed=speed)
    assert condition.shape == (1, 10, frames)
    # Upstream counts 4 x 6 / 2 + 1 = 13 frames at double speed, of the 14 there are.
    silent = (condition[0].abs().sum(dim=0) == 0).tolist()
    assert silent == [False] * (frames - 1) + [speed == 2.0]


def test_sampling_goes_on_from_the_prompt(network, batch):
    timbre = network.timbre(batch["spectrogram"][:1])
    condition = network.condition(torch.arange(8)[None], batch["phoneme_ids"][:1], timbre)
    prompt = normalise_mel(batch["mel"][:1, :, :6])
    mel = network.sample(condition, torch.tensor([30]), prompt, steps=2, generator=_draw())
    assert mel.shape == (1, 5, 30)
    assert mel[..., :6].abs().max() == 0
    assert mel[..., 6:].abs().min(dim=1).values.max() > 0
    assert torch.equal(mel, network.sample(condition, torch.tensor([30]), prompt, steps=2, generator=_draw()))
    for changed in (
        {"condition": condition + 0.5},
        {"prompt_mel": prompt + 0.5},
        {"steps": 3},
        {"guidance": 0.5},
        {"temperature": 0.5},
    ):
        given = {"condition": condition, "lengths": torch.tensor([30]), "prompt_mel": prompt, "steps": 2} | changed
        assert not torch.allclose(mel, network.sample(**given, generator=_draw()), atol=1e-4)


def test_adapters_of_the_flow_merge_into_it(batch):
    network = _network().eval()
    draws = FlowDraws.of(batch["mel"], batch["mel_lengths"], _draw())
    names = network.state_dict().keys()
    plain = network(**batch, draws=draws)
    add_lora(network.cfm, FLOW_TARGETS, rank=2)
    torch.testing.assert_close(network(**batch, draws=draws), plain)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(generator=_draw())
    adapted = network(**batch, draws=draws)
    assert not torch.allclose(adapted, plain, rtol=1e-3)
    parts = {name.split(".")[0] for name in trained_state(network)}
    assert parts == {"ref_enc", "quantizer", "bridge", "wns1", "linear_mel", "cfm"}
    merge_lora(network)
    torch.testing.assert_close(network(**batch, draws=draws), adapted, rtol=1e-4, atol=1e-5)
    assert network.state_dict().keys() == names


def test_mel_values_come_back():
    mel = torch.tensor([-12.0, -5.0, 2.0])
    assert normalise_mel(mel).tolist() == [-1.0, 0.0, 1.0]
    torch.testing.assert_close(denormalise_mel(normalise_mel(mel)), mel)


@pytest.mark.parametrize("release", [Release.V3, Release.V4])
def test_the_parts_of_a_release_fit_each_other(release):
    spec = RELEASES[release]
    config, mel = spec.semantic_to_mel, spec.mel_spectrogram
    assert config is not None
    assert mel is not None
    assert mel.mel_bands == config.mel_bands
    assert 25 * config.frames_per_token == mel.rate_hz / mel.hop
    assert config.reference_bins <= spec.spectrogram.bins
    with torch.device("meta"):
        network = SemanticToMel(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == 382_821_064
    assert len(network.state_dict()) == 685


def test_speed_must_be_positive(network):
    with pytest.raises(ValueError, match="speed must be positive"):
        network.condition(
            torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 2).long(), torch.zeros(1, 12, 1), speed=0
        )


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"timbre_width": 6}, "must equal join_width"),
        ({"layers": 1}, "two layers"),
        ({"heads": 3}, "3 heads"),
        ({"flow_width": 18}, "4 groups"),
        ({"flow_head_width": 3}, "2 pairs"),
        ({"condition_width": 9}, "sines and cosines"),
        ({"flow_position_kernel": 4}, "must be odd"),
        ({"stretch": 2.0}, "most_frames_per_token"),
        ({"reference_frames": 934}, "leave room"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **sizes)
