"""Semantic tokens, phonemes and a timbre to a mel spectrogram (upstream: SoVITS, "s2", releases v3 and v4).

The prior encoder of semantic-to-wave, without its distribution, gives a condition per mel frame; flow matching turns
noise into a mel spectrogram under that condition and goes on from the mel spectrogram of a prompt. A vocoder makes the
wave. Prior encoder and quantizer are frozen, and a timbre is only looked at: no gradient reaches the reference encoder,
which upstream lists among the trained parts, so that it stays the Base model's in every Voice. Parameter names are
those of the files. A new network draws its weights from torch's global generator.
Shapes: B batch, C width of the content features, L content frames (50 per second), S = L / 2 semantic tokens,
P phonemes, F bins of the linear spectrogram, G width of the timbre, M mel bands, N mel frames, D width of a condition.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from gsv_core.networks.diffusion_transformer import DiffusionTransformer
from gsv_core.networks.flow_matching import FlowDraws, FlowMatching
from gsv_core.networks.layers import GatedStack, frame_mask
from gsv_core.networks.prior_encoder import PriorEncoder
from gsv_core.networks.quantizer import SemanticQuantizer
from gsv_core.networks.reference_encoder import ReferenceEncoder
from gsv_core.networks.rounding import unrounded
from gsv_core.networks.semantic_to_wave import FRAMES_PER_TOKEN

QUIETEST_MEL, LOUDEST_MEL = -12.0, 2.0
"""Natural logarithms that become -1 and 1."""


@dataclass(frozen=True, kw_only=True)
class SemanticToMelConfig:
    """Sizes of the network. The defaults are those of v3; `releases` has those of v4."""

    phoneme_count: int = 732
    content_width: int = 768
    codebook_size: int = 1024
    reference_bins: int = 704
    """Of the lowest bins of a reference's linear spectrogram."""
    latent: int = 192
    """Width of the prior encoder's unused distribution."""
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
    reference_width: int = 128
    reference_heads: int = 2
    reference_dropout: float = 0.1
    condition_width: int = 512
    condition_layers: int = 8
    gated_kernel: int = 5
    mel_bands: int = 100
    flow_width: int = 1024
    flow_heads: int = 16
    flow_head_width: int = 64
    flow_layers: int = 22
    flow_filter_width: int = 2048
    flow_condition_layers: int = 4
    flow_position_kernel: int = 31
    flow_position_groups: int = 16
    flow_dropout: float = 0.1
    stretch: float = 1.875
    """Mel frames per content frame: 93.75 per second in v3, 100 (2.0) in v4."""
    most_frames_per_token: float = 3.875
    """Frames beyond this many per token are masked; matters at other speeds than 1 only. 4.0 in v4."""
    reference_frames: int = 468
    """Most mel frames of a prompt; 500 in v4."""
    chunk_frames: int = 934
    """Most mel frames sampled at once, prompt included; 1000 in v4."""
    padding_leaks: bool = False
    """Let the padding of a batch's shorter items change them, as GPT-SoVITS does in training. An item alone has no
    padding, so that what is synthesised is the same."""

    def __post_init__(self) -> None:
        if self.timbre_width != self.join_width:
            raise ValueError(
                f"the timbre joins the text as it is: timbre_width {self.timbre_width} must equal join_width "
                f"{self.join_width}"
            )
        if self.layers < 2:
            raise ValueError(f"need two layers or more, got {self.layers}")
        for width, parts, called in (
            (self.width, self.heads, "heads"),
            (self.join_width, self.join_heads, "heads"),
            (self.reference_width, self.reference_heads, "heads"),
            (self.flow_width, self.flow_position_groups, "groups"),
            (self.flow_head_width, 2, "pairs"),
            (self.condition_width, 2, "sines and cosines"),
        ):
            if width % parts:
                raise ValueError(f"width {width} does not divide into {parts} {called}")
        if not self.flow_position_kernel % 2 or not self.gated_kernel % 2 or not self.kernel % 2:
            raise ValueError(
                f"kernels must be odd, got {self.flow_position_kernel}, {self.gated_kernel} and {self.kernel}"
            )
        if self.stretch < 1 or self.most_frames_per_token < FRAMES_PER_TOKEN * self.stretch:
            raise ValueError(
                f"need stretch of 1 or more and most_frames_per_token of {FRAMES_PER_TOKEN} x stretch or more, got "
                f"{self.stretch} and {self.most_frames_per_token}"
            )
        if not 0 < self.reference_frames < self.chunk_frames:
            raise ValueError(
                f"a prompt of {self.reference_frames} frames must leave room in a chunk of {self.chunk_frames}"
            )

    @property
    def frames_per_token(self) -> float:
        """Mel frames that a token becomes."""
        return FRAMES_PER_TOKEN * self.stretch


