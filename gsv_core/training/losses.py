"""Losses of both trainers, from outputs of the networks to one number each.

Least-squares adversarial losses (Mao et al. 2017, arXiv:1611.04076), feature matching and mel distance as in HiFi-GAN
(Kong et al. 2020, arXiv:2010.05646), the divergence of VITS (Kim et al. 2021, arXiv:2106.06103), direct preference
(Rafailov et al. 2023, arXiv:2305.18290). Shapes: B batch, C channels, L frames, M mel bands, S tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from gsv_core.networks.discriminators import DiscriminatorOutput


def discriminator_loss(recorded: Sequence[DiscriminatorOutput], generated: Sequence[DiscriminatorOutput]) -> Tensor:
    """Lower: the judges give recordings 1 and synthesis 0. Summed over judges; 0 is perfect, 0.5 each is guessing."""
    terms = [
        (1 - real.score.float()).square().mean() + fake.score.float().square().mean()
        for real, fake in zip(recorded, generated, strict=True)
    ]
    return torch.stack(terms).sum()


def generator_loss(generated: Sequence[DiscriminatorOutput]) -> Tensor:
    """Lower: the judges give synthesis 1. Summed over judges."""
    return torch.stack([(1 - fake.score.float()).square().mean() for fake in generated]).sum()


def feature_matching_loss(recorded: Sequence[DiscriminatorOutput], generated: Sequence[DiscriminatorOutput]) -> Tensor:
    """Lower: inside the judges synthesis looks like the recording.

    Twice the sum over all maps of the mean absolute difference; the recording's maps are constants.
    """
    distances = [
        _mean_distance(fake_map, real_map.detach())
        for real, fake in zip(recorded, generated, strict=True)
        for real_map, fake_map in zip(real.feature_maps, fake.feature_maps, strict=True)
    ]
    return 2 * torch.stack(distances).sum()


def _mean_distance(fake_map: Tensor, real_map: Tensor) -> Tensor:
    """Mean absolute difference, float32."""
    if fake_map.dtype is not torch.float16:
        return functional.l1_loss(fake_map, real_map).float()
    # The gradient of the mean is twice the loss scale, which float16 cannot hold; that of a value is in its range.
    return (fake_map - real_map).abs().mean(dtype=torch.float32)


def kl_loss(
    prior_latent: Tensor, posterior_log_scale: Tensor, prior_mean: Tensor, prior_log_scale: Tensor, mask: Tensor
) -> Tensor:
    """Lower: the text side predicts what the spectrogram side encodes. One sample of the divergence, may be negative.

    All (B, C, L), `mask` (B, 1, L). Summed over channels, averaged over the frames inside the mask.
    """
    squared = (prior_latent - prior_mean).square() * torch.exp(-2 * prior_log_scale)
    divergence = prior_log_scale - posterior_log_scale - 0.5 + 0.5 * squared
    return (divergence * mask).sum() / mask.sum()


def mel_loss(recorded: Tensor, generated: Tensor) -> Tensor:
    """Lower: the log-mel bands agree. Mean absolute difference of two (B, M, L)."""
    return functional.l1_loss(generated, recorded)


def sequence_log_probabilities(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log probability of each whole sequence: (B, S, V), (B, S), bool (B, S) or None for all -> (B,)."""
    chosen = logits.log_softmax(dim=-1).gather(2, targets.unsqueeze(2)).squeeze(2)
    return (chosen if mask is None else chosen * mask).sum(dim=1)


def preference_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.2) -> Tensor:
    """Lower: the network prefers the real sequences to the damaged ones.

    `chosen`, `rejected` (B,) are their log probabilities; no reference network takes part.
    """
    return -functional.logsigmoid(beta * (chosen - rejected)).mean()
