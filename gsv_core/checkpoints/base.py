"""A release's files to the networks that every voice starts from.

Published releases come from the models folder, `nano` from a fixed seed: no files, the same tensors on every machine
of one torch version. A base is named by the digest of all its tensors; its tokens by that of the tensors that make
them, so that corpora know which features another base may share.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from gsv_core.checkpoints.hub import LOCK_NAME, verify
from gsv_core.checkpoints.releases import BERT_FOLDER, HUBERT_FOLDER, RELEASES, Release, ReleaseSpec
from gsv_core.checkpoints.upstream import TEXT_TO_SEMANTIC_PREFIX, load_strictly, read_weights
from gsv_core.checkpoints.upstream_recognition import Part, inspect_file, require
from gsv_core.networks.bigvgan import BigVganConfig, BigVganVocoder, read_settings
from gsv_core.networks.content_encoder import ContentEncoder, HubertContentEncoder, MelContentEncoder
from gsv_core.networks.discriminators import Discriminators
from gsv_core.networks.semantic_to_mel import SemanticToMel
from gsv_core.networks.semantic_to_wave import SemanticToWave
from gsv_core.networks.speaker_encoder import SpeakerEncoder
from gsv_core.networks.text_encoder import TextEncoder
from gsv_core.networks.text_to_semantic import TextToSemantic
from gsv_core.networks.vocoder import HifiGanVocoder

Vocoder = HifiGanVocoder | BigVganVocoder

_Config = TypeVar("_Config")
_Network = TypeVar("_Network", bound=nn.Module)

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
    """The networks of a release, in evaluation mode and without gradients; trainers copy what they change.

    Behind text-to-semantic stands either `semantic_to_wave` with its `discriminators`, or, in v3 and v4,
    `semantic_to_mel` with a `vocoder`.
    """

    release: Release
    digest: str
    """SHA-256 over all tensors, 64 hex digits."""
    token_digest: str
    """SHA-256 over what turns content features into tokens."""
    text_to_semantic: TextToSemantic
    content_encoder: ContentEncoder
    semantic_to_wave: SemanticToWave | None = None
    discriminators: Discriminators | None = None
    semantic_to_mel: SemanticToMel | None = None
    vocoder: Vocoder | None = None
    text_encoder: TextEncoder | None = None
    speaker_encoder: SpeakerEncoder | None = None

    @property
    def spec(self) -> ReleaseSpec:
        return RELEASES[self.release]

    @property
    def acoustic(self) -> SemanticToWave | SemanticToMel:
        """The second network, whichever it is: it makes tokens and timbre, and a voice's `wave` weights change it."""
        return _acoustic(self.semantic_to_wave, self.semantic_to_mel)

    def wave_networks(self) -> tuple[SemanticToWave, Discriminators]:
        """Semantic-to-wave and its judges.

        Raises:
            ValueError: the release predicts a mel spectrogram instead.
        """
        if self.semantic_to_wave is None or self.discriminators is None:
            raise ValueError(f"base {self.release} predicts mel spectrograms; use v1, v2, v2Pro or v2ProPlus for this")
        return self.semantic_to_wave, self.discriminators

    def mel_networks(self) -> tuple[SemanticToMel, Vocoder]:
        """Semantic-to-mel and its vocoder.

        Raises:
            ValueError: the release predicts a wave instead.
        """
        if self.semantic_to_mel is None or self.vocoder is None:
            raise ValueError(f"base {self.release} predicts no mel spectrograms; use v3 or v4 for this")
        return self.semantic_to_mel, self.vocoder


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
    if (folder / LOCK_NAME).is_file():
        verify(folder, spec.files)
    files = _Files(spec.release, folder)
    text_to_semantic = files.fill(
        TextToSemantic, spec.text_to_semantic, Part.TEXT_TO_SEMANTIC, spec.text_to_semantic_file
    )
    assert text_to_semantic is not None
    return _base_of(
        spec,
        text_to_semantic=text_to_semantic,
        content_encoder=HubertContentEncoder(folder / HUBERT_FOLDER),
        text_encoder=TextEncoder(folder / BERT_FOLDER),
        semantic_to_wave=files.fill(SemanticToWave, spec.semantic_to_wave, Part.SEMANTIC_TO_WAVE, spec.generator_file),
        discriminators=files.fill(Discriminators, spec.discriminators, Part.DISCRIMINATORS, spec.discriminator_file),
        semantic_to_mel=files.fill(SemanticToMel, spec.semantic_to_mel, Part.SEMANTIC_TO_MEL, spec.generator_file),
        vocoder=_load_vocoder(spec, files),
        speaker_encoder=files.fill(
            SpeakerEncoder, spec.speaker_encoder, Part.SPEAKER_ENCODER, spec.speaker_encoder_file
        ),
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
        content_encoder=MelContentEncoder(spec.semantic_to_wave.content_width),
        semantic_to_wave=semantic_to_wave,
        discriminators=discriminators,
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
    content_encoder: ContentEncoder,
    text_encoder: TextEncoder | None = None,
    semantic_to_wave: SemanticToWave | None = None,
    discriminators: Discriminators | None = None,
    semantic_to_mel: SemanticToMel | None = None,
    vocoder: Vocoder | None = None,
    speaker_encoder: SpeakerEncoder | None = None,
) -> BaseModel:
    # The digest depends on this order, and corpora and voices name their base by it.
    parts = (text_to_semantic, semantic_to_wave, discriminators, semantic_to_mel, vocoder, speaker_encoder)
    networks = [network for network in parts if network is not None]
    for network in networks:
        network.eval().requires_grad_(False)
    token_tensors = {
        name: tensor
        for name, tensor in _acoustic(semantic_to_wave, semantic_to_mel).state_dict().items()
        if name.split(".")[0] in ("ssl_proj", "quantizer")
    }
    return BaseModel(
        release=spec.release,
        digest=tensors_digest(*(network.state_dict() for network in networks)),
        token_digest=tensors_digest(token_tensors),
        text_to_semantic=text_to_semantic,
        content_encoder=content_encoder,
        semantic_to_wave=semantic_to_wave,
        discriminators=discriminators,
        semantic_to_mel=semantic_to_mel,
        vocoder=vocoder,
        text_encoder=text_encoder,
        speaker_encoder=speaker_encoder,
    )


