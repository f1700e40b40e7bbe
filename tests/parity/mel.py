"""Semantic to mel (v3, v4) on recorded cases: condition, velocities, sampling, training losses, and LoRA."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gsv_core.checkpoints.releases import RELEASES, release_of
from gsv_core.networks.flow_matching import FlowDraws, prompt_lengths
from gsv_core.networks.layers import sequence_mask
from gsv_core.networks.lora import add_lora, load_trained_state, merge_lora, own_names, trained_state, upstream_names
from gsv_core.networks.semantic_to_mel import SemanticToMel, SemanticToMelConfig
from tests.parity.recorded import Comparison, RecordedCase

UNWRITTEN_STEPS = 2
"""Cases of LoRA do not say how many steps were sampled; of 1 to 8 only this number gives what was recorded."""
MIDDLES = {"encp.enc_p": "bridge"}
"""Recorded outputs of modules that ours computes without calling one of that name: the module they go into."""


def semantic_to_mel_config(sizes: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> SemanticToMelConfig:
    """Our config of upstream's hyper-parameters and the shapes of the weights; the rates are those of its release."""
    published = RELEASES[release_of(sizes["version"])].semantic_to_mel
    assert published is not None

    def count(pattern: str) -> int:
        return len({found[1] for name in shapes if (found := re.match(pattern, name))})

    estimator = "cfm.estimator."
    block, position = f"{estimator}transformer_blocks.0.", f"{estimator}input_embed.conv_pos_embed.conv1d.0.weight"
    head_width = 2 * shapes[f"{estimator}rotary_embed.inv_freq"][0]
    attention = shapes[f"{block}attn.to_q.weight"][0]
    return replace(
        published,
        phoneme_count=shapes["enc_p.text_embedding.weight"][0],
        content_width=shapes["ssl_proj.weight"][0],
        codebook_size=shapes["quantizer.vq.layers.0._codebook.embed"][0],
        reference_bins=shapes["ref_enc.spectral.0.fc.weight"][1],
        latent=sizes["inter_channels"],
        width=sizes["hidden_channels"],
        filter_width=sizes["filter_channels"],
        heads=sizes["n_heads"],
        layers=sizes["n_layers"],
        kernel=sizes["kernel_size"],
        dropout=sizes["p_dropout"],
        join_width=shapes["enc_p.mrte.c_pre.weight"][0],
        timbre_width=sizes["gin_channels"],
        reference_width=shapes["ref_enc.spectral.0.fc.weight"][0],
        condition_width=shapes["bridge.0.weight"][0],
        condition_layers=count(r"wns1\.enc\.in_layers\.(\d+)\."),
        gated_kernel=shapes["wns1.enc.in_layers.0.weight_v"][2],
        mel_bands=shapes[f"{estimator}proj_out.weight"][0],
        flow_width=shapes[f"{estimator}proj_out.weight"][1],
        flow_heads=attention // head_width,
        flow_head_width=head_width,
        flow_layers=count(r"cfm\.estimator\.transformer_blocks\.(\d+)\."),
        flow_filter_width=shapes[f"{block}ff.ff.2.weight"][1],
        flow_condition_layers=count(r"cfm\.estimator\.text_embed\.text_blocks\.(\d+)\."),
        flow_position_kernel=shapes[position][2],
        flow_position_groups=shapes[position][0] // shapes[position][1],
    )


def _network(case: RecordedCase) -> SemanticToMel:
    weights = case.weights()
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    config = semantic_to_mel_config(case.constructor["SynthesizerTrnV3"], shapes)
    network = SemanticToMel(replace(config, padding_leaks=True)).eval()
    network.load_state_dict(weights)
    return network


def semantic_to_mel(case: RecordedCase) -> Iterator[Comparison]:
    network = _network(case)
    case.watch(network, inputs=MIDDLES)
    _watch_cropped(case, network)
    with torch.no_grad():
        yield from _condition(case, network)
        yield from _velocity(case, network)
        yield from _sampling(case, network)
    yield from _losses(case, network)


def _watch_cropped(case: RecordedCase, network: SemanticToMel) -> None:
    """Of the embedded condition only the first channels were recorded."""
    for name in case.middles.keys() & {"cfm.estimator.text_embed"}:
        width = case.middles[name].shape[-1]
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name, width=width: case.heard(name, output[..., :width].clone())
        )


def _condition(case: RecordedCase, network: SemanticToMel) -> Iterator[Comparison]:
    given = case.inputs
    timbre = network.timbre(given["refer"])
    yield case.compare("encp_ge", timbre)
    yield case.compare("encp_fea", network.condition(given["codes"][0], given["text"], timbre))
    speed = case.meta["cfm"]["speed"]
    yield case.compare("encp_fea_speed", network.condition(given["codes2"][0], given["text2"], timbre, speed=speed))
    yield case.compare("codes", network.encode_tokens(given["full_ssl"]).unsqueeze(1))


