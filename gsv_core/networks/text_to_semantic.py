"""Phonemes to semantic tokens, one after the other (upstream: GPT, "s1").

A post-norm transformer over [phonemes | tokens]: phonemes see all phonemes, tokens see all phonemes and the tokens
before them (prefix language model; Vaswani et al. 2017, arXiv:1706.03762; VALL-E, Wang et al. 2023, arXiv:2301.02111).
Unusual: no final norm; sinusoidal positions times a learned factor, restarting at the first token; text vectors enter
through a linear layer whose bias is added even where there is no vector. Parameter names are those of the files
(without their prefix `model.`). A new network draws its weights from torch's global generator.

Decoding is `prefill` once, then `step` per token. What a step costs is reading weights and cache: keys and values are
written in place, rows of different length share a batch, and for batches on a CPU the weights are laid out anew.
Shapes: B batch, P phonemes, S semantic tokens, L columns (P + S), V vocabulary, D width, H heads, W width of the text
vectors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from gsv_core.networks.layers import sequence_mask


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

    loss_sum: Tensor
    logits: Tensor
    targets: Tensor
    target_mask: Tensor

    @property
    def target_count(self) -> Tensor:
        """Number of targets in the loss; `loss_sum / target_count` is the cross-entropy in nats per token."""
        return self.target_mask.sum()

    def accuracy(self, top: int = 3) -> Tensor:
        """Share of real tokens (end marks left out) found among the `top` most probable ones."""
        end_token = self.logits.shape[-1] - 1
        real = self.targets != end_token
        hits = (self.logits.topk(top, dim=-1).indices == self.targets.unsqueeze(-1)).any(dim=-1)
        return (hits & real).sum() / real.sum()


_SPAN_COLUMNS = 64
"""Attention looks at a multiple of this many columns, so that the shapes of a step seldom change."""

_PANEL_ROWS, _PANEL_BATCH = 32, 4
"""Outputs side by side in a panel of weights; rows in a batch from which repacking pays."""

LayerWeights = tuple[Tensor, ...]
"""What a step reads of one layer: into attention, out of it, into the feed-forward part, out of it."""


@dataclass
class SemanticCache:
    """What decoding remembers: keys and values of all columns so far, written in place, room reserved ahead.

    A row's phonemes, its prompt and its new tokens begin at the same column in all rows; padding between is hidden.
    """

    past: list[Tensor]
    """per layer (B, 2, H, capacity, D / H): keys and values"""
    bias: Tensor
    """(B, 1, 1, capacity): 0, and minus infinity where a column is padding"""
    column: Tensor
    """(1,) int64: where the next token goes"""
    positions: Tensor
    """(B,) int64: the position of the next token of each row"""
    weights: list[LayerWeights]
    length: int
    """the same number as `column`, known without asking the device"""

    @property
    def capacity(self) -> int:
        return self.bias.shape[3]

    def window(self) -> tuple[Tensor, list[Tensor]]:
        """`bias` and `past` cut to the columns that the next step looks at; those ahead are hidden there."""
        needed = self.length + 1
        span = needed + -needed % _SPAN_COLUMNS
        return self.bias[..., :span], [past[:, :, :, :span] for past in self.past]

    def reserve(self, columns: int) -> None:
        """Make room for `columns` more; doubles the capacity, so that repeated growth stays cheap."""
        if self.length + columns <= self.capacity:
            return
        extra = max(self.capacity, self.length + columns - self.capacity)
        self.past = [functional.pad(past, (0, 0, 0, extra)) for past in self.past]
        self.bias = functional.pad(self.bias, (0, extra))

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but `rows` (int64), whose order becomes that of the batch."""
        self.past = [past[rows] for past in self.past]
        self.bias, self.positions = self.bias[rows], self.positions[rows]


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
        self.token_drop = nn.Dropout(config.token_dropout)

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
    ) -> SemanticForward:
        """Teacher-forced loss of right-padded batches: (B, P), (B,), (B, S), (B,), (B, P, W).

        `upstream_padding_mask`: hide the leftmost phonemes of shorter texts instead of their padding and read the first
        prediction at the last column, as GPT-SoVITS trains. Otherwise padding has no influence at all.
        `count_padding`: let the end marks in the padding take part in the loss, as GPT-SoVITS does.
        `attention_dropout`: in training, drop attention weights too, as GPT-SoVITS does. That costs a third more on a
        CPU, whose fast kernels cannot.
        """
        (_, longest_text), (batch, longest) = phoneme_ids.shape, tokens.shape
        present = sequence_mask(token_lengths, longest)
        end_token = self.config.end_token
        targets = functional.pad(tokens.masked_fill(~present, end_token), (0, 1), value=end_token)
        text = self._embed_text(phoneme_ids, text_vectors)
        audio = self._embed_tokens(targets[:, :-1])
        if upstream_padding_mask:
            visible = sequence_mask(phoneme_lengths, longest_text).flip(1)
            last_text = torch.full_like(phoneme_lengths, longest_text - 1)
            real = None
        else:
            visible = sequence_mask(phoneme_lengths, longest_text)
            last_text = phoneme_lengths - 1
            real = None if count_padding else _real_columns(visible, present)
        hidden = self.h(
            torch.cat([text, audio], dim=1),
            _prefix_mask(visible, present),
            real=real,
            attention_dropout=attention_dropout,
        )
        first = hidden[torch.arange(batch, device=hidden.device), last_text].unsqueeze(1)
        logits = self.ar_predict_layer(torch.cat([first, hidden[:, longest_text:]], dim=1))
        counted = torch.full_like(token_lengths, longest) if count_padding else token_lengths
        target_mask = sequence_mask(counted + 1, longest + 1)
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return SemanticForward((losses * target_mask.flatten()).sum(), logits, targets, target_mask)

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
        room += -(length + room) % _SPAN_COLUMNS
        hidden = functional.pad(~torch.cat([text, audio], dim=1), (0, room))[:, None, None]
        cache = SemanticCache(
            past=[
                x.new_zeros(batch, 2, self.config.heads, length + room, self.config.width // self.config.heads)
                for _ in self.h.layers
            ],
            bias=x.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf),
            column=torch.tensor([length], device=device),
            positions=prompt_lengths.clone(),
            weights=[layer.step_weights(batch) for layer in self.h.blocks()],
            length=length,
        )
        x = self.h(x, _prefix_mask(text, audio), real=_real_columns(text, audio), past=cache.past)
        last = torch.where(prompt_lengths > 0, longest_text + prompt_lengths, phoneme_lengths) - 1
        return self.ar_predict_layer(x[torch.arange(batch, device=device), last]), cache

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: SemanticCache) -> Tensor:
        """Append one token per row (B,) and predict the next: logits (B, V). The cache is updated in place."""
        cache.reserve(1)
        self.ar_audio_position.reach(cache.capacity)
        logits = self.decode(tokens, cache.column, cache.positions, *cache.window(), cache.weights)
        cache.length += 1
        return logits

    def decode(
        self,
        tokens: Tensor,
        column: Tensor,
        positions: Tensor,
        bias: Tensor,
        past: Sequence[Tensor],
        weights: Sequence[LayerWeights],
    ) -> Tensor:
        """The tensors of a step: what is named as in `SemanticCache`, `past` and `bias` cut to the columns in view.

        Writes `past` and advances `column` and `positions` in place. Nothing here depends on a value, so that it can be
        compiled or captured in a graph as it stands.
        """
        x = self.ar_audio_position.at(self.ar_audio_embedding(tokens), positions)
        ahead = torch.arange(bias.shape[3], device=bias.device) > column
        bias = bias.masked_fill(ahead, -torch.inf)
        for layer, layer_past, layer_weights in zip(self.h.blocks(), past, weights, strict=True):
            x = layer.step(x, layer_past, column, bias, layer_weights)
        column.add_(1)
        positions.add_(1)
        return self.ar_predict_layer(x)

    def _embed_text(self, phoneme_ids: Tensor, text_vectors: Tensor | None) -> Tensor:
        embedded = self.token_drop(self.ar_text_embedding(phoneme_ids))
        if text_vectors is None:
            return self.ar_text_position(embedded + self.bert_proj.bias)
        return self.ar_text_position(embedded + self.bert_proj(text_vectors.to(embedded.dtype)))

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.ar_audio_position(self.token_drop(self.ar_audio_embedding(tokens)))


