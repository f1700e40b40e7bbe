"""Tiny engine models from a seed, each written in its engine's own on-disk format. They prove loading, nothing else."""

import json
from pathlib import Path

import torch

from pipelines.engines.packaged import forget_lazy_modules


def write_tiny_whisper(folder: Path, seed: int = 0) -> Path:
    """An English-only Whisper of half a million weights as a CTranslate2 folder, by its own converter."""
    import ctranslate2
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
    special += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    tokenizer.add_special_tokens([AddedToken(f"<|{index * 0.02:.2f}|>", special=True) for index in range(1501)])

    transformers_folder = folder.with_name(folder.name + "-transformers")
    ids = {name: tokenizer.token_to_id(name) for name in special}
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(), d_model=64, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
        num_mel_bins=80, max_target_positions=448,
        decoder_start_token_id=ids["<|startoftranscript|>"], bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"], pad_token_id=ids["<|endoftext|>"], suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    network = WhisperForConditionalGeneration(config)
    network.generation_config.no_timestamps_token_id = ids["<|notimestamps|>"]
    network.generation_config.alignment_heads = [[1, 0]]
    network.save_pretrained(transformers_folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    ).save_pretrained(transformers_folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(transformers_folder)
    ctranslate2.converters.TransformersConverter(
        str(transformers_folder), copy_files=["tokenizer.json", "preprocessor_config.json"]
    ).convert(str(folder), quantization="int8")
    return folder


def write_tiny_wav2vec2(folder: Path, seed: int = 0) -> Path:
    """A wav2vec2 network with a CTC head over the letters of English, as transformers writes it."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder.mkdir(parents=True)
    names = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({name: index for index, name in enumerate(names)}), encoding="utf-8")
    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        vocab_size=len(names), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2Processor(
        feature_extractor=Wav2Vec2FeatureExtractor(), tokenizer=Wav2Vec2CTCTokenizer(str(vocabulary))
    ).save_pretrained(folder)
    return folder


def write_tiny_ecapa(folder: Path, seed: int = 0, width: int = 24) -> Path:
    """ECAPA's tensors as speechbrain saves them, beside a YAML that must never be read."""
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    forget_lazy_modules()  # else whatever looks through the loaded modules, such as hypothesis, fails from here on
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    network = ECAPA_TDNN(
        80, channels=[16, 16, 16, 16, 48], attention_channels=8, res2net_scale=4, se_channels=8, lin_neurons=width
    )
    torch.save(network.state_dict(), folder / "embedding_model.ckpt")
    (folder / "hyperparams.yaml").write_text("evil: !apply:os.abort []\n", encoding="utf-8")
    return folder
