"""One step of semantic → wave (SoVITS): the discriminators first, then the generator against them.

Least-squares adversarial loss, feature matching, 45 x mel distance and the divergence of prior and posterior, with
AdamW (Kim et al. 2021, arXiv:2106.06103). The quantizer and the projection before it stay frozen, so that every voice
shares its tokens; the text side learns more slowly. Every loss is a mean over the clips or frames of the whole batch,
in however many parts and on however many ranks it is computed. Shapes as in `batches`; N frames of a segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gsv_core.audio.spectrogram import SpectrogramConfig, mel_of_linear, mel_spectrogram
from gsv_core.checkpoints.base import BaseModel
from gsv_core.checkpoints.releases import RELEASES
from gsv_core.networks.discriminators import Discriminators, judge_both
from gsv_core.networks.dropout import clip_keys, follow_clips
from gsv_core.networks.layers import slice_frames, weights_kept
from gsv_core.networks.semantic_to_wave import SemanticToWave, WaveForward
from gsv_core.training.augmentation import Augmentation
from gsv_core.training.batches import TrainingItem, WaveBatch, collate_wave, frames_of
from gsv_core.training.draws import generator_of, stable_seed
from gsv_core.training.losses import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    kl_loss,
    mel_loss,
)
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
MOST_SPOKEN = 4
"""Held-out clips that are spoken from their tokens at a save: each is decoded whole."""


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


@dataclass(frozen=True)
class _Made:
    """What the generator made of some clips, and the segments of it that are compared."""

    forward: WaveForward
    segments: _Segments


_LOSSES = ("mel", "kl", "adversarial", "feature_matching")


@dataclass(frozen=True)
class _Part:
    """One part of a step: its clips with all that is random, and its share of the batch's clips and frames."""

    batch: WaveBatch
    noise: Tensor
    starts: Tensor
    reference: Tensor | None
    share: float
    frame_share: float