class GraphedStep:
    """`TextToSemantic.step` for one cache on a CUDA device: captured once, then replayed without launching kernels.

    All reserved columns are in view at every step, so that no shape changes.
    """

    def __init__(self, network: TextToSemantic, cache: SemanticCache) -> None:
        self.cache = cache
        self.tokens = torch.zeros_like(cache.positions)
        network.ar_audio_position.reach(cache.capacity)
        column, positions = cache.column.clone(), cache.positions.clone()

        def decode() -> Tensor:
            return network.decode(self.tokens, cache.column, cache.positions, cache.bias, cache.past, cache.weights)

        with torch.no_grad(), torch.cuda.device(self.tokens.device):
            # Libraries set themselves up in their first call, which cannot be captured.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                decode()
            torch.cuda.current_stream().wait_stream(aside)
            cache.column.copy_(column)
            cache.positions.copy_(positions)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.logits = decode()

    def __call__(self, tokens: Tensor, cache: SemanticCache) -> Tensor:
        """Append one token per row (B,) and predict the next: logits (B, V), valid until the next call."""
        assert cache is self.cache, "a graph belongs to the cache it was captured with"
        assert cache.length < cache.capacity, "a captured cache cannot grow"
        self.tokens.copy_(tokens)
        self.graph.replay()
        cache.length += 1
        return self.logits


def _prefix_mask(phonemes: Tensor, tokens: Tensor) -> Tensor:
    """Who sees whom, given what is no padding: (B, P), (B, S) -> (B, 1, P + S, P + S) bool, rows ask columns."""
    prefix = phonemes.shape[1]
    total = prefix + tokens.shape[1]
    order = torch.ones(total, total, dtype=torch.bool, device=phonemes.device).tril()
    order[:prefix, :prefix] = True
    return (order & torch.cat([phonemes, tokens], dim=1).unsqueeze(1)).unsqueeze(1)


