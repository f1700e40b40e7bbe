"""Tokens that nobody said, to learn from: a stretch of a clip's tokens said twice, or left out.

What GPT gets wrong when it fails is of this kind, and its preference loss (`losses.preference_loss`) is taught with it.
Which stretch follows from the seed, the voice, the step and the clip alone. Shapes: S semantic tokens.
"""

import torch
from torch import Tensor


def damaged(tokens: Tensor, draw: torch.Generator) -> Tensor:
    """Real tokens (S,) with a stretch repeated or, as often, missing. At least one token differs and one is left."""
    length = len(tokens)
    start, end = sorted(torch.randint(length + 1, (2,), generator=draw).tolist())
    repeated = bool(torch.rand((), generator=draw) < 0.5)
    if start == end:
        start, end = (start - 1, end) if start else (start, end + 1)
    if repeated or end - start == length:
        return torch.cat([tokens[:end], tokens[start:]])
    return torch.cat([tokens[:start], tokens[end:]])
