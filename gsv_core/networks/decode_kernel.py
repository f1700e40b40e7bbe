"""One decoding step of the text-to-semantic network, hidden column to logits, compiled for a CPU by numba.

A step reads every weight once and computes little with each: it can be no faster than memory. Thirteen calls of torch a
layer, each of which wakes the threads and writes its result, take half as long again. Here a layer is one call of four
parallel loops (each head's queries, keys, values and attention; the sum behind them; the two halves of the
feed-forward), and the weights are read in place, in the order in which a checkpoint has them. Sums are float32 as in
torch, in another order.

Compiled at the first use and kept on disk for the next process; `TextToSemantic` imports this only for networks that
are large enough for it to pay. Shapes: B rows, N outputs, K inputs, V vocabulary, D width, H heads, E = D / H,
C columns of the cache.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, from_numpy, get_num_threads

try:
    import numba
    from numba import prange
except ImportError:  # everything here can be imported without it; `TextToSemantic` makes no kernel then
    numba, prange = None, range  # type: ignore[assignment,misc]

LEAST_HEAD_WIDTH = 8
"""E has to be a multiple: a single row is worked on by tiles of so many outputs, several by 4 rows and 4 outputs (16
sums in registers, and what is read goes into 4 of them)."""

_NORM_EPSILON = np.float32(1e-5)


def _compiled(**options: Any) -> Callable[[Any], Any]:
    """Let numba compile a function, reordering its sums; infinities keep their meaning, as hidden columns need it."""

    def decorate(function: Any) -> Any:
        if numba is None:
            return function
        options["fastmath"] = {"contract", "reassoc", "nsz", "arcp"}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to keep it in can be written
            return numba.njit(**options)(function)

    return decorate


@_compiled()
def _project(x, weight, bias, first, last, out):  # type: ignore[no-untyped-def]
    """Outputs `first` to `last` of a linear layer: (B, K), (N, K), (N,) into (B, N); B is 1 or a multiple of 4."""
    rows, inputs = x.shape
    if rows == 1:
        for n in range(first, last, 8):
            a = b = c = d = e = f = g = h = np.float32(0)
            for k in range(inputs):
                value = x[0, k]
                a += weight[n, k] * value
                b += weight[n + 1, k] * value
                c += weight[n + 2, k] * value
                d += weight[n + 3, k] * value
                e += weight[n + 4, k] * value
                f += weight[n + 5, k] * value
                g += weight[n + 6, k] * value
                h += weight[n + 7, k] * value
            out[0, n], out[0, n + 1] = a + bias[n], b + bias[n + 1]
            out[0, n + 2], out[0, n + 3] = c + bias[n + 2], d + bias[n + 3]
            out[0, n + 4], out[0, n + 5] = e + bias[n + 4], f + bias[n + 5]
            out[0, n + 6], out[0, n + 7] = g + bias[n + 6], h + bias[n + 7]
        return
    for n in range(first, last, 4):
        for row in range(0, rows, 4):
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
            c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.float32(0)
            for k in range(inputs):
                w0, w1, w2, w3 = weight[n, k], weight[n + 1, k], weight[n + 2, k], weight[n + 3, k]
                a, b, c, d = x[row, k], x[row + 1, k], x[row + 2, k], x[row + 3, k]
                a0 += w0 * a
                a1 += w1 * a
                a2 += w2 * a
                a3 += w3 * a
                b0 += w0 * b
                b1 += w1 * b
                b2 += w2 * b
                b3 += w3 * b
                c0 += w0 * c
                c1 += w1 * c
                c2 += w2 * c
                c3 += w3 * c
                d0 += w0 * d
                d1 += w1 * d
                d2 += w2 * d
                d3 += w3 * d
            out[row, n], out[row, n + 1], out[row, n + 2], out[row, n + 3] = a0, a1, a2, a3
            out[row + 1, n], out[row + 1, n + 1], out[row + 1, n + 2], out[row + 1, n + 3] = b0, b1, b2, b3
            out[row + 2, n], out[row + 2, n + 1], out[row + 2, n + 2], out[row + 2, n + 3] = c0, c1, c2, c3
            out[row + 3, n], out[row + 3, n + 1], out[row + 3, n + 2], out[row + 3, n + 3] = d0, d1, d2, d3
            for one in range(row, row + 4):
                for four in range(n, n + 4):
                    out[one, four] += bias[four]


@_compiled()
def _attend(query, keys, values, bias, columns, scores, out):  # type: ignore[no-untyped-def]
    """Softmax attention of one head of one row: (E,), (C, E), (C, E), (C,) into (E,), over the first `columns`."""
    scale = np.float32(1 / math.sqrt(query.shape[0]))
    highest = np.float32(-np.inf)
    for column in range(columns):
        score = np.float32(0)
        for e in range(query.shape[0]):
            score += query[e] * keys[column, e]
        scores[column] = score * scale + bias[column]
        highest = max(highest, scores[column])
    total = np.float32(0)
    for column in range(columns):
        scores[column] = math.exp(scores[column] - highest)
        total += scores[column]
    out[:] = 0
    for column in range(columns):
        share = scores[column] / total
        for e in range(query.shape[0]):
            out[e] += share * values[column, e]


@_compiled()
def _add_and_norm(x, more, weight, bias):  # type: ignore[no-untyped-def]
    """Layer norm of the sum: (B, D) + (B, D), in place of the first."""
    rows, width = x.shape
    for row in range(rows):
        mean = np.float32(0)
        for d in range(width):
            x[row, d] += more[row, d]
            mean += x[row, d]
        mean /= np.float32(width)
        variance = np.float32(0)
        for d in range(width):
            variance += (x[row, d] - mean) ** 2
        scale = np.float32(1) / math.sqrt(variance / np.float32(width) + _NORM_EPSILON)
        for d in range(width):
            x[row, d] = (x[row, d] - mean) * scale * weight[d] + bias[d]


@_compiled(parallel=True, nogil=True)
def _layer(x, weights, past, bias, column, packed, mixed, wide, narrow, scores):  # type: ignore[no-untyped-def]
    """One layer, (B, D) in place; the new keys and values go into `past` (2, H, rows, C, E) at `column`.

    `packed` (B, 3 D), `mixed` (B, D), `wide` (B, 4 D), `narrow` (B, D) and `scores` (threads, C) are room to work in.
    """
    into, into_bias, out, out_bias, norm1, norm1_bias, up, up_bias, down, down_bias, norm2, norm2_bias = weights
    _, heads, rows, _, head_width = past.shape
    width = x.shape[1]
    threads = len(scores)
    for thread in prange(threads):
        first, last = thread * heads // threads, (thread + 1) * heads // threads
        for part in range(3):
            _project(x, into, into_bias, part * width + first * head_width, part * width + last * head_width, packed)
        for head in range(first, last):
            start = head * head_width
            for row in range(rows):
                for e in range(head_width):
                    past[0, head, row, column, e] = packed[row, width + start + e]
                    past[1, head, row, column, e] = packed[row, 2 * width + start + e]
                query, mix = packed[row, start : start + head_width], mixed[row, start : start + head_width]
                _attend(query, past[0, head, row], past[1, head, row], bias[row], column + 1, scores[thread], mix)
    tiles = width // 8
    for thread in prange(threads):
        _project(mixed, out, out_bias, 8 * (thread * tiles // threads), 8 * ((thread + 1) * tiles // threads), narrow)
    _add_and_norm(x, narrow, norm1, norm1_bias)
    for thread in prange(threads):
        first, last = 8 * (thread * 4 * tiles // threads), 8 * ((thread + 1) * 4 * tiles // threads)
        _project(x, up, up_bias, first, last, wide)
        for row in range(rows):
            for n in range(first, last):
                wide[row, n] = max(np.float32(0), wide[row, n])
    for thread in prange(threads):
        _project(wide, down, down_bias, 8 * (thread * tiles // threads), 8 * ((thread + 1) * tiles // threads), narrow)
    _add_and_norm(x, narrow, norm2, norm2_bias)


@_compiled(parallel=True, nogil=True)
def _predict(x, weight, bias, threads, out):  # type: ignore[no-untyped-def]
    """The last linear layer: (B, D), (N, D), (N,) into (B, N), N a multiple of 8."""
    tiles = len(weight) // 8
    for thread in prange(threads):
        _project(x, weight, bias, 8 * (thread * tiles // threads), 8 * ((thread + 1) * tiles // threads), out)


class DecodeKernel:
    """A step over `rows` rows at most. Keeps no copy of the layers' weights, but room to work in.

    All of a step that takes threads is in here: torch's own, still waiting for more work, would stand in the way.
    """

    def __init__(self, layers: Sequence[Sequence[Tensor]], head: Tensor, rows: int) -> None:
        """`layers`: of each, what a step reads (`LayerWeights`), weights (N, K) as they are stored; `head` (V, D)."""
        self._layers = [tuple(weight.detach().numpy() for weight in layer) for layer in layers]
        self._outputs = len(head)
        self._head = np.pad(head.detach().numpy(), ((0, -len(head) % 8), (0, 0)))
        self._no_bias = np.zeros(len(self._head), np.float32)
        self._threads = min(get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        width = self._layers[0][3].shape[0]
        self._room = [np.zeros((_padded(rows), share * width), np.float32) for share in (1, 3, 1, 4, 1)]
        self._logits = np.zeros((_padded(rows), len(self._head)), np.float32)

    def __call__(self, x: Tensor, past: Sequence[np.ndarray], bias: np.ndarray, column: int) -> Tensor:
        """(B, D) -> logits (B, V); writes keys and values of `column` into `past`, per layer (2, H, B, C, E).

        `bias` (B, C) is minus infinity where a column is hidden. The result is overwritten by the next call.
        """
        rows = len(x)
        padded = _padded(rows)
        hidden, packed, mixed, wide, narrow = (room[:padded] for room in self._room)
        scores = np.empty((self._threads, bias.shape[1]), np.float32)
        hidden[:rows] = x.numpy()
        numba.set_num_threads(self._threads)
        for weights, layer_past in zip(self._layers, past, strict=True):
            _layer(hidden, weights, layer_past, bias, column, packed, mixed, wide, narrow, scores)
        _predict(hidden, self._head, self._no_bias, self._threads, self._logits[:padded])
        return from_numpy(self._logits[:rows, : self._outputs])


def _padded(rows: int) -> int:
    """Rows to work on for `rows` of the batch: one, or whole tiles."""
    return rows if rows == 1 else -(-rows // 4) * 4