def _real_columns(phonemes: Tensor, tokens: Tensor) -> Tensor | None:
    """Where a batch has no padding, given the same: (N,) int64 into B x (P + S) columns; None where that is all."""
    real = torch.cat([phonemes, tokens], dim=1).flatten().nonzero()[:, 0]
    return None if len(real) == phonemes.numel() + tokens.numel() else real


@dataclass(frozen=True)
class _Places:
    """Between a padded batch and its real columns one behind the other: (B, L, D) <-> (N, D), or no change."""

    batch: int
    columns: int
    real: Tensor | None

    def gather(self, x: Tensor) -> Tensor:
        return x if self.real is None else x.flatten(0, 1).index_select(0, self.real)

    def spread(self, x: Tensor) -> Tensor:
        if self.real is None:
            return x
        padded = x.new_zeros(self.batch * self.columns, x.shape[1]).index_copy(0, self.real, x)
        return padded.unflatten(0, (self.batch, self.columns))


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
        self.drop = nn.Dropout(dropout)
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
        mask: Tensor,
        *,
        real: Tensor | None,
        past: Sequence[Tensor] | None = None,
        attention_dropout: bool = False,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D). With `real`, all but attention works on those columns alone; the rest give zeros."""
        places = _Places(batch=x.shape[0], columns=x.shape[1], real=real)
        x = places.gather(x)
        for index, layer in enumerate(self.blocks()):
            x = layer(x, mask, places, None if past is None else past[index], attention_dropout)
        return places.spread(x)


class _Layer(nn.Module):
    """Attention, then a ReLU feed-forward of four times the width; a norm after each sum."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = _SelfAttention(width, heads, dropout)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, places: _Places, past: Tensor | None, attention_dropout: bool) -> Tensor:
        x = self.norm1(x + self.drop(self.self_attn(x, mask, places, past, attention_dropout)))
        return self.norm2(x + self.drop(self.linear2(self.drop(torch.relu(self.linear1(x))))))

    def step(self, x: Tensor, past: Tensor, column: Tensor, bias: Tensor, weights: LayerWeights) -> Tensor:
        """`forward` of one column per row without dropout, (B, D) -> (B, D), with what `step_weights` gave."""
        attention = self.self_attn
        into, out, wide, narrow = weights
        packed = _project(x, into, attention.in_proj_bias).unflatten(1, (3, attention.heads, 1, -1))
        past.index_copy_(3, column, packed[:, 1:])
        keys, values = past.unbind(1)
        mixed = functional.scaled_dot_product_attention(packed[:, 0], keys, values, attn_mask=bias)
        x = self.norm1(_project(mixed.flatten(1), out, attention.out_proj.bias) + x)
        return self.norm2(_project(_project(x, wide, self.linear1.bias).relu_(), narrow, self.linear2.bias) + x)

    def step_weights(self, batch: int) -> LayerWeights:
        """The weights in the layout that suits steps of `batch` rows."""
        attention = self.self_attn
        weights = (attention.in_proj_weight, attention.out_proj.weight, self.linear1.weight, self.linear2.weight)
        return tuple(_panels(weight) if _prefers_panels(weight, batch) else weight for weight in weights)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, mask: Tensor, places: _Places, past: Tensor | None, attention_dropout: bool) -> Tensor:
        """As `places` has it, (B, L, D) or (N, D); leaves keys and values in `past` (B, 2, H, capacity, D / H)."""
        packed = places.spread(functional.linear(x, self.in_proj_weight, self.in_proj_bias))
        packed = packed.unflatten(2, (3, self.heads, -1)).permute(0, 2, 3, 1, 4)  # (B, 3, H, L, D / H)
        if past is not None:
            past[:, :, :, : packed.shape[3]] = packed[:, 1:]
        queries, keys, values = packed.unbind(1)
        dropout = self.dropout if self.training and attention_dropout else 0.0
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(places.gather(mixed.transpose(1, 2).flatten(2)))


def _prefers_panels(weight: Tensor, batch: int) -> bool:
    """Whether steps of `batch` rows are faster on `_panels`, as measured with MKL, which repacks plain weights."""
    return (
        batch >= _PANEL_BATCH
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.shape[0] % _PANEL_ROWS == 0
        and torch.backends.mkl.is_available()
    )


def _panels(weight: Tensor) -> Tensor:
    """A copy of (N, K) whose products with few rows read it in order: (N / 32, K, 32)."""
    return weight.unflatten(0, (-1, _PANEL_ROWS)).transpose(1, 2).contiguous()


def _project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`functional.linear`, (B, K) -> (B, N), of a weight (N, K) or its panels."""
    if weight.ndim == 2:
        return functional.linear(x, weight, bias)
    panels = torch.baddbmm(bias.view(len(weight), 1, -1), x.expand(len(weight), -1, -1), weight)
    return panels.transpose(0, 1).flatten(1)
