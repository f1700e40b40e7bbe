"""Timbres of several voices, with a share each, to the timbre between them.

The releases average references of one speaker arithmetically; here the weights differ, and so do the speakers. All
timbres have to be heard by the same network: another one's mean something else. Axes: G timbre.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Share:
    """One voice and how much of it."""

    voice: str
    weight: float

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"the share of {self.voice!r} should be positive, got {self.weight:g}")

    @classmethod
    def parse(cls, text: str) -> "Share":
        """`anna:0.6`, or `anna` for a share of 1.

        Raises:
            ValueError: it is neither.
        """
        voice, separator, weight = text.rpartition(":")
        try:
            return cls(voice=voice, weight=float(weight)) if separator else cls(voice=text, weight=1.0)
        except ValueError as error:
            raise ValueError(f"{text!r}: expected VOICE:SHARE with a positive share, such as anna:0.6") from error


def normalised(shares: Sequence[Share]) -> tuple[Share, ...]:
    """The shares as parts of 1, the largest first; of equal ones the one that was named first.

    Raises:
        ValueError: fewer than two voices, or one of them twice.
    """
    names = [share.voice for share in shares]
    if len(set(names)) < 2 or len(set(names)) != len(names):
        raise ValueError(f"a blend needs two voices or more, each once, got {', '.join(names) or 'none'}")
    total = sum(share.weight for share in shares)
    ordered = sorted(shares, key=lambda share: -share.weight)
    return tuple(Share(voice=share.voice, weight=share.weight / total) for share in ordered)


def blend(timbres: Mapping[str, Tensor], shares: Sequence[Share]) -> Tensor:
    """Voice → (G,) to their weighted mean (G,).

    Raises:
        ValueError: they are not of one width.
    """
    widths = {tuple(timbres[share.voice].shape) for share in shares}
    if len(widths) != 1:
        raise ValueError(f"timbres of different releases cannot be blended: {sorted(widths)}")
    return torch.stack([share.weight * timbres[share.voice] for share in shares]).sum(dim=0)
