"""Semantic to wave (v1, v2, v2Pro, v2ProPlus) on recorded cases: training pass, tokens, timbre, speech."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gsv_core.audio.spectrogram import SpectrogramConfig, linear_spectrogram, mel_of_linear
from gsv_core.networks.layers import frame_mask, slice_frames
from gsv_core.networks.semantic_to_wave import FRAMES_PER_TOKEN, SemanticToWave, SemanticToWaveConfig
from gsv_core.training.losses import kl_loss, mel_loss
from tests.parity.recorded import Comparison, RecordedCase, count

MEL_WEIGHT = 45


def semantic_to_wave_config(sizes: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> SemanticToWaveConfig:
    """Our config of upstream's hyper-parameters; what those do not say is read off the shapes of the weights."""
    return SemanticToWaveConfig(
        phoneme_count=shapes["enc_p.text_embedding.weight"][0],
        content_width=shapes["ssl_proj.weight"][0],
        codebook_size=shapes["quantizer.vq.layers.0._codebook.embed"][0],
        spectrogram_bins=shapes["enc_q.pre.weight"][1],
        reference_bins=shapes["ref_enc.spectral.0.fc.weight"][1],
        latent=sizes["inter_channels"],
        width=sizes["hidden_channels"],
        filter_width=sizes["filter_channels"],
        heads=sizes["n_heads"],
        layers=sizes["n_layers"],
        kernel=sizes["kernel_size"],
        dropout=sizes["p_dropout"],
        timbre_width=sizes["gin_channels"],
        speaker_vector_width=shapes["sv_emb.weight"][1] if "sv_emb.weight" in shapes else None,
        generator_channels=sizes["upsample_initial_channel"],
        upsample_rates=tuple(sizes["upsample_rates"]),
        upsample_kernels=tuple(sizes["upsample_kernel_sizes"]),
        block_kernels=tuple(sizes["resblock_kernel_sizes"]),
        block_dilations=tuple(tuple(dilations) for dilations in sizes["resblock_dilation_sizes"]),
        segment_frames=sizes.get("segment_size", SemanticToWaveConfig().segment_frames),
        join_width=shapes["enc_p.mrte.c_pre.weight"][0],
        reference_width=shapes["ref_enc.spectral.0.fc.weight"][0],
        posterior_layers=count(shapes, r"enc_q\.enc\.in_layers\.(\d+)\."),
        # Every coupling is followed by a reversal without weights.
        flow_couplings=count(shapes, r"flow\.flows\.(\d+)\."),
        flow_layers=count(shapes, r"flow\.flows\.0\.enc\.in_layers\.(\d+)\."),
    )


def semantic_to_wave(case: RecordedCase) -> Iterator[Comparison]:
    weights = case.weights()
    network = SemanticToWave(
        semantic_to_wave_config(case.constructor, {name: tuple(weight.shape) for name, weight in weights.items()})
    ).eval()
    network.load_state_dict(weights)
    # In decoding the flow runs backwards, by another method; what comes out of it is what the generator gets.
    case.watch(network, inputs={"dec.flow": "dec"})
    yield from _training(case, network)
    with torch.no_grad():
        yield from _codes(case, network)
        yield from _timbre(case, network)
        yield from _decoding(case, network)


def _training(case: RecordedCase, network: SemanticToWave) -> Iterator[Comparison]:
    given, lengths = case.inputs, case.inputs["spec_lengths"]
    segment = network.config.segment_frames
    starts = (given["slice_u"] * (lengths - segment + 1)).long()
    yield case.compare("ids_slice", starts)
    forward = network(
        given["ssl"],
        given["spec"],
        lengths,
        given["text"],
        given["text_lengths"],
        given.get("sv_emb"),
        noise=given["eps_q"],
        slice_starts=starts,
    )
    yield case.compare("y_hat", forward.wave)
    yield case.compare("kl_ssl", forward.commitment)
    yield case.compare("z_mask", forward.mask)
    yield case.compare("z", forward.latent)
    yield case.compare("z_p", forward.prior_latent)
    yield case.compare("m_p", forward.prior_mean)
    yield case.compare("logs_p", forward.prior_log_scale)
    yield case.compare("m_q", forward.posterior_mean)
    yield case.compare("logs_q", forward.posterior_log_scale)
    divergence = kl_loss(
        forward.prior_latent, forward.posterior_log_scale, forward.prior_mean, forward.prior_log_scale, forward.mask
    )
    yield case.compare("kl", divergence)
    config = SpectrogramConfig()
    recorded_mel = slice_frames(mel_of_linear(given["spec"], config), starts, segment)
    yield case.compare("y_mel_slice", recorded_mel)
    generated_mel = mel_of_linear(linear_spectrogram(forward.wave.squeeze(1), config), config)
    yield case.compare("y_hat_mel", generated_mel)
    distance = MEL_WEIGHT * mel_loss(recorded_mel, generated_mel)
    yield case.compare(f"loss_mel_times_{MEL_WEIGHT}", distance)
    (divergence + distance + forward.commitment).backward()
    yield from case.compare_gradients(f"kl + loss_mel_times_{MEL_WEIGHT} + kl_ssl", network)


