"""Every release of GPT-SoVITS that is known here: its networks' sizes, its rates, and the files it is made of.

The one place where a version means something. File names are those of the published repository.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from gsv_core.audio.spectrogram import SpectrogramConfig
from gsv_core.networks.bigvgan import BigVganConfig
from gsv_core.networks.discriminators import DiscriminatorConfig
from gsv_core.networks.semantic_to_mel import SemanticToMelConfig
from gsv_core.networks.semantic_to_wave import SemanticToWaveConfig
from gsv_core.networks.speaker_encoder import SpeakerEncoderConfig
from gsv_core.networks.text_to_semantic import TextToSemanticConfig
from gsv_core.networks.vocoder import VocoderConfig

REPOSITORY = "lj1995/GPT-SoVITS"


class Release(StrEnum):
    """A generation of base models; `nano` is ours: v2Pro's topology at toy width."""

    V1 = "v1"
    V2 = "v2"
    V2_PRO = "v2Pro"
    V2_PRO_PLUS = "v2ProPlus"
    V3 = "v3"
    V4 = "v4"
    NANO = "nano"


@dataclass(frozen=True, kw_only=True)
class ReleaseSpec:
    """What a release consists of. Paths are relative to the models folder, which mirrors the repository."""

    release: Release
    symbols: str
    """The phoneme inventory its ids index: `v1` or `v2`."""
    text_to_semantic: TextToSemanticConfig
    semantic_to_wave: SemanticToWaveConfig | None = None
    """None: a release whose second network predicts a mel spectrogram (v3, v4)."""
    semantic_to_mel: SemanticToMelConfig | None = None
    """Set where `semantic_to_wave` is not."""
    discriminators: DiscriminatorConfig | None = None
    vocoder: VocoderConfig | None = None
    """A `BigVganConfig` where the vocoder is BigVGAN (v3)."""
    sampling_steps: int = 32
    """Of the flow from noise to mel, where nothing else is asked for."""
    speaker_encoder: SpeakerEncoderConfig | None = None
    spectrogram: SpectrogramConfig = SpectrogramConfig()  # noqa: RUF009 - frozen
    mel_spectrogram: SpectrogramConfig | None = None
    """What `semantic_to_mel` predicts: mel bands at the rate that its vocoder takes."""
    output_rate_hz: int = 32_000
    text_to_semantic_file: str | None = None
    generator_file: str | None = None
    discriminator_file: str | None = None
    vocoder_files: tuple[str, ...] = ()
    speaker_encoder_file: str | None = None
    content_encoder_files: tuple[str, ...] = ()
    text_encoder_files: tuple[str, ...] = ()
    repository: str = REPOSITORY
    note: str | None = None
    """What must be said wherever this release's speech is offered."""

    @property
    def files(self) -> tuple[str, ...]:
        """Every file the release needs; none for `nano`."""
        single = (self.text_to_semantic_file, self.generator_file, self.discriminator_file, self.speaker_encoder_file)
        named = tuple(name for name in single if name is not None)
        return (*named, *self.vocoder_files, *self.content_encoder_files, *self.text_encoder_files)


HUBERT_FOLDER = "chinese-hubert-base"
BERT_FOLDER = "chinese-roberta-wwm-ext-large"
_HUBERT_FILES = tuple(
    f"{HUBERT_FOLDER}/{name}" for name in ("config.json", "preprocessor_config.json", "pytorch_model.bin")
)
_BERT_FILES = tuple(f"{BERT_FOLDER}/{name}" for name in ("config.json", "pytorch_model.bin", "tokenizer.json"))
_SPEAKER_FILE = "sv/pretrained_eres2netv2w24s4ep4.ckpt"
_EARLY_PERIODS = (2, 3, 5, 7, 11)

_V1 = ReleaseSpec(
    release=Release.V1,
    symbols="v1",
    text_to_semantic=TextToSemanticConfig(phoneme_count=512),
    semantic_to_wave=SemanticToWaveConfig(phoneme_count=322, reference_bins=1025),
    discriminators=DiscriminatorConfig(periods=_EARLY_PERIODS),
    text_to_semantic_file="s1bert25hz-2kh-longer-epoch=68e-step=50232.ckpt",
    generator_file="s2G488k.pth",
    discriminator_file="s2D488k.pth",
    content_encoder_files=_HUBERT_FILES,
    text_encoder_files=_BERT_FILES,
)

_V2 = ReleaseSpec(
    release=Release.V2,
    symbols="v2",
    text_to_semantic=TextToSemanticConfig(),
    semantic_to_wave=SemanticToWaveConfig(),
    discriminators=DiscriminatorConfig(periods=_EARLY_PERIODS),
    text_to_semantic_file="gsv-v2final-pretrained/s1bert25hz-5kh-longer-epoch=12-step=369668.ckpt",
    generator_file="gsv-v2final-pretrained/s2G2333k.pth",
    discriminator_file="gsv-v2final-pretrained/s2D2333k.pth",
    content_encoder_files=_HUBERT_FILES,
    text_encoder_files=_BERT_FILES,
)