def _velocity(case: RecordedCase, network: SemanticToMel) -> Iterator[Comparison]:
    given, estimator = case.inputs, network.cfm.estimator
    described = str(case.meta["outputs"]["dit_velocity"])
    times, steps = (
        torch.tensor([float(number) for number in found.split(",")])
        for found in re.findall(r"\[([\d., ]+)\]", described)
    )
    x, lengths, mu = given["cfm_noise"], given["cfm_x_lens"], given["cfm_mu"].transpose(1, 2)
    known = torch.nn.functional.pad(given["cfm_prompt"], (0, x.shape[2] - given["cfm_prompt"].shape[2]))
    mask = sequence_mask(lengths, x.shape[2])
    step = estimator.embed_step(steps)
    for name, drop in (("dit_velocity", False), ("dit_velocity_dropped", True)):
        condition = estimator.embed_condition(mu, mask, drop=drop)
        velocity = estimator(x, torch.zeros_like(known) if drop else known, times, step, condition, mask)
        yield case.compare(name, velocity.transpose(1, 2))


def _sampling(case: RecordedCase, network: SemanticToMel) -> Iterator[Comparison]:
    given, settings = case.inputs, case.meta["cfm"]
    for name, guidance in (("cfm_cfg0", 0.0), ("cfm_cfg", settings["cfg_rate"])):
        mel = network.sample(
            given["cfm_mu"].transpose(1, 2),
            given["cfm_x_lens"],
            given["cfm_prompt"],
            steps=settings["steps"],
            guidance=guidance,
            temperature=settings["temperature"],
            noise=given["cfm_noise"],
        )
        yield case.compare(name, mel)


def _losses(case: RecordedCase, network: SemanticToMel) -> Iterator[Comparison]:
    given = case.inputs
    mu, lengths = given["cfm_mu"].transpose(1, 2), given["cfm_x_lens"]
    for name, halvings in (("cfm_loss_plain", None), ("cfm_loss_shortcut", given["train_base"])):
        draws = FlowDraws(
            time=given["train_t"],
            noise=given["train_noise"],
            prompt_lengths=given["train_prompt_lens"],
            halvings=halvings,
        )
        loss = network.cfm(given["train_mel"], lengths, mu, draws).mean()
        yield case.compare(name, loss)
        yield from _gradients(case, network, name, loss)
    mel_lengths = given["full_mel_lengths"]
    loss = network(
        given["full_ssl"],
        given["full_spec"],
        given["full_spec_lengths"],
        given["full_mel"],
        mel_lengths,
        given["full_text"],
        given["full_text_lengths"],
        draws=FlowDraws(
            time=given["full_t"],
            noise=given["full_noise"],
            prompt_lengths=prompt_lengths(given["full_prompt_u"], mel_lengths),
        ),
    ).mean()
    yield case.compare("full_loss", loss)
    yield from _gradients(case, network, "full_loss", loss)


def _gradients(case: RecordedCase, network: SemanticToMel, name: str, loss: Tensor) -> Iterator[Comparison]:
    if name in case.meta["grad_norms"]:
        network.zero_grad(set_to_none=True)
        loss.backward()
        yield from case.compare_gradients(name, network)


def lora(case: RecordedCase) -> Iterator[Comparison]:
    network, adapters = _network(case), case.group("lora")
    settings = case.meta["lora"]
    yield case.compare("cfm_base", _adapted_sample(case, network))
    add_lora(network.cfm, settings["target_modules"], rank=settings["r"], alpha=settings["lora_alpha"])
    yield from _saved(case, network)
    load_trained_state(network, trained_state(network) | own_names(adapters))
    yield case.compare("cfm_adapter", _adapted_sample(case, network))
    merge_lora(network)
    yield case.compare("cfm_merged", _adapted_sample(case, network))
    keys = len(network.state_dict())
    yield Comparison("keys after merging", abs(keys - case.meta["n_state_dict_keys"]), 0.0)


def _saved(case: RecordedCase, network: SemanticToMel) -> Iterator[Comparison]:
    """Names and shapes of what upstream saves of the adapted network."""
    recorded = {name: tuple(shape) for name, shape in case.meta["saved_keys"].items()}
    ours = {name: tuple(tensor.shape) for name, tensor in upstream_names(trained_state(network)).items()}
    wrong = sorted(name for name in recorded.keys() | ours.keys() if recorded.get(name) != ours.get(name))
    yield Comparison("saved keys", len(wrong), 0.0, note=", ".join(wrong[:3]))
    everything = upstream_names(network.state_dict())
    dropped = len(everything.keys() - ours.keys())
    yield Comparison("dropped keys", abs(dropped - case.meta["dropped_key_count"]), 0.0)
    absent = [name for name in case.meta["lora"]["full_state_dict_key_example"] if name not in everything]
    yield Comparison("names of a full state", len(absent), 0.0, note=", ".join(absent[:3]))


def _adapted_sample(case: RecordedCase, network: SemanticToMel) -> Tensor:
    given, settings = case.inputs, case.meta.get("cfm", {})
    return network.sample(
        given["mu"].transpose(1, 2),
        given["x_lens"],
        given["prompt"],
        steps=settings.get("steps", UNWRITTEN_STEPS),
        guidance=settings.get("cfg_rate", 0.0),
        noise=given["noise"],
    )
