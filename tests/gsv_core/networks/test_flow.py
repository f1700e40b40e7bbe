import torch

from gsv_core.networks.flow import Flow
from gsv_core.networks.layers import frame_mask


def _flow():
    torch.manual_seed(0)
    return Flow(6, 8, kernel=5, layers=2, couplings=3, timbre_width=4)


def test_the_inverse_undoes_the_flow():
    flow = _flow()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    mask = frame_mask(torch.tensor([9, 6]), 9, torch.float32)
    latent, timbre = torch.randn(2, 6, 9) * mask, torch.randn(2, 4, 1)
    moved = flow(latent, mask, timbre)
    assert (moved - latent).abs().max() > 0.1
    torch.testing.assert_close(flow.inverse(moved, mask, timbre), latent)


def test_a_new_flow_only_reorders():
    latent, mask = torch.randn(1, 6, 5), torch.ones(1, 1, 5)
    # Three reversals are one.
    torch.testing.assert_close(_flow()(latent, mask, torch.randn(1, 4, 1)), latent.flip(1))


def test_couplings_have_the_numbers_of_the_files():
    assert {name.split(".")[1] for name in _flow().state_dict()} == {"0", "2", "4"}
