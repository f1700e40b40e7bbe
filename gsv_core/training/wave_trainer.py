"""One step of semantic → wave (SoVITS): the discriminators first, then the generator against them.

Least-squares adversarial loss, feature matching, 45 x mel distance and the divergence of prior and posterior, with
AdamW (Kim et al. 2021, arXiv:2106.06103). The quantizer and the projection before it stay frozen, so that every voice
shares its tokens; the text side learns more slowly. Shapes as in `batches`; N frames of a segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gsv_core.audio.spectrogram import SpectrogramConfig, mel_of_linear, mel_spectrogram
from gsv_core.checkpoints.base import BaseModel
from gsv_core.checkpoints.releases import RELEASES
from gsv_core.networks.discriminators import Discriminators, judge_both
from gsv_core.networks.layers import slice_frames
from gsv_core.networks.semantic_to_wave import SemanticToWave, WaveForward
from gsv_core.training.batches import TrainingItem, WaveBatch, collate_wave, frames_of
from gsv_core.training.draws import generator_of, seeded
from gsv_core.training.losses import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    kl_loss,
    mel_loss,
)
from gsv_core.training.schedules import PhasePlan, Trains
from gsv_core.training.updates import (
    autocast,
    changed_tensors,
    gradient_norm,
    identity_of,
    set_rates,
    trainable_copy,
    under,
    weights_metadata,
)

MEL_WEIGHT = 45.0
FROZEN = ("ssl_proj", "quantizer")
TEXT_SIDE = ("enc_p.text_embedding", "enc_p.encoder_text", "enc_p.mrte")
PROJECTIONS = (
    "enc_p.ssl_proj",
    "enc_p.proj",
    "ref_enc.fc",
    "dec.cond",
    # of the releases with a speaker encoder
    "sv_emb",
    "ge_to512",
    "prelu",
)
TRAINING_ONLY = ("enc_q",)
"""The posterior encoder reads the recording's spectrogram; synthesis has none, so weights leave it out."""
HELD_OUT_SEGMENTS = 3
"""Segments of each held-out clip that are compared, evenly spread."""


def trained_modules(trains: Trains, network: SemanticToWave) -> list[str]:
    """Prefixes of the parameters of `network` that `trains` stands for; what is frozen is never among them.

    Raises:
        ValueError: SoVITS has no such part.
    """
    children = [
        f"enc_p.{child}" if name == "enc_p" else name
        for name, module in network.named_children()
        for child in ([inner for inner, _ in module.named_children()] if name == "enc_p" else [""])
        if not under(name, FROZEN) and any(True for _ in module.parameters())
    ]
    modules = {
        Trains.EVERYTHING: children,
        Trains.ACOUSTIC_SIDE: [name for name in children if not under(name, TEXT_SIDE)],
        Trains.PROJECTIONS: [
            name for name in PROJECTIONS if any(under(key, [name]) for key, _ in network.named_parameters())
        ],
        Trains.NOTHING: [],
    }
    if trains not in modules:
        raise ValueError(f"SoVITS trains one of {', '.join(modules)}; got {trains}")
    return modules[trains]


@dataclass(frozen=True)
class _Segments:
    """What the losses compare. `recorded`, `generated` (B, 1, N x hop); `recorded_mel`, `generated_mel` (B, M, N)."""

    recorded: Tensor
    generated: Tensor
    recorded_mel: Tensor
    generated_mel: Tensor


