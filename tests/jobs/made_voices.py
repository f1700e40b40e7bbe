"""Bases with the sizes that GPT-SoVITS has fixed, and as small as it lets the others be; files as it writes them."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gsv_core.checkpoints.base import BaseModel, build_nano
from gsv_core.checkpoints.releases import RELEASES, Release, ReleaseSpec
from gsv_core.checkpoints.upstream_settings import second_settings, semantic_settings
from gsv_core.checkpoints.upstream_writing import second_file, semantic_file, write_upstream


def small_release(release: Release) -> ReleaseSpec:
    """v1, v2, v2Pro or v2ProPlus with what a file's settings can make small made small."""
    spec, nano = RELEASES[release], RELEASES[Release.NANO]
    assert spec.semantic_to_wave is not None
    return replace(
        spec,
        text_to_semantic=replace(spec.text_to_semantic, width=32, heads=2, layers=2),
        semantic_to_wave=replace(
            spec.semantic_to_wave, latent=16, filter_width=16, layers=2, generator_channels=32, dropout=0.0
        ),
        discriminators=nano.discriminators,
        speaker_encoder=nano.speaker_encoder,
    )


def small_base(release: Release) -> BaseModel:
    """A base of `small_release`, from a seed."""
    base = build_nano(small_release(release))
    return base if RELEASES[release].speaker_encoder is not None else replace(base, speaker_encoder=None)


def write_trained(folder: Path, base: BaseModel, spec: ReleaseSpec, name: str = "anna") -> tuple[Path, Path]:
    """What GPT-SoVITS would write of a voice: the base in half precision, two tensors of each network changed."""
    first = {f"model.{key}": tensor.clone() for key, tensor in base.text_to_semantic.state_dict().items()}
    second = {key: tensor.clone() for key, tensor in base.acoustic.state_dict().items()}
    for key in ("model.bert_proj.bias", "model.ar_predict_layer.weight"):
        first[key] += 0.25
    for key in ("dec.conv_pre.bias", "enc_p.proj.bias"):
        second[key] += 0.25
    settings = semantic_settings(spec.text_to_semantic, name, epochs=15, batch_size=8)
    paths = folder / f"{name}-e15.ckpt", folder / f"{name}_e8_s200.pth"
    write_upstream(paths[0], semantic_file(first, settings, epochs=15))
    settings = second_settings(spec, name, epochs=8, batch_size=4)
    write_upstream(paths[1], second_file(second, settings, spec.release, epochs=8, steps=200))
    return paths


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are one but for half precision."""
    return torch.equal(ours.half(), theirs.half())
