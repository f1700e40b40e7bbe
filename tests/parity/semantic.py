"""Text to semantic on recorded cases: teacher-forced training, preference, and decoding token by token."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gsv_core.networks.text_to_semantic import SemanticForward, TextToSemantic, TextToSemanticConfig
from gsv_core.synthesis.sampling import Sampling, Sentence, sample_sentences
from gsv_core.training.losses import preference_loss, sequence_log_probabilities
from tests.parity.recorded import Comparison, RecordedCase


def text_to_semantic_network(case: RecordedCase) -> TextToSemantic:
    sizes, weights = case.constructor["config"]["model"], case.weights()
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
    """Loss, accuracy and logits as upstream trains: its padding mask, and padding counted in the sums."""
    network, given = text_to_semantic_network(case), case.inputs
    top = case.constructor.get("top_k", 3)
    case.watch(network)

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
    ours = {
        "loss": chosen.loss_sum,
        f"acc_top{top}": chosen.accuracy(top),
        "logits": chosen.logits,
        "targets": chosen.targets,
        "dpo_total_loss": chosen.loss_sum + preference,
        f"dpo_acc_top{top}": chosen.accuracy(top),
        "dpo_reject_logits": rejected.logits,
        "dpo_chosen_logps": chosen_sum,
        "dpo_reject_logps": rejected_sum,
        "dpo_reject_targets": rejected.targets,
        "dpo_term": preference,
    }
    for name, value in ours.items():
        if name in case.results:
            yield case.compare(name, value)
    scalars = {"loss (forward_old)": chosen.loss_sum, "dpo_total_loss (forward)": chosen.loss_sum + preference}
    for scalar in case.meta.get("grad_norms", {}):
        if scalar in scalars:
            network.zero_grad(set_to_none=True)
            scalars[scalar].backward(retain_graph=True)
            yield from case.compare_gradients(scalar, network)


@dataclass(frozen=True, kw_only=True)
class DecodingRun:
    """How one recorded run was decoded. The defaults are those of upstream's function."""

    sampling: Sampling = field(default_factory=lambda: Sampling(top_k=1))
    early_stop: int = 1500
    """Stops when more new tokens than this exist."""
    prompted: bool = True
    own_end_row: bool = False
    """`in/eos_row` stands in the output layer."""

    @property
    def drawn(self) -> bool:
        """Whether chance takes part."""
        return self.sampling.top_k > 1

    @classmethod
    def of(cls, case: RecordedCase, name: str) -> "DecodingRun":
        """The run `name` as the JSON describes it: `top_k=8 top_p=0.95 ... early_stop_num=40`."""
        text = _described(case, name)
        numbers = {
            key: float(value)
            for key, value in re.findall(
                r"\b(top_k|top_p|temperature|repetition_penalty|early_stop_num)\b\s*[=:]?\s*(-?[0-9]*\.?[0-9]+)", text
            )
        }
        # The others say "same with" or nothing, and mean the greedy one.
        base = cls(early_stop=case.meta.get("early_stop_num", 1500)) if name == "greedy" else cls.of(case, "greedy")
        sampling = base.sampling
        top_k = int(numbers.get("top_k", sampling.top_k))
        top_p = numbers.get("top_p", sampling.top_p)
        return cls(
            sampling=replace(
                sampling,
                # Upstream's defaults of -100 and 100 switch the two off.
                top_k=top_k if top_k > 0 else 10**9,
                top_p=min(top_p, 1.0),
                temperature=numbers.get("temperature", sampling.temperature),
                repetition_penalty=numbers.get("repetition_penalty", sampling.repetition_penalty),
            ),
            early_stop=int(numbers.get("early_stop_num", base.early_stop)),
            prompted=not re.search(r"prompts?\s*=\s*None|without prompt", text),
            own_end_row="eos_row" in text,
        )


def _described(case: RecordedCase, name: str) -> str:
    """What the JSON says of a run, under its name or that of its tokens."""
    outputs = case.meta.get("outputs", {})
    return " ".join(str(outputs[key]) for key in (name, f"{name}_tokens") if key in outputs)


