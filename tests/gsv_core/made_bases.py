"""Releases at toy width, from a seed, in files laid out as the published ones are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast, HubertConfig, HubertModel

from gsv_core.checkpoints.releases import BERT_FOLDER, HUBERT_FOLDER, RELEASES, Release, ReleaseSpec
from gsv_core.networks.bigvgan import BigVganConfig, BigVganVocoder
from gsv_core.networks.semantic_to_mel import SemanticToMel
from gsv_core.networks.text_to_semantic import TextToSemantic
from gsv_core.networks.vocoder import HifiGanVocoder, VocoderConfig

CONTENT_WIDTH = 16
ENCODER_FILES: dict[str, Any] = {
    "content_encoder_files": (f"{HUBERT_FOLDER}/config.json", f"{HUBERT_FOLDER}/model.safetensors"),
    "text_encoder_files": (f"{BERT_FOLDER}/config.json", f"{BERT_FOLDER}/model.safetensors"),
}


def write_encoders(folder: Path) -> None:
    """A HuBERT and a BERT, both 16 wide; the BERT knows three characters."""
    torch.manual_seed(0)
    hubert = HubertConfig(
        hidden_size=CONTENT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    HubertModel(hubert).save_pretrained(folder / HUBERT_FOLDER)
    bert = folder / BERT_FOLDER
    bert.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"你好吗"]
    (bert / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    BertTokenizerFast(vocab_file=str(bert / "vocab.txt")).save_pretrained(bert)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(bert)


def write_text_to_semantic(path: Path, network: TextToSemantic) -> None:
    """A GPT file: half precision, and a prefix before every name."""
    weights = {f"model.{name}": tensor.half() for name, tensor in network.state_dict().items()}
    write(path, {"weight": weights, "config": {"model": {"n_layer": 3}}, "info": "GPT-e1"})


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def small_mel_release(release: Release) -> ReleaseSpec:
    """v3 or v4 with narrow networks, and chunks of about a second."""
    spec, nano = RELEASES[release], RELEASES[Release.NANO]
    assert spec.semantic_to_mel is not None
    blocks: dict[str, Any] = {"block_kernels": (3,), "block_dilations": ((1,),)}
    small = replace(
        spec.semantic_to_mel,
        content_width=CONTENT_WIDTH,
        latent=16,
        width=16,
        filter_width=32,
        layers=2,
        join_width=16,
        join_heads=2,
        timbre_width=16,
        reference_width=16,
        condition_width=16,
        condition_layers=2,
        flow_width=32,
        flow_heads=2,
        flow_head_width=16,
        flow_layers=2,
        flow_filter_width=64,
        flow_condition_layers=1,
        flow_position_kernel=7,
        flow_position_groups=4,
        reference_frames=40,
        chunk_frames=100,
    )
    return replace(
        spec,
        text_to_semantic=replace(nano.text_to_semantic, text_vector_width=16),
        semantic_to_mel=small,
        vocoder=BigVganConfig(channels=64, **blocks) if release is Release.V3 else VocoderConfig(channels=32, **blocks),
        **ENCODER_FILES,
    )


def write_mel_release(folder: Path, spec: ReleaseSpec, seed: int = 0) -> dict[str, nn.Module]:
    """Every file of `spec`; returns the networks that were written."""
    assert spec.semantic_to_mel is not None
    assert spec.text_to_semantic_file is not None
    assert spec.generator_file is not None
    torch.manual_seed(seed)
    text_to_semantic = TextToSemantic(spec.text_to_semantic)
    semantic_to_mel = SemanticToMel(spec.semantic_to_mel)
    with torch.no_grad():  # a new codebook is all zeros, and so is much of a new flow
        semantic_to_mel.quantizer.set_codebook(torch.randn_like(semantic_to_mel.quantizer.codebook))
        for parameter in semantic_to_mel.cfm.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    write_text_to_semantic(folder / spec.text_to_semantic_file, text_to_semantic)
    write(folder / spec.generator_file, {"weight": semantic_to_mel.state_dict(), "config": None, "info": ""})
    if isinstance(spec.vocoder, BigVganConfig):
        vocoder: nn.Module = BigVganVocoder(spec.vocoder)
        settings, weights = spec.vocoder_files
        write(folder / weights, {"generator": vocoder.state_dict()})
        (folder / settings).write_text(json.dumps(bigvgan_settings(spec)), "utf-8")
    else:
        assert spec.vocoder is not None
        vocoder = HifiGanVocoder(spec.vocoder)
        write(folder / spec.vocoder_files[0], vocoder.state_dict())
    write_encoders(folder)
    return {"text_to_semantic": text_to_semantic, "semantic_to_mel": semantic_to_mel, "vocoder": vocoder}


def bigvgan_settings(spec: ReleaseSpec) -> dict[str, Any]:
    """The `config.json` beside BigVGAN's weights, with some of the settings that training alone needs."""
    mel, vocoder = spec.mel_spectrogram, spec.vocoder
    assert mel is not None
    assert vocoder is not None
    return {
        "resblock": "1",
        "batch_size": 32,
        "learning_rate": 0.0001,
        "activation": "snakebeta",
        "snake_logscale": True,
        "use_tanh_at_final": False,
        "use_bias_at_final": vocoder.final_bias,
        "num_mels": vocoder.mel_bands,
        "upsample_initial_channel": vocoder.channels,
        "upsample_rates": list(vocoder.upsample_rates),
        "upsample_kernel_sizes": list(vocoder.upsample_kernels),
        "resblock_kernel_sizes": list(vocoder.block_kernels),
        "resblock_dilation_sizes": [list(dilations) for dilations in vocoder.block_dilations],
        "sampling_rate": mel.rate_hz,
        "hop_size": mel.hop,
        "n_fft": mel.n_fft,
        "win_size": mel.window,
        "fmin": mel.fmin,
        "fmax": mel.fmax,
    }