_V2_PRO = ReleaseSpec(
    release=Release.V2_PRO,
    symbols="v2",
    text_to_semantic=TextToSemanticConfig(),
    semantic_to_wave=SemanticToWaveConfig(timbre_width=1024, speaker_vector_width=20480, dropout=0.0),
    discriminators=DiscriminatorConfig(),
    speaker_encoder=SpeakerEncoderConfig(),
    text_to_semantic_file="s1v3.ckpt",
    generator_file="v2Pro/s2Gv2Pro.pth",
    discriminator_file="v2Pro/s2Dv2Pro.pth",
    speaker_encoder_file=_SPEAKER_FILE,
    content_encoder_files=_HUBERT_FILES,
    text_encoder_files=_BERT_FILES,
)

_V2_PRO_PLUS = ReleaseSpec(
    release=Release.V2_PRO_PLUS,
    symbols="v2",
    text_to_semantic=TextToSemanticConfig(),
    semantic_to_wave=SemanticToWaveConfig(
        timbre_width=1024,
        speaker_vector_width=20480,
        dropout=0.0,
        generator_channels=768,
        upsample_kernels=(20, 16, 8, 2, 2),
    ),
    discriminators=DiscriminatorConfig(),
    speaker_encoder=SpeakerEncoderConfig(),
    text_to_semantic_file="s1v3.ckpt",
    generator_file="v2Pro/s2Gv2ProPlus.pth",
    discriminator_file="v2Pro/s2Dv2ProPlus.pth",
    speaker_encoder_file=_SPEAKER_FILE,
    content_encoder_files=_HUBERT_FILES,
    text_encoder_files=_BERT_FILES,
)

_V3 = ReleaseSpec(
    release=Release.V3,
    symbols="v2",
    text_to_semantic=TextToSemanticConfig(),
    semantic_to_mel=SemanticToMelConfig(),
    vocoder=BigVganConfig(),
    mel_spectrogram=SpectrogramConfig(rate_hz=24_000, n_fft=1024, hop=256, window=1024, mel_bands=100),
    output_rate_hz=24_000,
    text_to_semantic_file="s1v3.ckpt",
    generator_file="s2Gv3.pth",
    vocoder_files=tuple(
        f"models--nvidia--bigvgan_v2_24khz_100band_256x/{name}" for name in ("config.json", "bigvgan_generator.pt")
    ),
    content_encoder_files=_HUBERT_FILES,
    text_encoder_files=_BERT_FILES,
)

_V4 = ReleaseSpec(
    release=Release.V4,
    symbols="v2",
    text_to_semantic=TextToSemanticConfig(),
    semantic_to_mel=SemanticToMelConfig(
        stretch=2.0, most_frames_per_token=4.0, reference_frames=500, chunk_frames=1000
    ),
    vocoder=VocoderConfig(),
    mel_spectrogram=SpectrogramConfig(n_fft=1280, hop=320, window=1280, mel_bands=100),
    sampling_steps=8,
    output_rate_hz=48_000,
    text_to_semantic_file="s1v3.ckpt",
    generator_file="gsv-v4-pretrained/s2Gv4.pth",
    vocoder_files=("gsv-v4-pretrained/vocoder.pth",),
    content_encoder_files=_HUBERT_FILES,
    text_encoder_files=_BERT_FILES,
)

NANO_CONTENT_BANDS = 80

_NANO = ReleaseSpec(
    release=Release.NANO,
    symbols="v2",
    text_to_semantic=TextToSemanticConfig(width=64, heads=2, layers=3, text_vector_width=8, dropout=0.0),
    semantic_to_wave=SemanticToWaveConfig(
        content_width=NANO_CONTENT_BANDS,
        latent=32,
        width=64,
        filter_width=128,
        layers=2,
        dropout=0.0,
        join_width=64,
        join_heads=2,
        timbre_width=64,
        speaker_vector_width=640,
        reference_width=32,
        reference_dropout=0.0,
        posterior_layers=4,
        flow_couplings=2,
        flow_layers=2,
        generator_channels=64,
        block_kernels=(3, 7),
        block_dilations=((1,), (3,)),
    ),
    discriminators=DiscriminatorConfig(
        periods=(2, 3, 5, 7, 11, 17, 23),
        period_channels=(4, 8, 16, 32, 32),
        scale_channels=(4, 8, 16, 32, 32, 32),
        scale_groups=(1, 4, 8, 16, 16, 1),
    ),
    speaker_encoder=SpeakerEncoderConfig(channels=4, blocks=(1, 1, 1, 1), base_width=32, expansion=2),
    note="nano: built from a seed, so its speech is not speech",
)

RELEASES: Mapping[Release, ReleaseSpec] = MappingProxyType(
    {spec.release: spec for spec in (_V1, _V2, _V2_PRO, _V2_PRO_PLUS, _V3, _V4, _NANO)}
)


def release_of(name: str) -> Release:
    """The release called `name`, whatever its case.

    Raises:
        ValueError: there is none.
    """
    for release in Release:
        if release.value.lower() == name.lower():
            return release
    raise ValueError(f"no release is called {name!r}; there are {', '.join(Release)}")
