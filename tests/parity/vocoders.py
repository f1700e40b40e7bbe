"""Vocoders of v3 and v4 on recorded cases."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gsv_core.networks.bigvgan import BigVganConfig, BigVganVocoder, read_settings
from gsv_core.networks.layers import fold_weight_norm
from gsv_core.networks.vocoder import HifiGanVocoder, VocoderConfig
from tests.parity.recorded import Comparison, RecordedCase


def vocoder_v4(case: RecordedCase) -> Iterator[Comparison]:
    yield from _compare(case, HifiGanVocoder(vocoder_config(case.constructor)))


def bigvgan(case: RecordedCase) -> Iterator[Comparison]:
    yield from _compare(case, BigVganVocoder(read_settings(case.constructor)))


def vocoder_config(sizes: Mapping[str, Any]) -> VocoderConfig:
    """Our config of upstream's arguments of its generator."""
    return VocoderConfig(
        mel_bands=sizes["initial_channel"],
        channels=sizes["upsample_initial_channel"],
        upsample_rates=tuple(sizes["upsample_rates"]),
        upsample_kernels=tuple(sizes["upsample_kernel_sizes"]),
        block_kernels=tuple(sizes["resblock_kernel_sizes"]),
        block_dilations=tuple(tuple(dilations) for dilations in sizes["resblock_dilation_sizes"]),
        final_bias=sizes["is_bias"],
    )


def vocoder_of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> HifiGanVocoder:
    """A vocoder with the names and shapes of a file. Dilations and rates leave no trace there."""
    return HifiGanVocoder(VocoderConfig(**_sizes_of_shapes(shapes, "weight", r"ups\.(\d+)\.weight")))


def bigvgan_of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> BigVganVocoder:
    return BigVganVocoder(BigVganConfig(**_sizes_of_shapes(shapes, "weight_v", r"ups\.(\d+)\.0\.weight_v")))


def _sizes_of_shapes(shapes: Mapping[str, tuple[int, ...]], weight: str, up: str) -> dict[str, Any]:
    kernels = tuple(shape[2] for name, shape in shapes.items() if re.fullmatch(up, name))
    blocks = len({name.split(".")[1] for name in shapes if name.startswith("resblocks.")}) // len(kernels)
    dilations = len([name for name in shapes if re.fullmatch(rf"resblocks\.0\.convs1\.\d+\.{weight}", name)])
    return {
        "mel_bands": shapes[f"conv_pre.{weight}"][1],
        "channels": shapes[f"conv_pre.{weight}"][0],
        "upsample_rates": tuple(kernel // 2 for kernel in kernels),  # as in all published vocoders
        "upsample_kernels": kernels,
        "block_kernels": tuple(shapes[f"resblocks.{block}.convs1.0.{weight}"][2] for block in range(blocks)),
        "block_dilations": (tuple(range(1, 2 * dilations, 2)),) * blocks,
        "final_bias": "conv_post.bias" in shapes,
    }


@torch.no_grad()
def _compare(case: RecordedCase, vocoder: HifiGanVocoder | BigVganVocoder) -> Iterator[Comparison]:
    vocoder.load_state_dict(case.weights())
    case.watch(vocoder.eval())
    yield case.compare("wav", vocoder(case.inputs["mel"]))
    plain = case.meta.get("keys_after_remove_weight_norm")
    if plain is not None:
        fold_weight_norm(vocoder)
        different = vocoder.state_dict().keys() ^ set(plain)
        yield Comparison("names without weight norm", float(len(different)), 0.0, note=", ".join(sorted(different)[:3]))
