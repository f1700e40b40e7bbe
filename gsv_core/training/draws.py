"""Random draws that follow from what they are for.

Every draw of a training depends on (seed, voice, phase, step, clip, purpose) and on nothing else: not on the process's
own random state, the packing of batches, the number of workers or what was drawn before. So a run that is killed and
resumed at a step boundary draws what it would have drawn.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stable_seed(*parts: str | int) -> int:
    """63 bits that follow from `parts`, the same in every process and on every machine."""
    key = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def generator_of(*parts: str | int) -> torch.Generator:
    """A CPU generator seeded by `parts`."""
    return torch.Generator().manual_seed(stable_seed(*parts))


@contextmanager
def seeded(*parts: str | int, device: torch.device) -> Iterator[None]:
    """Seed torch's own state by `parts` inside the block and put it back afterwards.

    For layers that accept no generator: upstream's dropout.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stable_seed(*parts))
        yield