def _codes(case: RecordedCase, network: SemanticToWave) -> Iterator[Comparison]:
    tokens = network.encode_tokens(case.inputs["ssl"])
    yield case.compare("codes_batch", tokens.unsqueeze(1))
    yield case.compare("codes_single", network.encode_tokens(case.inputs["ssl_single"]).unsqueeze(1))
    case.heard("ssl_projected_single", network.ssl_proj(case.inputs["ssl_single"]))
    held = network.quantizer.decode(tokens).repeat_interleave(FRAMES_PER_TOKEN, dim=2)
    for name in case.results:
        if channels := re.fullmatch(r"quantized_first(\d+)ch", name):
            yield case.compare(name, held[:, : int(channels[1])])


def _timbre(case: RecordedCase, network: SemanticToWave) -> Iterator[Comparison]:
    given, bins = case.inputs, network.config.reference_bins
    mask = frame_mask(given["spec_lengths"], given["spec"].shape[2], given["spec"].dtype)
    yield case.compare("ge_batch_ref_enc", network.ref_enc(given["spec"][:, :bins] * mask, mask))
    for name in case.results:
        if number := re.fullmatch(r"ge_refer(\d+)_ref_enc", name):
            reference = given[f"dec_refer{number[1]}"]
            yield case.compare(name, network.ref_enc(reference[:, :bins], reference.new_ones(1, 1, reference.shape[2])))
        elif number := re.fullmatch(r"ge_refer(\d+)_final", name):
            yield case.compare(name, _timbre_of(case, network, number[1]))
        elif number := re.fullmatch(r"ge512_refer(\d+)", name):
            timbre = _timbre_of(case, network, number[1])
            yield case.compare(name, network.ge_to512(timbre.transpose(1, 2)).transpose(1, 2))


def _timbre_of(case: RecordedCase, network: SemanticToWave, number: str) -> Tensor:
    return network.timbre(case.inputs[f"dec_refer{number}"], None, case.inputs.get(f"dec_sv{number}"))


def _decoding(case: RecordedCase, network: SemanticToWave) -> Iterator[Comparison]:
    given = case.inputs
    numbers = sorted(int(found[1]) for name in given if (found := re.fullmatch(r"dec_refer(\d+)", name)))
    references = [given[f"dec_refer{number}"] for number in numbers]
    speakers = [given[f"dec_sv{number}"] for number in numbers] if f"dec_sv{numbers[0]}" in given else None
    tokens, phonemes, scale = given["dec_codes"][0], given["dec_text"], case.meta["noise_scale"]
    for written in (name.removeprefix("dec_eps_speed") for name in given if name.startswith("dec_eps_speed")):
        wave = network.decode(
            tokens,
            phonemes,
            references[:1],
            speakers and speakers[:1],
            noise_scale=scale,
            speed=float(written),
            noise=given[f"dec_eps_speed{written}"],
        )
        yield case.compare(f"dec_speed{written}", wave)
    together = {"dec_two_refs": 2, "dec_three_refs": 3, "dec_all_refs": len(references)}
    for name in case.results.keys() & together.keys():
        count = together[name]
        wave = network.decode(
            tokens,
            phonemes,
            references[:count],
            speakers and speakers[:count],
            noise_scale=scale,
            noise=given["dec_eps_speed1"],
        )
        yield case.compare(name, wave)
