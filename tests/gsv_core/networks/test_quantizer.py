import pytest
import torch

from gsv_core.networks.quantizer import SemanticQuantizer


def test_nearest_entry_wins_and_comes_back():
    torch.manual_seed(0)
    quantizer = SemanticQuantizer(20, 6)
    vectors = torch.randn(3, 6, 7)
    tokens = quantizer.encode(vectors)
    distances = torch.cdist(vectors.transpose(1, 2), quantizer.codebook.expand(3, -1, -1))
    assert torch.equal(tokens, distances.argmin(dim=-1))
    assert tokens.dtype == torch.int64
    exact = quantizer.decode(tokens)
    assert torch.equal(quantizer.encode(exact), tokens)


def test_everything_is_a_buffer_under_the_names_of_the_files():
    quantizer = SemanticQuantizer(4, 2)
    assert list(quantizer.parameters()) == []
    prefix = "vq.layers.0._codebook."
    assert set(quantizer.state_dict()) == {prefix + n for n in ("inited", "cluster_size", "embed", "embed_avg")}


def test_a_codebook_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected a codebook \(4, 2\), got \(4, 3\)"):
        SemanticQuantizer(4, 2).set_codebook(torch.zeros(4, 3))
