"""A release's files to the networks that every voice starts from.

Published releases come from the models folder, `nano` from a fixed seed: no files, the same tensors on every machine
of one torch version. A base is named by the digest of all its tensors; its tokens by that of the tensors that make
them, so that corpora know which features another base may share.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gsv_core.checkpoints.hub import LOCK_NAME, verify
from gsv_core.checkpoints.releases import BERT_FOLDER, HUBERT_FOLDER, RELEASES, Release, ReleaseSpec
from gsv_core.checkpoints.upstream import TEXT_TO_SEMANTIC_PREFIX, read_weights
from gsv_core.networks.content_encoder import ContentEncoder, HubertContentEncoder, MelContentEncoder
from gsv_core.networks.discriminators import Discriminators
from gsv_core.networks.semantic_to_wave import SemanticToWave
from gsv_core.networks.speaker_encoder import SpeakerEncoder
from gsv_core.networks.text_encoder import TextEncoder
from gsv_core.networks.text_to_semantic import TextToSemantic

NANO_SEED = 20_202
QUANTIZER_WIDTH = 16
"""Of nano: the projection fills this many of the codebook's channels (the width of BEST-RQ's codebook)."""


class MissingBase(ValueError):  # noqa: N818 - the house says "missing base"
    """A release's files are not where they should be; the message names them and the command that gets them."""

    def __init__(self, release: Release, folder: Path | None, missing: Iterable[str]) -> None:
        self.missing = tuple(missing)
        place = f"not in {folder}" if folder is not None else "needed, but no models folder was given"
        super().__init__(f"base {release}: {', '.join(self.missing)} {place}; run `gsv models pull {release}`")


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The networks of a release, in evaluation mode and without gradients; trainers copy what they change."""

    release: Release
    digest: str
    """SHA-256 over all tensors, 64 hex digits."""
    token_digest: str
    """SHA-256 over what turns content features into tokens."""
    text_to_semantic: TextToSemantic
    semantic_to_wave: SemanticToWave
    discriminators: Discriminators
    content_encoder: ContentEncoder
    text_encoder: TextEncoder | None = None
    speaker_encoder: SpeakerEncoder | None = None

    @property
    def spec(self) -> ReleaseSpec:
        return RELEASES[self.release]


def load_base(release: Release | str, folder: Path | None = None) -> BaseModel:
    """The base model `release` from the models `folder`; `nano` needs none.

    Raises:
        MissingBase: files are missing; all of them are named.
        ValueError: a file is damaged, or is not the one that was locked.
    """
    release = Release(release)
    if release is Release.NANO:
        return build_nano(RELEASES[release])
    return load_published(RELEASES[release], folder)


def load_published(spec: ReleaseSpec, folder: Path | None) -> BaseModel:
    """The base of `spec` from the files it names; where the folder has a lock, each is checked against it."""
    missing = [name for name in spec.files if folder is None or not (folder / name).is_file()]
    if folder is None or missing:
        raise MissingBase(spec.release, folder, missing)
    if spec.semantic_to_wave is None or spec.discriminators is None:
        raise ValueError(
            f"base {spec.release}: networks of v3 and v4 cannot be built yet; use v1, v2, v2Pro or v2ProPlus"
        )
    if (folder / LOCK_NAME).is_file():
        verify(folder, spec.files)
    assert spec.text_to_semantic_file is not None
    assert spec.generator_file is not None
    assert spec.discriminator_file is not None

    text_to_semantic = TextToSemantic(spec.text_to_semantic)
    _fill(text_to_semantic, folder / spec.text_to_semantic_file, prefix=TEXT_TO_SEMANTIC_PREFIX)
    semantic_to_wave = SemanticToWave(spec.semantic_to_wave)
    _fill(semantic_to_wave, folder / spec.generator_file)
    discriminators = Discriminators(spec.discriminators)
    _fill(discriminators, folder / spec.discriminator_file)
    speaker_encoder = None
    if spec.speaker_encoder is not None and spec.speaker_encoder_file is not None:
        speaker_encoder = SpeakerEncoder(spec.speaker_encoder)
        _fill(speaker_encoder, folder / spec.speaker_encoder_file)
    return _base_of(
        spec,
        text_to_semantic=text_to_semantic,
        semantic_to_wave=semantic_to_wave,
        discriminators=discriminators,
        content_encoder=HubertContentEncoder(folder / HUBERT_FOLDER),
        text_encoder=TextEncoder(folder / BERT_FOLDER),
        speaker_encoder=speaker_encoder,
    )


def build_nano(spec: ReleaseSpec, seed: int = NANO_SEED) -> BaseModel:
    """Nano's networks from `seed`; torch's own random state is left as it was."""
    assert spec.semantic_to_wave is not None
    assert spec.discriminators is not None
    assert spec.speaker_encoder is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_to_semantic = TextToSemantic(spec.text_to_semantic)
        semantic_to_wave = SemanticToWave(spec.semantic_to_wave)
        discriminators = Discriminators(spec.discriminators)
        speaker_encoder = SpeakerEncoder(spec.speaker_encoder)
        _set_random_quantizer(semantic_to_wave)
    return _base_of(
        spec,
        text_to_semantic=text_to_semantic,
        semantic_to_wave=semantic_to_wave,
        discriminators=discriminators,
        content_encoder=MelContentEncoder(spec.semantic_to_wave.content_width),
        text_encoder=None,
        speaker_encoder=speaker_encoder,
    )


def tensors_digest(*tables: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of all tensors, 64 hex digits."""
    digest = hashlib.sha256()
    for number, table in enumerate(tables):
        for name in sorted(table):
            tensor = table[name].detach().cpu().contiguous()
            digest.update(f"{number}\n{name}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def _set_random_quantizer(network: SemanticToWave) -> None:
    """Tokens from random numbers alone, after BEST-RQ (Chiu et al. 2022, arXiv:2202.01855).

    Normalised content goes through a random projection to few channels; the codebook holds random directions of unit
    length, so that the nearest is the one that points the same way and no direction is preferred.
    """
    width = min(QUANTIZER_WIDTH, network.config.content_width)
    weight, bias = network.ssl_proj.weight, network.ssl_proj.bias
    assert bias is not None
    nn.init.zeros_(weight)
    nn.init.zeros_(bias)
    nn.init.xavier_normal_(weight[:width])
    codebook = torch.zeros_like(network.quantizer.codebook)
    codebook[:, :width] = nn.functional.normalize(torch.randn(len(codebook), width), dim=1)
    network.quantizer.set_codebook(codebook)


def _base_of(
    spec: ReleaseSpec,
    *,
    text_to_semantic: TextToSemantic,
    semantic_to_wave: SemanticToWave,
    discriminators: Discriminators,
    content_encoder: ContentEncoder,
    text_encoder: TextEncoder | None,
    speaker_encoder: SpeakerEncoder | None,
) -> BaseModel:
    networks: list[nn.Module] = [text_to_semantic, semantic_to_wave, discriminators]
    if speaker_encoder is not None:
        networks.append(speaker_encoder)
    for network in networks:
        network.eval().requires_grad_(False)
    token_tensors = {
        name: tensor
        for name, tensor in semantic_to_wave.state_dict().items()
        if name.split(".")[0] in ("ssl_proj", "quantizer")
    }
    return BaseModel(
        release=spec.release,
        digest=tensors_digest(*(network.state_dict() for network in networks)),
        token_digest=tensors_digest(token_tensors),
        text_to_semantic=text_to_semantic,
        semantic_to_wave=semantic_to_wave,
        discriminators=discriminators,
        content_encoder=content_encoder,
        text_encoder=text_encoder,
        speaker_encoder=speaker_encoder,
    )


def _fill(network: nn.Module, path: Path, prefix: str = "") -> None:
    """Load `path` into `network`, strictly: every tensor present, none left over, shapes equal."""
    weights = {name.removeprefix(prefix): tensor for name, tensor in read_weights(path).items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not hold this network: {reason}") from error
