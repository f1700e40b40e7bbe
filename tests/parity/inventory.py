"""Our networks at full size, on no device at all, against the lists of names and shapes that the published files hold.

A list is a JSON file: the class it is of, upstream's hyper-parameters where the class has any, and per key its shape,
whether it is a parameter or a buffer, and whether it is frozen. The network is built from the hyper-parameters and the
shapes; where the list is that of a release, the sizes must also be those of our table of releases.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gsv_core.checkpoints.releases import RELEASES, Release
from gsv_core.networks.bigvgan import BigVganConfig
from gsv_core.networks.discriminators import DiscriminatorConfig, Discriminators
from gsv_core.networks.semantic_to_mel import SemanticToMel
from gsv_core.networks.semantic_to_wave import SemanticToWave
from gsv_core.networks.speaker_encoder import SpeakerEncoder, SpeakerEncoderConfig
from gsv_core.networks.text_to_semantic import TextToSemantic, TextToSemanticConfig
from gsv_core.networks.vocoder import VocoderConfig
from tests.parity.discriminators import discriminator_config
from tests.parity.mel import semantic_to_mel_config
from tests.parity.recorded import Comparison, count
from tests.parity.vocoders import bigvgan_of_shapes, vocoder_of_shapes
from tests.parity.wave import semantic_to_wave_config


@dataclass(frozen=True)
class RecordedInventory:
    """One list. Keys come without the prefix `model.` that GPT's files have and our networks do not."""

    path: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads(self.path.read_text("utf-8"))

    @property
    def name(self) -> str:
        return str(self.meta.get("model", self.path.stem))

    @cached_property
    def keys(self) -> dict[str, dict[str, Any]]:
        return {key.removeprefix("model."): entry for key, entry in self.meta["keys"].items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tuple(entry["shape"]) for key, entry in self.keys.items()}


def _text_to_semantic(recorded: RecordedInventory) -> nn.Module:
    shapes, published = recorded.shapes, TextToSemanticConfig()
    width = shapes["bert_proj.weight"][0]
    return TextToSemantic(
        TextToSemanticConfig(
            phoneme_count=shapes["ar_text_embedding.word_embeddings.weight"][0],
            token_count=shapes["ar_predict_layer.weight"][0],
            width=width,
            # Heads leave no trace in the shapes.
            heads=published.heads if width % published.heads == 0 else 1,
            layers=count(shapes, r"h\.layers\.(\d+)\."),
            text_vector_width=shapes["bert_proj.weight"][1],
        )
    )


def _semantic_to_wave(recorded: RecordedInventory) -> nn.Module:
    return SemanticToWave(semantic_to_wave_config(recorded.meta["hyper"], recorded.shapes))


def _semantic_to_mel(recorded: RecordedInventory) -> nn.Module:
    return SemanticToMel(semantic_to_mel_config(recorded.meta["hyper"], recorded.shapes))


def _discriminators(recorded: RecordedInventory) -> nn.Module:
    judges = count(recorded.shapes, r"discriminators\.(\d+)\.")
    periods = recorded.meta.get("hyper", {}).get("periods", DiscriminatorConfig().periods[: judges - 1])
    return Discriminators(discriminator_config(periods, recorded.shapes))


def _speaker_encoder(recorded: RecordedInventory) -> nn.Module:
    shapes = recorded.shapes
    channels, scales = shapes["conv1.weight"][0], count(shapes, r"layer1\.0\.convs\.(\d+)\.")
    expansion = shapes["layer1.0.conv3.weight"][0] // channels
    return SpeakerEncoder(
        SpeakerEncoderConfig(
            channels=channels,
            blocks=(
                count(shapes, r"layer1\.(\d+)\."),
                count(shapes, r"layer2\.(\d+)\."),
                count(shapes, r"layer3\.(\d+)\."),
                count(shapes, r"layer4\.(\d+)\."),
            ),
            base_width=shapes["layer1.0.conv1.weight"][0] // scales * 64 // channels,
            scales=scales,
            expansion=expansion,
            mel_bands=shapes["seg_1.weight"][1] // (2 * channels * expansion),
            head_width=shapes["seg_1.weight"][0],
        )
    )


