"""One step of semantic → mel (SoVITS v3 and v4): flow matching, whole or through LoRA, with AdamW.

What makes tokens and reads phonemes stays frozen, so that every voice shares it; what turns their frames into the
flow's condition is small and always trains whole. No gradient reaches the timbre, so that the reference encoder, which
upstream counts among the trained parts, is left out here. The loss is the mean over the clips of the whole batch, in
however many parts and on however many ranks it is computed. Shapes as in `batches`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gsv_core.audio.spectrogram import SpectrogramConfig
from gsv_core.checkpoints.base import BaseModel
from gsv_core.networks.dropout import clip_keys, follow_clips
from gsv_core.networks.flow_matching import HALVINGS, SHORTCUT_SHARE, FlowDraws, prompt_lengths
from gsv_core.networks.lora import FLOW_TARGETS, add_lora
from gsv_core.networks.semantic_to_mel import LOUDEST_MEL, QUIETEST_MEL, SemanticToMel
from gsv_core.training.augmentation import Augmentation
from gsv_core.training.batches import MelBatch, TrainingItem, collate_mel, frames_of, whole_frames
from gsv_core.training.draws import generator_of, stable_seed
from gsv_core.training.losses import mel_loss
from gsv_core.training.parallel import Reducer, part_of
from gsv_core.training.precision import LossScale, autocast, resolved
from gsv_core.training.schedules import PhasePlan, Trains
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

CONDITION_SIDE = ("bridge", "wns1")
PROJECTIONS = ("bridge", "wns1.pre", "wns1.enc.cond_layer", "wns1.proj")
HELD_OUT_TIMES = (1 / 6, 1 / 2, 5 / 6)
"""Of the way from noise to mel, at which the velocity for held-out clips is compared."""
MOST_SPOKEN = 4
"""Held-out clips that are spoken at a save: each is sampled whole."""
SPOKEN_STEPS = 8


def trained_modules(trains: Trains) -> list[str]:
    """Prefixes of the parameters that `trains` stands for, LoRA's adapters aside.

    Raises:
        ValueError: this network has no such part.
    """
    modules = {
        Trains.EVERYTHING: [*CONDITION_SIDE, "cfm"],
        # The text side is frozen in any case.
        Trains.ACOUSTIC_SIDE: [*CONDITION_SIDE, "cfm"],
        Trains.LOW_RANK: [*CONDITION_SIDE],
        Trains.PROJECTIONS: [*PROJECTIONS],
        Trains.NOTHING: [],
    }
    if trains not in modules:
        raise ValueError(f"SoVITS v3 and v4 train one of {', '.join(modules)}; got {trains}")
    return modules[trains]


class MelTrainer:
    """The semantic-to-mel network of one voice, its optimiser, and how far they are. The base stays as it is."""

    phase = "wave"
    score = "flow"

    def __init__(
        self,
        base: BaseModel,
        plan: PhasePlan,
        *,
        voice: str,
        device: torch.device | str = "cpu",
        reducer: Reducer | None = None,
    ) -> None:
        self.reducer = reducer
        self.plan = plan
        self.voice = voice
        self.device = torch.device(device)
        self.steps_done = 0
        self.skipped = 0
        self.precision = resolved(plan.precision, self.device)
        self.scale = LossScale(self.precision)
        self.identity = identity_of(base.release, base.digest, voice, self.phase, plan, self.precision)
        self.base = base
        untrained, _ = base.mel_networks()
        assert base.spec.mel_spectrogram is not None
        self.mel_spectrogram: SpectrogramConfig = base.spec.mel_spectrogram
        self.spectrogram: SpectrogramConfig = base.spec.spectrogram
        self.grain = whole_frames(untrained.config.stretch)
        if plan.longest_frames < self.grain:
            raise ValueError(f"plan: longest_frames ({plan.longest_frames}) must be {self.grain} or more")
        self.low_rank = plan.trains is Trains.LOW_RANK and plan.steps > 0
        prefixes = trained_modules(plan.trains) if plan.steps else []
        network = trainable_copy(untrained, prefixes, torch.device("cpu"))
        assert isinstance(network, SemanticToMel)
        if self.low_rank:
            # Drawn on the CPU, so that every device starts from the same adapters.
            drawn = generator_of(plan.seed, voice, self.phase, "adapters")
            add_lora(network.cfm, FLOW_TARGETS, rank=plan.rank, generator=drawn)
        self.network = network.to(self.device)
        self.dropout = follow_clips(self.network)
        # Where a shortcut trains, the estimator runs twice to see where it leads, then once to learn.
        self.network.cfm.estimator.register_forward_pre_hook(self._count_pass)
        self.augmentation = Augmentation(base, plan, voice=voice, phase=self.phase) if plan.augment else None
        self.trained = trained_parameters(network)
        self.optimiser = (
            torch.optim.AdamW(
                [{"params": list(self.trained.values()), "share": 1.0}],
                lr=plan.learning_rate,
                betas=(0.8, 0.99),
                eps=1e-9,
                weight_decay=plan.weight_decay,
                fused=True,
            )
            if self.trained
            else None
        )

    def check(self, items: Sequence[TrainingItem]) -> None:
        config = self.network.config
        check_items(items, self.base.release, phonemes=config.phoneme_count, content_width=config.content_width)

    def length(self, item: TrainingItem) -> int:
        return min(frames_of(item, self.spectrogram.hop), self.plan.longest_frames)

    def collate(self, items: Sequence[TrainingItem]) -> MelBatch:
        """`items` as the batch of the next step: of a long clip a window, drawn anew in each step."""
        if self.augmentation is not None:
            items = [self.augmentation.varied(item, self.steps_done) for item in items]
        return self._collate(items, [self._draw_start(item) for item in items])

    def _collate(self, items: Sequence[TrainingItem], starts: Sequence[int]) -> MelBatch:
        return collate_mel(
            items,
            self.spectrogram,
            self.mel_spectrogram,
            stretch=self.network.config.stretch,
            starts=starts,
            longest=self.plan.longest_frames,
        )

    def _draw_start(self, item: TrainingItem) -> int:
        room = (frames_of(item, self.spectrogram.hop) - self.length(item)) // self.grain
        draw = generator_of(self.plan.seed, self.voice, self.phase, self.steps_done, item.clip_id, "window")
        return int(torch.randint(room + 1, (), generator=draw)) * self.grain

    def step(self, batch: MelBatch | Sequence[MelBatch]) -> dict[str, float]:
        """Train on `batch`, or on its parts; without a finite gradient the weights stay and the step is skipped."""
        assert self.optimiser is not None, "a plan without steps has no step to take"
        parts = parts_of(batch)
        rate = set_rates(self.optimiser, self.steps_done, self.plan)
        if not self.network.training:  # to say it to every module costs as much as a small layer
            self.network.train()
        (clips,) = total([float(sum(len(part.clip_ids) for part in parts))], self.reducer)

        self.optimiser.zero_grad(set_to_none=True)
        losses = [self._learn(part, clips) for part in parts]
        add_up(self.trained.values(), self.reducer)
        (loss,) = total([sum(losses)], self.reducer)
        self.scale.down(self.trained.values())
        norm = gradient_norm(self.trained.values())
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimiser.step()
        searching = self.scale.settle(finite=finite, loss=loss)
        self.skipped += not finite and not searching
        self.steps_done += 1
        return {"flow": loss, **self.scale.numbers(), "gradient_norm": norm.item(), "learning_rate": rate}

    def _learn(self, part: MelBatch, clips: float) -> float:
        """Add the gradients of one part of the batch of `clips`; its share of the loss."""
        own = (self.plan.seed, self.voice, self.phase, self.steps_done)
        self.dropout.clips = clip_keys([stable_seed(*own, clip, "dropout") for clip in part.clip_ids], self.device)
        self.dropout.passes = 0
        loss = self._losses(part, self._draws(part), self._reference(part)).sum() / clips
        self.scale.up(loss).backward()
        return loss.item()

    def _count_pass(self, *_: object) -> None:
        self.dropout.passes = 0 if torch.is_grad_enabled() else self.dropout.passes + 1

    def _reference(self, batch: MelBatch) -> Tensor | None:
        """What the timbre is taken from where it is not the spectrogram itself: (B, F, L)."""
        if self.augmentation is None:
            return None
        noisy = self.augmentation.noisy(batch.spectrogram, batch.lengths, batch.clip_ids, self.steps_done)
        return noisy.to(self.device)

    @torch.no_grad()
    def evaluate(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        """Squared error of the velocity behind a prompt of a third, lower is better; no shortcuts, no dropout.

        Noise and times depend on the clip alone, so that numbers of different steps and voices compare.
        """
        self.network.eval()
        flow = 0.0
        ordered = part_of(sorted(items, key=self.length), self.reducer)
        for start in range(0, len(ordered), self.plan.batch_size):
            some = ordered[start : start + self.plan.batch_size]
            batch = self._collate(some, [0] * len(some))
            noise = self._noise(batch, "held-out")
            for time in HELD_OUT_TIMES:
                draws = FlowDraws(
                    time=torch.full((len(some),), time), noise=noise, prompt_lengths=batch.mel_lengths // 3
                )
                flow += self._losses(batch, draws).sum().item() / len(items) / len(HELD_OUT_TIMES)
        return {"flow": total([flow], self.reducer)[0]}

    @torch.no_grad()
    def speak(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        """Mel distance, in natural logarithms, of clips sampled from their own tokens behind a prompt of a third; lower
        is better. Unlike the flow's error it is that of the whole way from noise to mel."""
        self.network.eval()
        chosen = sorted(items, key=lambda item: item.clip_id)[:MOST_SPOKEN]
        distance = 0.0
        for item in part_of(chosen, self.reducer):
            batch = self._collate([item], [0])
            noise = self._noise(batch, "held-out").to(self.device)
            batch = batch.to(self.device)
            frames, mel_frames = int(batch.lengths[0]), int(batch.mel_lengths[0])
            with autocast(self.device, self.precision):
                condition = self.network.condition(
                    self.network.encode_tokens(batch.content[..., :frames]),
                    batch.phoneme_ids[:, : int(batch.phoneme_lengths[0])],
                    self.network.timbre(batch.spectrogram[..., :frames]),
                )
                mel_frames = min(mel_frames, condition.shape[2])
                known = mel_frames // 3
                spoken = self.network.sample(
                    condition[..., :mel_frames],
                    torch.tensor([mel_frames], device=self.device),
                    batch.mel[..., :known],
                    steps=SPOKEN_STEPS,
                    noise=noise[..., :mel_frames],
                )
            half_range = (LOUDEST_MEL - QUIETEST_MEL) / 2
            recorded = batch.mel[..., known:mel_frames]
            distance += mel_loss(recorded, spoken[..., known:].float()).item() * half_range
        return {"spoken_mel": total([distance], self.reducer)[0] / len(chosen)}

    def _losses(self, batch: MelBatch, draws: FlowDraws, reference: Tensor | None = None) -> Tensor:
        """(B,)."""
        batch, draws = batch.to(self.device), draws.to(self.device)
        with autocast(self.device, self.precision):
            losses = self.network(
                batch.content,
                batch.spectrogram,
                batch.lengths,
                batch.mel,
                batch.mel_lengths,
                batch.phoneme_ids,
                batch.phoneme_lengths,
                draws=draws,
                reference=reference,
                recompute=self.plan.checkpoint_layers and torch.is_grad_enabled(),
            )
        assert isinstance(losses, Tensor)
        return losses

    def _draws(self, batch: MelBatch) -> FlowDraws:
        """The draws of the next step. A clip's own do not depend on the batch; whether the step trains shortcuts does
        not depend on the clips."""
        step = (self.plan.seed, self.voice, self.phase, self.steps_done)
        own = [generator_of(*step, clip_id, "flow") for clip_id in batch.clip_ids]
        time = torch.stack([torch.rand((), generator=draw) for draw in own])
        shares = torch.stack([torch.rand((), generator=draw) for draw in own])
        halvings = torch.stack([torch.randint(HALVINGS.start, HALVINGS.stop, (), generator=draw) for draw in own])
        return FlowDraws(
            time=time,
            noise=self._noise(batch, *step),
            prompt_lengths=prompt_lengths(shares, batch.mel_lengths),
            halvings=halvings if self._shortcut_now() else None,
        )

    def _shortcut_now(self) -> bool:
        draw = generator_of(self.plan.seed, self.voice, self.phase, self.steps_done, "shortcut")
        return bool(torch.rand((), generator=draw) < SHORTCUT_SHARE)

    def _noise(self, batch: MelBatch, *parts: str | int) -> Tensor:
        """(B, M, N), zero in the padding; a clip's own does not depend on the batch it is in."""
        noise = torch.zeros_like(batch.mel)
        for row, (clip_id, length) in enumerate(zip(batch.clip_ids, batch.mel_lengths.tolist(), strict=True)):
            draw = generator_of(*parts, clip_id, "noise")
            noise[row, :, :length] = torch.randn(length, noise.shape[1], generator=draw).T
        return noise

    def weights(self) -> dict[str, Tensor]:
        """Whole tensors that differ from the base's, and LoRA's factors where they add something."""
        return changed_parameters(self.trained, self.base.acoustic)

    def metadata(self) -> dict[str, str]:
        described = weights_metadata(self.base.release, self.base.digest, self.phase, self.steps_done)
        return described | ({"lora_rank": str(self.plan.rank)} if self.low_rank else {})

    def state(self) -> dict[str, Any]:
        return {
            "steps_done": self.steps_done,
            "skipped": self.skipped,
            "trained": {name: tensor.detach() for name, tensor in self.trained.items()},
            "optimiser": self.optimiser.state_dict() if self.optimiser is not None else {},
            "loss_scale": self.scale.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        restore_parameters(self.trained, state["trained"])
        self.steps_done, self.skipped = state["steps_done"], state["skipped"]
        if self.optimiser is not None:
            self.optimiser.load_state_dict(state["optimiser"])
        # Checkpoints from before there was a scale are float32's, where it does nothing.
        if "loss_scale" in state:
            self.scale.load_state(state["loss_scale"])
