"""Projected content features to semantic tokens and back.

One codebook, nearest neighbour (van den Oord et al. 2017, arXiv:1711.00937); trained with the Base model and frozen
afterwards, so that every Voice shares its tokens. Shapes: B batch, D width, S semantic tokens, K codebook entries.
"""

import torch
from torch import Tensor, nn


class SemanticQuantizer(nn.Module):
    """Replace each vector by the index of the closest codebook entry.

    All of it are buffers: nothing here is trained, and no gradient passes through the look-up.
    """

    def __init__(self, codebook_size: int, width: int) -> None:
        super().__init__()
        # The nesting is the file format's: a residual quantizer of which only the first level is in use.
        self.vq = _Levels(codebook_size, width)

    @property
    def codebook(self) -> Tensor:
        """(K, D)."""
        return self._level().embed

    def set_codebook(self, vectors: Tensor) -> None:
        """Take `vectors` (K, D) as the codebook."""
        if vectors.shape != self.codebook.shape:
            raise ValueError(f"expected a codebook {tuple(self.codebook.shape)}, got {tuple(vectors.shape)}")
        level = self._level()
        with torch.no_grad():
            level.embed.copy_(vectors)
            level.embed_avg.copy_(vectors)

    def _level(self) -> "_Codebook":
        codebook = self.vq.layers[0]._codebook
        assert isinstance(codebook, _Codebook)
        return codebook

    @torch.no_grad()
    def encode(self, vectors: Tensor) -> Tensor:
        """Nearest entries by Euclidean distance: (B, D, S) -> (B, S) int64."""
        frames = vectors.transpose(1, 2)
        # The squared length of the frame itself is the same for every entry, so it is left out.
        closeness = 2 * frames @ self.codebook.T - self.codebook.square().sum(dim=1)
        return closeness.argmax(dim=-1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Codebook entries: (B, S) -> (B, D, S)."""
        return self.codebook[tokens].transpose(1, 2)


class _Levels(nn.Module):
    def __init__(self, codebook_size: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Level(codebook_size, width)])


class _Level(nn.Module):
    def __init__(self, codebook_size: int, width: int) -> None:
        super().__init__()
        self._codebook = _Codebook(codebook_size, width)


class _Codebook(nn.Module):
    """The entries, and the running counts and sums they were learned with."""

    inited: Tensor
    cluster_size: Tensor
    embed: Tensor
    embed_avg: Tensor

    def __init__(self, codebook_size: int, width: int) -> None:
        super().__init__()
        entries = torch.randn(codebook_size, width)
        self.register_buffer("inited", torch.ones(1))
        self.register_buffer("cluster_size", torch.ones(codebook_size))
        self.register_buffer("embed", entries)
        self.register_buffer("embed_avg", entries.clone())
