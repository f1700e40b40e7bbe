"""Noise to a mel spectrogram along straight lines: the training loss and the sampler (upstream: CFM).

Conditional flow matching (Lipman et al. 2022, arXiv:2210.02747): at time t a frame lies at (1 - t) noise + t mel, and
the network learns its velocity mel - noise. Some batches train shortcuts as well (Frans et al. 2024, arXiv:2410.12557):
one step of size 2 d must go where two steps of size d go. The beginning of every item is known and never noisy, so
that speech can go on in the voice of a prompt.
Shapes: B batch, M mel bands, L frames, C width of the condition.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gsv_core.networks.diffusion_transformer import DiffusionTransformer
from gsv_core.networks.layers import sequence_mask

SHORTCUT_SHARE = 0.3
"""Of the batches that train shortcuts."""
HALVINGS = range(2, 8)
"""A shortcut halves the way this many times: steps from 1/4 down to 1/128."""
SMALLEST_STEP = 1e-2
"""A smaller step counts as infinitely small."""


@dataclass(frozen=True, kw_only=True)
class FlowDraws:
    """All that is random in one training step."""

    time: Tensor
    """(B,) uniform in [0, 1)"""
    noise: Tensor
    """(B, M, L) standard normal"""
    prompt_lengths: Tensor
    """(B,) int64: frames that are known"""
    halvings: Tensor | None = None
    """(B,) int64 from `HALVINGS`, or 0 for an item that trains no shortcut; None where none does"""

    def to(self, device: torch.device) -> "FlowDraws":
        """The same draws on `device`."""
        return FlowDraws(
            time=self.time.to(device),
            noise=self.noise.to(device),
            prompt_lengths=self.prompt_lengths.to(device),
            halvings=None if self.halvings is None else self.halvings.to(device),
        )

    @classmethod
    def of(cls, mel: Tensor, lengths: Tensor, generator: torch.Generator | None = None) -> "FlowDraws":
        """Draws for `mel` (B, M, L) of `lengths` (B,), from `generator` or torch's global one."""
        device, batch = mel.device if generator is None else generator.device, (len(mel),)
        prompts = prompt_lengths(torch.rand(batch, generator=generator, device=device).to(lengths.device), lengths)
        time = torch.rand(batch, generator=generator, device=device)
        noise = torch.randn(mel.shape, generator=generator, device=device)
        shortcut = bool(torch.rand((), generator=generator, device=device) < SHORTCUT_SHARE)
        halvings = torch.randint(HALVINGS.start, HALVINGS.stop, batch, generator=generator, device=device)
        return cls(
            time=time.to(mel.device),
            noise=noise.to(mel),
            prompt_lengths=prompts,
            halvings=halvings.to(mel.device) if shortcut else None,
        )


def prompt_lengths(shares: Tensor, lengths: Tensor) -> Tensor:
    """Known frames of items of `lengths` (B,): from none up to two thirds, by `shares` (B,) in [0, 1)."""
    return (shares * (lengths * 2 / 3)).long()


