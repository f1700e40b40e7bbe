"""The settings inside GPT-SoVITS's files to sizes of our networks, and back.

A file names the sizes its network is built with; others are fixed in upstream's code and stand in no file. Settings
come from strangers: whatever is absent, of another type or far out of range is taken from the release instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from gsv_core.checkpoints.releases import Release, ReleaseSpec
from gsv_core.networks.semantic_to_mel import SemanticToMelConfig
from gsv_core.networks.semantic_to_wave import SemanticToWaveConfig
from gsv_core.networks.text_to_semantic import TextToSemanticConfig

_Config = TypeVar("_Config", TextToSemanticConfig, SemanticToWaveConfig, SemanticToMelConfig)

_MOST_LAYERS = 64
_LARGEST = 1 << 16
_FIXED_WAVE = (
    "content_width",
    "codebook_size",
    "width",
    "window",
    "join_width",
    "join_heads",
    "reference_width",
    "reference_heads",
    "gated_kernel",
    "posterior_layers",
    "flow_couplings",
    "flow_layers",
)
"""Sizes of semantic-to-wave that GPT-SoVITS takes from its code, whatever the file says."""


def text_to_semantic_config(settings: Mapping[str, Any], published: TextToSemanticConfig) -> TextToSemanticConfig:
    """The network that `settings` (all of a file's) describe, on the sizes of `published`."""
    model = _section(settings, "model")
    return _replaced(
        published,
        phoneme_count=_size(model, "phoneme_vocab_size", published.phoneme_count),
        token_count=_size(model, "vocab_size", published.token_count),
        width=_size(model, "hidden_dim", published.width),
        heads=_size(model, "head", published.heads),
        layers=_size(model, "n_layer", published.layers, most=_MOST_LAYERS),
    )


def semantic_to_wave_config(settings: Mapping[str, Any], published: SemanticToWaveConfig) -> SemanticToWaveConfig:
    """The network that `settings` (all of a file's) describe, on the sizes of `published`."""
    model = _section(settings, "model")
    return _replaced(
        published,
        latent=_size(model, "inter_channels", published.latent),
        filter_width=_size(model, "filter_channels", published.filter_width),
        heads=_size(model, "n_heads", published.heads),
        layers=_size(model, "n_layers", published.layers, most=_MOST_LAYERS),
        kernel=_size(model, "kernel_size", published.kernel),
        timbre_width=_size(model, "gin_channels", published.timbre_width),
        generator_channels=_size(model, "upsample_initial_channel", published.generator_channels),
        upsample_rates=_sizes(model, "upsample_rates", published.upsample_rates),
        upsample_kernels=_sizes(model, "upsample_kernel_sizes", published.upsample_kernels),
        block_kernels=_sizes(model, "resblock_kernel_sizes", published.block_kernels),
        block_dilations=_dilations(model, published.block_dilations),
    )


def semantic_to_mel_config(settings: Mapping[str, Any], published: SemanticToMelConfig) -> SemanticToMelConfig:
    """The network that `settings` (all of a file's) describe, on the sizes of `published`."""
    model = _section(settings, "model")
    return _replaced(
        published,
        filter_width=_size(model, "filter_channels", published.filter_width),
        heads=_size(model, "n_heads", published.heads),
        layers=_size(model, "n_layers", published.layers, most=_MOST_LAYERS),
        kernel=_size(model, "kernel_size", published.kernel),
    )


def semantic_settings(config: TextToSemanticConfig, voice: str, *, epochs: int, batch_size: int) -> dict[str, Any]:
    """What a file of text-to-semantic says of itself; no path stands in it."""
    return {
        "train": {
            "seed": 0,
            "epochs": epochs,
            "batch_size": batch_size,
            "if_save_latest": False,
            "if_save_every_weights": True,
            "half_weights_save_dir": "",
            "exp_name": voice,
            "if_dpo": False,
        },
        "optimizer": {"lr": 0.01, "lr_init": 1e-5, "lr_end": 1e-4, "warmup_steps": 2000, "decay_steps": 40_000},
        "data": {"max_eval_sample": 8, "max_sec": 54, "num_workers": 1, "pad_val": config.end_token},
        "model": {
            "vocab_size": config.token_count,
            "phoneme_vocab_size": config.phoneme_count,
            "embedding_dim": config.width,
            "hidden_dim": config.width,
            "head": config.heads,
            "linear_units": 4 * config.width,
            "n_layer": config.layers,
            "dropout": config.token_dropout,
            "EOS": config.end_token,
            "random_bert": 0,
        },
        "inference": {"top_k": 15},
        "pretrained_s1": "",
    }


def second_settings(
    spec: ReleaseSpec, voice: str, *, epochs: int, batch_size: int, lora_rank: int | None = None
) -> dict[str, Any]:
    """What a file of semantic-to-wave or semantic-to-mel says of itself; no path stands in it."""
    config = spec.semantic_to_wave or spec.semantic_to_mel
    assert config is not None
    # Semantic-to-mel has no generator; upstream's settings name one all the same.
    generator = spec.semantic_to_wave or SemanticToWaveConfig()
    train = {
        "log_interval": 100,
        "eval_interval": 500,
        "seed": 0,
        "epochs": epochs,
        "learning_rate": 1e-4,
        "betas": [0.8, 0.99],
        "eps": 1e-9,
        "batch_size": batch_size,
        "fp16_run": False,
        "lr_decay": 0.999875,
        "segment_size": generator.segment_frames * spec.spectrogram.hop,
        "init_lr_ratio": 1,
        "warmup_epochs": 0,
        "c_mel": 45,
        "c_kl": 1.0,
        "text_low_lr_rate": 0.4,
        "grad_ckpt": False,
        "pretrained_s2G": "",
        "pretrained_s2D": "",
        "if_save_latest": False,
        "if_save_every_weights": True,
        "save_every_epoch": epochs,
        "gpu_numbers": "0",
    }
    if lora_rank is not None:
        train["lora_rank"] = str(lora_rank)
    return {
        "train": train,
        "data": {
            "max_wav_value": 32768.0,
            "sampling_rate": 32_000,
            "filter_length": spec.spectrogram.window,
            "hop_length": spec.spectrogram.hop,
            "win_length": spec.spectrogram.window,
            "n_mel_channels": 128,
            "mel_fmin": 0.0,
            "mel_fmax": None,
            "add_blank": True,
            "n_speakers": 300,
            "cleaned_text": True,
            "exp_dir": "",
        },
        "model": {
            "inter_channels": config.latent,
            "hidden_channels": config.width,
            "filter_channels": config.filter_width,
            "n_heads": config.heads,
            "n_layers": config.layers,
            "kernel_size": config.kernel,
            "p_dropout": config.dropout,
            "resblock": "1",
            "resblock_kernel_sizes": list(generator.block_kernels),
            "resblock_dilation_sizes": [list(dilations) for dilations in generator.block_dilations],
            "upsample_rates": list(generator.upsample_rates),
            "upsample_initial_channel": generator.generator_channels,
            "upsample_kernel_sizes": list(generator.upsample_kernels),
            "n_layers_q": 3,
            "use_spectral_norm": False,
            "gin_channels": config.timbre_width,
            "semantic_frame_rate": "25hz",
            "freeze_quantizer": True,
            "version": str(spec.release),
        },
        "s2_ckpt_dir": "",
        "content_module": "cnhubert",
        "save_weight_dir": "",
        "name": voice,
        "version": str(spec.release),
        "pretrain": None,
        "resume_step": None,
    }


def why_upstream_cannot_build(spec: ReleaseSpec) -> str | None:
    """The first size of `spec` that GPT-SoVITS has fixed otherwise; None where it can build these networks."""
    if spec.release is Release.NANO:
        return "nano exists here alone"
    if spec.text_to_semantic.text_vector_width != TextToSemanticConfig().text_vector_width:
        return f"text_vector_width is {spec.text_to_semantic.text_vector_width}, there it is always 1024"
    if spec.semantic_to_wave is not None:
        fixed = SemanticToWaveConfig()
        for name in _FIXED_WAVE:
            ours, theirs = getattr(spec.semantic_to_wave, name), getattr(fixed, name)
            if ours != theirs:
                return f"{name} is {ours}, there it is always {theirs}"
        if spec.semantic_to_wave.speaker_vector_width not in (None, 20_480):
            return f"speaker_vector_width is {spec.semantic_to_wave.speaker_vector_width}, there it is always 20480"
    if spec.semantic_to_mel is not None:
        published = SemanticToMelConfig()
        named = ("filter_width", "heads", "layers", "kernel", "dropout", "latent", "stretch", "most_frames_per_token")
        chunks = ("reference_frames", "chunk_frames", "padding_leaks")
        free = {name: getattr(spec.semantic_to_mel, name) for name in (*named, *chunks)}
        if replace(published, **free) != spec.semantic_to_mel:
            return "the sizes of its flow are fixed there"
    return None


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, Mapping) else {}


def _size(model: Mapping[str, Any], name: str, otherwise: int, *, most: int = _LARGEST) -> int:
    value = model.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most else otherwise


def _sizes(model: Mapping[str, Any], name: str, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    return _whole(model.get(name)) or otherwise


def _dilations(model: Mapping[str, Any], otherwise: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    rows = model.get("resblock_dilation_sizes")
    if not isinstance(rows, Sequence) or not 0 < len(rows) <= _MOST_LAYERS:
        return otherwise
    found = tuple(_whole(row) for row in rows)
    return found if all(found) else otherwise


def _whole(values: Any) -> tuple[int, ...]:
    """`values` as a tuple if they are a few positive whole numbers, else nothing."""
    if not isinstance(values, list | tuple) or len(values) > _MOST_LAYERS:
        return ()
    fits = all(isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST for value in values)
    return tuple(values) if fits else ()


def _replaced(published: _Config, **sizes: Any) -> _Config:
    """`published` with `sizes`, or as it is where those make no network."""
    try:
        return replace(published, **sizes)
    except ValueError:
        return published