class WaveTrainer:
    """Generator and discriminators of one voice, their optimisers, and how far they are. The base stays as it is."""

    phase = "wave"
    score = "mel"

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
        self.scale, self.judge_scale = LossScale(self.precision), LossScale(self.precision)
        self.identity = identity_of(base.release, base.digest, voice, self.phase, plan, self.precision)
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
        self.dropout = follow_clips(network)
        self.augmentation = Augmentation(base, plan, voice=voice, phase=self.phase) if plan.augment else None
        self.trained = trained_parameters(network)
        self.trained_judges = trained_parameters(discriminators)
        self.generator_parameters = list(self.trained.values())
        self.discriminator_parameters = list(self.trained_judges.values())
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

    def check(self, items: Sequence[TrainingItem]) -> None:
        config = self.network.config
        check_items(
            items,
            self.base.release,
            phonemes=config.phoneme_count,
            content_width=config.content_width,
            speaker_vector_width=config.speaker_vector_width,
        )

    def length(self, item: TrainingItem) -> int:
        return min(frames_of(item, self.spectrogram.hop), self.plan.longest_frames)

    def collate(self, items: Sequence[TrainingItem]) -> WaveBatch:
        """`items` as the batch of the next step: of a long clip a window, drawn anew in each step."""
        if self.augmentation is not None:
            items = [self.augmentation.varied(item, self.steps_done) for item in items]
        starts = [
            self._draw_start(item.clip_id, "window", (frames_of(item, self.spectrogram.hop) - self.length(item)) // 2)
            * 2
            for item in items
        ]
        return self._collate(items, starts)

    def _collate(self, items: Sequence[TrainingItem], starts: Sequence[int]) -> WaveBatch:
        if self.network.config.speaker_vector_width is None:
            items = [replace(item, speaker_vector=None) for item in items]
        return collate_wave(
            items,
            self.spectrogram,
            starts=starts,
            shortest=self.segment_frames,
            longest=self.plan.longest_frames,
        )

    def step(self, batch: WaveBatch | Sequence[WaveBatch]) -> dict[str, float]:
        """Train both on `batch`, or on its parts; where a gradient is not finite the weights stay and the step counts
        as skipped, unless it was a loss scale that was too large."""
        assert self.generator_optimiser is not None, "a plan without steps has no step to take"
        assert self.discriminator_optimiser is not None, "a plan without steps has no step to take"
        parts = self._parts(parts_of(batch))
        rate = set_rates(self.generator_optimiser, self.steps_done, self.plan)
        set_rates(self.discriminator_optimiser, self.steps_done, self.plan)
        self.network.train()
        # What a single part was judged by is also what the generator learns from; of several, each is made again then.
        made = self._made(parts[0]) if len(parts) == 1 else None

        self.discriminator_optimiser.zero_grad(set_to_none=True)
        judged = [self._learn_to_judge(part, made) for part in parts]
        add_up(self.discriminator_parameters, self.reducer)
        (judgement,) = total([sum(judged)], self.reducer)
        judges = self.discriminator_parameters
        _, failed = self._update(self.discriminator_optimiser, judges, self.judge_scale, judgement)

        self.discriminators.requires_grad_(False)
        self.generator_optimiser.zero_grad(set_to_none=True)
        losses = [self._learn_to_speak(part, made) for part in parts]
        self.discriminators.requires_grad_(True)
        add_up(self.generator_parameters, self.reducer)
        columns = [sum(column) for column in zip(*losses, strict=True)] or [0.0] * len(_LOSSES)
        summed = total(columns, self.reducer)
        speaker = self.generator_parameters
        norm, failed_too = self._update(self.generator_optimiser, speaker, self.scale, sum(summed))

        self.skipped += failed or failed_too
        self.steps_done += 1
        numbers = dict(zip(_LOSSES, summed, strict=True)) | {"discriminator": judgement}
        numbers |= self.scale.numbers() | self.judge_scale.numbers("discriminator_loss_scale")
        return numbers | {"gradient_norm": norm, "learning_rate": rate}

    def _parts(self, batches: Sequence[WaveBatch]) -> list[_Part]:
        counts = [float(sum(len(b.clip_ids) for b in batches)), float(sum(int(b.lengths.sum()) for b in batches))]
        clips, frames = total(counts, self.reducer)
        return [
            _Part(
                batch=batch.to(self.device),
                noise=self._noise(batch, self.plan.seed, self.voice, self.phase, self.steps_done).to(self.device),
                starts=self._draw_starts(batch).to(self.device),
                reference=self._reference(batch),
                share=len(batch.clip_ids) / clips,
                frame_share=int(batch.lengths.sum()) / frames,
            )
            for batch in batches
        ]

    def _reference(self, batch: WaveBatch) -> Tensor | None:
        """What the timbre is taken from where it is not the spectrogram itself: (B, F, L)."""
        if self.augmentation is None:
            return None
        noisy = self.augmentation.noisy(batch.spectrogram, batch.lengths, batch.clip_ids, self.steps_done)
        return noisy.to(self.device)

    def _made(self, part: _Part) -> _Made:
        """What the generator makes of one part; the same however often it is made in a step."""
        keys = (self.plan.seed, self.voice, self.phase, self.steps_done)
        self.dropout.clips = clip_keys(
            [stable_seed(*keys, clip, "dropout") for clip in part.batch.clip_ids], self.device
        )
        with autocast(self.device, self.precision):
            forward = self._forward(part.batch, part.noise, part.starts, part.reference)
        return _Made(forward, self._segments(part.batch, forward))

    def _learn_to_judge(self, part: _Part, made: _Made | None) -> float:
        """Add the discriminators' gradients of one part."""
        if made is None:
            with torch.no_grad():
                made = self._made(part)
        with autocast(self.device, self.precision):
            judged = judge_both(self.discriminators, made.segments.recorded, made.segments.generated.detach())
        loss = discriminator_loss(*judged) * part.share
        self.judge_scale.up(loss).backward()
        return loss.item()

    def _learn_to_speak(self, part: _Part, made: _Made | None) -> tuple[float, ...]:
        """Add the generator's gradients of one part; its share of each of `_LOSSES`."""
        made = made or self._made(part)
        segments = made.segments
        with autocast(self.device, self.precision), weights_kept(self.discriminators):
            with torch.no_grad():
                recorded = self.discriminators(segments.recorded)
            generated = self.discriminators(segments.generated)
        adversarial = generator_loss(generated) * part.share
        matching = feature_matching_loss(recorded, generated) * part.share
        mel = mel_loss(segments.recorded_mel, segments.generated_mel) * part.share
        kl = _divergence(made.forward) * part.frame_share
        self.scale.up(adversarial + matching + MEL_WEIGHT * mel + kl).backward()
        return mel.item(), kl.item(), adversarial.item(), matching.item()

    def _update(
        self, optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], scale: LossScale, loss: float
    ) -> tuple[float, bool]:
        """Step unless the gradient is not finite: its norm, and whether that counts as a skipped step."""
        scale.down(parameters)
        norm = gradient_norm(parameters)
        finite = bool(torch.isfinite(norm))
        if finite:
            optimiser.step()
        searching = scale.settle(finite=finite, loss=loss)
        return norm.item(), not finite and not searching

    @torch.no_grad()
    def evaluate(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        """Mel distance of clips rebuilt through the posterior, and divergence of the prior; lower is better.

        The noise depends on the clip alone, so that numbers of different steps and voices compare.
        """
        self.network.eval()
        mel = kl = 0.0
        ordered = part_of(sorted(items, key=self.length), self.reducer)
        for start in range(0, len(ordered), self.plan.batch_size):
            some = ordered[start : start + self.plan.batch_size]
            batch = self._collate(some, [0] * len(some))
            noise = self._noise(batch, "held-out").to(self.device)
            room = (batch.lengths - self.segment_frames).clamp(min=0)
            batch = batch.to(self.device)
            for segment in range(HELD_OUT_SEGMENTS):
                starts = (room * segment // max(1, HELD_OUT_SEGMENTS - 1)).to(self.device)
                with autocast(self.device, self.precision):
                    forward = self._forward(batch, noise, starts)
                segments = self._segments(batch, forward)
                share = len(batch.clip_ids) / len(items) / HELD_OUT_SEGMENTS
                mel += share * mel_loss(segments.recorded_mel, segments.generated_mel).item()
                kl += share * _divergence(forward).item()
        mel, kl = total([mel, kl], self.reducer)
        return {"mel": mel, "kl": kl}

    @torch.no_grad()
    def speak(self, items: Sequence[TrainingItem]) -> dict[str, float]:
        """Mel distance of clips spoken from their own tokens and timbre, as synthesis does; lower is better.

        Unlike the mel distance of `evaluate`, where the recording itself supplies the latent, this is also that of the
        prior: it grows where the network learns the clips by heart.
        """
        self.network.eval()
        chosen = sorted(items, key=lambda item: item.clip_id)[:MOST_SPOKEN]
        distance = 0.0
        for item in part_of(chosen, self.reducer):
            batch = self._collate([item], [0]).to(self.device)
            frames = int(batch.lengths[0])
            spectrogram = batch.spectrogram[..., :frames]
            with autocast(self.device, self.precision):
                wave = self.network.decode(
                    self.network.encode_tokens(batch.content[..., :frames]),
                    batch.phoneme_ids[:, : int(batch.phoneme_lengths[0])],
                    [spectrogram],
                    None if batch.speaker_vectors is None else [batch.speaker_vectors],
                    noise_scale=0.0,
                )
            spoken = mel_spectrogram(wave.float()[:, 0], self.spectrogram)
            recorded = mel_of_linear(spectrogram, self.spectrogram)
            common = min(spoken.shape[2], recorded.shape[2])
            distance += mel_loss(recorded[..., :common], spoken[..., :common]).item()
        return {"spoken_mel": total([distance], self.reducer)[0] / len(chosen)}

    def _forward(self, batch: WaveBatch, noise: Tensor, starts: Tensor, reference: Tensor | None = None) -> WaveForward:
        forward = self.network(
            batch.content,
            batch.spectrogram,
            batch.lengths,
            batch.phoneme_ids,
            batch.phoneme_lengths,
            batch.speaker_vectors,
            noise=noise,
            slice_starts=starts,
            reference=reference,
            recompute=self.plan.checkpoint_layers and torch.is_grad_enabled(),
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
        changed = changed_parameters(self.trained, self.base.acoustic)
        return {name: tensor for name, tensor in changed.items() if not under(name, TRAINING_ONLY)}

    def metadata(self) -> dict[str, str]:
        return weights_metadata(self.base.release, self.base.digest, self.phase, self.steps_done)

    def state(self) -> dict[str, Any]:
        return {
            "steps_done": self.steps_done,
            "skipped": self.skipped,
            "trained": {name: tensor.detach() for name, tensor in self.trained.items()},
            "discriminators": {name: tensor.detach() for name, tensor in self.trained_judges.items()},
            "generator_optimiser": self.generator_optimiser.state_dict() if self.generator_optimiser else {},
            "discriminator_optimiser": (
                self.discriminator_optimiser.state_dict() if self.discriminator_optimiser else {}
            ),
            "loss_scales": [self.scale.state(), self.judge_scale.state()],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        restore_parameters(self.trained, state["trained"])
        restore_parameters(self.trained_judges, state["discriminators"])
        self.steps_done, self.skipped = state["steps_done"], state["skipped"]
        if self.generator_optimiser is not None and self.discriminator_optimiser is not None:
            self.generator_optimiser.load_state_dict(state["generator_optimiser"])
            self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])
        # Checkpoints from before there were scales are float32's, where they do nothing.
        for scale, saved in zip((self.scale, self.judge_scale), state.get("loss_scales", ()), strict=False):
            scale.load_state(saved)


def _divergence(forward: WaveForward) -> Tensor:
    return kl_loss(
        forward.prior_latent.float(),
        forward.posterior_log_scale.float(),
        forward.prior_mean.float(),
        forward.prior_log_scale.float(),
        forward.mask,
    )
