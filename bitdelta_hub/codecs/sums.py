"""Sums whose order is fixed, so that they have the same bits on any device, in any blocks.

Floating-point addition depends on the order, and libraries choose it by device, thread count and
shape. Every statistic that ends in stored bytes is summed here, or is a sum of integers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable

import numpy as np
import torch

from bitdelta_hub.codecs.base import Array
from bitdelta_hub.kernels import compiled
from bitdelta_hub.kernels.ops import is_compilable

# Within these bounds on the mean and the sum of a row's magnitudes, squares neither overflow fp32
# nor lose anything that matters below its range.
SMALLEST_MEAN, LARGEST_SUM = 2.0**-40, 2.0**60
_kept = threading.local()


def total(values: Iterable[float] | Array) -> float:
    """The sum of `values`, rounded once whatever their order."""
    return math.fsum(values)


def row_sums(x: torch.Tensor) -> torch.Tensor:
    """The sum of each row of `x` `[r, c]`, `[r]` in the type of `x`; `x` is left alone.

    while width > 1: half = width // 2; row = row[:half] + row[half:2 half];
                     an odd width's last column is added to column 0
    The order depends on c alone.
    """
    if x.shape[1] == 0:
        return x.new_zeros(len(x))
    native = compiled() if is_compilable(x) else None
    if native:
        out = np.empty(len(x), np.float32)
        native.row_sums(x.numpy(), scratch(x.shape[1] // 2), out)
        return torch.from_numpy(out)
    if x.device.type == "cpu":  # the same additions; numpy's cost less each
        with np.errstate(over="ignore", invalid="ignore"):
            return torch.from_numpy(_fold_columns(x.numpy()))  # type: ignore[no-untyped-call]
    return _fold_columns(x)  # type: ignore[no-any-return, no-untyped-call]


def _fold_columns(x):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    while width > 1:
        half = width // 2
        folded = x[:, :half] + x[:, half : 2 * half]
        if width % 2:
            folded[:, 0] += x[:, -1]
        x, width = folded, half
    return x[:, 0]


def scratch(size: int) -> Array:
    """fp32 memory that this thread keeps: fresh pages cost more than the sums."""
    memory: Array | None = getattr(_kept, "memory", None)
    if memory is None or len(memory) < size:
        memory = _kept.memory = np.empty(max(size, 1), np.float32)
    return memory


def magnitudes(x: torch.Tensor, squares: bool = True) -> tuple[Array, Array]:
    """(sum of |x|, sum of x²) of each row of fp32 or fp64 `x` `[r, c]`, fp64 `[r]` on the CPU.

    Without `squares` the second is empty. Rows too large or too small for
    squares in fp32 are summed in fp64.
    """
    first, second = np.empty(len(x)), np.empty(len(x) * squares)
    fill_moments(x, first, second)
    sum_extremes(x, first, second)
    return first, second


def fill_moments(x: torch.Tensor, first: Array, second: Array) -> None:
    """Fills `first` and, unless it is empty, `second` with both sums in the type of `x`."""
    native = compiled() if is_compilable(x) and x.shape[1] else None
    if native:
        native.row_magnitudes(x.numpy(), scratch(x.shape[1] // 2), first, second)
        return
    first[:] = row_sums(x.abs()).cpu().numpy()
    if len(second):
        second[:] = row_sums(x * x).cpu().numpy()


def sum_extremes(x: torch.Tensor, first: Array, second: Array) -> None:
    """Replaces what `fill_moments` gave for rows whose squares may leave the range of fp32."""
    low, high = SMALLEST_MEAN * x.shape[1], LARGEST_SUM
    extreme = np.flatnonzero((first != 0) & ~((first >= low) & (first <= high)))
    if len(extreme):
        rows = x[torch.from_numpy(extreme).to(x.device)].double()
        exact = np.empty((2, len(extreme)))
        fill_moments(rows, exact[0], exact[1])
        first[extreme] = exact[0]
        if len(second):
            second[extreme] = exact[1]


class ColumnSums:
    """Column sums of each matrix of a batch whose rows come in order, in blocks of any size.

    Rows are summed in pairs, pairs in pairs, and so on, by their place in the matrix: a binary
    counter whose digits are partial sums. The order depends on the number of rows alone.
    """

    def __init__(self, rows: int) -> None:
        """`rows`: rows of one matrix."""
        self._rows = rows
        self._row = 0
        self._partial: list[tuple[int, torch.Tensor]] = []
        self._sums: list[torch.Tensor] = []

    def add(self, x: torch.Tensor) -> None:
        """Takes the next rows `[n, cols]`, of the current matrix and those that follow."""
        while len(x):
            size = self._aligned(min(len(x), self._rows - self._row))
            self._push(size, _fold_rows(x[:size]))
            x = x[size:]
            self._row += size
            if self._row == self._rows:
                self._finish()

    def sums(self) -> list[torch.Tensor]:
        """The sums `[cols]` of every matrix seen whole."""
        return self._sums

    def _aligned(self, available: int) -> int:
        """Size of the largest subtree that starts at the current row and is at hand."""
        largest = 1 << (available.bit_length() - 1)
        return min(largest, self._row & -self._row) if self._row else largest

    def _push(self, size: int, partial: torch.Tensor) -> None:
        while self._partial and self._partial[-1][0] == size:
            partial = self._partial.pop()[1] + partial
            size *= 2
        self._partial.append((size, partial))

    def _finish(self) -> None:
        result = self._partial.pop()[1]
        while self._partial:
            result = self._partial.pop()[1] + result
        self._sums.append(result)
        self._row = 0


def _fold_rows(x: torch.Tensor) -> torch.Tensor:
    """The sum of 2^k rows, in pairs."""
    if len(x) == 1:
        return x[0].clone()
    while len(x) > 1:
        x = x[0::2] + x[1::2]
    return x[0]


def energies(x: torch.Tensor, rows: int) -> torch.Tensor:
    """The sum of squares of every run of `rows` rows of fp32 `x` `[r, c]`, fp32 `[ceil(r / rows)]`.

    Each run is folded by halves as one flat vector, so the order depends on c and `rows` alone.
    """
    native = compiled() if is_compilable(x) and x.numel() else None
    if native:
        run = min(rows, len(x)) * x.shape[1]
        sums = np.empty(-(-len(x) // rows), np.float32)
        native.energies(x.view(-1).numpy(), run, scratch(run // 2), sums)
        return torch.from_numpy(sums)
    runs = [x[start : start + rows].reshape(-1) for start in range(0, len(x), rows)]
    return torch.cat([x.new_zeros(0), *(row_sums(run.square()[None]) for run in runs)])
