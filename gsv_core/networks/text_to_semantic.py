"""Phonemes to semantic tokens, one after the other (upstream: GPT, "s1").

A post-norm transformer over [phonemes | tokens]: phonemes see all phonemes, tokens see all phonemes and the tokens
before them (prefix language model; Vaswani et al. 2017, arXiv:1706.03762; VALL-E, Wang et al. 2023, arXiv:2301.02111).
Unusual: no final norm; sinusoidal positions times a learned factor, restarting at the first token; text vectors enter
through a linear layer whose bias is added even where there is no vector. Parameter names are those of the files
(without their prefix `model.`). A new network draws its weights from torch's global generator.
Shapes: B batch, P phonemes, S semantic tokens, V vocabulary, D width, H heads, W width of the text vectors.
"""

import math
from dataclasses import dataclass

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


@dataclass
class SemanticCache:
    """What decoding remembers: keys and values of all columns so far, written in place, room reserved ahead.

    keys, values: per layer (B, H, capacity, D / H). `visible` (B, P) is None where no phoneme is padding.
    """

    keys: list[Tensor]
    values: list[Tensor]
    length: int
    token_position: int
    visible: Tensor | None

    def mask(self) -> Tensor | None:
        """Which of the columns so far a query may see: (B, 1, 1, length) bool, or None for all."""
        if self.visible is None:
            return None
        tokens = self.length - self.visible.shape[1]
        return functional.pad(self.visible, (0, tokens), value=True)[:, None, None]

    def reserve(self, columns: int) -> None:
        """Make room for `columns` more; doubles the capacity, so that repeated growth stays cheap."""
        capacity = self.keys[0].shape[2]
        if self.length + columns <= capacity:
            return
        extra = max(capacity, self.length + columns - capacity)
        self.keys = [functional.pad(keys, (0, 0, 0, extra)) for keys in self.keys]
        self.values = [functional.pad(values, (0, 0, 0, extra)) for values in self.values]


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
    ) -> SemanticForward:
        """Teacher-forced loss of right-padded batches: (B, P), (B,), (B, S), (B,), (B, P, W).

        `upstream_padding_mask`: hide the leftmost phonemes of shorter texts instead of their padding and read the first
        prediction at the last column, as GPT-SoVITS trains. Otherwise padding has no influence at all.
        `count_padding`: let the end marks in the padding take part in the loss, as GPT-SoVITS does.
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
        else:
            visible = sequence_mask(phoneme_lengths, longest_text)
            last_text = phoneme_lengths - 1
        hidden = self.h(torch.cat([text, audio], dim=1), _prefix_mask(visible, present))
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
        room: int = 256,
    ) -> tuple[Tensor, SemanticCache]:
        """Read phonemes (B, P) and the prompt (B, S): logits of the first new token (B, V), and the cache for `step`.

        `phoneme_lengths` (B,) lets texts of different length share a right-padded batch. `room`: columns reserved for
        new tokens; the cache grows when they are used up.
        """
        batch, longest_text = phoneme_ids.shape
        columns = self._embed_text(phoneme_ids, text_vectors)
        prompt_length = 0 if prompt_tokens is None else prompt_tokens.shape[1]
        if prompt_tokens is not None:
            columns = torch.cat([columns, self._embed_tokens(prompt_tokens)], dim=1)
        if phoneme_lengths is None:
            phoneme_lengths = torch.full((batch,), longest_text, device=phoneme_ids.device)
        visible = sequence_mask(phoneme_lengths, longest_text)
        shape = (batch, self.config.heads, columns.shape[1] + room, self.config.width // self.config.heads)
        cache = SemanticCache(
            keys=[columns.new_zeros(shape) for _ in self.h.layers],
            values=[columns.new_zeros(shape) for _ in self.h.layers],
            length=columns.shape[1],
            token_position=prompt_length,
            visible=None if bool(visible.all()) else visible,
        )
        prompt = torch.ones(batch, prompt_length, dtype=torch.bool, device=phoneme_ids.device)
        hidden = self.h(columns, _prefix_mask(visible, prompt), cache)
        if prompt_length:
            last = hidden[:, -1]
        else:
            last = hidden[torch.arange(batch, device=hidden.device), phoneme_lengths - 1]
        return self.ar_predict_layer(last), cache

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: SemanticCache) -> Tensor:
        """Append one token per item (B,) and predict the next: logits (B, V). The cache is updated in place."""
        cache.reserve(1)
        column = self._embed_tokens(tokens.unsqueeze(1), start=cache.token_position)
        cache.length += 1
        cache.token_position += 1
        return self.ar_predict_layer(self.h(column, cache.mask(), cache)[:, 0])

    def _embed_text(self, phoneme_ids: Tensor, text_vectors: Tensor | None) -> Tensor:
        embedded = self.token_drop(self.ar_text_embedding(phoneme_ids))
        if text_vectors is None:
            return self.ar_text_position(embedded + self.bert_proj.bias)
        return self.ar_text_position(embedded + self.bert_proj(text_vectors.to(embedded.dtype)))

    def _embed_tokens(self, tokens: Tensor, start: int = 0) -> Tensor:
        return self.ar_audio_position(self.token_drop(self.ar_audio_embedding(tokens)), start)


def _prefix_mask(phonemes: Tensor, tokens: Tensor) -> Tensor:
    """Who sees whom, given what is no padding: (B, P), (B, S) -> (B, 1, P + S, P + S) bool, rows ask columns."""
    prefix = phonemes.shape[1]
    total = prefix + tokens.shape[1]
    order = torch.ones(total, total, dtype=torch.bool, device=phonemes.device).tril()
    order[:prefix, :prefix] = True
    return (order & torch.cat([phonemes, tokens], dim=1).unsqueeze(1)).unsqueeze(1)


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

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, L, D) -> (B, L, D); the first column has position `start`."""
        end = start + x.shape[1]
        if end > self.table.shape[0]:
            self.table = _sinusoids(2 * end, x.shape[2]).to(self.table)
        return self.drop(x + self.alpha * self.table[start:end].to(x.dtype))


def _sinusoids(length: int, width: int) -> Tensor:
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    angles = torch.arange(length, dtype=torch.float32).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class _Transformer(nn.Module):
    def __init__(self, config: TextToSemanticConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config.width, config.heads, config.dropout) for _ in range(config.layers))

    def forward(self, x: Tensor, mask: Tensor | None, cache: SemanticCache | None = None) -> Tensor:
        for index, layer in enumerate(self.layers):
            past = None if cache is None else (cache.keys[index], cache.values[index], cache.length)
            x = layer(x, mask, past)
        return x


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

    def forward(self, x: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor, int] | None) -> Tensor:
        x = self.norm1(x + self.drop(self.self_attn(x, mask, past)))
        return self.norm2(x + self.drop(self.linear2(self.drop(torch.relu(self.linear1(x))))))


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

    def forward(self, x: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor, int] | None) -> Tensor:
        """(B, L, D) -> (B, L, D); `past` is the cache of this layer and how many columns it holds after this call."""
        packed = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        queries, keys, values = packed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, D / H)
        if past is not None:
            all_keys, all_values, length = past
            start = length - x.shape[1]
            all_keys[:, :, start:length] = keys
            all_values[:, :, start:length] = values
            keys, values = all_keys[:, :, :length], all_values[:, :, :length]
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))
