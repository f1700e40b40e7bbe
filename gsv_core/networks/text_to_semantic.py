"""Phonemes to semantic tokens, one after the other (upstream: GPT, "s1").

A post-norm transformer over [phonemes | tokens]: phonemes see all phonemes, tokens see all phonemes and the tokens
before them (prefix language model; Vaswani et al. 2017, arXiv:1706.03762; VALL-E, Wang et al. 2023, arXiv:2301.02111).
Unusual: no final norm; sinusoidal positions times a learned factor, restarting at the first token; text vectors enter
through a linear layer whose bias is added even where there is no vector. Parameter names are those of the files
(without their prefix `model.`). A new network draws its weights from torch's global generator.

Decoding is `prefill` once, then `step` per token: `semantic_decoding`, or `decode_kernel` for a large network on a CPU.
Shapes: B batch, P phonemes, S semantic tokens, L columns (P + S), V vocabulary, D width, H heads, W width of the text
vectors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gsv_core.networks.dropout import Dropout
from gsv_core.networks.layers import sequence_mask
from gsv_core.networks.prefix_attention import (
    Places,
    PrefixAttention,
    goes_by_item,
    item_masks,
    prefix_mask,
    real_columns,
)
from gsv_core.networks.semantic_decoding import (
    PANEL_WIDTH,
    SPAN_COLUMNS,
    LaidOut,
    LayerWeights,
    SemanticCache,
    lay_out,
    layer_step,
    write,
)

if TYPE_CHECKING:
    from gsv_core.networks.decode_kernel import DecodeKernel


@dataclass(frozen=True, kw_only=True)
class TextToSemanticConfig:
    """Sizes of the network. The defaults are the published ones."""

    phoneme_count: int = 732
    token_count: int = 1025
    """Semantic tokens and, as the last one, the end mark."""
    width: int = 512
    heads: int = 16
    layers: int = 24
    text_vector_width: int = 1024
    token_dropout: float = 0.0
    """On the embeddings of phonemes and tokens."""
    dropout: float = 0.1
    """After adding positions and inside the layers."""

    def __post_init__(self) -> None:
        if min(self.phoneme_count, self.width, self.heads, self.layers, self.text_vector_width) < 1:
            raise ValueError(f"every size must be positive, got {self}")
        if self.token_count < 2:
            raise ValueError(f"need a token and the end mark, got token_count {self.token_count}")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of heads {self.heads}")

    @property
    def end_token(self) -> int:
        return self.token_count - 1


@dataclass(frozen=True)
class SemanticForward:
    """Teacher-forced predictions. `logits` (B, S + 1, V), `targets` (B, S + 1): the tokens, then the end mark.

    `target_mask` (B, S + 1) is True where a target counts: up to and including the first end mark.
    """

    losses: Tensor
    """(B, S + 1) cross-entropies in nats, 0 where a target does not count"""
    logits: Tensor
    targets: Tensor
    target_mask: Tensor

    @property
    def loss_sum(self) -> Tensor:
        """Over all targets that count."""
        return self.losses.sum()

    @property
    def target_count(self) -> Tensor:
        """Number of targets in the loss; `loss_sum / target_count` is the cross-entropy in nats per token."""
        return self.target_mask.sum()

    @property
    def real(self) -> Tensor:
        """(B, S + 1) True at tokens, end marks left out."""
        return self.targets != self.logits.shape[-1] - 1

    def hits(self, top: int = 3) -> Tensor:
        """(B,) how many tokens are found among the `top` most probable ones."""
        found = (self.logits.topk(top, dim=-1).indices == self.targets.unsqueeze(-1)).any(dim=-1)
        return (found & self.real).sum(dim=1)

    def accuracy(self, top: int = 3) -> Tensor:
        """Share of tokens found among the `top` most probable ones."""
        return self.hits(top).sum() / self.real.sum()


_KERNEL_WEIGHTS = 4 << 20
"""From so many weights on a step is compiled: smaller networks lie in the processor's own memory, where torch is as
fast, and are not worth the seconds."""


class TextToSemantic(nn.Module):
    """Predict the next semantic token from phonemes, text vectors and the tokens before it."""

    def __init__(self, config: TextToSemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.bert_proj = nn.Linear(config.text_vector_width, config.width)
        self.ar_text_embedding = _Embedding(config.phoneme_count, config.width)
        self.ar_text_position = _Positions(config.width, config.dropout)
        self.ar_audio_embedding = _Embedding(config.token_count, config.width)
        self.ar_audio_position = _Positions(config.width, config.dropout)
        self.h = _Transformer(config)
        self.ar_predict_layer = nn.Linear(config.width, config.token_count, bias=False)
        self.text_drop = Dropout(config.token_dropout)
        self.token_drop = Dropout(config.token_dropout)
        self._laid_out: LaidOut | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go without the weights laid out for decoding."""
        return self.__dict__ | {"_laid_out": None}

    def forward(
        self,
        phoneme_ids: Tensor,
        phoneme_lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        text_vectors: Tensor | None = None,
        *,
        upstream_padding_mask: bool = False,
        count_padding: bool = False,
        attention_dropout: bool = False,
        recompute: bool = False,
    ) -> SemanticForward:
        """Teacher-forced loss of right-padded batches: (B, P), (B,), (B, S), (B,), (B, P, W).

        `upstream_padding_mask`: hide the leftmost phonemes of shorter texts instead of their padding and read the first
        prediction at the last column, as GPT-SoVITS trains. Otherwise padding has no influence at all.
        `count_padding`: let the end marks in the padding take part in the loss, as GPT-SoVITS does.
        `attention_dropout`: in training, drop attention weights too, as GPT-SoVITS does. That costs a third more on a
        CPU, whose fast kernels cannot.
        `recompute`: keep no activations of the layers for the backward pass and compute them again there.
        """
        (_, longest_text), (batch, longest) = phoneme_ids.shape, tokens.shape
        x, targets, present = self._embed(phoneme_ids, tokens, token_lengths, text_vectors)
        if upstream_padding_mask:
            visible = sequence_mask(phoneme_lengths, longest_text).flip(1)
            last_text = torch.full_like(phoneme_lengths, longest_text - 1)
            real = None
        else:
            visible = sequence_mask(phoneme_lengths, longest_text)
            last_text = phoneme_lengths - 1
            real = None if count_padding else real_columns(visible, present)
        if real is not None and goes_by_item(x):
            mask: Tensor | tuple[Tensor, ...] = item_masks(phoneme_lengths, token_lengths, x.dtype)
        else:
            mask = prefix_mask(visible, present)
        hidden = self.h(x, mask, real=real, attention_dropout=attention_dropout, recompute=recompute)
        first = hidden[torch.arange(batch, device=hidden.device), last_text].unsqueeze(1)
        logits = self.ar_predict_layer(torch.cat([first, hidden[:, longest_text:]], dim=1))
        counted = torch.full_like(token_lengths, longest) if count_padding else token_lengths
        target_mask = sequence_mask(counted + 1, longest + 1)
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return SemanticForward(losses.view_as(target_mask) * target_mask, logits, targets, target_mask)

    def predicting(
        self,
        phoneme_ids: Tensor,
        phoneme_lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        text_vectors: Tensor | None = None,
        *,
        recompute: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """What `ar_predict_layer` takes of the columns that predict something, and the targets: (M, D), (M,).

        Of the batch that `forward` takes; all items one behind the other, nothing of the padding.
        """
        visible = sequence_mask(phoneme_lengths, phoneme_ids.shape[1])
        x, targets, present = self._embed(phoneme_ids, tokens, token_lengths, text_vectors)
        both = torch.cat([visible, present], dim=1)
        by_item = goes_by_item(x)
        mask = item_masks(phoneme_lengths, token_lengths, x.dtype) if by_item else prefix_mask(visible, present)
        hidden = self.h(x, mask, real=both.flatten().nonzero()[:, 0], recompute=recompute, spread=False)
        # The last phoneme predicts the first token, and each token the next one or the end.
        predicts = both & (torch.arange(both.shape[1], device=both.device) >= phoneme_lengths.unsqueeze(1) - 1)
        real_targets = targets[sequence_mask(token_lengths + 1, targets.shape[1])]
        return hidden[predicts[both].nonzero()[:, 0]], real_targets

    @torch.no_grad()
    def prefill(
        self,
        phoneme_ids: Tensor,
        text_vectors: Tensor | None,
        prompt_tokens: Tensor | None,
        *,
        phoneme_lengths: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        room: int = 256,
    ) -> tuple[Tensor, SemanticCache]:
        """Read phonemes (B, P) and the prompt (B, S): logits of the first new token (B, V), and the cache for `step`.

        `phoneme_lengths`, `prompt_lengths` (B,) let rows of different length share a right-padded batch; a prompt may
        be empty. `room`: columns reserved for new tokens; the cache grows when they are used up.
        """
        device = phoneme_ids.device
        (batch, longest_text), prompt = phoneme_ids.shape, prompt_tokens
        if prompt is None:
            prompt = phoneme_ids.new_zeros(batch, 0)
        if phoneme_lengths is None:
            phoneme_lengths = torch.full((batch,), longest_text, device=device)
        if prompt_lengths is None:
            prompt_lengths = torch.full((batch,), prompt.shape[1], device=device)
        text, audio = sequence_mask(phoneme_lengths, longest_text), sequence_mask(prompt_lengths, prompt.shape[1])
        x = torch.cat([self._embed_text(phoneme_ids, text_vectors), self._embed_tokens(prompt)], dim=1)
        length = x.shape[1]
        room += -(length + room) % SPAN_COLUMNS
        hidden = functional.pad(~torch.cat([text, audio], dim=1), (0, room), value=True)[None, :, None]
        heads, width = self.config.heads, self.config.width // self.config.heads
        kernel = self._kernel(batch)
        cache = SemanticCache(
            past=[x.new_zeros(2, heads, batch, length + room, width) for _ in self.h.layers],
            bias=x.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf),
            positions=prompt_lengths.clone(),
            weights=[] if kernel else self.step_weights(batch),
            length=length,
            kernel=kernel,
        )
        x = self.h(x, prefix_mask(text, audio), real=real_columns(text, audio), past=cache.past)
        last = torch.where(prompt_lengths > 0, longest_text + prompt_lengths, phoneme_lengths) - 1
        return self.ar_predict_layer(x[torch.arange(batch, device=device), last]), cache

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: SemanticCache) -> Tensor:
        """Append one token per row (B,) and predict the next: logits (B, V). The cache is updated in place."""
        cache.reserve(1)
        self.ar_audio_position.reach(cache.capacity)
        if cache.kernel is None:
            logits = self.decode(tokens, cache.length, cache.positions, *cache.window(), cache.weights)
        else:
            x = self.ar_audio_position.at(self.ar_audio_embedding(tokens), cache.positions)
            cache.bias[..., cache.length] = 0
            logits = cache.kernel(x, cache.arrays(), cache.bias[0, :, 0].numpy(), cache.length)
            cache.positions.add_(1)
        cache.length += 1
        return logits

    def decode(
        self,
        tokens: Tensor,
        column: int | Tensor,
        positions: Tensor,
        bias: Tensor,
        past: Sequence[Tensor],
        weights: Sequence[LayerWeights],
    ) -> Tensor:
        """The tensors of a step: what is named as in `SemanticCache`, `past` and `bias` cut to the columns in view.

        Writes `past` and `bias` at `column` and advances `positions` in place. With `column` as a tensor, (1,) int64,
        nothing here depends on a value, so that it can be compiled or captured in a graph as it stands.
        """
        x = self.ar_audio_position.at(self.ar_audio_embedding(tokens), positions)
        write(bias.mT, column, bias.new_zeros(1, len(tokens), 1, 1))
        for layer_past, layer_weights in zip(past, weights, strict=True):
            x = layer_step(x, column, bias, layer_past, layer_weights)
        positions.add_(1)
        return self.ar_predict_layer(x)

    def _kernel(self, rows: int) -> "DecodeKernel | None":
        """A step over `rows` rows, compiled; None where that does not pay or cannot be."""
        own = list(self.h.parameters())
        large = sum(parameter.numel() for parameter in own) >= _KERNEL_WEIGHTS
        plain = all(one.device.type == "cpu" and one.dtype == torch.float32 and one.is_contiguous() for one in own)
        if not large or not plain or find_spec("numba") is None:
            return None
        from gsv_core.networks.decode_kernel import LEAST_HEAD_WIDTH, DecodeKernel

        if self.config.width // self.config.heads % LEAST_HEAD_WIDTH:
            return None
        layers = [layer.stored_weights() for layer in self.h.blocks()]
        return DecodeKernel(layers, self.ar_predict_layer.weight, rows)

    def step_weights(self, rows: int) -> list[LayerWeights]:
        """The weights laid out for steps of `rows` rows; float32 on a CPU as a copy, kept until the weights change."""
        parameters = list(self.h.parameters())
        if parameters[0].device.type != "cpu" or parameters[0].dtype != torch.float32:
            return [layer.step_weights(None) for layer in self.h.blocks()]
        width = 0 if rows == 1 else PANEL_WIDTH
        # A change in place counts up the version. What replaces tensors lies elsewhere: the layout holds old biases.
        state = (width, [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in parameters])
        if self._laid_out is None or self._laid_out.state != state:
            self._laid_out = None  # one copy at a time
            self._laid_out = LaidOut(state, [layer.step_weights(width) for layer in self.h.blocks()])
        return self._laid_out.weights

    def _embed(
        self, phoneme_ids: Tensor, tokens: Tensor, token_lengths: Tensor, text_vectors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What teacher forcing starts from: columns (B, L, D), targets (B, S + 1), where a token is real (B, S)."""
        present = sequence_mask(token_lengths, tokens.shape[1])
        end_token = self.config.end_token
        targets = functional.pad(tokens.masked_fill(~present, end_token), (0, 1), value=end_token)
        text, audio = self._embed_text(phoneme_ids, text_vectors), self._embed_tokens(targets[:, :-1])
        return torch.cat([text, audio], dim=1), targets, present

    def _embed_text(self, phoneme_ids: Tensor, text_vectors: Tensor | None) -> Tensor:
        embedded = self.text_drop(self.ar_text_embedding(phoneme_ids))
        if text_vectors is None:
            return self.ar_text_position(embedded + self.bert_proj.bias)
        return self.ar_text_position(embedded + self.bert_proj(text_vectors.to(embedded.dtype)))

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.ar_audio_position(self.token_drop(self.ar_audio_embedding(tokens)))


class _Embedding(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(count, width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.word_embeddings(ids)


class _Positions(nn.Module):
    """Add sine and cosine in turn, times a learned factor. The table is computed, never stored in a file."""

    table: Tensor

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.drop = Dropout(dropout)
        self.register_buffer("table", _sinusoids(512, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D), the first column at position 0."""
        self.reach(x.shape[1])
        return self.drop(x + self.alpha * self.table[: x.shape[1]].to(x.dtype))

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, D) -> (B, D), each row at its own position (B,), which the table must `reach`."""
        return x + self.alpha * self.table[positions].to(x.dtype)

    def reach(self, length: int) -> None:
        """Let the table hold positions up to `length`."""
        if length > self.table.shape[0]:
            self.table = _sinusoids(2 * length, self.table.shape[1]).to(self.table)


def _sinusoids(length: int, width: int) -> Tensor:
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    angles = torch.arange(length, dtype=torch.float32).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class _Transformer(nn.Module):
    def __init__(self, config: TextToSemanticConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config.width, config.heads, config.dropout) for _ in range(config.layers))

    def blocks(self) -> "list[_Layer]":
        return cast("list[_Layer]", list(self.layers))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | tuple[Tensor, ...],
        *,
        real: Tensor | None,
        past: Sequence[Tensor] | None = None,
        attention_dropout: bool = False,
        recompute: bool = False,
        spread: bool = True,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D). With `real`, all but attention works on those columns alone; the rest give zeros, or
        without `spread` are left out: (N, D).

        With a mask per item attention does so, too: on a CPU padding costs more there than many small products.
        """
        places = Places(batch=x.shape[0], columns=x.shape[1], real=real)
        x = places.gather(x)
        for index, layer in enumerate(self.blocks()):
            given = (x, mask, places, None if past is None else past[index], attention_dropout)
            x = checkpoint(layer, *given, use_reentrant=False) if recompute else layer(*given)
        return places.spread(x) if spread else x