def text_to_semantic_inference(case: RecordedCase) -> Iterator[Comparison]:
    """Every run of one text (`NAME_tokens`), then the batched ones (`NAME_tokens_ROW`)."""
    for result in case.results:
        if single := re.fullmatch(r"(.+)_tokens", result):
            yield from _single_run(case, single[1])
    for name in sorted({found[1] for result in case.results if (found := re.fullmatch(r"(.+)_tokens_0", result))}):
        yield from _batched_run(case, name)


def _single_run(case: RecordedCase, name: str) -> Iterator[Comparison]:
    given, run = case.inputs, DecodingRun.of(case, name)
    prompt = given["prompt"][0] if run.prompted else None
    network = _network_of(case, run)
    logits: list[Tensor] = []
    network.ar_predict_layer.register_forward_hook(lambda _module, _inputs, output: logits.append(output[0].clone()))
    tokens = sample_sentences(
        network, [_sentence(case, run, given["phoneme_ids"][0], given["bert_feature"][0], prompt)], run.sampling
    )[0]
    whole = tokens if prompt is None else torch.cat([prompt, tokens])
    yield case.compare(f"{name}_tokens", whole[None])
    # Without a prompt the recorded index is 0 by convention.
    yield case.compare(f"{name}_idx", torch.tensor(_stopped_at(tokens, run) if run.prompted else 0))
    for result in case.results:
        if steps := re.fullmatch(re.escape(name) + r"_logits_first(\d+)", result):
            yield case.compare(result, torch.stack(logits[: int(steps[1])]))


def _batched_run(case: RecordedCase, name: str) -> Iterator[Comparison]:
    given, run = case.inputs, DecodingRun.of(case, name)
    sentences = [
        _sentence(case, run, given[f"{name}_phoneme_ids_{row}"], given[f"{name}_bert_{row}"], prompt)
        for row, prompt in enumerate(given[f"{name}_prompt"])
    ]
    found = sample_sentences(_network_of(case, run), sentences, run.sampling)
    for row, (prompt, tokens) in enumerate(zip(given[f"{name}_prompt"], found, strict=True)):
        # The recorded rows lack their last token, end mark or not; ours only ever leave out the end mark.
        yield case.compare(f"{name}_tokens_{row}", torch.cat([prompt, tokens[: run.early_stop]]))
    yield case.compare(f"{name}_idx", torch.tensor([_stopped_at(tokens, run) for tokens in found]))


def _stopped_at(tokens: Tensor, run: DecodingRun) -> int:
    """The number of the step that ended a sentence: with the end mark, or with one token more than allowed."""
    return min(len(tokens), run.early_stop)


def _sentence(
    case: RecordedCase, run: DecodingRun, phonemes: Tensor, vectors: Tensor, prompt: Tensor | None
) -> Sentence:
    """Of phonemes (P,), text vectors (W, P) and the prompt (S,)."""
    return Sentence(
        phoneme_ids=phonemes,
        text_vectors=vectors.T,
        prompt_tokens=prompt,
        clocks=_Clocks(case.inputs["q_exponential"] if run.drawn else None),
        # Upstream looks after a token whether there are more than allowed.
        most_tokens=run.early_stop + 1,
    )


class _Clocks:
    """The recorded variates of step after step; where nothing is drawn, all are 1 and the best wins."""

    def __init__(self, recorded: Tensor | None) -> None:
        self.recorded = recorded
        self.used = 0

    def __call__(self, steps: int, tokens: int) -> Tensor:
        if self.recorded is None:
            return torch.ones(steps, tokens)
        clocks = self.recorded[self.used : self.used + steps, :tokens]
        self.used += steps
        # Steps beyond the record are asked for and not taken.
        return torch.nn.functional.pad(clocks, (0, 0, 0, steps - len(clocks)), value=torch.nan)


def _network_of(case: RecordedCase, run: DecodingRun) -> TextToSemantic:
    network = text_to_semantic_network(case)
    if run.own_end_row:
        with torch.no_grad():
            network.ar_predict_layer.weight[-1] = case.inputs["eos_row"]
    return network