NETWORKS: Mapping[str, Callable[[RecordedInventory], nn.Module]] = {
    "Text2SemanticLightningModule": _text_to_semantic,
    "SynthesizerTrn": _semantic_to_wave,
    "SynthesizerTrnV3": _semantic_to_mel,
    "MultiPeriodDiscriminator": _discriminators,
    "ERes2NetV2": _speaker_encoder,
    "Generator": lambda recorded: vocoder_of_shapes(recorded.shapes),
    "BigVGAN": lambda recorded: bigvgan_of_shapes(recorded.shapes),
}
"""By the class the list is of."""

RELEASED: Mapping[str, Any] = {
    "s1_v1": RELEASES[Release.V1].text_to_semantic,
    "s1_v2": RELEASES[Release.V2].text_to_semantic,
    "s2G_v1": RELEASES[Release.V1].semantic_to_wave,
    "s2G_v2": RELEASES[Release.V2].semantic_to_wave,
    "s2G_v2Pro": RELEASES[Release.V2_PRO].semantic_to_wave,
    "s2G_v2ProPlus": RELEASES[Release.V2_PRO_PLUS].semantic_to_wave,
    "s2G_v3": RELEASES[Release.V3].semantic_to_mel,
    "s2G_v4": RELEASES[Release.V4].semantic_to_mel,
    "s2D_v2": RELEASES[Release.V2].discriminators,
    "s2D_v2Pro": RELEASES[Release.V2_PRO].discriminators,
    "sv_eres2netv2_w24s4ep4": RELEASES[Release.V2_PRO].speaker_encoder,
    "vocoder_v4": VocoderConfig(),
    "bigvgan_v2_24khz_100band_256x": BigVganConfig(),
}
"""The config of our release that a list of this name must lead to."""

CHOSEN = {"padding_leaks", "reference_frames", "chunk_frames"}
"""Fields of our configs that no list can tell: how the network is used."""


def inventory(path: Path) -> Iterator[Comparison]:
    """Every difference between the list at `path` and our network of its sizes; counts of what must be equal."""
    recorded = RecordedInventory(path)
    builder = NETWORKS.get(recorded.meta["class_name"])
    if builder is None:
        note = f"nothing here builds {recorded.meta['class_name']!r}"
        yield Comparison(recorded.name, float("inf"), 0.0, relative=float("inf"), note=note)
        return
    with torch.device("meta"):  # nothing of this size is computed
        network = builder(recorded)
    ours = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    different = sorted(key for key in ours.keys() | recorded.keys.keys() if ours.get(key) != recorded.shapes.get(key))
    for key in different:
        yield _unequal(key, ours.get(key), recorded.shapes.get(key))
    yield Comparison(f"{len(recorded.keys)} names and shapes", float(len(different)), 0.0)
    parameters = dict(network.named_parameters())
    shared = ours.keys() & recorded.keys.keys()
    misplaced = [key for key in shared if ("param" if key in parameters else "buffer") != recorded.keys[key]["kind"]]
    yield Comparison("parameter or buffer", float(len(misplaced)), 0.0, note=", ".join(sorted(misplaced)[:3]))
    trained = {key: parameter for key, parameter in parameters.items() if parameter.requires_grad}
    freed = [key for key in shared & parameters.keys() if recorded.keys[key].get("frozen", False) == (key in trained)]
    yield Comparison("trained or frozen", float(len(freed)), 0.0, note=", ".join(sorted(freed)[:3]))
    counts = {
        "n_keys": len(ours),
        "n_parameters": sum(parameter.numel() for parameter in parameters.values()),
        "n_trainable": sum(parameter.numel() for parameter in trained.values()),
        "n_buffer_elements": sum(
            tensor.numel() for key, tensor in network.state_dict().items() if key not in parameters
        ),
    }
    for name, value in counts.items():
        yield _equal(name, value, recorded.meta[name])
    if recorded.name in RELEASED:
        yield _of_release(asdict(network.config), asdict(RELEASED[recorded.name]))  # type: ignore[call-overload]


def _of_release(built: dict[str, Any], released: dict[str, Any]) -> Comparison:
    different = [name for name in released if name not in CHOSEN and built[name] != released[name]]
    return Comparison("sizes of our release", float(len(different)), 0.0, note=", ".join(different))


def _equal(name: str, ours: int, recorded: int) -> Comparison:
    return Comparison(name, float(abs(ours - recorded)), 0.0, note=f"{ours}, recorded {recorded}")


def _unequal(name: str, ours: tuple[int, ...] | None, recorded: tuple[int, ...] | None) -> Comparison:
    note = f"ours {ours}, recorded {recorded}"
    return Comparison(name, float("inf"), 0.0, relative=float("inf"), note=note)