def _acoustic(to_wave: SemanticToWave | None, to_mel: SemanticToMel | None) -> SemanticToWave | SemanticToMel:
    network = to_wave if to_mel is None else to_mel
    assert network is not None, "a base has one of the two"
    return network


@dataclass(frozen=True)
class _Files:
    """The published files of one release, in the models folder."""

    release: Release
    folder: Path

    def fill(
        self, network: Callable[[_Config], _Network], config: _Config | None, part: Part, name: str | None
    ) -> _Network | None:
        """The network of `config` with exactly the tensors of the file `name`; None where the release has none."""
        if config is None:
            return None
        assert name is not None
        path, prefix = self.folder / name, TEXT_TO_SEMANTIC_PREFIX if part is Part.TEXT_TO_SEMANTIC else ""
        built = network(config)
        try:
            weights = {key.removeprefix(prefix): tensor for key, tensor in read_weights(path).items()}
            load_strictly(built, weights, path)
        except ValueError:
            require(inspect_file(path), self.release, part)  # calls a file of something else by its name
            raise
        return built


def _load_vocoder(spec: ReleaseSpec, files: _Files) -> Vocoder | None:
    if not isinstance(spec.vocoder, BigVganConfig):
        return files.fill(HifiGanVocoder, spec.vocoder, Part.VOCODER, next(iter(spec.vocoder_files), None))
    settings, name = spec.vocoder_files
    _check_settings(files.folder / settings, spec)
    return files.fill(BigVganVocoder, spec.vocoder, Part.VOCODER, name)


def _check_settings(path: Path, spec: ReleaseSpec) -> None:
    """Raise if the `config.json` beside BigVGAN's weights describes another vocoder than the release needs."""
    mel = spec.mel_spectrogram
    assert mel is not None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("it is no table of settings")
        described = read_settings(settings)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} describes no vocoder that can be built: {error}") from error
    needed = {
        "sampling_rate": mel.rate_hz,
        "n_fft": mel.n_fft,
        "hop_size": mel.hop,
        "win_size": mel.window,
        "fmin": mel.fmin,
        "fmax": mel.fmax,
    }
    wrong = [
        f"{name} {settings.get(name)}, not {value}" for name, value in needed.items() if settings.get(name) != value
    ]
    if described != spec.vocoder:
        wrong.append(f"{described}, not {spec.vocoder}")
    if wrong:
        raise ValueError(f"{path} is not the vocoder of {spec.release}: {'; '.join(wrong)}")
