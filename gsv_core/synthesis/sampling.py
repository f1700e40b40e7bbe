"""Phonemes and a prompt's tokens to the tokens that follow, one by one.

The order of a step is part of how published voices sound: repetition penalty (Keskar et al. 2019, arXiv:1909.05858),
then top-p (Holtzman et al. 2019, arXiv:1904.09751) on the unscaled logits, then temperature, then top-k, and the token
that wins a race of exponential clocks, which draws from the softmax. Shapes: B batch, P phonemes, S tokens, V
vocabulary (1,024 tokens and the end mark), W text vector.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gsv_core.networks.text_to_semantic import TextToSemantic

FIRST_END = 11
"""The end mark cannot be drawn before this many tokens (0.44 s)."""
TOKENS_PER_SECOND = 25


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

    The phonemes are those of the prompt's text and of the wanted text, one after the other. `generator` lives on the
    CPU. At most `most_tokens` come out, `sampling.longest_tokens` where not given.
    """
    most = sampling.longest_tokens if most_tokens is None else most_tokens

    def start_clocks(_: int, tokens: int) -> Tensor:
        return torch.empty(tokens).exponential_(generator=generator)

    return continue_tokens(network, phoneme_ids, text_vectors, prompt_tokens, sampling, start_clocks, most)


@torch.no_grad()
def continue_tokens(
    network: TextToSemantic,
    phoneme_ids: Tensor,
    text_vectors: Tensor | None,
    prompt_tokens: Tensor | None,
    sampling: Sampling,
    start_clocks: Callable[[int, int], Tensor],
    most_tokens: int,
) -> Tensor:
    """`sample_tokens` with the chance handed in: `start_clocks(step, V)` gives V variates of Exp(1)."""
    if len(phoneme_ids) == 0:
        raise ValueError("expected at least one phoneme to speak, got none")
    device = phoneme_ids.device
    prompt = torch.empty(0, dtype=torch.int64, device=device) if prompt_tokens is None else prompt_tokens.long()
    logits, cache = network.prefill(
        phoneme_ids[None],
        None if text_vectors is None else text_vectors[None],
        prompt[None] if len(prompt) else None,
    )
    end = logits.shape[-1] - 1
    tokens = prompt
    for step in range(most_tokens):
        scores = logits[0].float()
        if step < FIRST_END:
            scores = scores[:end]
        token, best = draw_token(scores, tokens, sampling, start_clocks(step, len(scores)).to(device))
        if end in (token, best):
            break
        chosen = torch.tensor([token], device=device)
        tokens = torch.cat([tokens, chosen])
        if step + 1 < most_tokens:
            logits = network.step(chosen, cache)
    return tokens[len(prompt) :]


def draw_token(scores: Tensor, previous: Tensor, sampling: Sampling, clocks: Tensor) -> tuple[int, int]:
    """The token that `clocks` (V,), Exp(1) variates, draw from `scores` (V,), and the best after the penalty alone."""
    scores = scores.clone()
    seen = scores[previous]
    scores[previous] = torch.where(seen < 0, seen * sampling.repetition_penalty, seen / sampling.repetition_penalty)
    best = int(scores.argmax())
    if sampling.top_p < 1:
        scores = _keep_top_p(scores, sampling.top_p)
    scores = scores / sampling.temperature
    if sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], -torch.inf)
    return int((scores.softmax(dim=-1) / clocks).argmax()), best


def _keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """Rule out what lies beyond the smallest set of likeliest tokens with more than `top_p` of the mass."""
    ordered, order = scores.sort(descending=True)
    beyond = ordered.softmax(dim=-1).cumsum(dim=-1) > top_p
    beyond[0] = False
    return scores.index_fill(0, order[beyond], -torch.inf)
