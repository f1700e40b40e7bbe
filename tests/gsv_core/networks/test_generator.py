import torch

from gsv_core.networks.generator import Generator


def test_a_frame_becomes_the_product_of_the_rates():
    torch.manual_seed(0)
    generator = Generator(
        4,
        16,
        rates=(5, 4, 2),
        kernels=(9, 8, 4),
        block_kernels=(3, 5),
        block_dilations=((1, 3), (1,)),
        timbre_width=6,
    )
    wave = generator(torch.randn(2, 4, 7), torch.randn(2, 6, 1))
    assert wave.shape == (2, 1, 7 * 40)
    assert wave.abs().max() <= 1
    wave.square().sum().backward()
    assert [n for n, p in generator.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
