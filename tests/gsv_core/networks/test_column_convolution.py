import pytest
import torch
from torch.nn import functional

from gsv_core.networks.column_convolution import convolve_columns

SHAPES = [
    # columns, rows, channels in and out, taps, stride, padding
    (3, 10, 4, 6, 5, 1, 2),
    (3, 11, 4, 6, 5, 3, 2),
    (2, 9, 4, 6, 3, 1, 1),
    (2, 7, 1, 8, 5, 3, 2),
    (1, 5, 3, 1, 5, 3, 0),
]


@pytest.mark.parametrize(("columns", "rows", "inputs", "outputs", "taps", "stride", "padding"), SHAPES)
@pytest.mark.parametrize("slope", [None, 0.1])
def test_it_is_the_convolution_and_so_are_its_gradients(columns, rows, inputs, outputs, taps, stride, padding, slope):
    draw = torch.Generator().manual_seed(0)

    def made(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()

    x, weight, bias = made(columns, rows, inputs), made(outputs, inputs, taps), made(outputs)
    expected = functional.conv1d(x.transpose(1, 2), weight, bias, stride, padding).transpose(1, 2)
    if slope is not None:
        expected = functional.leaky_relu(expected, slope)
    found = convolve_columns(x, weight, bias, stride=stride, padding=padding, slope=slope)
    torch.testing.assert_close(found, expected)
    direction = made(*expected.shape).detach()
    gradients = torch.autograd.grad(found, (x, weight, bias), direction)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, weight, bias), direction))


def test_only_the_gradients_that_are_wanted_are_made():
    weight, bias = torch.randn(2, 3, 5), torch.zeros(2)
    x = torch.randn(2, 8, 3, requires_grad=True)
    convolve_columns(x, weight, bias, stride=1, padding=2).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def test_under_autocast_it_is_rounded_and_gradients_are_not():
    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((3, 20, 8), (16, 8, 5), (16,)))
    exact = convolve_columns(x, weight, bias, stride=3, padding=2)
    wanted = torch.autograd.grad(exact.square().sum(), (x, weight, bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = convolve_columns(x, weight, bias, stride=3, padding=2)
    assert rounded.dtype is torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.1)
    found = torch.autograd.grad(rounded.float().square().sum(), (x, weight, bias))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype is torch.float32
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999
