"""Semantic tokens, phonemes and a timbre to a wave (upstream: SoVITS, "s2", releases v1, v2, v2Pro and v2ProPlus).

VITS (Kim et al. 2021, arXiv:2106.06103) with semantic tokens beside the text: a prior encoder predicts a latent from
tokens, phonemes and timbre; a flow carries it to the latent of real speech; a HiFi-GAN decodes that. In training a
posterior encoder supplies the latent from the recording itself. Parameter names are those of the files. A new network
draws its weights from torch's global generator.
Shapes: B batch, C width of the content features, L frames (50 per second), S = L / 2 semantic tokens, P phonemes,
F bins of the linear spectrogram, Z latent channels, G width of the timbre, K width of a speaker vector, T samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from gsv_core.networks.flow import Flow
from gsv_core.networks.generator import Generator
from gsv_core.networks.layers import frame_mask, slice_frames
from gsv_core.networks.posterior_encoder import PosteriorEncoder
from gsv_core.networks.prior_encoder import PriorEncoder
from gsv_core.networks.quantizer import SemanticQuantizer
from gsv_core.networks.reference_encoder import ReferenceEncoder
from gsv_core.networks.rounding import unrounded

FRAMES_PER_TOKEN = 2


@dataclass(frozen=True, kw_only=True)
class SemanticToWaveConfig:
    """Sizes of the network. The defaults are those of v2; `releases` has the others."""

    phoneme_count: int = 732
    content_width: int = 768
    codebook_size: int = 1024
    spectrogram_bins: int = 1025
    reference_bins: int = 704
    """Of the lowest bins of a reference: 1025 in v1, 704 since."""
    latent: int = 192
    width: int = 192
    filter_width: int = 768
    heads: int = 2
    layers: int = 6
    """Of the phoneme encoder; the two content encoders have half as many."""
    kernel: int = 3
    window: int = 4
    """Relative positions reach this far to either side."""
    dropout: float = 0.1
    join_width: int = 512
    join_heads: int = 4
    timbre_width: int = 512
    speaker_vector_width: int | None = None
    """Set in the Pro releases (20480), which add a speaker vector to the timbre."""
    reference_width: int = 128
    reference_heads: int = 2
    reference_dropout: float = 0.1
    gated_kernel: int = 5
    posterior_layers: int = 16
    flow_couplings: int = 4
    flow_layers: int = 4
    generator_channels: int = 512
    upsample_rates: tuple[int, ...] = (10, 8, 2, 2, 2)
    upsample_kernels: tuple[int, ...] = (16, 16, 8, 2, 2)
    block_kernels: tuple[int, ...] = (3, 7, 11)
    block_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    segment_frames: int = 32
    """Length of the piece that is decoded in training."""

    def __post_init__(self) -> None:
        if self.speaker_vector_width is None and self.timbre_width != self.join_width:
            raise ValueError(
                f"without speaker vectors the timbre joins the text as it is: timbre_width {self.timbre_width} must "
                f"equal join_width {self.join_width}"
            )
        if self.latent % 2 or self.layers < 2:
            raise ValueError(f"need an even latent and two layers or more, got {self.latent} and {self.layers}")
        for width, heads in (
            (self.width, self.heads),
            (self.join_width, self.join_heads),
            (self.reference_width, self.reference_heads),
        ):
            if width % heads:
                raise ValueError(f"width {width} does not divide into {heads} heads")
        if not 0 < self.reference_bins <= self.spectrogram_bins:
            raise ValueError(f"reference_bins {self.reference_bins} must be within {self.spectrogram_bins} bins")
        rates, kernels = self.upsample_rates, self.upsample_kernels
        if len(rates) != len(kernels) or any(
            kernel < rate or (kernel - rate) % 2 for rate, kernel in zip(rates, kernels)
        ):
            raise ValueError(f"need an upsample kernel per rate, larger by an even number, got {kernels} for {rates}")
        if len(self.block_kernels) != len(self.block_dilations):
            raise ValueError("need one tuple of dilations per block kernel")
        if self.generator_channels < 2 ** len(rates):
            raise ValueError(f"generator_channels {self.generator_channels} cannot be halved {len(rates)} times")

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return prod(self.upsample_rates)


@dataclass(frozen=True)
class WaveForward:
    """What a training step needs. `wave` (B, 1, segment samples) starts at frame `slice_starts` (B,) of each item.

    `mask` (B, 1, L); latents are (B, Z, L): `latent` of the recording, `prior_latent` what the flow makes of it.
    `commitment` is 0: the quantizer is frozen.
    """

    wave: Tensor
    slice_starts: Tensor
    mask: Tensor
    latent: Tensor
    prior_latent: Tensor
    prior_mean: Tensor
    prior_log_scale: Tensor
    posterior_mean: Tensor
    posterior_log_scale: Tensor
    commitment: Tensor


class SemanticToWave(nn.Module):
    """Tokens, phonemes and references to a wave; content features to tokens."""

    def __init__(self, config: SemanticToWaveConfig) -> None:
        super().__init__()
        self.config = config
        self.enc_p = PriorEncoder(
            phoneme_count=config.phoneme_count,
            content_width=config.content_width,
            width=config.width,
            filter_width=config.filter_width,
            join_width=config.join_width,
            join_heads=config.join_heads,
            latent=config.latent,
            heads=config.heads,
            layers=config.layers,
            kernel=config.kernel,
            window=config.window,
            dropout=config.dropout,
        )
        self.dec = Generator(
            config.latent,
            config.generator_channels,
            rates=config.upsample_rates,
            kernels=config.upsample_kernels,
            block_kernels=config.block_kernels,
            block_dilations=config.block_dilations,
            timbre_width=config.timbre_width,
        )
        self.enc_q = PosteriorEncoder(
            config.spectrogram_bins,
            config.width,
            config.latent,
            kernel=config.gated_kernel,
            layers=config.posterior_layers,
            timbre_width=config.timbre_width,
        )
        self.flow = Flow(
            config.latent,
            config.width,
            kernel=config.gated_kernel,
            layers=config.flow_layers,
            couplings=config.flow_couplings,
            timbre_width=config.timbre_width,
        )
        self.ref_enc = ReferenceEncoder(
            config.reference_bins,
            config.reference_width,
            config.timbre_width,
            heads=config.reference_heads,
            kernel=5,
            dropout=config.reference_dropout,
        )
        self.ssl_proj = nn.Conv1d(config.content_width, config.content_width, FRAMES_PER_TOKEN, stride=FRAMES_PER_TOKEN)
        self.quantizer = SemanticQuantizer(config.codebook_size, config.content_width)
        if config.speaker_vector_width is not None:
            self.sv_emb = nn.Linear(config.speaker_vector_width, config.timbre_width)
            self.ge_to512 = nn.Linear(config.timbre_width, config.join_width)
            self.prelu = nn.PReLU(num_parameters=config.timbre_width)

    def forward(
        self,
        content: Tensor,
        spectrogram: Tensor,
        lengths: Tensor,
        phoneme_ids: Tensor,
        phoneme_lengths: Tensor,
        speaker_vectors: Tensor | None,
        *,
        noise: Tensor | None = None,
        slice_starts: Tensor | None = None,
        generator: torch.Generator | None = None,
        reference: Tensor | None = None,
        recompute: bool = False,
    ) -> WaveForward:
        """Training pass over a right-padded batch: (B, C, L), (B, F, L), (B,), (B, P), (B,), (B, K).

        Content may be one frame longer or shorter than the spectrogram. `noise` (B, Z, L) and `slice_starts` (B,) are
        drawn from `generator` where they are not given. Every length must reach `segment_frames`. `reference`
        (B, F, L) shows the timbre in the place of the spectrogram. `recompute` keeps no activations of the decoder for
        the backward pass and computes them again there.
        """
        batch, frames = spectrogram.shape[0], spectrogram.shape[2]
        mask = frame_mask(lengths, frames, spectrogram.dtype)
        if noise is None:
            noise = _normal((batch, self.config.latent, frames), spectrogram, generator)
        if slice_starts is None:
            slice_starts = self._draw_starts(lengths, generator)
        timbre = self.timbre(spectrogram if reference is None else reference, lengths, speaker_vectors)
        quantised = _fit_length(self._frames_of(self.encode_tokens(content)), frames)
        prior_mean, prior_log_scale, _ = self.enc_p(
            quantised,
            mask,
            phoneme_ids,
            frame_mask(phoneme_lengths, phoneme_ids.shape[1], spectrogram.dtype),
            self._joined_timbre(timbre),
        )
        latent, posterior_mean, posterior_log_scale = self.enc_q(spectrogram, mask, timbre, noise)
        prior_latent = self.flow(latent, mask, timbre)
        wave = self.dec(slice_frames(latent, slice_starts, self.config.segment_frames), timbre, recompute=recompute)
        return WaveForward(
            wave=wave,
            slice_starts=slice_starts,
            mask=mask,
            latent=latent,
            prior_latent=prior_latent,
            prior_mean=prior_mean,
            prior_log_scale=prior_log_scale,
            posterior_mean=posterior_mean,
            posterior_log_scale=posterior_log_scale,
            commitment=wave.new_zeros(()),
        )

    @torch.no_grad()
    def encode_tokens(self, content: Tensor) -> Tensor:
        """Tokens of content features: (B, C, L) -> (B, S) int64, S = L // 2; an odd last frame is dropped."""
        # Rounded, frames between two entries would get another token than the one that was stored.
        with unrounded(content):
            return self.quantizer.encode(self.ssl_proj(content))

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,
        phoneme_ids: Tensor,
        references: Sequence[Tensor] = (),
        speaker_vectors: Sequence[Tensor] | None = None,
        *,
        timbre: Tensor | None = None,
        noise_scale: float = 0.5,
        speed: float = 1.0,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Speak: tokens (B, S), phonemes (B, P) -> (B, 1, T).

        The timbre is the mean over `references` (1, F, L), each with its own speaker vector (1, K) in the Pro releases,
        or `timbre` (1 or B, G, 1) itself. `speed` 2 is twice as fast. `noise` (B, Z, L') is drawn from `generator`
        where it is not given.
        """
        if speed <= 0:
            raise ValueError(f"speed must be positive, got {speed}")
        if timbre is None:
            timbre = self._mean_timbre(references, speaker_vectors)
        content = self._frames_of(tokens)
        mean, log_scale, mask = self.enc_p(
            content,
            content.new_ones(content.shape[0], 1, content.shape[2]),
            phoneme_ids,
            content.new_ones(phoneme_ids.shape[0], 1, phoneme_ids.shape[1]),
            self._joined_timbre(timbre),
            speed=speed,
        )
        if noise is None:
            noise = _normal(tuple(mean.shape), mean, generator)
        latent = self.flow.inverse(mean + noise * torch.exp(log_scale) * noise_scale, mask, timbre)
        return self.dec(latent * mask, timbre)

    def timbre(
        self, spectrogram: Tensor, lengths: Tensor | None = None, speaker_vector: Tensor | None = None
    ) -> Tensor:
        """How a voice sounds: (B, F, L), (B,) or None for no padding, (B, K) in the Pro releases -> (B, G, 1)."""
        pro = self.config.speaker_vector_width is not None
        if pro != (speaker_vector is not None):
            raise ValueError("this release needs a speaker vector" if pro else "this release takes no speaker vector")
        if lengths is None:
            mask = spectrogram.new_ones(spectrogram.shape[0], 1, spectrogram.shape[2])
        else:
            mask = frame_mask(lengths, spectrogram.shape[2], spectrogram.dtype)
        heard = self.ref_enc(spectrogram[:, : self.config.reference_bins] * mask, mask)
        if speaker_vector is None:
            return heard
        return self.prelu(heard + self.sv_emb(speaker_vector.to(heard.dtype)).unsqueeze(2))

    def set_codebook(self, content: Tensor) -> None:
        """Make the codebook of a new network from examples: what K pieces of content (K, C, 2) are projected to.

        Random entries would lie nowhere near the projections, and nearly all frames would get the same few tokens.
        """
        with torch.no_grad():
            self.quantizer.set_codebook(self.ssl_proj(content).squeeze(2))

    def _mean_timbre(self, references: Sequence[Tensor], speaker_vectors: Sequence[Tensor] | None) -> Tensor:
        if not references:
            raise ValueError("decode needs a reference spectrogram or a timbre")
        vectors = [None] * len(references) if speaker_vectors is None else list(speaker_vectors)
        if len(vectors) != len(references):
            raise ValueError(f"expected one speaker vector per reference, got {len(vectors)} for {len(references)}")
        heard = [self.timbre(reference, None, vector) for reference, vector in zip(references, vectors)]
        return torch.stack(heard).mean(dim=0)

    def _joined_timbre(self, timbre: Tensor) -> Tensor:
        """The timbre in the width of the join: (B, G, 1) -> (B, join_width, 1)."""
        if self.config.speaker_vector_width is None:
            return timbre
        return self.ge_to512(timbre.transpose(1, 2)).transpose(1, 2)

    def _frames_of(self, tokens: Tensor) -> Tensor:
        """Quantised content, each token held for two frames: (B, S) -> (B, C, 2 S)."""
        return self.quantizer.decode(tokens).repeat_interleave(FRAMES_PER_TOKEN, dim=2)

    def _draw_starts(self, lengths: Tensor, generator: torch.Generator | None) -> Tensor:
        room = lengths - self.config.segment_frames
        if bool((room < 0).any()):
            raise ValueError(f"every item needs {self.config.segment_frames} frames or more, got {lengths.tolist()}")
        device = "cpu" if generator is None else generator.device
        drawn = torch.rand(lengths.shape, generator=generator, device=device).to(lengths.device)
        return (drawn * (room + 1)).long()


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device).to(like)


def _fit_length(quantised: Tensor, frames: int) -> Tensor:
    """Cut or hold the last frame so that content is as long as the spectrogram; more than two frames are an error."""
    missing = frames - quantised.shape[2]
    if abs(missing) > FRAMES_PER_TOKEN:
        raise ValueError(f"content of {quantised.shape[2]} frames does not belong to a spectrogram of {frames}")
    return functional.pad(quantised, (0, missing), mode="replicate") if missing > 0 else quantised[..., :frames]
