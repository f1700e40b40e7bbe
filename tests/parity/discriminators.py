"""Discriminators and the losses around them on recorded cases."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gsv_core.networks.discriminators import DiscriminatorConfig, DiscriminatorOutput, Discriminators, judge_both
from gsv_core.training.losses import discriminator_loss, feature_matching_loss, generator_loss, kl_loss
from tests.parity.recorded import Comparison, RecordedCase, count


def discriminators(case: RecordedCase) -> Iterator[Comparison]:
    network = Discriminators(discriminator_config(case.constructor["periods"], case.weights()))
    network.load_state_dict(case.weights())
    case.watch(network)
    recorded, generated = judge_both(network, case.inputs["y"], case.inputs["y_hat"])
    for judge, (real, fake) in enumerate(zip(recorded, generated, strict=True)):
        yield case.compare(f"score_real_{judge}", real.score)
        yield case.compare(f"score_gen_{judge}", fake.score)
        for side, maps in (("real", real.feature_maps), ("gen", fake.feature_maps)):
            yield from _feature_maps(case, f"fmap_{side}_{judge}", maps)
    yield from _adversarial(case, recorded, generated)
    discriminator_loss(recorded, generated).backward()
    yield from case.compare_gradients("discriminator_loss", network)


def discriminator_config(periods: Sequence[int], shapes: Mapping[str, Any]) -> DiscriminatorConfig:
    """Periods as given; widths and groups read off the weights (tensors or shapes) of the first two judges."""

    def convolutions(judge: int) -> list[tuple[int, ...]]:
        prefix = f"discriminators.{judge}.convs"
        weights = (shapes[f"{prefix}.{layer}.weight_v"] for layer in range(count(shapes, prefix + r"\.(\d+)\.")))
        return [tuple(getattr(weight, "shape", weight)) for weight in weights]

    scale, period = convolutions(0), convolutions(1)
    channels = tuple(shape[0] for shape in scale)
    return DiscriminatorConfig(
        periods=tuple(periods),
        scale_channels=channels,
        scale_groups=tuple(before // shape[1] for before, shape in zip((1, *channels), scale)),
        period_channels=tuple(shape[0] for shape in period),
    )


def _feature_maps(case: RecordedCase, prefix: str, maps: Sequence[Tensor]) -> Iterator[Comparison]:
    """As many items of the batch as were recorded, from the first on."""
    for layer, feature_map in enumerate(maps):
        name = f"{prefix}_{layer}"
        if name in case.results:
            yield case.compare(name, feature_map[: case.results[name].shape[0]])


def losses(case: RecordedCase) -> Iterator[Comparison]:
    given = case.inputs
    yield from _adversarial(case, _given_outputs(given, "real"), _given_outputs(given, "gen"))
    divergence = kl_loss(given["z_p"], given["logs_q"], given["m_p"], given["logs_p"], given["z_mask"])
    yield case.compare("kl_loss", divergence)


def _given_outputs(given: Mapping[str, Tensor], side: str) -> list[DiscriminatorOutput]:
    judges = sum(name.startswith(f"{side}_") for name in given)
    return [DiscriminatorOutput(given[f"{side}_{judge}"], _given_maps(given, side, judge)) for judge in range(judges)]


def _given_maps(given: Mapping[str, Tensor], side: str, judge: int) -> tuple[Tensor, ...]:
    prefix = f"fmap_{side}_{judge}_"
    layers = sorted(int(name.removeprefix(prefix)) for name in given if name.startswith(prefix))
    return tuple(given[f"{prefix}{layer}"] for layer in layers)


def _adversarial(
    case: RecordedCase, recorded: list[DiscriminatorOutput], generated: list[DiscriminatorOutput]
) -> Iterator[Comparison]:
    """The three losses; those of single judges are the same functions on lists of one."""
    real_name = "disc_real" if "disc_real" in case.results else "disc_real_losses"
    fake_name = "disc_gen" if "disc_gen" in case.results else "disc_gen_losses"
    fake_terms = torch.stack([fake.score.square().mean() for fake in generated])
    both_terms = torch.stack([discriminator_loss([real], [fake]) for real, fake in zip(recorded, generated)])
    yield case.compare("discriminator_loss", discriminator_loss(recorded, generated))
    yield case.compare(real_name, both_terms - fake_terms)
    yield case.compare(fake_name, fake_terms)
    yield case.compare("generator_loss", generator_loss(generated))
    yield case.compare("gen_losses", torch.stack([generator_loss([fake]) for fake in generated]))
    yield case.compare("feature_loss", feature_matching_loss(recorded, generated))
