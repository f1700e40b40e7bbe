"""Phonemes and a prompt's tokens to the tokens that follow, one by one, for several sentences at once.

The order of a step is part of how published voices sound: repetition penalty (Keskar et al. 2019, arXiv:1909.05858),
then top-p (Holtzman et al. 2019, arXiv:1904.09751) on the unscaled logits, then temperature, then top-k, and the token
that wins a race of exponential clocks, which draws from the softmax. The clocks of a sentence are its own, so that its
tokens do not depend on what is spoken beside it. Shapes: B batch, P phonemes, S tokens, V vocabulary (1,024 tokens and
the end mark), W text vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gsv_core.networks.semantic_decoding import GraphedStep, SemanticCache
from gsv_core.networks.text_to_semantic import TextToSemantic

FIRST_END = 11
"""The end mark cannot be drawn before this many tokens (0.44 s)."""
TOKENS_PER_SECOND = 25

_CLOCK_STEPS = 32
"""Steps whose clocks are drawn at once. Changes what a seed says."""
_ROOM = 256
"""Columns reserved at first where the cache can grow."""
_STEPS_BETWEEN_LOOKS = 16
"""How often a GPU is asked whether all sentences have ended; asking makes it wait."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. `longest_tokens` ends a sentence that does not end by itself (1,350 tokens are 54 s)."""

    top_k: int = 15
    top_p: float = 1.0
    temperature: float = 1.0
    repetition_penalty: float = 1.35
    longest_tokens: int = 1350
    slowest_phonemes_per_second: float = 3.0
    """No speaker is slower than this, so a sentence of P phonemes takes at most P / this many seconds."""
    slowest_pace: float = 2.0
    """Nor does anybody take longer per phoneme than this many times the Prompt, but for a second of pauses."""

    def __post_init__(self) -> None:
        if self.top_k < 1 or self.longest_tokens < 1:
            raise ValueError(
                f"sampling: top_k and longest_tokens must be at least 1, got {self.top_k}, {self.longest_tokens}"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling: top_p must be in (0, 1], got {self.top_p}")
        for name in ("temperature", "repetition_penalty", "slowest_phonemes_per_second", "slowest_pace"):
            if not getattr(self, name) > 0:
                raise ValueError(f"sampling: {name} must be positive, got {getattr(self, name)}")

    def most_tokens(self, phonemes: int, prompt_pace: float | None = None) -> int:
        """The bound on new tokens for a sentence of `phonemes` phonemes, with room for the end mark to be drawn at all.

        `prompt_pace`: tokens per phoneme of the Prompt, None where it has none.
        """
        most = TOKENS_PER_SECOND * phonemes / self.slowest_phonemes_per_second
        if prompt_pace is not None:
            most = min(most, TOKENS_PER_SECOND + self.slowest_pace * prompt_pace * phonemes)
        return min(self.longest_tokens, max(2 * FIRST_END, round(most)))


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One text to speak: what the network reads, where its chance comes from, and how long it may get.

    The phonemes are those of the prompt's text and of the wanted text, one after the other.
    """

    phoneme_ids: Tensor
    """(P,) int64"""
    text_vectors: Tensor | None = None
    """(P, W)"""
    prompt_tokens: Tensor | None = None
    """(S,)"""
    clocks: Callable[[int, int], Tensor]
    """`clocks(steps, V)` gives the next (steps, V) variates of Exp(1), on the CPU"""
    most_tokens: int

    def __post_init__(self) -> None:
        if len(self.phoneme_ids) == 0:
            raise ValueError("expected at least one phoneme to speak, got none")
        if self.most_tokens < 1:
            raise ValueError(f"expected room for at least one token, got most_tokens {self.most_tokens}")


def clocks_of(generator: torch.Generator) -> Callable[[int, int], Tensor]:
    """The clocks that a generator, which lives on the CPU, decides."""
    return lambda steps, tokens: torch.empty(steps, tokens).exponential_(generator=generator)


def sample_tokens(
    network: TextToSemantic,
    phoneme_ids: Tensor,
    text_vectors: Tensor | None,
    prompt_tokens: Tensor | None,
    sampling: Sampling,
    generator: torch.Generator,
    *,
    most_tokens: int | None = None,
) -> Tensor:
    """The tokens that follow `prompt_tokens`: phonemes (P,), vectors (P, W), prompt (S0,) -> (S,) int64, S >= 1.

    `generator` lives on the CPU. At most `most_tokens` come out, `sampling.longest_tokens` where not given.
    """
    sentence = Sentence(
        phoneme_ids=phoneme_ids,
        text_vectors=text_vectors,
        prompt_tokens=prompt_tokens,
        clocks=clocks_of(generator),
        most_tokens=sampling.longest_tokens if most_tokens is None else most_tokens,
    )
    return sample_sentences(network, [sentence], sampling)[0]


@torch.no_grad()
def sample_sentences(network: TextToSemantic, sentences: Sequence[Sentence], sampling: Sampling) -> list[Tensor]:
    """The tokens of each sentence, (S,) int64, S >= 1, as each would get them alone; all are decoded together."""
    device = network.ar_predict_layer.weight.device
    graphed = device.type == "cuda"
    end = network.config.end_token
    lengths = torch.tensor([sentence.most_tokens for sentence in sentences], device=device)
    longest = max(sentence.most_tokens for sentence in sentences)
    logits, cache, seen = _read(network, sentences, device, room=longest if graphed else min(longest, _ROOM))
    step = GraphedStep(network, cache) if graphed else network.step
    written = torch.zeros(len(sentences), longest, dtype=torch.int64, device=device)
    rows = torch.arange(len(sentences), device=device)  # which sentence each row of the batch is
    for index in range(longest):
        if index % _CLOCK_STEPS == 0:
            drawn = [sentences[row].clocks(_CLOCK_STEPS, end + 1) for row in rows.tolist()]
            clocks = torch.stack(drawn, dim=1).to(device)
        scores = logits.float()
        if index < FIRST_END:
            scores[:, end] = -torch.inf
        tokens, best = draw_tokens(scores, seen, sampling, clocks[index % _CLOCK_STEPS])
        ended = (tokens == end) | (best == end)
        lengths[rows] = lengths[rows].clamp(max=torch.where(ended, index, longest))
        written[rows, index] = tokens
        seen.scatter_(1, tokens[:, None], True)
        if not graphed or index % _STEPS_BETWEEN_LOOKS == 0:
            speaking = (lengths[rows] > index + 1).nonzero()[:, 0]
            if len(speaking) == 0:
                break
            # A captured step keeps its shape, and a GPU hardly notices rows that have ended.
            if not graphed and 2 * len(speaking) <= len(rows):
                rows, tokens, seen, clocks = rows[speaking], tokens[speaking], seen[speaking], clocks[:, speaking]
                cache.keep(speaking)
        if index + 1 < longest:
            logits = step(tokens, cache)
    return [written[row, :length] for row, length in enumerate(lengths.tolist())]


def _read(
    network: TextToSemantic, sentences: Sequence[Sentence], device: torch.device, room: int
) -> tuple[Tensor, SemanticCache, Tensor]:
    """Logits (B, V) after the prompts, the cache, and which tokens each prompt has: (B, V) bool."""
    config = network.config
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    phonemes = [sentence.phoneme_ids.to(device) for sentence in sentences]
    prompts = [nothing if s.prompt_tokens is None else s.prompt_tokens.to(device).long() for s in sentences]
    vectors = None
    if any(sentence.text_vectors is not None for sentence in sentences):
        vectors = pad_sequence(
            [
                torch.zeros(len(s.phoneme_ids), config.text_vector_width, device=device)
                if s.text_vectors is None
                else s.text_vectors.to(device).float()
                for s in sentences
            ],
            batch_first=True,
        )
    padded = pad_sequence(prompts, batch_first=True, padding_value=config.end_token)
    logits, cache = network.prefill(
        pad_sequence(phonemes, batch_first=True),
        vectors,
        padded,
        phoneme_lengths=torch.tensor([len(ids) for ids in phonemes], device=device),
        prompt_lengths=torch.tensor([len(tokens) for tokens in prompts], device=device),
        room=room,
    )
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=device).scatter_(1, padded, True)
    seen[:, config.end_token] = False
    return logits, cache, seen


def draw_tokens(scores: Tensor, seen: Tensor, sampling: Sampling, clocks: Tensor) -> tuple[Tensor, Tensor]:
    """What `clocks`, Exp(1) variates, draw from `scores`, and what is best after the penalty alone.

    All (B, V), `seen` bool: the tokens of the prompt and those drawn before; both results (B,) int64.
    """
    penalty = sampling.repetition_penalty
    scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    best = scores.argmax(dim=-1)
    if sampling.top_k == 1:
        return best, best
    if sampling.top_p < 1:
        scores = _keep_top_p(scores, sampling.top_p)
    scores = scores / sampling.temperature
    if sampling.top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[:, -1:], -torch.inf)
    return (scores.softmax(dim=-1) / clocks).argmax(dim=-1), best


def draw_token(scores: Tensor, previous: Tensor, sampling: Sampling, clocks: Tensor) -> tuple[int, int]:
    """`draw_tokens` of one row: scores (V,), the tokens so far (S,), clocks (V,)."""
    seen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).index_fill_(0, previous, True)
    token, best = draw_tokens(scores[None], seen[None], sampling, clocks[None])
    return int(token), int(best)


def _keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """Rule out what lies beyond the smallest set of likeliest tokens with more than `top_p` of the mass: (B, V)."""
    ordered, order = scores.sort(dim=-1, descending=True)
    beyond = ordered.softmax(dim=-1).cumsum(dim=-1) > top_p
    beyond[:, 0] = False
    return scores.masked_fill(torch.zeros_like(beyond).scatter_(1, order, beyond), -torch.inf)
