"""One step of text → semantic (GPT): cross-entropy of the next token, with AdamW, whole or through LoRA.

The loss is the mean over real tokens and end marks of the whole batch, in however many parts and on however many ranks
it is computed; padding takes no part (Loshchilov and Hutter 2017, arXiv:1711.05101, for the optimiser). A plan may ask
for upstream's way instead (`Schedule.UPSTREAM_SEMANTIC`): then the loss is a sum in which padding counts, gradients of
several batches add up, and ScaledAdam makes the steps. Shapes as in `batches`.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gsv_core.checkpoints.base import BaseModel
from gsv_core.networks.dropout import clip_keys, column_keys, follow_clips
from gsv_core.networks.lora import SEMANTIC_TARGETS, add_lora
from gsv_core.networks.text_to_semantic import SemanticForward, TextToSemantic
from gsv_core.training.batches import SemanticBatch, TrainingItem, collate_semantic
from gsv_core.training.draws import generator_of, seeded, stable_seed
from gsv_core.training.losses import preference_loss, sequence_log_probabilities
from gsv_core.training.parallel import Reducer, part_of
from gsv_core.training.precision import LossScale, autocast, resolved
from gsv_core.training.preference import damaged
from gsv_core.training.scaled_adam import ScaledAdam
from gsv_core.training.schedules import PhasePlan, Schedule, Trains, upstream_steps_after
from gsv_core.training.updates import (
    add_up,
    changed_parameters,
    check_items,
    gradient_norm,
    identity_of,
    parts_of,
    restore_parameters,
    set_rates,
    total,
    trainable_copy,
    trained_parameters,
    weights_metadata,
)


def trained_modules(trains: Trains, layers: int) -> list[str]:
    """Prefixes of the parameters that `trains` stands for in a network of `layers` layers, LoRA's adapters aside.

    Raises:
        ValueError: GPT has no such part.
    """
    upper = [f"h.layers.{index}" for index in range(layers - max(1, layers // 3), layers)]
    modules = {
        Trains.EVERYTHING: [""],
        Trains.UPPER_LAYERS: [*upper, "ar_predict_layer"],
        Trains.PROJECTIONS: ["bert_proj", "ar_predict_layer"],
        Trains.LOW_RANK: [],
        Trains.NOTHING: [],
    }
    if trains not in modules:
        raise ValueError(f"GPT trains one of {', '.join(modules)}; got {trains}")
    return modules[trains]


@dataclass
class StepSums:
    """What the parts of a step add up to; `targets` and `clips` of the whole step are known before."""

    targets: float
    clips: float
    loss: float = 0.0
    hits: float = 0.0
    tokens: float = 0.0
    preference: float = 0.0
    preferred: float = 0.0


class SemanticTrainer:
    """The text-to-semantic network of one voice, its optimiser, and how far they are. The base stays as it is."""

    phase = "semantic"
    score = "cross_entropy"

    def __init__(
        self,
        base: BaseModel,
        plan: PhasePlan,
        *,
        voice: str,
        device: torch.device | str = "cpu",
        reducer: Reducer | None = None,
    ) -> None:
        self.plan = plan
        self.voice = voice
        self.device = torch.device(device)
        self.reducer = reducer
        self.as_upstream = plan.schedule is Schedule.UPSTREAM_SEMANTIC
        if self.as_upstream and reducer is not None and reducer.world > 1:
            raise ValueError(
                "upstream's way of training GPT counts the padding of a batch, which cannot be divided among "
                f"{reducer.world} workers; train it on one, or with the schedule {Schedule.COSINE}"
            )
        self.steps_done = 0
        self.updates = 0
        """Of the optimiser, skipped ones counted; upstream's makes one after several steps of the trainer."""
        self.skipped = 0
        self.precision = resolved(plan.precision, self.device)
        self.scale = LossScale(self.precision)
        self.identity = identity_of(base.release, base.digest, voice, self.phase, plan, self.precision)
        self.base = base
        self.low_rank = plan.trains is Trains.LOW_RANK and plan.steps > 0
        prefixes = trained_modules(plan.trains, base.text_to_semantic.config.layers) if plan.steps else []
        network = trainable_copy(base.text_to_semantic, prefixes, torch.device("cpu"))
        assert isinstance(network, TextToSemantic)
        if self.low_rank:
            # Drawn on the CPU, so that every device starts from the same adapters.
            drawn = generator_of(plan.seed, voice, self.phase, "adapters")
            add_lora(network.h, SEMANTIC_TARGETS, rank=plan.rank, generator=drawn)
        self.network = network.to(self.device)
        self.dropout = follow_clips(self.network)
        self.trained = trained_parameters(self.network)
        self.parameters = list(self.trained.values())
        self.optimiser = self._optimiser() if self.parameters else None

    def _optimiser(self) -> torch.optim.Optimizer:
        groups, betas = [{"params": self.parameters, "share": 1.0}], (0.9, 0.95)
        if self.as_upstream:
            return ScaledAdam(groups, lr=self.plan.learning_rate, betas=betas, clipping_scale=2.0, clipping_period=1000)
        return torch.optim.AdamW(
            groups, lr=self.plan.learning_rate, betas=betas, weight_decay=self.plan.weight_decay, fused=True
        )

    def check(self, items: Sequence[TrainingItem]) -> None:
        config = self.network.config
        check_items(
            items,
            self.base.release,
            phonemes=config.phoneme_count,
            tokens=config.end_token,
            text_vector_width=config.text_vector_width,
        )

    def length(self, item: TrainingItem) -> int:
        return len(item.tokens) + len(item.phoneme_ids)

    def collate(self, items: Sequence[TrainingItem]) -> SemanticBatch:
        batch = collate_semantic(items)
        if not self.as_upstream:
            return batch
        # Upstream's mask hides as many phonemes as a row has padding; what we pad rows to is none of its business.
        phonemes, tokens = int(batch.phoneme_lengths.max()), int(batch.token_lengths.max())
        vectors = None if batch.text_vectors is None else batch.text_vectors[:, :phonemes]
        return replace(
            batch,
            phoneme_ids=batch.phoneme_ids[:, :phonemes],
            tokens=batch.tokens[:, :tokens],
            text_vectors=vectors,
        )

    def step(self, batch: SemanticBatch | Sequence[SemanticBatch]) -> dict[str, float]:
        """Train on `batch`, or on its parts; without a finite gradient the weights stay and the step is skipped."""
        assert self.optimiser is not None, "a plan without steps has no step to take"
        parts = self._alike(parts_of(batch))
        rate = set_rates(self.optimiser, self.updates, self.plan)
        if not self.network.training:  # to say it to every module costs as much as a small layer
            self.network.train()
        counts = [float(sum(map(self._targets_of, parts))), float(sum(len(part.clip_ids) for part in parts))]
        sums = StepSums(*total(counts, self.reducer))
        for number, part in enumerate(parts):
            self._learn(part, number, sums)
        add_up(self.parameters, self.reducer)
        numbers = self._numbers(sums)

        due = not self.as_upstream or upstream_steps_after(self.steps_done % self.plan.batches_per_pass)
        if due:
            self.scale.down(self.parameters)
        if self.as_upstream:
            # Gradients that more will be added to keep their scale, which stays the same until then.
            norm = gradient_norm(self.parameters) / (1.0 if due else self.scale.value)
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.gradient_clip)
        finite = bool(torch.isfinite(norm))
        if due and finite:
            self.optimiser.step()
        if due or not finite:
            self.optimiser.zero_grad(set_to_none=True)
            searching = self.scale.settle(finite=finite, loss=sum(numbers.values()))
            self.skipped += not finite and not searching
        self.updates += due
        self.steps_done += 1
        return numbers | self.scale.numbers() | {"gradient_norm": norm.item(), "learning_rate": rate}

    def _learn(self, part: SemanticBatch, number: int, sums: StepSums) -> None:
        """Add the gradients of one part of the batch, its share of the whole batch's loss."""
        own = (self.plan.seed, self.voice, self.phase, self.steps_done)
        damaged_part = self._damaged(part) if self.plan.preference else None
        part = part.to(self.device)
        self.dropout.clips = clip_keys([stable_seed(*own, clip, "dropout") for clip in part.clip_ids], self.device)
        self.dropout.passes = 0
        # Attention weights are dropped in upstream's way alone, inside a kernel that draws for a whole batch.
        drawn = seeded(*own, "dropout", number, device=self.device) if self.as_upstream else nullcontext()
        with drawn, autocast(self.device, self.precision):
            forward = self._forward(part)
            loss = forward.loss_sum
            if damaged_part is not None:
                self.dropout.return_for(forward.logits)
                self.dropout.passes = 1
                rejected = self._forward(damaged_part.to(self.device))
                self.dropout.return_for(rejected.logits)
                loss = loss + self._preference(forward, rejected, sums)
        self.scale.up(loss if self.as_upstream else loss / sums.targets).backward()
        real = int(part.token_lengths.sum())
        sums.loss += forward.loss_sum.item()
        sums.hits += forward.accuracy().item() * real
        sums.tokens += real

    def _preference(self, chosen: SemanticForward, rejected: SemanticForward, sums: StepSums) -> Tensor:
        """The preference loss of one part, as it counts beside the sum of cross-entropies: a mean over clips."""
        real, wrong = (
            sequence_log_probabilities(said.logits.float(), said.targets, said.target_mask)
            for said in (chosen, rejected)
        )
        loss = preference_loss(real, wrong) * len(real)
        sums.preference += loss.item()
        sums.preferred += float((real > wrong).sum())
        return loss / sums.clips

    def _numbers(self, sums: StepSums) -> dict[str, float]:
        added = total([sums.loss, sums.hits, sums.tokens, sums.preference, sums.preferred], self.reducer)
        loss, hits, tokens, preference, preferred = added
        numbers = {"cross_entropy": loss / sums.targets, "accuracy": hits / tokens}
        if self.plan.preference:
            numbers |= {"preference": preference / sums.clips, "preferred": preferred / sums.clips}
        return numbers

    def _damaged(self, part: SemanticBatch) -> SemanticBatch:
        """The same clips with tokens that were not said."""
        rows = [
            damaged(
                row[:length],
                generator_of(self.plan.seed, self.voice, self.phase, self.steps_done, clip, "damage"),
            )
            for row, length, clip in zip(part.tokens, part.token_lengths.tolist(), part.clip_ids, strict=True)
        ]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return replace(part, tokens=tokens, token_lengths=lengths)

    def _targets_of(self, part: SemanticBatch) -> int:
        """Targets in the loss: real tokens and an end mark each, or in upstream's way all columns."""
        if self.as_upstream:
            return len(part.clip_ids) * (part.tokens.shape[1] + 1)
        return int(part.token_lengths.sum()) + len(part.clip_ids)

    def _alike(self, parts: list[SemanticBatch]) -> list[SemanticBatch]:
        """In upstream's way, where padding counts, parts padded as the whole batch would be."""
        if not self.as_upstream or len(parts) == 1:
            return parts
        phonemes, tokens = (max(getattr(part, name).shape[1] for part in parts) for name in ("phoneme_ids", "tokens"))

        def padded(part: SemanticBatch) -> SemanticBatch:
            more = phonemes - part.phoneme_ids.shape[1]
            vectors = part.text_vectors
            return replace(
                part,
                phoneme_ids=pad(part.phoneme_ids, (0, more)),
                tokens=pad(part.tokens, (0, tokens - part.tokens.shape[1])),
                text_vectors=None if vectors is None else pad(vectors, (0, 0, 0, more)),
            )

        return [padded(part) for part in parts]

    @torch.no_grad()
    def evaluate(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        """Cross-entropy in nats per token (lower is better) and share of tokens among the three likeliest."""
        self.network.eval()
        loss = hits = targets = tokens = 0.0
        ordered = part_of(sorted(items, key=self.length), self.reducer)
        for start in range(0, len(ordered), self.plan.batch_size):
            batch = collate_semantic(ordered[start : start + self.plan.batch_size]).to(self.device)
            with autocast(self.device, self.precision):
                forward = self._forward(batch, as_upstream=False)
            real = int(batch.token_lengths.sum())
            loss += forward.loss_sum.item()
            targets += int(forward.target_count)
            hits += forward.accuracy().item() * real
            tokens += real
        loss, hits, targets, tokens = total([loss, hits, targets, tokens], self.reducer)
        return {"cross_entropy": loss / targets, "accuracy": hits / tokens}

    def speak(self, _items: Sequence[TrainingItem]) -> dict[str, float]:
        """Tokens have no signal to measure."""
        return {}

    def _forward(self, batch: SemanticBatch, *, as_upstream: bool | None = None) -> SemanticForward:
        as_upstream = self.as_upstream if as_upstream is None else as_upstream
        if self.network.training and self.dropout.clips is not None:
            self.dropout.columns = column_keys(self.dropout.clips, batch.phoneme_lengths + batch.token_lengths)
        forward = self.network(
            batch.phoneme_ids,
            batch.phoneme_lengths,
            batch.tokens,
            batch.token_lengths,
            batch.text_vectors,
            upstream_padding_mask=as_upstream,
            count_padding=as_upstream,
            attention_dropout=as_upstream,
            recompute=self.network.training and self.plan.checkpoint_layers,
        )
        assert isinstance(forward, SemanticForward)
        return forward

    def weights(self) -> dict[str, Tensor]:
        """Whole tensors that differ from the base's, and LoRA's factors where they add something."""
        return changed_parameters(self.trained, self.base.text_to_semantic)

    def metadata(self) -> dict[str, str]:
        described = weights_metadata(self.base.release, self.base.digest, self.phase, self.steps_done)
        return described | ({"lora_rank": str(self.plan.rank)} if self.low_rank else {})

    def state(self) -> dict[str, Any]:
        return {
            "steps_done": self.steps_done,
            "updates": self.updates,
            "skipped": self.skipped,
            "trained": {name: tensor.detach() for name, tensor in self.trained.items()},
            "optimiser": self.optimiser.state_dict() if self.optimiser is not None else {},
            "gradients": [parameter.grad for parameter in self.parameters],
            "loss_scale": self.scale.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        restore_parameters(self.trained, state["trained"])
        self.steps_done, self.updates, self.skipped = state["steps_done"], state["updates"], state["skipped"]
        if self.optimiser is not None:
            self.optimiser.load_state_dict(state["optimiser"])
        for parameter, gradient in zip(self.parameters, state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        # Checkpoints from before there was a scale are float32's, where it does nothing.
        if "loss_scale" in state:
            self.scale.load_state(state["loss_scale"])
