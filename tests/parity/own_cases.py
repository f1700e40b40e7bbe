"""`python -m tests.parity.own_cases`: make `tests/parity/own` again, the small recorded cases of this repository.

They are in the format of the cases that were recorded from GPT-SoVITS, but hold what *our* networks gave on the day
when they agreed with those: where the others are missing, they still show that a change changes results. All weights
and most inputs are made from seeds; only results are stored, with tolerances from our own distance to float64.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gsv_core.networks.bigvgan import BigVganVocoder, read_settings
from gsv_core.networks.discriminators import DiscriminatorConfig, Discriminators
from gsv_core.networks.semantic_to_mel import SemanticToMel, SemanticToMelConfig
from gsv_core.networks.semantic_to_wave import SemanticToWave, SemanticToWaveConfig
from gsv_core.networks.speaker_encoder import SpeakerEncoder, SpeakerEncoderConfig
from gsv_core.networks.text_to_semantic import TextToSemantic, TextToSemanticConfig
from gsv_core.networks.vocoder import HifiGanVocoder
from tests.parity.models import kind_of
from tests.parity.recorded import Comparison, RecordedCase, procedural
from tests.parity.vocoders import vocoder_config

OWN = Path(__file__).with_name("own")
EXACT = "Use f32_vs_f64[name].suggested_atol"


@dataclass
class Draft:
    """A case before it is evaluated. `results` names what to record; the values only show shapes that matter."""

    name: str
    upstream: str
    constructor: dict[str, Any] = field(default_factory=dict)
    seeded: dict[str, tuple[tuple[int, ...], float, float]] = field(default_factory=dict)
    """Per key its shape and range."""
    stored: dict[str, Tensor] = field(default_factory=dict)
    results: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scalars: tuple[str, ...] = ()
    tolerance: str = EXACT
    more: dict[str, Any] = field(default_factory=dict)

    def weights_of(self, network: nn.Module) -> "Draft":
        """Weights for every key of `network`, in ranges in which it neither dies nor explodes."""
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.seeded[f"w/{name}"] = (tuple(value.shape), *_range(name, value))
            else:
                self.stored[f"w/{name}"] = value.clone()
        return self


def _range(name: str, value: Tensor) -> tuple[float, float]:
    last = name.split(".")[-1]
    if last in {"running_var", "weight_g", "gamma", "cluster_size", "inited"}:
        return 0.8, 1.2
    if last == "bias" or last in {"running_mean", "beta"} or "alpha" in name:
        return -0.1, 0.1
    if value.ndim < 2:
        return 0.8, 1.2
    bound = math.sqrt(3 / math.prod(value.shape[1:]))
    return -bound, bound


class _Recorder(RecordedCase):
    """Takes what it is asked to compare as the record."""

    @property
    def taken(self) -> dict[str, Tensor]:
        return self.__dict__.setdefault("_taken", {})

    @property
    def norms(self) -> dict[str, dict[str, float | None]]:
        return self.__dict__.setdefault("_norms", {})

    def compare(self, name: str, ours: Tensor, *, tolerance: float | None = None) -> Comparison:
        self.taken[name] = ours.detach().clone().contiguous()
        return Comparison(name, 0.0, 0.0)

    def compare_gradients(self, scalar: str, network: nn.Module) -> Iterator[Comparison]:
        self.norms[scalar] = {
            name: None if parameter.grad is None else float(f"{parameter.grad.double().norm().item():.7g}")
            for name, parameter in network.named_parameters()
        }
        yield Comparison(scalar, 0.0, 0.0)


def write(draft: Draft, folder: Path) -> None:
    """Evaluate `draft` in both precisions and write it into `folder`."""
    path = folder / draft.name
    recipes = {key: _recipe(f"{draft.name}/{key}", *drawn) for key, drawn in draft.seeded.items()}
    meta = {
        "case": draft.name,
        "upstream": draft.upstream,
        "description": "made by this repository's own networks: see tests/parity/own_cases.py",
        "constructor": draft.constructor,
        "procedural_weights": recipes,
        "tolerance": draft.tolerance,
        **draft.more,
    }
    meta["grad_norms"] = {scalar: {} for scalar in draft.scalars}
    template = {f"out/{name}": torch.zeros(shape) for name, shape in draft.results.items()}
    save_file(draft.stored | template, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(meta), "utf-8")
    single = _evaluated(_Recorder(path))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    double = _evaluated(_Recorder(path, dtype=torch.float64))
    torch.set_default_dtype(before)
    meta["grad_norms"] = double.norms
    if draft.tolerance == EXACT:
        meta["f32_vs_f64"] = {
            name: _allowed(value, double.taken[name])
            for name, value in single.taken.items()
            if value.is_floating_point()
        }
    results = {f"out/{name}": value for name, value in single.taken.items()}
    save_file(draft.stored | results, path.with_suffix(".safetensors"))
    path.with_suffix(".safetensors").chmod(0o644)
    path.with_suffix(".json").write_text(json.dumps(meta, separators=(",", ":")) + "\n", "utf-8")


def _recipe(seed_string: str, shape: tuple[int, ...], low: float, high: float) -> dict[str, Any]:
    return {"seed_string": seed_string, "shape": list(shape), "lo": round(low, 4), "hi": round(high, 4)}


def _evaluated(case: _Recorder) -> _Recorder:
    kind = kind_of(case)
    assert kind is not None
    for _ in kind.evaluate(case):
        pass
    return case


def _allowed(single: Tensor, double: Tensor) -> dict[str, float]:
    """As the cases from GPT-SoVITS have it: 20 times what float32 costs, at least 5e-6 of the largest magnitude."""
    distance = (single.double() - double).abs().max().item()
    largest = double.abs().max().item()
    return {"suggested_atol": float(f"{max(20 * distance, 5e-6 * largest, 1e-6):.2g}")}


def drafts() -> Iterator[Draft]:
    yield _text_to_semantic("train")
    yield _text_to_semantic("infer")
    yield _wave()
    yield _mel()
    yield _judges()
    yield _speaker()
    yield from _vocoders()
    yield _optimiser()


def _text_to_semantic(what: str) -> Draft:
    model = {"phoneme_vocab_size": 40, "vocab_size": 33, "hidden_dim": 32, "head": 4, "n_layer": 2}
    network = TextToSemantic(
        TextToSemanticConfig(phoneme_count=40, token_count=33, width=32, heads=4, layers=2, text_vector_width=8)
    )
    training = what == "train"
    draft = Draft(
        name=f"s1_own_{what}",
        upstream="Text2SemanticDecoder.forward_old" if training else "Text2SemanticDecoder.infer_panel_naive",
        constructor={"config": {"model": model}},
    ).weights_of(network)
    if training:
        names = ("loss", "acc_top3", "logits", "targets", "dpo_chosen_logps", "dpo_reject_logps", "dpo_term")
        draft.results, draft.scalars = dict.fromkeys(names, (1,)), ("loss (forward_old)",)
        draft.stored |= {
            "in/phoneme_ids": _ids(40, 2, 7),
            "in/phoneme_ids_len": torch.tensor([7, 5]),
            "in/semantic_ids": _ids(32, 2, 9),
            "in/semantic_ids_len": torch.tensor([6, 9]),
            "in/reject_y": _ids(32, 2, 8),
            "in/reject_y_lens": torch.tensor([8, 7]),
        }
        draft.seeded["in/bert_feature"] = ((2, 8, 7), -1.0, 1.0)
        return draft
    draft.more = {
        "early_stop_num": 20,
        "outputs": {
            "greedy": "top_k=1, repetition_penalty 1.35",
            "noprompt": "prompts=None",
            "sampled": "top_k=6 top_p=0.9 temperature=0.8 repetition_penalty=1.2",
            "batch": "eos_row installed, early_stop_num=25",
        },
    }
    names = [f"{run}_{result}" for run in ("greedy", "noprompt", "sampled") for result in ("tokens", "idx")]
    names += ["greedy_logits_first8", "batch_tokens_0", "batch_tokens_1", "batch_idx"]
    draft.results = dict.fromkeys(names, (1,))
    draft.stored |= {
        "in/phoneme_ids": _ids(40, 1, 9),
        "in/prompt": _ids(32, 1, 5),
        "in/batch_prompt": _ids(32, 2, 5),
        "in/batch_phoneme_ids_0": _ids(40, 1, 8)[0],
        "in/batch_phoneme_ids_1": _ids(40, 1, 6)[0],
        "in/q_exponential": -torch.log1p(-procedural(_recipe("own/clocks", (22, 33), 0.0, 1.0))),
    }
    draft.seeded |= {
        "in/bert_feature": ((1, 8, 9), -1.0, 1.0),
        "in/batch_bert_0": ((8, 8), -1.0, 1.0),
        "in/batch_bert_1": ((8, 6), -1.0, 1.0),
        "in/eos_row": ((32,), -0.5, 0.5),
    }
    return draft


def _ids(below: int, rows: int, columns: int) -> Tensor:
    recipe = _recipe(f"own/ids/{below}/{rows}/{columns}", (rows, columns), 0.0, float(below))
    return procedural(recipe).long()


def _wave() -> Draft:
    sizes = {
        "segment_size": 2,
        "inter_channels": 8,
        "hidden_channels": 16,
        "filter_channels": 16,
        "n_heads": 2,
        "n_layers": 2,
        "kernel_size": 3,
        "p_dropout": 0.1,
        "gin_channels": 12,
        "upsample_initial_channel": 32,
        "upsample_rates": [10, 8, 8],
        "upsample_kernel_sizes": [16, 16, 8],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
    }
    network = SemanticToWave(
        SemanticToWaveConfig(
            phoneme_count=20,
            content_width=8,
            codebook_size=16,
            reference_bins=704,
            latent=8,
            width=16,
            filter_width=16,
            layers=2,
            join_width=16,
            timbre_width=12,
            speaker_vector_width=10,
            reference_width=8,
            posterior_layers=2,
            flow_couplings=2,
            flow_layers=1,
            generator_channels=32,
            upsample_rates=(10, 8, 8),
            upsample_kernels=(16, 16, 8),
            block_kernels=(3,),
            block_dilations=((1, 3),),
            segment_frames=2,
        )
    )
    names = "ids_slice y_hat kl_ssl z_mask z z_p m_p logs_p m_q logs_q kl y_mel_slice y_hat_mel loss_mel_times_45"
    names += " codes_batch codes_single ge_batch_ref_enc ge_refer1_final ge512_refer1 dec_speed1 dec_speed1.3"
    return Draft(
        name="s2_own",
        upstream="SynthesizerTrn (module/models.py)",
        constructor=sizes,
        stored={
            "in/spec_lengths": torch.tensor([8, 5]),
            "in/text": _ids(20, 2, 6),
            "in/text_lengths": torch.tensor([6, 4]),
            "in/dec_codes": _ids(16, 1, 2)[None],
            "in/dec_text": _ids(20, 1, 5),
        },
        seeded={
            "in/ssl": ((2, 8, 8), -1.0, 1.0),
            "in/ssl_single": ((1, 8, 7), -1.0, 1.0),
            "in/spec": ((2, 1025, 8), 0.0, 1.0),
            "in/sv_emb": ((2, 10), -1.0, 1.0),
            "in/eps_q": ((2, 8, 8), -1.7, 1.7),
            "in/slice_u": ((2,), 0.0, 1.0),
            "in/dec_refer1": ((1, 1025, 6), 0.0, 1.0),
            "in/dec_refer2": ((1, 1025, 9), 0.0, 1.0),
            "in/dec_sv1": ((1, 10), -1.0, 1.0),
            "in/dec_sv2": ((1, 10), -1.0, 1.0),
            "in/dec_eps_speed1": ((1, 8, 4), -1.7, 1.7),
            "in/dec_eps_speed1.3": ((1, 8, 4), -1.7, 1.7),
        },
        results=dict.fromkeys([*names.split(), "dec_two_refs"], (1,)),
        scalars=("kl + loss_mel_times_45 + kl_ssl",),
        more={"noise_scale": 0.5, "speeds": [1, 1.3]},
    ).weights_of(network)


def _mel() -> Draft:
    sizes = {
        "inter_channels": 8,
        "hidden_channels": 16,
        "filter_channels": 16,
        "n_heads": 2,
        "n_layers": 2,
        "kernel_size": 3,
        "p_dropout": 0.1,
        "gin_channels": 16,
        "version": "v3",
    }
    network = SemanticToMel(
        SemanticToMelConfig(
            phoneme_count=20,
            content_width=8,
            codebook_size=16,
            reference_bins=12,
            latent=8,
            width=16,
            filter_width=16,
            layers=2,
            join_width=16,
            timbre_width=16,
            reference_width=8,
            condition_width=16,
            condition_layers=1,
            mel_bands=10,
            flow_width=16,
            flow_heads=2,
            flow_head_width=8,
            flow_layers=1,
            flow_filter_width=16,
            flow_condition_layers=1,
            flow_position_kernel=5,
            flow_position_groups=4,
        )
    )
    names = "encp_fea encp_ge encp_fea_speed cfm_cfg0 cfm_cfg dit_velocity dit_velocity_dropped"
    names += " cfm_loss_plain cfm_loss_shortcut full_loss codes"
    return Draft(
        name="s2_own_v3",
        upstream="SynthesizerTrnV3 (module/models.py)",
        constructor={"SynthesizerTrnV3": sizes},
        stored={
            "in/codes": _ids(16, 1, 5)[None],
            "in/text": _ids(20, 1, 6),
            "in/codes2": _ids(16, 1, 4)[None],
            "in/text2": _ids(20, 1, 5),
            "in/cfm_x_lens": torch.tensor([9, 7]),
            "in/train_prompt_lens": torch.tensor([3, 2]),
            "in/train_base": torch.tensor([2, 3]),
            "in/full_ssl_lengths": torch.tensor([8, 6]),
            "in/full_spec_lengths": torch.tensor([8, 6]),
            "in/full_text": _ids(20, 2, 7),
            "in/full_text_lengths": torch.tensor([7, 5]),
            "in/full_mel_lengths": torch.tensor([15, 11]),
        },
        seeded={
            "in/refer": ((1, 14, 9), 0.0, 1.0),
            "in/cfm_mu": ((2, 9, 16), -1.0, 1.0),
            "in/cfm_prompt": ((2, 10, 3), -1.0, 1.0),
            "in/cfm_noise": ((2, 10, 9), -1.7, 1.7),
            "in/train_mel": ((2, 10, 9), -1.0, 1.0),
            "in/train_t": ((2,), 0.0, 1.0),
            "in/train_noise": ((2, 10, 9), -1.7, 1.7),
            "in/full_ssl": ((2, 8, 8), -1.0, 1.0),
            "in/full_spec": ((2, 14, 8), 0.0, 1.0),
            "in/full_mel": ((2, 10, 20), -1.0, 1.0),
            "in/full_prompt_u": ((2,), 0.0, 1.0),
            "in/full_t": ((2,), 0.0, 1.0),
            "in/full_noise": ((2, 10, 15), -1.7, 1.7),
        },
        results=dict.fromkeys(names.split(), (1,)),
        scalars=("full_loss", "cfm_loss_shortcut"),
        more={
            "cfm": {"steps": 3, "cfg_rate": 0.7, "temperature": 1.0, "speed": 1.2},
            "outputs": {"dit_velocity": "one estimator call at t=[0.3,0.65], step size input [0.25,0.125]; [B,T,100]"},
        },
    ).weights_of(network)


def _judges() -> Draft:
    network = Discriminators(
        DiscriminatorConfig(periods=(2, 3), period_channels=(4, 8), scale_channels=(4, 8, 8), scale_groups=(1, 2, 1))
    )
    names = "discriminator_loss disc_real_losses disc_gen_losses generator_loss gen_losses feature_loss"
    names += " score_real_0 score_gen_0 score_real_1 score_gen_1 score_real_2 score_gen_2 fmap_real_0_1 fmap_real_2_0"
    return Draft(
        name="disc_own",
        upstream="MultiPeriodDiscriminator (module/models.py)",
        constructor={"periods": [2, 3]},
        seeded={"in/y": ((2, 1, 61), -1.0, 1.0), "in/y_hat": ((2, 1, 61), -1.0, 1.0)},
        results=dict.fromkeys(names.split(), (1,)),
        scalars=("discriminator_loss",),
    ).weights_of(network)


def _speaker() -> Draft:
    network = SpeakerEncoder(SpeakerEncoderConfig(channels=4, blocks=(1, 1, 1, 1), base_width=32, expansion=2))
    return Draft(
        name="sv_eres2netv2_own",
        upstream="ERes2NetV2.forward3 (eres2net/ERes2NetV2.py)",
        constructor={"m_channels": 4, "num_blocks": [1, 1, 1, 1], "baseWidth": 32, "scale": 4, "expansion": 2},
        seeded={"in/fbank": ((2, 33, 80), -3.0, 3.0)},
        results=dict.fromkeys(("forward3", "forward"), (1,)),
    ).weights_of(network)


def _vocoders() -> Iterator[Draft]:
    sizes = {
        "initial_channel": 6,
        "upsample_initial_channel": 8,
        "upsample_rates": [5, 2],
        "upsample_kernel_sizes": [9, 4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
        "is_bias": True,
    }
    mel = {"in/mel": ((2, 6, 5), -8.0, 1.0)}
    yield Draft(
        name="vocoder_own",
        upstream="Generator (module/models.py)",
        constructor=sizes,
        seeded=dict(mel),
        results={"wav": (1,)},
    ).weights_of(HifiGanVocoder(vocoder_config(sizes)))
    settings = {
        "num_mels": 6,
        "upsample_rates": [4, 2],
        "upsample_kernel_sizes": [8, 4],
        "upsample_initial_channel": 8,
        "resblock": "1",
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
        "activation": "snakebeta",
        "snake_logscale": True,
        "use_tanh_at_final": False,
        "use_bias_at_final": False,
    }
    draft = Draft(
        name="bigvgan_own",
        upstream="BigVGAN (BigVGAN/bigvgan.py)",
        constructor=settings,
        seeded=dict(mel),
        results={"wav": (1,)},
    ).weights_of(BigVganVocoder(read_settings(settings)))
    # Quiet enough to be cut off at 1 nowhere.
    draft.seeded["w/conv_post.weight_g"] = ((1, 1, 1), 0.002, 0.003)
    yield draft


def _optimiser() -> Draft:
    shapes: dict[str, tuple[int, ...]] = {"scalar": (1,), "bias": (5,), "first": (3, 4), "second": (3, 4), "tiny": (4,)}
    settings = {"lr": 0.01, "betas": [0.9, 0.95], "clipping_scale": 2.0, "clipping_update_period": 4}
    return Draft(
        name="optim_own",
        upstream="ScaledAdam (AR/modules/optim.py)",
        constructor={"clipped": settings, "with_schedule": settings | {"clipping_update_period": 1000}},
        seeded={f"in/init_{name}": (shape, -1.0, 1.0) for name, shape in shapes.items() if name != "tiny"}
        | {"in/init_tiny": ((4,), -1e-3, 1e-3)}
        | {f"in/grads_{name}": ((12, *shape), -1.0, 1.0) for name, shape in shapes.items()},
        results={f"{run}.{name}": (1,) for run in ("clipped", "with_schedule") for name in (*shapes, "lr_used")},
        tolerance="rtol 1e-5, atol 1e-8",
        more={"parameter_order": list(shapes)},
    )


def main() -> int:
    torch.set_num_threads(1)
    OWN.mkdir(exist_ok=True)
    for draft in drafts():
        write(draft, OWN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