class SemanticToMel(nn.Module):
    """Tokens, phonemes and a reference to a mel spectrogram; content features to tokens."""

    def __init__(self, config: SemanticToMelConfig) -> None:
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
        self.bridge = nn.Sequential(nn.Conv1d(config.width, config.condition_width, 1), nn.LeakyReLU())
        self.wns1 = _ConditionEncoder(
            config.condition_width,
            kernel=config.gated_kernel,
            layers=config.condition_layers,
            timbre_width=config.timbre_width,
        )
        # In the files, and without any use.
        self.linear_mel = nn.Conv1d(config.condition_width, config.mel_bands, 1)
        self.cfm = FlowMatching(
            DiffusionTransformer(
                mel_bands=config.mel_bands,
                condition_width=config.condition_width,
                condition_layers=config.flow_condition_layers,
                width=config.flow_width,
                heads=config.flow_heads,
                head_width=config.flow_head_width,
                layers=config.flow_layers,
                filter_width=config.flow_filter_width,
                position_kernel=config.flow_position_kernel,
                position_groups=config.flow_position_groups,
                dropout=config.flow_dropout,
                padding_leaks=config.padding_leaks,
            )
        )
        for part in self._frozen:
            part.requires_grad_(False)

    @property
    def _frozen(self) -> tuple[nn.Module, ...]:
        return self.enc_p, self.ssl_proj, self.quantizer

    def train(self, mode: bool = True) -> Self:
        """Training mode, in which the frozen parts go on without dropout."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(
        self,
        content: Tensor,
        spectrogram: Tensor,
        lengths: Tensor,
        mel: Tensor,
        mel_lengths: Tensor,
        phoneme_ids: Tensor,
        phoneme_lengths: Tensor,
        *,
        draws: FlowDraws | None = None,
        generator: torch.Generator | None = None,
        reference: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Flow-matching loss of each item, lower is better: -> (B,).

        Takes a right-padded batch: content (B, C, L) and its `spectrogram` (B, F, L) of `lengths` (B,), the normalised
        `mel` (B, M, N) of `mel_lengths` (B,), phonemes (B, P). Where mel and condition differ in length, what is longer
        is cut. `draws`, whose noise is as long as the shorter, come from `generator` where they are not given.
        `reference` (B, F, L) shows the timbre in the place of the spectrogram. `recompute` trades time for memory in
        the backward pass.
        """
        with torch.no_grad():
            timbre = self.timbre(spectrogram if reference is None else reference, lengths)
            quantised = self._frames_of(self.encode_tokens(content))
            joined, _ = self.enc_p.join(
                quantised,
                frame_mask(lengths, quantised.shape[2], quantised.dtype),
                phoneme_ids,
                frame_mask(phoneme_lengths, phoneme_ids.shape[1], quantised.dtype),
                timbre,
            )
        condition = self._stretched(joined, mel_lengths, timbre)
        frames = min(mel.shape[2], condition.shape[2])
        mel, condition = mel[..., :frames], condition[..., :frames]
        if draws is None:
            draws = FlowDraws.of(mel, mel_lengths, generator)
        losses: Tensor = self.cfm(mel, mel_lengths, condition, draws, recompute=recompute)
        return losses

    @torch.no_grad()
    def encode_tokens(self, content: Tensor) -> Tensor:
        """Tokens of content features: (B, C, L) -> (B, S) int64, S = L // 2; an odd last frame is dropped."""
        # Rounded, frames between two entries would get another token than the one that was stored.
        with unrounded(content):
            return self.quantizer.encode(self.ssl_proj(content))

    def timbre(self, spectrogram: Tensor, lengths: Tensor | None = None) -> Tensor:
        """How a voice sounds: (B, F, L), (B,) or None for no padding -> (B, G, 1)."""
        if lengths is None:
            mask = spectrogram.new_ones(spectrogram.shape[0], 1, spectrogram.shape[2])
        else:
            mask = frame_mask(lengths, spectrogram.shape[2], spectrogram.dtype)
        return self.ref_enc(spectrogram[:, : self.config.reference_bins] * mask, mask)

    @torch.no_grad()
    def condition(self, tokens: Tensor, phoneme_ids: Tensor, timbre: Tensor, *, speed: float = 1.0) -> Tensor:
        """What to say, per mel frame: (B, S), (B, P), (1 or B, G, 1) -> (B, D, N). `speed` 2 is twice as fast.

        At speed 1 N is int(S x frames_per_token).
        """
        if speed <= 0:
            raise ValueError(f"speed must be positive, got {speed}")
        content = self._frames_of(tokens)
        joined, _ = self.enc_p.join(
            content,
            content.new_ones(content.shape[0], 1, content.shape[2]),
            phoneme_ids,
            content.new_ones(phoneme_ids.shape[0], 1, phoneme_ids.shape[1]),
            timbre,
            speed=speed,
        )
        most = int(tokens.shape[1] * self.config.most_frames_per_token / speed) + (speed != 1.0)
        return self._stretched(joined, torch.full((len(tokens),), most, device=joined.device), timbre)

    def sample(
        self,
        condition: Tensor,
        lengths: Tensor,
        prompt_mel: Tensor,
        *,
        steps: int,
        guidance: float = 0.0,
        temperature: float = 1.0,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A mel spectrogram: (B, D, N), (B,), (B, M, prompt frames) -> (B, M, N), normalised as the prompt is.

        The condition covers the prompt too; the prompt's part of the result is zero. More in `FlowMatching.sample`.
        """
        return self.cfm.sample(
            condition,
            lengths,
            prompt_mel,
            steps=steps,
            guidance=guidance,
            temperature=temperature,
            noise=noise,
            generator=generator,
        )

    def _frames_of(self, tokens: Tensor) -> Tensor:
        """Quantised content, each token held for two frames: (B, S) -> (B, C, 2 S)."""
        return self.quantizer.decode(tokens).repeat_interleave(FRAMES_PER_TOKEN, dim=2)

    def _stretched(self, joined: Tensor, lengths: Tensor, timbre: Tensor) -> Tensor:
        """The prior encoder's frames at the mel's rate: (B, width, L), mel lengths (B,), (B, G, 1) -> (B, D, N)."""
        held = functional.interpolate(self.bridge(joined), scale_factor=self.config.stretch, mode="nearest")
        return self.wns1(held, frame_mask(lengths, held.shape[2], held.dtype), timbre)


class _ConditionEncoder(nn.Module):
    """Gated convolutions over mel frames, conditioned on the timbre."""

    def __init__(self, width: int, *, kernel: int, layers: int, timbre_width: int) -> None:
        super().__init__()
        self.pre = nn.Conv1d(width, width, 1)
        self.enc = GatedStack(width, kernel, layers, timbre_width)
        self.proj = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, mask: Tensor, timbre: Tensor) -> Tensor:
        """(B, D, N), (B, 1, N), (B, G, 1) -> (B, D, N). No gradient flows into `timbre`."""
        return self.proj(self.enc(self.pre(x) * mask, mask, timbre.detach())) * mask


def normalise_mel(mel: Tensor) -> Tensor:
    """Natural logarithms of magnitudes to the range that is sampled, about -1 to 1."""
    return (mel - QUIETEST_MEL) / (LOUDEST_MEL - QUIETEST_MEL) * 2 - 1


def denormalise_mel(mel: Tensor) -> Tensor:
    """The way back: what was sampled to natural logarithms of magnitudes, as vocoders take them."""
    return (mel + 1) / 2 * (LOUDEST_MEL - QUIETEST_MEL) + QUIETEST_MEL
