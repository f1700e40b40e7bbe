import copy

import pytest
import torch

from gsv_core.networks.diffusion_transformer import DiffusionTransformer

SIZES = {
    "mel_bands": 3,
    "condition_width": 8,
    "condition_layers": 2,
    "width": 16,
    "heads": 2,
    "head_width": 4,
    "layers": 2,
    "filter_width": 24,
    "position_kernel": 5,
    "position_groups": 4,
    "dropout": 0.0,
}
LENGTHS = torch.tensor([9, 6])
MASK = torch.arange(9) < LENGTHS.unsqueeze(1)


def _estimator(**sizes):
    """Random in every weight: what starts at zero would hide the rest."""
    torch.manual_seed(0)
    estimator = DiffusionTransformer(**(SIZES | sizes)).eval()
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.normal_(std=0.3)
    return estimator


@pytest.fixture(scope="module")
def estimator():
    return _estimator()


@pytest.fixture(scope="module")
def given():
    draw = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(2, 3, 9, generator=draw),
        "known": torch.randn(2, 3, 9, generator=draw),
        "time": torch.tensor([0.25, 0.75]),
        "condition": torch.randn(2, 8, 9, generator=draw),
    }


def _velocity(estimator, given, mask=None, step=0.0, **options):
    return estimator(
        given["x"],
        given["known"],
        given["time"],
        estimator.embed_step(torch.full((len(given["x"]),), step)),
        estimator.embed_condition(given["condition"], mask),
        mask,
        **options,
    )


def test_velocity_has_the_shape_of_the_frames_and_its_recorded_values(estimator, given):
    velocity = _velocity(estimator, given, MASK, step=0.125)
    assert velocity.shape == (2, 3, 9)
    recorded = torch.tensor([[11.4938, -6.0294, 6.0590], [9.0202, -3.9713, 4.8702]])
    torch.testing.assert_close(velocity[[0, 1], :, [0, 5]], recorded, atol=2e-4, rtol=1e-4)


def test_a_padded_item_moves_as_it_does_alone(estimator, given):
    together = _velocity(estimator, given, MASK)
    alone = {name: value[1:, ..., :6] if value.ndim == 3 else value[1:] for name, value in given.items()}
    torch.testing.assert_close(together[1:, :, :6], _velocity(estimator, alone), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[:1], _velocity(estimator, {n: v[:1] for n, v in given.items()}))


def test_what_lies_in_the_padding_matters_only_where_it_may_leak(given):
    altered = {name: value.clone() for name, value in given.items()}
    altered["x"][1, :, 6:] = 5
    altered["condition"][1, :, 6:] = -5
    for leaks in (False, True):
        estimator = _estimator(padding_leaks=leaks)
        first, second = _velocity(estimator, given, MASK), _velocity(estimator, altered, MASK)
        assert torch.equal(first[0], second[0])
        assert torch.allclose(first[1, :, :6], second[1, :, :6], atol=1e-5) != leaks


def test_a_mask_that_hides_nothing_changes_nothing(estimator, given):
    everything = torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(_velocity(estimator, given, everything), _velocity(estimator, given))


def test_time_and_step_size_are_inputs(estimator, given):
    plain = _velocity(estimator, given)
    assert not torch.allclose(plain, _velocity(estimator, given, step=0.5), atol=1e-3)
    assert not torch.allclose(plain, _velocity(estimator, given | {"time": torch.tensor([0.3, 0.7])}), atol=1e-3)


def test_a_dropped_condition_is_forgotten(estimator, given):
    dropped = estimator.embed_condition(given["condition"], None, drop=True)
    assert torch.equal(dropped, estimator.embed_condition(given["condition"] + 1, None, drop=True))
    assert torch.equal(dropped[0], dropped[1])
    # Positions are added after that, so it is no embedding of nothing.
    assert dropped.std(dim=1).max() > 0.01


def test_only_the_first_head_knows_positions(estimator):
    attend = estimator.transformer_blocks[0].attn
    x = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    rotation = estimator.rotary_embed(9)
    assert not torch.allclose(attend(x, rotation, None)[:, order], attend(x[:, order], rotation, None), atol=1e-3)
    without_first = copy.deepcopy(attend)
    with torch.no_grad():
        without_first.to_out[0].weight[:, :4] = 0
    torch.testing.assert_close(
        without_first(x, rotation, None)[:, order], without_first(x[:, order], rotation, None), atol=1e-5, rtol=1e-4
    )


def test_every_weight_gets_a_gradient(given):
    estimator = _estimator()
    _velocity(estimator, given, MASK, step=0.125).square().sum().backward()
    missing = {n for n, p in estimator.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6}
    assert missing == set()


def test_computing_again_gives_the_same_gradients(given):
    gradients = []
    for recompute in (False, True):
        estimator = _estimator()
        _velocity(estimator, given, MASK, recompute=recompute).square().sum().backward()
        gradients.append([parameter.grad for parameter in estimator.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed)


def test_the_blocks_of_a_new_network_change_nothing():
    torch.manual_seed(0)
    estimator = DiffusionTransformer(**SIZES).eval()
    hidden, moment = torch.randn(2, 9, 16), torch.randn(2, 16)
    block = estimator.transformer_blocks[0]
    assert torch.equal(block(hidden, moment, estimator.rotary_embed(9), None), hidden)


def test_conditions_beyond_the_last_position_share_it():
    positions = _estimator(condition_layers=0).embed_condition(torch.zeros(1, 8, 4100), None)[0]
    assert torch.equal(positions[4095], positions[4099])
    assert not torch.equal(positions[4094], positions[4095])
