"""Our networks at full size against the lists of names and shapes that the published files hold."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.networks.discriminators import Discriminators
from gsv_core.networks.semantic_to_wave import SemanticToWave
from gsv_core.networks.speaker_encoder import SpeakerEncoder, SpeakerEncoderConfig
from gsv_core.networks.text_to_semantic import TextToSemantic


def _text_to_semantic(release: Release) -> nn.Module:
    return TextToSemantic(RELEASES[release].text_to_semantic)


def _semantic_to_wave(release: Release) -> nn.Module:
    config = RELEASES[release].semantic_to_wave
    assert config is not None
    return SemanticToWave(config)


def _discriminators(release: Release) -> nn.Module:
    config = RELEASES[release].discriminators
    assert config is not None
    return Discriminators(config)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "s1_v1": lambda: _text_to_semantic(Release.V1),
    "s1_v2": lambda: _text_to_semantic(Release.V2),
    "s2G_v1": lambda: _semantic_to_wave(Release.V1),
    "s2G_v2": lambda: _semantic_to_wave(Release.V2),
    "s2G_v2Pro": lambda: _semantic_to_wave(Release.V2_PRO),
    "s2G_v2ProPlus": lambda: _semantic_to_wave(Release.V2_PRO_PLUS),
    "s2D_v2": lambda: _discriminators(Release.V2),
    "s2D_v2Pro": lambda: _discriminators(Release.V2_PRO),
    "sv_eres2netv2_w24s4ep4": lambda: SpeakerEncoder(SpeakerEncoderConfig()),
}


def differences(name: str, folder: Path) -> list[str]:
    """What the inventory `name` in `folder` and our network do not share: names, shapes, number of parameters."""
    inventory = json.loads((folder / f"{name}.json").read_text("utf-8"))
    with torch.device("meta"):  # nothing of this size is computed
        network = NETWORKS[name]()
    ours = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    theirs = {key.removeprefix("model."): entry["shape"] for key, entry in inventory["keys"].items()}
    found = [
        f"{key}: ours {ours.get(key)}, recorded {theirs.get(key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    count = sum(parameter.numel() for parameter in network.parameters())
    if count != inventory["n_parameters"]:
        found.append(f"parameters: ours {count}, recorded {inventory['n_parameters']}")
    return found