class FlowMatching(nn.Module):
    """The estimator of velocities, trained and followed."""

    def __init__(self, estimator: DiffusionTransformer) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(
        self, mel: Tensor, lengths: Tensor, condition: Tensor, draws: FlowDraws, *, recompute: bool = False
    ) -> Tensor:
        """Mean squared error of the velocity per item, lower is better: (B, M, L), (B,), (B, C, L) -> (B,).

        Counted are the frames behind the prompt. `mel` is normalised.
        """
        columns = torch.arange(mel.shape[2], device=mel.device)
        mask = columns < lengths.unsqueeze(1)
        known = (columns < draws.prompt_lengths.unsqueeze(1)).unsqueeze(1)
        prompt = mel.masked_fill(~known, 0.0)
        time = draws.time
        start = (draws.noise + time[:, None, None] * (mel - draws.noise)).masked_fill(known, 0.0)
        embedded = self.estimator.embed_condition(condition, mask)

        target, step = mel - draws.noise, torch.zeros_like(time)
        if draws.halvings is not None:
            some = draws.halvings.nonzero()[:, 0]
            half_step = 1 / 2 ** draws.halvings[some]
            two_steps = self._two_steps(start[some], prompt[some], time[some], half_step, embedded[some], mask[some])
            target[some] = two_steps.to(target.dtype)
            step[some] = 2 * half_step
        embedded_step = self.estimator.embed_step(step)
        velocity = self.estimator(start, prompt, time, embedded_step, embedded, mask, recompute=recompute)
        counted = (mask.unsqueeze(1) & ~known).float()
        errors = (velocity.float() - target.float()).square() * counted
        return errors.sum(dim=(1, 2)) / (counted.sum(dim=(1, 2)) * mel.shape[1])

    @torch.no_grad()
    def _two_steps(
        self, start: Tensor, prompt: Tensor, time: Tensor, step: Tensor, embedded: Tensor, mask: Tensor
    ) -> Tensor:
        """Mean velocity of two steps of size `step` (B,) from `start`. The second may reach beyond time 1."""
        embedded_step = self.estimator.embed_step(torch.where(step < SMALLEST_STEP, 0.0, step))
        first = self.estimator(start, prompt, time, embedded_step, embedded, mask)
        # The prompt's part of the middle is left as it comes out, as the published weights were trained.
        middle = start + step[:, None, None] * first
        second = self.estimator(middle, prompt, time + step, embedded_step, embedded, mask)
        return (first + second) / 2

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        lengths: Tensor,
        prompt: Tensor,
        *,
        steps: int,
        guidance: float = 0.0,
        temperature: float = 1.0,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Follow the velocity from noise in equal steps: (B, C, L), (B,), (B, M, P) -> (B, M, L), normalised.

        The first P frames are those of `prompt`, and zero in the result. `guidance` moves away from what the network
        would say without condition and prompt, at twice the work (Ho and Salimans 2022, arXiv:2207.12598).
        `temperature` scales the noise (B, M, L), which is drawn from `generator` where it is not given.

        Raises:
            ValueError: no step, a prompt longer than the condition, or guidance or temperature below 0.
        """
        batch, _, frames = condition.shape
        bands, known = prompt.shape[1:]
        if steps < 1 or guidance < 0 or temperature < 0:
            raise ValueError(
                f"sampling needs a step or more, and guidance and temperature from 0 on; got {steps} steps, guidance "
                f"{guidance}, temperature {temperature}"
            )
        if known > frames:
            raise ValueError(f"a prompt of {known} frames does not fit into {frames}; shorten the prompt")
        if noise is None:
            device = condition.device if generator is None else generator.device
            noise = torch.randn((batch, bands, frames), generator=generator, device=device).to(condition)
        mask = None if bool((lengths >= frames).all()) else sequence_mask(lengths, frames)
        given = nn.functional.pad(prompt.to(condition), (0, frames - known))
        plain = _Guide(self.estimator, condition, given, mask, 1 / steps)
        blind = _Guide(self.estimator, condition, given, mask, 1 / steps, drop=True) if guidance > 0 else None
        x = noise * temperature
        x[..., :known] = 0
        for index in range(steps):
            time = condition.new_full((batch,), index / steps)
            velocity = plain(x, time)
            if blind is not None:
                velocity = velocity + guidance * (velocity - blind(x, time))
            x = x + velocity / steps
            x[..., :known] = 0
        return x if mask is None or self.estimator.padding_leaks else x * mask.unsqueeze(1)


class _Guide:
    """The velocity as a function of place and time; what the steps share is embedded once."""

    def __init__(
        self,
        estimator: DiffusionTransformer,
        condition: Tensor,
        prompt: Tensor,
        mask: Tensor | None,
        step: float,
        *,
        drop: bool = False,
    ) -> None:
        self.estimator = estimator
        self.prompt = torch.zeros_like(prompt) if drop else prompt
        self.mask = mask
        self.condition = estimator.embed_condition(condition, mask, drop=drop)
        self.step = estimator.embed_step(condition.new_full((len(condition),), step))

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        return self.estimator(x, self.prompt, time, self.step, self.condition, self.mask)