class _Layer(nn.Module):
    """Attention, then a ReLU feed-forward of four times the width; a norm after each sum."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = PrefixAttention(width, heads, dropout)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.drop, self.drop1, self.drop2 = (Dropout(dropout) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | tuple[Tensor, ...],
        places: Places,
        past: Tensor | None,
        attention_dropout: bool,
    ) -> Tensor:
        x = self.norm1(x + self.drop1(self.self_attn(x, mask, places, past, attention_dropout)))
        return self.norm2(x + self.drop2(self.linear2(self.drop(torch.relu(self.linear1(x))))))

    def stored_weights(self) -> LayerWeights:
        """What a step reads, as it is stored."""
        attention = self.self_attn
        return LayerWeights(
            attention.in_proj_weight,
            attention.in_proj_bias,
            attention.out_proj.weight,
            attention.out_proj.bias,
            self.norm1.weight,
            self.norm1.bias,
            self.linear1.weight,
            self.linear1.bias,
            self.linear2.weight,
            self.linear2.bias,
            self.norm2.weight,
            self.norm2.bias,
        )

    @torch.no_grad()
    def step_weights(self, panel_width: int | None) -> LayerWeights:
        """What `layer_step` reads: as `_laid_out` says."""
        attention = self.self_attn
        head_width = len(attention.in_proj_bias) // 3 // attention.heads
        return LayerWeights(
            *lay_out(attention.in_proj_weight, attention.in_proj_bias, panel_width and head_width),
            *lay_out(attention.out_proj.weight, attention.out_proj.bias, panel_width),
            self.norm1.weight,
            self.norm1.bias,
            *lay_out(self.linear1.weight, self.linear1.bias, panel_width),
            *lay_out(self.linear2.weight, self.linear2.bias, panel_width),
            self.norm2.weight,
            self.norm2.bias,
        )
