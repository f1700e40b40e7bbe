import math

import pytest
import torch
from torch.nn import functional

from gsv_core.networks.discriminators import DiscriminatorOutput
from gsv_core.training.losses import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    kl_loss,
    mel_loss,
    preference_loss,
    sequence_log_probabilities,
)


def _output(score, *maps):
    return DiscriminatorOutput(torch.tensor(score), tuple(torch.tensor(values) for values in maps))


def test_adversarial_losses_are_zero_when_their_side_wins():
    ones, zeros = [_output([[1.0, 1.0]])] * 2, [_output([[0.0, 0.0]])] * 2
    assert discriminator_loss(ones, zeros) == 0
    assert discriminator_loss(zeros, ones) == 2 * 2
    assert generator_loss(ones) == 0
    assert generator_loss(zeros) == 2


def test_feature_matching_doubles_the_mean_difference_of_every_map_and_spares_the_recording():
    real = torch.tensor([[1.0, 2.0]], requires_grad=True)
    fake = torch.tensor([[2.0, 0.0]], requires_grad=True)
    recorded = [DiscriminatorOutput(real, (real, real))]
    generated = [DiscriminatorOutput(fake, (fake, fake))]
    loss = feature_matching_loss(recorded, generated)
    assert loss.item() == pytest.approx(2 * 2 * 1.5)
    loss.backward()
    assert real.grad is None
    assert fake.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_feature_matching_has_a_gradient_at_any_loss_scale(dtype):
    draw = torch.Generator().manual_seed(0)
    real, start = torch.randn(2, 8, 100, generator=draw).to(dtype), torch.randn(2, 8, 100, generator=draw).to(dtype)

    def learnt(scale):
        fake = start.clone().requires_grad_()
        loss = feature_matching_loss([DiscriminatorOutput(real, (real,))], [DiscriminatorOutput(fake, (fake,))])
        (loss * scale).backward()
        return loss.detach(), fake.grad

    loss, gradient = learnt(2.0**16)
    assert loss.dtype is torch.float32
    assert torch.equal(gradient, learnt(1.0)[1] * 2.0**16)
    assert gradient.any()
    wanted = 2 * functional.l1_loss(start.float(), real.float())
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-2 if dtype is torch.bfloat16 else 1e-4)
    if dtype is torch.float32:
        assert loss == wanted


def test_maps_that_do_not_pair_are_a_mistake():
    with pytest.raises(ValueError, match="zip"):
        feature_matching_loss([_output([0.0], [1.0])], [_output([0.0], [1.0], [2.0])])


def test_kl_of_a_sample_averages_over_frames_and_ignores_padding():
    mask = torch.tensor([[[1.0, 1.0, 0.0]]])
    zeros = torch.zeros(1, 2, 3)
    latent = torch.tensor([[[1.0, 1.0, 9.0], [1.0, 1.0, 9.0]]])
    # Per channel: 0 - 0 - 1/2 + 1/2 * 1; two channels.
    assert kl_loss(latent, zeros, zeros, zeros, mask).item() == pytest.approx(0.0)
    assert kl_loss(2 * latent, zeros, zeros, zeros, mask).item() == pytest.approx(3.0)
    assert kl_loss(latent, zeros, zeros, zeros + 1, mask).item() == pytest.approx(1 + math.exp(-2))


def test_kl_in_expectation_is_the_divergence_of_two_gaussians():
    draw = torch.Generator().manual_seed(0)
    shape = (1, 1, 200_000)
    mean, log_scale, prior_mean, prior_log_scale = 0.3, -0.2, -0.4, 0.5
    latent = mean + math.exp(log_scale) * torch.randn(shape, generator=draw)
    sampled = kl_loss(
        latent,
        torch.full(shape, log_scale),
        torch.full(shape, prior_mean),
        torch.full(shape, prior_log_scale),
        torch.ones(shape),
    )
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, math.exp(log_scale)),
        torch.distributions.Normal(prior_mean, math.exp(prior_log_scale)),
    )
    assert sampled.item() == pytest.approx(exact.item(), abs=0.01)


def test_mel_loss_is_the_mean_absolute_difference():
    assert mel_loss(torch.zeros(1, 2, 2), torch.tensor([[[1.0, -1.0], [0.0, 2.0]]])).item() == 1


def test_sequences_and_preferences():
    logits = torch.log(torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]))
    targets = torch.tensor([[1, 0]])
    assert sequence_log_probabilities(logits, targets).item() == pytest.approx(math.log(0.375))
    first = torch.tensor([[True, False]])
    assert sequence_log_probabilities(logits, targets, first).item() == pytest.approx(math.log(0.75))
    equal, better = torch.tensor([-3.0]), torch.tensor([-1.0])
    assert preference_loss(equal, equal).item() == pytest.approx(math.log(2))
    assert preference_loss(better, equal) < preference_loss(equal, equal) < preference_loss(equal, better)
