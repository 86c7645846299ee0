"""Levels of a codebook, fitted to an exact histogram.

A number is counted by its rounding to bf16, of which there are 65,536: counts are integers, so the
same numbers give the same histogram in any order, and a cell of a fit is a range of roundings.
Levels are fitted on the CPU in fp64 to these counts, in ascending order of value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bitdelta_hub.codecs.base import Array
from bitdelta_hub.kernels import compiled, ops

KEYS = 1 << 16
LARGEST = float(torch.finfo(torch.bfloat16).max)
ROUNDS = 200


def _ascending() -> tuple[Array, Array]:
    """(keys of all finite bf16 numbers by value, -0 before +0; their values in fp64)."""
    positive = np.arange(0x7F80, dtype=np.uint16)
    keys = np.concatenate([(positive | 0x8000)[::-1], positive])
    return keys, (keys.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


ORDER, VALUES = _ascending()
ZERO = len(ORDER) // 2


def keys_of(x: torch.Tensor) -> torch.Tensor:
    """int32 keys of finite fp32 `x`: the bits of its rounding to bf16."""
    rounded = x.clamp(-LARGEST, LARGEST).to(torch.bfloat16)
    return rounded.view(torch.int16).to(torch.int32).bitwise_and_(KEYS - 1)


def add_counts(x: torch.Tensor, counts: Array) -> None:
    """Adds to int64 `counts` `[65536]` how many of finite fp32 `x` have each key."""
    native = compiled() if ops.is_compilable(x) else None
    if native:
        native.count_keys(x.view(-1).numpy(), counts)
    else:
        counts += ops.count(keys_of(x), KEYS).cpu().numpy()


def pack_cells(x: torch.Tensor, cells: Array, bits: int, packed: Array) -> None:
    """Fills runs `packed` with the codes that uint8 `cells` `[65536]` has for the keys of finite
    fp32 `x` `[r, c]`."""
    native = compiled() if ops.is_compilable(x) else None
    if native:
        native.pack_cells(x.numpy(), cells, bits, packed)
    else:
        codes = ops.take(ops.to_tensor(cells, x.device), keys_of(x))
        packed[:] = ops.pack(codes, bits).cpu().numpy()


@dataclass(frozen=True, slots=True)
class Cells:
    """`levels` fp64 `[n]`; cell i holds the values ORDER[bounds[i] : bounds[i + 1]]."""

    levels: Array
    bounds: Array

    def table(self) -> Array:
        """uint8 `[65536]`: the cell of each key."""
        table = np.zeros(KEYS, np.uint8)
        table[ORDER] = np.repeat(np.arange(len(self.levels), dtype=np.uint8), np.diff(self.bounds))
        return table


def lloyd_max(counts: Array, size: int) -> Cells:
    """`size` cells of locally least squared error: each value goes to the nearest level, each
    level is the mean of its cell."""
    counts = counts[ORDER]
    used = np.flatnonzero(counts)
    if len(used) == 0:
        return Cells(np.zeros(size), _bounds(np.full(size - 1, len(ORDER)), len(ORDER)))
    sums = _Sums(VALUES[used], counts[used])
    levels = sums.means(_equal_parts(sums.values, counts[used], size), sums.values[0])
    bounds = np.zeros(0)
    for _ in range(ROUNDS):
        middles = (levels[:-1] + levels[1:]) / 2
        new = _bounds(np.searchsorted(sums.values, middles), len(used))
        if np.array_equal(new, bounds):
            break
        bounds = new
        levels = np.sort(sums.means(bounds, levels))
    return Cells(levels, _bounds(np.searchsorted(VALUES, middles), len(ORDER)))


def magnitude_blocks(counts: Array, blocks: int) -> Cells:
    """A sign and `blocks` ranges of magnitude of equal population, each at its mean magnitude."""
    counts = counts[ORDER]
    magnitudes = counts[ZERO:] + counts[:ZERO][::-1]
    cumulated = np.cumsum(magnitudes)
    targets = np.arange(1, blocks) * int(cumulated[-1]) // blocks
    bounds = _bounds(_nearest(cumulated, targets), ZERO)
    levels = _Sums(VALUES[ZERO:], magnitudes).means(bounds, VALUES[ZERO + bounds[:-1]])
    mirrored = np.concatenate([ZERO - bounds[:0:-1], ZERO + bounds])
    return Cells(np.concatenate([-levels[::-1], levels]), mirrored)


class _Sums:
    """Means of ranges of `values`, each as often as `counts` says."""

    def __init__(self, values: Array, counts: Array) -> None:
        self.values = values
        # Added one after the other: numpy's cumsum has no other order.
        self._counts = np.concatenate([[0], np.cumsum(counts)])
        self._sums = np.concatenate([[0.0], np.cumsum(values * counts)])

    def means(self, bounds: Array, empty: Array | float) -> Array:
        """The mean of each range; `empty` where a range has none."""
        counts = np.diff(self._counts[bounds])
        sums = np.diff(self._sums[bounds])
        means: Array = np.where(counts > 0, sums / np.maximum(counts, 1), empty)
        return means


def _equal_parts(values: Array, counts: Array, size: int) -> Array:
    """Bounds of `size` ranges with equal integrals of density^(1/3), optimal for many levels."""
    width = np.gradient(values) if len(values) > 1 else np.ones(1)
    weight = np.cumsum(np.cbrt(counts * width * width))
    targets = weight[-1] * np.arange(1, size) / size
    return _bounds(np.searchsorted(weight, targets), len(values))


def _nearest(cumulated: Array, targets: Array) -> Array:
    """For each target the number of leading bins that hold most nearly as many."""
    above = np.searchsorted(cumulated, targets)
    before = np.where(above > 0, cumulated[np.maximum(above - 1, 0)], 0)
    nearer: Array = np.where(targets - before < cumulated[above] - targets, above, above + 1)
    return nearer


def _bounds(inner: Array, end: int) -> Array:
    return np.concatenate([[0], inner, [end]])
