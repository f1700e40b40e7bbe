"""Convolutions over many short columns as matrix products, which a CPU is better at.

With the channels innermost a column is a table of rows, and all columns one behind the other, with zeros between them,
are one table. Tap j of the kernel then multiplies every row of that table, shifted by j, with one matrix: nothing is
copied or rearranged but the weight. Shapes: N columns, R rows, C channels in, O channels out, K taps.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gsv_core.networks.rounding import multiplied_in, unrounded


def convolve_columns(
    x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, padding: int, slope: float | None = None
) -> Tensor:
    """As `functional.conv1d` with the channels last: (N, R, C), (O, C, K), (O,) -> (N, R', O).

    With `slope` a leaky ReLU follows. Under autocast everything is of its type.
    """
    made = (x.shape[1] + 2 * padding - weight.shape[2]) // stride + 1
    dtype = multiplied_in(x)
    taps = weight.to(dtype).permute(2, 0, 1).contiguous()
    with unrounded(x):  # autocast knows nothing of what is computed in place
        out = _Convolution.apply(x.to(dtype), taps, bias.to(dtype), stride, padding)
    assert isinstance(out, Tensor)
    if slope is not None:
        out = functional.leaky_relu(out, slope, inplace=True)
    return out.unflatten(0, (x.shape[0], -1))[:, :made]


class _Convolution(torch.autograd.Function):
    """(N, R, C), (K, O, C), (O,) -> (N times at least R', O): what looks beyond the end of its column comes last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        count, rows, channels = x.shape
        kernel = len(taps)
        # Between two columns there are as many zeros as either needs at its end.
        period = max((rows + 2 * padding - kernel) // stride + 1, -(-(rows + padding) // stride))
        table = x.new_zeros(count * period * stride + kernel, channels)
        _columns(table, count, padding, period * stride)[:, :rows] = x
        out = torch.addmm(bias, _shifted(table, 0, count * period, stride), taps[0].t())
        for tap in range(1, kernel):
            out.addmm_(_shifted(table, tap, count * period, stride), taps[tap].t())
        ctx.save_for_backward(table, taps)
        ctx.sizes = count, rows, period, stride, padding
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        table, taps = ctx.saved_tensors
        count, rows, period, stride, padding = ctx.sizes
        of_out = gradients[0].contiguous()
        of_x = of_taps = of_bias = None
        if ctx.needs_input_grad[0]:
            of_table = torch.zeros_like(table)
            for tap, matrix in enumerate(taps):
                _shifted(of_table, tap, count * period, stride).addmm_(of_out, matrix)
            of_x = _columns(of_table, count, padding, period * stride)[:, :rows]
        if ctx.needs_input_grad[1]:
            of_taps = torch.empty_like(taps)
            for tap, of_tap in enumerate(of_taps):
                torch.mm(of_out.t(), _shifted(table, tap, count * period, stride), out=of_tap)
        if ctx.needs_input_grad[2]:
            of_bias = of_out.sum(dim=0)
        return of_x, of_taps, of_bias, None, None


def _columns(table: Tensor, count: int, padding: int, period: int) -> Tensor:
    """The rows of each column and the zeros behind it: (N, period, C), a view."""
    return table[padding : padding + count * period].view(count, period, -1)


def _shifted(table: Tensor, tap: int, count: int, stride: int) -> Tensor:
    """The `count` rows that tap number `tap` reads, a view."""
    return table[tap : tap + count * stride : stride]
