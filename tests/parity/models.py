"""Our networks evaluated on recorded cases: each function takes a case and yields one Comparison per number."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsv_core.audio.spectrogram import SpectrogramConfig, linear_spectrogram, mel_filterbank, mel_of_linear
from gsv_core.networks.discriminators import DiscriminatorConfig, DiscriminatorOutput, Discriminators, judge_both
from gsv_core.networks.layers import frame_mask, slice_frames
from gsv_core.networks.semantic_to_wave import FRAMES_PER_TOKEN, SemanticToWave, SemanticToWaveConfig
from gsv_core.networks.speaker_encoder import SpeakerEncoder, SpeakerEncoderConfig, kaldi_fbank
from gsv_core.networks.text_to_semantic import SemanticForward, TextToSemantic, TextToSemanticConfig
from gsv_core.synthesis.sampling import FIRST_END, Sampling, draw_token
from gsv_core.training.losses import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    kl_loss,
    mel_loss,
    preference_loss,
    sequence_log_probabilities,
)
from tests.parity.recorded import Comparison, RecordedCase

GREEDY = Sampling(top_k=1)


def evaluate(case: RecordedCase) -> list[Comparison]:
    """Every number of `case` compared; a recorded result that nothing was compared with counts as infinitely wrong.

    Raises:
        KeyError: no function here evaluates a case of this name.
    """
    comparisons = list(_evaluation(case.name)(case))
    compared = {comparison.name for comparison in comparisons}
    forgotten = [
        Comparison(f"{name} (not compared)", float("inf"), 0.0) for name in case.results if name not in compared
    ]
    return comparisons + forgotten


def covered_cases(folder: Path) -> tuple[list[RecordedCase], list[str]]:
    """The cases in `folder` that can be evaluated here, and the names of those that cannot."""
    names = sorted(path.stem for path in folder.glob("*.safetensors"))
    covered = [name for name in names if any(re.fullmatch(pattern, name) for pattern in EVALUATIONS)]
    return [RecordedCase(folder / name) for name in covered], [name for name in names if name not in covered]


def _evaluation(name: str) -> Callable[[RecordedCase], Iterator[Comparison]]:
    for pattern, function in EVALUATIONS.items():
        if re.fullmatch(pattern, name):
            return function
    raise KeyError(name)


# --- text to semantic


def _text_to_semantic(case: RecordedCase) -> TextToSemantic:
    sizes = case.constructor["config"]["model"]
    weights = case.weights()
    config = TextToSemanticConfig(
        phoneme_count=sizes["phoneme_vocab_size"],
        token_count=sizes["vocab_size"],
        width=sizes["hidden_dim"],
        heads=sizes["head"],
        layers=sizes["n_layer"],
        text_vector_width=weights["bert_proj.weight"].shape[1],
    )
    network = TextToSemantic(config).eval()
    network.load_state_dict(weights)
    return network


def text_to_semantic_training(case: RecordedCase) -> Iterator[Comparison]:
    network, given = _text_to_semantic(case), case.inputs

    def forward(tokens: Tensor, lengths: Tensor) -> SemanticForward:
        return network(
            given["phoneme_ids"],
            given["phoneme_ids_len"],
            tokens,
            lengths,
            given["bert_feature"].transpose(1, 2),
            upstream_padding_mask=True,
            count_padding=True,
        )

    chosen = forward(given["semantic_ids"], given["semantic_ids_len"])
    rejected = forward(given["reject_y"], given["reject_y_lens"])
    chosen_sum = sequence_log_probabilities(chosen.logits, chosen.targets)
    rejected_sum = sequence_log_probabilities(rejected.logits, rejected.targets)
    preference = preference_loss(chosen_sum, rejected_sum)
    yield case.compare("loss", chosen.loss_sum)
    yield case.compare("acc_top3", chosen.accuracy(3))
    yield case.compare("logits", chosen.logits)
    yield case.compare("targets", chosen.targets)
    yield case.compare("dpo_total_loss", chosen.loss_sum + preference)
    yield case.compare("dpo_acc_top3", chosen.accuracy(3))
    yield case.compare("dpo_reject_logits", rejected.logits)
    yield case.compare("dpo_chosen_logps", chosen_sum)
    yield case.compare("dpo_reject_logps", rejected_sum)
    yield case.compare("dpo_reject_targets", rejected.targets)
    yield case.compare("dpo_term", preference)
    chosen.loss_sum.backward()
    yield from case.compare_gradients("loss (forward_old)", network)


def text_to_semantic_inference(case: RecordedCase) -> Iterator[Comparison]:
    network, given = _text_to_semantic(case), case.inputs
    phonemes, vectors, prompt = given["phoneme_ids"], given["bert_feature"].transpose(1, 2), given["prompt"]
    clocks, limit = given["q_exponential"], case.meta["early_stop_num"]
    runs: dict[str, tuple[Sampling, Tensor | None, Tensor | None]] = {
        "greedy": (GREEDY, prompt, None),
        "greedy_norep": (Sampling(top_k=1, repetition_penalty=1.0), prompt, None),
        "noprompt": (GREEDY, None, None),
        "sampled": (Sampling(top_k=8, top_p=0.95, temperature=0.8, repetition_penalty=1.35), prompt, clocks),
    }
    for name, (sampling, prompt_tokens, race) in runs.items():
        decoded = _decode(network, phonemes, vectors, prompt_tokens, sampling, limit=limit, clocks=race)
        yield case.compare(f"{name}_tokens", decoded.tokens[0][None])
        # Without a prompt the recorded index is 0 by convention.
        index = decoded.stopped_at[0] if prompt_tokens is not None else 0
        yield case.compare(f"{name}_idx", torch.tensor(index))
        if f"{name}_logits_first8" in case.results:
            yield case.compare(f"{name}_logits_first8", torch.stack(decoded.first_logits))

    with torch.no_grad():
        network.ar_predict_layer.weight[-1] = given["eos_row"]
    ended = _decode(network, phonemes, vectors, prompt, GREEDY, limit=120)
    yield case.compare("eos_tokens", ended.tokens[0][None])
    yield case.compare("eos_idx", torch.tensor(ended.stopped_at[0]))

    rows = range(len(given["batch_prompt"]))
    texts = [given[f"batch_phoneme_ids_{row}"] for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    batch = _decode(
        network,
        pad(texts, batch_first=True),
        pad([given[f"batch_bert_{row}"].T for row in rows], batch_first=True),
        given["batch_prompt"],
        GREEDY,
        limit=40,
        lengths=torch.tensor([len(text) for text in texts]),
    )
    longest = given["batch_prompt"].shape[1] + 40
    for row, tokens in enumerate(batch.tokens):
        # The recorded rows lack their last token, end mark or not; ours only ever leave out the end mark.
        yield case.compare(f"batch_tokens_{row}", tokens[:longest])
    yield case.compare("batch_idx", torch.tensor(batch.stopped_at))


class _Decoded:
    """Per row: the prompt and what followed, and the number of the step that ended it."""

    def __init__(self, tokens: list[Tensor]) -> None:
        self.tokens = tokens
        self.stopped_at = [-1] * len(tokens)
        self.first_logits: list[Tensor] = []


def _decode(
    network: TextToSemantic,
    phonemes: Tensor,
    vectors: Tensor,
    prompt: Tensor | None,
    sampling: Sampling,
    *,
    limit: int,
    clocks: Tensor | None = None,
    lengths: Tensor | None = None,
) -> _Decoded:
    """Rows together until each has met the end mark or has more than `limit` new tokens."""
    logits, cache = network.prefill(phonemes, vectors, prompt, phoneme_lengths=lengths, room=4)
    end = network.config.end_token
    prompts = torch.zeros(len(phonemes), 0, dtype=torch.int64) if prompt is None else prompt
    decoded = _Decoded(list(prompts))
    step = 0
    while -1 in decoded.stopped_at:
        if step < 8:
            decoded.first_logits.append(logits[0])
        fed = torch.zeros(len(phonemes), dtype=torch.int64)
        for row, tokens in enumerate(decoded.tokens):
            if decoded.stopped_at[row] >= 0:
                continue
            scores = logits[row, :end] if step < FIRST_END else logits[row]
            race = torch.ones_like(scores) if clocks is None else clocks[step, : len(scores)]
            token, best = draw_token(scores, tokens, sampling, race)
            if end in (token, best):
                decoded.stopped_at[row] = step
                continue
            fed[row] = token
            decoded.tokens[row] = torch.cat([tokens, torch.tensor([token])])
            if step == limit:
                decoded.stopped_at[row] = step
        logits = network.step(fed, cache)
        step += 1
    return decoded


# --- semantic to wave


def _semantic_to_wave(case: RecordedCase) -> SemanticToWave:
    sizes, weights = case.constructor, case.weights()
    config = SemanticToWaveConfig(
        phoneme_count=weights["enc_p.text_embedding.weight"].shape[0],
        spectrogram_bins=sizes["spec_channels"],
        reference_bins=weights["ref_enc.spectral.0.fc.weight"].shape[1],
        latent=sizes["inter_channels"],
        width=sizes["hidden_channels"],
        filter_width=sizes["filter_channels"],
        heads=sizes["n_heads"],
        layers=sizes["n_layers"],
        kernel=sizes["kernel_size"],
        dropout=sizes["p_dropout"],
        timbre_width=sizes["gin_channels"],
        speaker_vector_width=weights["sv_emb.weight"].shape[1] if "sv_emb.weight" in weights else None,
        generator_channels=sizes["upsample_initial_channel"],
        upsample_rates=tuple(sizes["upsample_rates"]),
        upsample_kernels=tuple(sizes["upsample_kernel_sizes"]),
        block_kernels=tuple(sizes["resblock_kernel_sizes"]),
        block_dilations=tuple(tuple(dilations) for dilations in sizes["resblock_dilation_sizes"]),
        segment_frames=sizes["segment_size"],
    )
    network = SemanticToWave(config).eval()
    network.load_state_dict(weights)
    return network


def semantic_to_wave(case: RecordedCase) -> Iterator[Comparison]:
    network = _semantic_to_wave(case)
    yield from _wave_training(case, network)
    with torch.no_grad():
        yield from _wave_codes(case, network)
        yield from _wave_timbre(case, network)
        yield from _wave_decoding(case, network)


def _wave_training(case: RecordedCase, network: SemanticToWave) -> Iterator[Comparison]:
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
    distance = 45 * mel_loss(recorded_mel, generated_mel)
    yield case.compare("loss_mel_times_45", distance)
    (divergence + distance + forward.commitment).backward()
    yield from case.compare_gradients("kl + loss_mel_times_45 + kl_ssl", network)


def _wave_codes(case: RecordedCase, network: SemanticToWave) -> Iterator[Comparison]:
    tokens = network.encode_tokens(case.inputs["ssl"])
    yield case.compare("codes_batch", tokens.unsqueeze(1))
    yield case.compare("codes_single", network.encode_tokens(case.inputs["ssl_single"]).unsqueeze(1))
    held = network.quantizer.decode(tokens).repeat_interleave(FRAMES_PER_TOKEN, dim=2)
    yield case.compare("quantized_first8ch", held[:, :8])


def _wave_timbre(case: RecordedCase, network: SemanticToWave) -> Iterator[Comparison]:
    given, bins = case.inputs, network.config.reference_bins
    mask = frame_mask(given["spec_lengths"], given["spec"].shape[2], torch.float32)
    yield case.compare("ge_batch_ref_enc", network.ref_enc(given["spec"][:, :bins] * mask, mask))
    reference = given["dec_refer1"]
    heard = network.ref_enc(reference[:, :bins], torch.ones(1, 1, reference.shape[2]))
    yield case.compare("ge_refer1_ref_enc", heard)
    if network.config.speaker_vector_width is not None:
        timbre = network.timbre(reference, None, given["dec_sv1"])
        yield case.compare("ge_refer1_final", timbre)
        yield case.compare("ge512_refer1", network.ge_to512(timbre.transpose(1, 2)).transpose(1, 2))


def _wave_decoding(case: RecordedCase, network: SemanticToWave) -> Iterator[Comparison]:
    given = case.inputs
    tokens, phonemes = given["dec_codes"][0], given["dec_text"]
    references = [given["dec_refer1"], given["dec_refer2"]]
    speakers = [given["dec_sv1"], given["dec_sv2"]] if "dec_sv1" in given else None
    scale = case.meta["noise_scale"]
    for speed in case.meta["speeds"]:
        wave = network.decode(
            tokens,
            phonemes,
            references[:1],
            speakers and speakers[:1],
            noise_scale=scale,
            speed=speed,
            noise=given[f"dec_eps_speed{speed}"],
        )
        yield case.compare(f"dec_speed{speed}", wave)
    both = network.decode(tokens, phonemes, references, speakers, noise_scale=scale, noise=given["dec_eps_speed1"])
    yield case.compare("dec_two_refs", both)


# --- discriminators, losses, signal


def discriminators(case: RecordedCase) -> Iterator[Comparison]:
    network = Discriminators(DiscriminatorConfig(periods=tuple(case.constructor["periods"])))
    network.load_state_dict(case.weights())
    recorded, generated = judge_both(network, case.inputs["y"], case.inputs["y_hat"])
    for judge, (real, fake) in enumerate(zip(recorded, generated, strict=True)):
        yield case.compare(f"score_real_{judge}", real.score)
        yield case.compare(f"score_gen_{judge}", fake.score)
        for layer, feature_map in enumerate(real.feature_maps):
            yield case.compare(f"fmap_real_{judge}_{layer}", feature_map[:1])
    yield from _adversarial(case, recorded, generated)
    discriminator_loss(recorded, generated).backward()
    yield from case.compare_gradients("discriminator_loss", network)


def losses(case: RecordedCase) -> Iterator[Comparison]:
    given = case.inputs
    recorded, generated = _given_outputs(given, "real"), _given_outputs(given, "gen")
    yield from _adversarial(case, recorded, generated)
    divergence = kl_loss(given["z_p"], given["logs_q"], given["m_p"], given["logs_p"], given["z_mask"])
    yield case.compare("kl_loss", divergence)


def _given_outputs(given: Mapping[str, Tensor], side: str) -> list[DiscriminatorOutput]:
    judges = sum(name.startswith(f"{side}_") for name in given)
    return [
        DiscriminatorOutput(
            given[f"{side}_{judge}"],
            tuple(values for name, values in sorted(given.items()) if name.startswith(f"fmap_{side}_{judge}_")),
        )
        for judge in range(judges)
    ]


def _adversarial(
    case: RecordedCase, recorded: list[DiscriminatorOutput], generated: list[DiscriminatorOutput]
) -> Iterator[Comparison]:
    """The three losses; those of single judges are the same functions on lists of one."""
    real_name = "disc_real" if "disc_real" in case.results else "disc_real_losses"
    fake_name = "disc_gen" if "disc_gen" in case.results else "disc_gen_losses"
    fake_terms = torch.stack([fake.score.square().mean() for fake in generated])
    both_terms = torch.stack([discriminator_loss([real], [fake]) for real, fake in zip(recorded, generated)])
    yield case.compare("discriminator_loss", discriminator_loss(recorded, generated))
    yield case.compare(real_name, both_terms - fake_terms)
    yield case.compare(fake_name, fake_terms)
    yield case.compare("generator_loss", generator_loss(generated))
    yield case.compare("gen_losses", torch.stack([generator_loss([fake]) for fake in generated]))
    yield case.compare("feature_loss", feature_matching_loss(recorded, generated))


def signal(case: RecordedCase) -> Iterator[Comparison]:
    wave = case.inputs["wav_f64"].float()
    for name, sizes in case.constructor.items():
        config = _spectrogram_config(sizes)
        spectrogram = linear_spectrogram(wave, config)
        mel = mel_of_linear(spectrogram, config)
        yield case.compare(f"{name}_spec", spectrogram, tolerance=1e-4)
        yield case.compare(f"{name}_mel", mel, tolerance=1e-4)
        if f"{name}_mel_normed" in case.results:
            yield case.compare(f"{name}_mel_normed", (mel + 12) / 14 * 2 - 1, tolerance=1e-4)
        rows, columns = case.results[f"{name}_melbank_nonzero_idx"].long().T
        filters = mel_filterbank(config).clone()
        yield case.compare(f"{name}_melbank_nonzero_val", filters[rows, columns], tolerance=1e-7)
        # Everything else is zero, but for a bin that lies on an edge to within rounding.
        filters[rows, columns] = 0
        yield Comparison(f"{name}_melbank_nonzero_idx", filters.max().item(), 1e-7)


def _spectrogram_config(sizes: Mapping[str, Any]) -> SpectrogramConfig:
    return SpectrogramConfig(
        rate_hz=sizes["sr"],
        n_fft=sizes["n_fft"],
        hop=sizes["hop"],
        window=sizes["win"],
        mel_bands=sizes["mels"],
        fmin=sizes["fmin"],
        fmax=sizes["fmax"],
    )


# --- speaker encoder


def speaker_fbank(case: RecordedCase) -> Iterator[Comparison]:
    yield case.compare("fbank", kaldi_fbank(case.inputs["wav16k"]), tolerance=2e-3)


def speaker_encoder(case: RecordedCase) -> Iterator[Comparison]:
    sizes = case.constructor
    config = SpeakerEncoderConfig(
        channels=sizes.get("m_channels", 64),
        blocks=tuple(sizes.get("num_blocks", (3, 4, 6, 3))),
        base_width=sizes["baseWidth"],
        scales=sizes["scale"],
        expansion=sizes["expansion"],
    )
    network = SpeakerEncoder(config).eval()
    network.load_state_dict(case.weights())
    with torch.no_grad():
        yield case.compare("forward3", network.describe(case.inputs["fbank"]))
        yield case.compare("forward", network.verify(case.inputs["fbank"]))


EVALUATIONS: Mapping[str, Callable[[RecordedCase], Iterator[Comparison]]] = {
    "s1_v[12]_train": text_to_semantic_training,
    "s1_v[12]_infer": text_to_semantic_inference,
    "s2_v(1|2|2Pro|2ProPlus)": semantic_to_wave,
    "disc_v(2|2Pro)": discriminators,
    "losses": losses,
    "signal": signal,
    "sv_fbank": speaker_fbank,
    "sv_eres2netv2_(tiny|full)": speaker_encoder,
}
