"""One step of text → semantic (GPT): cross-entropy of the next token, with AdamW.

The loss is the mean over real tokens and end marks; padding takes no part (Loshchilov and Hutter 2017,
arXiv:1711.05101, for the optimiser). A plan may ask for upstream's way instead (`Schedule.UPSTREAM_SEMANTIC`): then the
loss is a sum in which padding counts, gradients of several batches add up, and ScaledAdam makes the steps.
Shapes as in `batches`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gsv_core.checkpoints.base import BaseModel
from gsv_core.networks.text_to_semantic import SemanticForward, TextToSemantic
from gsv_core.training.batches import SemanticBatch, TrainingItem, collate_semantic
from gsv_core.training.draws import seeded
from gsv_core.training.scaled_adam import ScaledAdam
from gsv_core.training.schedules import PhasePlan, Schedule, Trains, upstream_steps_after
from gsv_core.training.updates import (
    autocast,
    changed_tensors,
    gradient_norm,
    identity_of,
    set_rates,
    trainable_copy,
    weights_metadata,
)


def trained_modules(trains: Trains, layers: int) -> list[str]:
    """Prefixes of the parameters that `trains` stands for in a network of `layers` layers.

    Raises:
        ValueError: GPT has no such part.
    """
    upper = [f"h.layers.{index}" for index in range(layers - max(1, layers // 3), layers)]
    modules = {
        Trains.EVERYTHING: [""],
        Trains.UPPER_LAYERS: [*upper, "ar_predict_layer"],
        Trains.PROJECTIONS: ["bert_proj", "ar_predict_layer"],
        Trains.NOTHING: [],
    }
    if trains not in modules:
        raise ValueError(f"GPT trains one of {', '.join(modules)}; got {trains}")
    return modules[trains]


class SemanticTrainer:
    """The text-to-semantic network of one voice, its optimiser, and how far they are. The base stays as it is."""

    phase = "semantic"

    def __init__(self, base: BaseModel, plan: PhasePlan, *, voice: str, device: torch.device | str = "cpu") -> None:
        self.plan = plan
        self.voice = voice
        self.device = torch.device(device)
        self.as_upstream = plan.schedule is Schedule.UPSTREAM_SEMANTIC
        self.steps_done = 0
        self.updates = 0
        """Of the optimiser, skipped ones counted; upstream's makes one after several steps of the trainer."""
        self.skipped = 0
        self.identity = identity_of(base.release, base.digest, voice, self.phase, plan)
        self.base = base
        prefixes = trained_modules(plan.trains, base.text_to_semantic.config.layers) if plan.steps else []
        network = trainable_copy(base.text_to_semantic, prefixes, self.device)
        assert isinstance(network, TextToSemantic)
        self.network = network
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimiser = self._optimiser() if self.parameters else None

    def _optimiser(self) -> torch.optim.Optimizer:
        groups, betas = [{"params": self.parameters, "share": 1.0}], (0.9, 0.95)
        if self.as_upstream:
            return ScaledAdam(groups, lr=self.plan.learning_rate, betas=betas, clipping_scale=2.0, clipping_period=1000)
        return torch.optim.AdamW(
            groups, lr=self.plan.learning_rate, betas=betas, weight_decay=self.plan.weight_decay, fused=True
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

    def step(self, batch: SemanticBatch) -> dict[str, float]:
        """Train on `batch`; without a finite gradient the weights stay and the step counts as skipped."""
        assert self.optimiser is not None, "a plan without steps has no step to take"
        batch = batch.to(self.device)
        rate = set_rates(self.optimiser, self.updates, self.plan)
        self.network.train()
        with (
            seeded(self.plan.seed, self.voice, self.phase, self.steps_done, "dropout", device=self.device),
            autocast(self.device),
        ):
            forward = self._forward(batch, as_upstream=self.as_upstream)
        loss = forward.loss_sum / forward.target_count

        if self.as_upstream:
            forward.loss_sum.backward()
            norm = gradient_norm(self.parameters)
        else:
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.gradient_clip)
        finite = bool(torch.isfinite(norm))
        due = not self.as_upstream or upstream_steps_after(self.steps_done % self.plan.batches_per_pass)
        if due and finite:
            self.optimiser.step()
        if due or not finite:
            self.optimiser.zero_grad(set_to_none=True)
        self.skipped += not finite
        self.updates += due
        self.steps_done += 1
        return {
            "cross_entropy": loss.item(),
            "accuracy": forward.accuracy().item(),
            "gradient_norm": norm.item(),
            "learning_rate": rate,
        }

    @torch.no_grad()
    def evaluate(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        """Cross-entropy in nats per token (lower is better) and share of tokens among the three likeliest."""
        self.network.eval()
        loss = hits = targets = tokens = 0.0
        ordered = sorted(items, key=self.length)
        for start in range(0, len(ordered), self.plan.batch_size):
            batch = self.collate(ordered[start : start + self.plan.batch_size]).to(self.device)
            with autocast(self.device):
                forward = self._forward(batch)
            real = int(batch.token_lengths.sum())
            loss += forward.loss_sum.item()
            targets += int(forward.target_count)
            hits += forward.accuracy().item() * real
            tokens += real
        return {"cross_entropy": loss / targets, "accuracy": hits / tokens}

    def _forward(self, batch: SemanticBatch, *, as_upstream: bool = False) -> SemanticForward:
        forward = self.network(
            batch.phoneme_ids,
            batch.phoneme_lengths,
            batch.tokens,
            batch.token_lengths,
            batch.text_vectors,
            upstream_padding_mask=as_upstream,
            count_padding=as_upstream,
            attention_dropout=as_upstream,
        )
        assert isinstance(forward, SemanticForward)
        return forward

    def weights(self) -> dict[str, Tensor]:
        return changed_tensors(self.network, self.base.text_to_semantic)

    def metadata(self) -> dict[str, str]:
        return weights_metadata(self.base.release, self.base.digest, self.phase, self.steps_done)

    def state(self) -> dict[str, Any]:
        return {
            "steps_done": self.steps_done,
            "updates": self.updates,
            "skipped": self.skipped,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict() if self.optimiser is not None else {},
            "gradients": [parameter.grad for parameter in self.parameters],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.steps_done, self.updates, self.skipped = state["steps_done"], state["updates"], state["skipped"]
        self.network.load_state_dict(state["network"])
        if self.optimiser is not None:
            self.optimiser.load_state_dict(state["optimiser"])
        for parameter, gradient in zip(self.parameters, state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
