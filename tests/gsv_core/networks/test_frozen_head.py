import pytest
import torch
from torch.nn import functional

from gsv_core.networks.frozen_head import frozen_cross_entropies


def test_losses_hits_and_gradients_are_those_of_torch():
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 8, generator=draw, requires_grad=True)
    weight = 3 * torch.randn(20, 8, generator=draw)
    targets = torch.randint(20, (12,), generator=draw)
    share = torch.rand(12, generator=draw)
    logits = hidden @ weight.T
    wanted = functional.cross_entropy(logits, targets, reduction="none")
    (slope,) = torch.autograd.grad(wanted @ share, hidden)
    losses, hits = frozen_cross_entropies(hidden, weight, targets)
    torch.testing.assert_close(losses, wanted)
    torch.testing.assert_close(torch.autograd.grad(losses @ share, hidden)[0], slope)
    assert hits.tolist() == (logits.topk(3).indices == targets.unsqueeze(1)).any(dim=1).tolist()


def test_a_loss_that_is_very_large_is_exact():
    """Where the target's share of the whole is too small for a float32."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[300.0], [0.0]])
    losses, hits = frozen_cross_entropies(hidden, weight, torch.tensor([1]), top=1)
    assert losses.tolist() == [300.0]
    assert hits.tolist() == [False]


def test_a_row_without_finite_numbers_harms_no_other():
    hidden = torch.tensor([[torch.nan, 0.0], [1.0, 2.0]], requires_grad=True)
    losses, _ = frozen_cross_entropies(hidden, torch.eye(2), torch.tensor([0, 1]))
    losses.sum().backward()
    assert losses.isnan().tolist() == [True, False]
    assert hidden.grad is not None
    assert hidden.grad[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_row_counts_for_is_not_rounded(dtype):
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 8, generator=draw, requires_grad=True), torch.randn(20, 8, generator=draw)
    with torch.autocast("cpu", dtype=dtype):
        losses, _ = frozen_cross_entropies(hidden, weight, torch.arange(5))
    (wanted,) = torch.autograd.grad(losses.sum(), hidden, retain_graph=True)
    for share in (1 / 3, 2.0**17 / 3):
        (found,) = torch.autograd.grad(share * losses.sum(), hidden, retain_graph=True)
        torch.testing.assert_close(found, wanted * share)
