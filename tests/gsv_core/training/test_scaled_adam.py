import copy
import io

import pytest
import torch

from gsv_core.training.scaled_adam import ScaledAdam

SHAPES = [(4, 3), (4, 3), (5,), (1,), (), (2, 3, 2)]


def parameters(scale=1.0):
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator) * scale) for shape in SHAPES]


def train(optimiser, changed, steps, first=0, *, factor=1.0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in changed:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * factor
        optimiser.step()


def test_a_first_step_is_a_share_of_each_tensors_size():
    changed = parameters()
    before = [parameter.detach().clone() for parameter in changed]
    train(ScaledAdam(changed, lr=0.01, betas=(0.9, 0.98)), changed, 1)
    for parameter, start in zip(changed, before, strict=True):
        step = (parameter - start).abs()
        size = start.square().mean().sqrt() if start.numel() > 1 else torch.tensor(0.1)
        # One tenth of the rate, because momentum starts from zero and is not corrected.
        assert torch.allclose(step, torch.full_like(step, 0.001) * size, rtol=1e-3)


def test_the_scale_of_gradients_does_not_matter():
    small, large = parameters(), parameters()
    train(ScaledAdam(small), small, 8, factor=1e-2)
    train(ScaledAdam(large), large, 8, factor=1e2)
    for one, other in zip(small, large, strict=True):
        assert torch.allclose(one, other, rtol=1e-4)


def test_going_on_from_a_saved_state_gives_the_same_bits():
    settings = {"lr": 0.02, "clipping_scale": 2.0, "clipping_period": 3}
    whole, first = parameters(), parameters()
    train(ScaledAdam(whole, **settings), whole, 11)
    optimiser = ScaledAdam(first, **settings)
    train(optimiser, first, 5)
    file = io.BytesIO()
    torch.save(optimiser.state_dict(), file)
    file.seek(0)
    second = copy.deepcopy(first)
    resumed = ScaledAdam(second, **settings)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, second, 6, first=5)
    assert all(torch.equal(one, other) for one, other in zip(whole, second, strict=True))


def test_a_tensor_beyond_the_largest_size_shrinks_and_a_tiny_one_does_not():
    large, tiny = torch.nn.Parameter(torch.full((2, 2), 5.0)), torch.nn.Parameter(torch.full((3,), 1e-7))
    optimiser = ScaledAdam([large, tiny], lr=0.01)
    for _ in range(40):
        large.grad, tiny.grad = torch.full((2, 2), 1e-12), torch.zeros(3)
        optimiser.step()
    assert large.abs().max() < 5.0
    assert torch.equal(tiny, torch.full((3,), 1e-7))


def test_a_scalar_stays_near_its_bound():
    scalar = torch.nn.Parameter(torch.tensor([9.99]))
    optimiser = ScaledAdam([scalar], lr=1.0)
    for _ in range(50):
        scalar.grad = torch.tensor([-1.0])
        optimiser.step()
    assert 10.0 < scalar.item() <= 10.0 + 0.1


def test_a_parameter_without_a_gradient_counts_as_one_with_none_to_follow():
    missing, zero = parameters(), parameters()
    optimisers = ScaledAdam(missing), ScaledAdam(zero)
    for changed, optimiser in zip((missing, zero), optimisers, strict=True):
        train(optimiser, changed, 3)
    missing[0].grad, zero[0].grad = None, torch.zeros_like(zero[0])
    for optimiser in optimisers:
        optimiser.step()
    assert all(torch.equal(one, other) for one, other in zip(missing, zero, strict=True))


def test_clipping_begins_after_a_period_and_bounds_the_learning_of_sizes():
    free, clipped = parameters(), parameters()
    optimisers = ScaledAdam(free), ScaledAdam(clipped, clipping_scale=0.5, clipping_period=4)

    def run(steps, first):
        for changed, optimiser in zip((free, clipped), optimisers, strict=True):
            train(optimiser, changed, steps, first)
        return [torch.equal(one, other) for one, other in zip(free, clipped, strict=True)]

    assert all(run(4, 0))
    # Scalars have no size to learn.
    assert run(4, 4) == [parameter.numel() == 1 for parameter in free]


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"size_period": 0}, {"clipping_period": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="scaled adam"):
        ScaledAdam(parameters(), **settings)