class WaveTrainer:
    """Generator and discriminators of one voice, their optimisers, and how far they are. The base stays as it is."""

    phase = "wave"

    def __init__(self, base: BaseModel, plan: PhasePlan, *, voice: str, device: torch.device | str = "cpu") -> None:
        self.plan = plan
        self.voice = voice
        self.device = torch.device(device)
        self.steps_done = 0
        self.skipped = 0
        self.identity = identity_of(base.release, base.digest, voice, self.phase, plan)
        self.base = base
        self.spectrogram: SpectrogramConfig = RELEASES[base.release].spectrogram
        semantic_to_wave, judges = base.wave_networks()
        self.segment_frames = semantic_to_wave.config.segment_frames
        if plan.longest_frames < self.segment_frames:
            raise ValueError(
                f"plan: longest_frames ({plan.longest_frames}) must hold a segment of {self.segment_frames} frames"
            )
        prefixes = trained_modules(plan.trains, semantic_to_wave) if plan.steps else []
        network = trainable_copy(semantic_to_wave, prefixes, self.device)
        discriminators = trainable_copy(judges, [""] if prefixes else [], self.device)
        assert isinstance(network, SemanticToWave)
        assert isinstance(discriminators, Discriminators)
        self.network = network
        self.discriminators = discriminators
        self.generator_parameters = [p for p in network.parameters() if p.requires_grad]
        self.discriminator_parameters = [p for p in discriminators.parameters() if p.requires_grad]
        self.generator_optimiser = self._optimiser(
            [
                {"params": self._parameters(text_side=False), "share": 1.0},
                {"params": self._parameters(text_side=True), "share": plan.text_rate_share},
            ]
        )
        self.discriminator_optimiser = self._optimiser([{"params": self.discriminator_parameters, "share": 1.0}])

    def _parameters(self, *, text_side: bool) -> list[Tensor]:
        return [
            parameter
            for name, parameter in self.network.named_parameters()
            if parameter.requires_grad and under(name, TEXT_SIDE) == text_side
        ]

    def _optimiser(self, groups: list[dict[str, Any]]) -> torch.optim.AdamW | None:
        groups = [group for group in groups if group["params"]]
        if not groups:
            return None
        plan = self.plan
        return torch.optim.AdamW(
            groups, lr=plan.learning_rate, betas=(0.8, 0.99), eps=1e-9, weight_decay=plan.weight_decay, fused=True
        )

    def length(self, item: TrainingItem) -> int:
        return min(frames_of(item, self.spectrogram.hop), self.plan.longest_frames)

    def collate(self, items: Sequence[TrainingItem]) -> WaveBatch:
        """`items` as the batch of the next step: of a long clip a window, drawn anew in each step."""
        starts = [
            self._draw_start(item.clip_id, "window", (frames_of(item, self.spectrogram.hop) - self.length(item)) // 2)
            * 2
            for item in items
        ]
        return self._collate(items, starts)

    def _collate(self, items: Sequence[TrainingItem], starts: Sequence[int]) -> WaveBatch:
        return collate_wave(
            items,
            self.spectrogram,
            starts=starts,
            shortest=self.segment_frames,
            longest=self.plan.longest_frames,
        )

    def step(self, batch: WaveBatch) -> dict[str, float]:
        """Train both on `batch`; where a gradient is not finite the weights stay and the step counts as skipped."""
        assert self.generator_optimiser is not None, "a plan without steps has no step to take"
        assert self.discriminator_optimiser is not None, "a plan without steps has no step to take"
        starts = self._draw_starts(batch)
        noise = self._noise(batch, self.plan.seed, self.voice, self.phase, self.steps_done)
        batch, noise, starts = batch.to(self.device), noise.to(self.device), starts.to(self.device)
        rate = set_rates(self.generator_optimiser, self.steps_done, self.plan)
        set_rates(self.discriminator_optimiser, self.steps_done, self.plan)
        self.network.train()
        with (
            seeded(self.plan.seed, self.voice, self.phase, self.steps_done, "dropout", device=self.device),
            autocast(self.device),
        ):
            forward = self._forward(batch, noise, starts)
        segments = self._segments(batch, forward)

        with autocast(self.device):
            judged = judge_both(self.discriminators, segments.recorded, segments.generated.detach())
        discriminator = discriminator_loss(*judged)
        self.discriminator_optimiser.zero_grad(set_to_none=True)
        discriminator.backward()
        finite = self._update(self.discriminator_optimiser, gradient_norm(self.discriminator_parameters))

        self.discriminators.requires_grad_(False)
        with autocast(self.device):
            with torch.no_grad():
                recorded = self.discriminators(segments.recorded)
            generated = self.discriminators(segments.generated)
        adversarial = generator_loss(generated)
        matching = feature_matching_loss(recorded, generated)
        mel = mel_loss(segments.recorded_mel, segments.generated_mel)
        kl = _divergence(forward)
        self.generator_optimiser.zero_grad(set_to_none=True)
        (adversarial + matching + MEL_WEIGHT * mel + kl).backward()
        self.discriminators.requires_grad_(True)
        norm = gradient_norm(self.generator_parameters)
        finite = self._update(self.generator_optimiser, norm) and finite

        self.skipped += not finite
        self.steps_done += 1
        return {
            "mel": mel.item(),
            "kl": kl.item(),
            "adversarial": adversarial.item(),
            "feature_matching": matching.item(),
            "discriminator": discriminator.item(),
            "gradient_norm": norm.item(),
            "learning_rate": rate,
        }

    def _update(self, optimiser: torch.optim.Optimizer, norm: Tensor) -> bool:
        """Step unless the gradient is not finite; whether it stepped."""
        if not torch.isfinite(norm):
            return False
        optimiser.step()
        return True

    @torch.no_grad()
    def evaluate(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        """Mel distance of clips rebuilt through the posterior, and divergence of the prior; lower is better.

        The noise depends on the clip alone, so that numbers of different steps and voices compare.
        """
        self.network.eval()
        mel = kl = 0.0
        ordered = sorted(items, key=self.length)
        for start in range(0, len(ordered), self.plan.batch_size):
            some = ordered[start : start + self.plan.batch_size]
            batch = self._collate(some, [0] * len(some))
            noise = self._noise(batch, "held-out").to(self.device)
            room = (batch.lengths - self.segment_frames).clamp(min=0)
            batch = batch.to(self.device)
            for segment in range(HELD_OUT_SEGMENTS):
                starts = (room * segment // max(1, HELD_OUT_SEGMENTS - 1)).to(self.device)
                with autocast(self.device):
                    forward = self._forward(batch, noise, starts)
                segments = self._segments(batch, forward)
                share = len(batch.clip_ids) / len(items) / HELD_OUT_SEGMENTS
                mel += share * mel_loss(segments.recorded_mel, segments.generated_mel).item()
                kl += share * _divergence(forward).item()
        return {"mel": mel, "kl": kl}

    def _forward(self, batch: WaveBatch, noise: Tensor, starts: Tensor) -> WaveForward:
        forward = self.network(
            batch.content,
            batch.spectrogram,
            batch.lengths,
            batch.phoneme_ids,
            batch.phoneme_lengths,
            batch.speaker_vectors,
            noise=noise,
            slice_starts=starts,
        )
        assert isinstance(forward, WaveForward)
        return forward

    def _segments(self, batch: WaveBatch, forward: WaveForward) -> _Segments:
        hop, frames, starts = self.spectrogram.hop, self.segment_frames, forward.slice_starts
        generated = forward.wave.float()
        mel = mel_of_linear(batch.spectrogram, self.spectrogram)
        return _Segments(
            recorded=slice_frames(batch.wave, starts * hop, frames * hop),
            generated=generated,
            recorded_mel=slice_frames(mel, starts, frames),
            generated_mel=mel_spectrogram(generated[:, 0], self.spectrogram),
        )

    def _draw_starts(self, batch: WaveBatch) -> Tensor:
        room = (batch.lengths - self.segment_frames).clamp(min=0).tolist()
        return torch.tensor(
            [self._draw_start(clip, "segment", most) for clip, most in zip(batch.clip_ids, room, strict=True)]
        )

    def _draw_start(self, clip_id: str, purpose: str, most: int) -> int:
        draw = generator_of(self.plan.seed, self.voice, self.phase, self.steps_done, clip_id, purpose)
        return int(torch.randint(most + 1, (), generator=draw))

    def _noise(self, batch: WaveBatch, *parts: str | int) -> Tensor:
        """Posterior noise (B, C, L); a clip's own does not depend on the batch it is in."""
        noise = torch.zeros(len(batch.clip_ids), self.network.config.latent, batch.content.shape[-1])
        for row, (clip_id, length) in enumerate(zip(batch.clip_ids, batch.lengths.tolist(), strict=True)):
            draw = generator_of(*parts, clip_id, "posterior")
            noise[row, :, :length] = torch.randn(length, noise.shape[1], generator=draw).T
        return noise

    def weights(self) -> dict[str, Tensor]:
        changed = changed_tensors(self.network, self.base.acoustic)
        return {name: tensor for name, tensor in changed.items() if not under(name, TRAINING_ONLY)}

    def metadata(self) -> dict[str, str]:
        return weights_metadata(self.base.release, self.base.digest, self.phase, self.steps_done)

    def state(self) -> dict[str, Any]:
        return {
            "steps_done": self.steps_done,
            "skipped": self.skipped,
            "network": self.network.state_dict(),
            "discriminators": self.discriminators.state_dict(),
            "generator_optimiser": self.generator_optimiser.state_dict() if self.generator_optimiser else {},
            "discriminator_optimiser": (
                self.discriminator_optimiser.state_dict() if self.discriminator_optimiser else {}
            ),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.steps_done, self.skipped = state["steps_done"], state["skipped"]
        self.network.load_state_dict(state["network"])
        self.discriminators.load_state_dict(state["discriminators"])
        if self.generator_optimiser is not None and self.discriminator_optimiser is not None:
            self.generator_optimiser.load_state_dict(state["generator_optimiser"])
            self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])


def _divergence(forward: WaveForward) -> Tensor:
    return kl_loss(
        forward.prior_latent.float(),
        forward.posterior_log_scale.float(),
        forward.prior_mean.float(),
        forward.prior_log_scale.float(),
        forward.mask,
    )
