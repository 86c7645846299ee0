"""Differences, sums, and additions with one rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitdelta_hub.kernels.native.jit import (
    BOOL,
    F32,
    F32_IN,
    F32_ROWS,
    F64,
    INT,
    NOTHING,
    U16,
    U16_IN,
    inline,
    loop,
)

# What follows runs compiled; coverage cannot see it.


@inline
def widened(bits: Any) -> Any:  # pragma: no cover
    """fp32 of a bf16 bit pattern."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@inline
def rounded(x: Any) -> Any:  # pragma: no cover
    """The bf16 bit pattern nearest to fp32 x, ties to even; of a NaN, one of a NaN."""
    bits = np.float32(x).view(np.uint32)
    odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    nearest = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd) >> np.uint32(16)
    number = np.uint32(bits & np.uint32(0x7FFFFFFF)) <= np.uint32(0x7F800000)
    return np.uint16(nearest) if number else np.uint16(0x7FC0)


@inline
def fold(folded: Any, half: Any) -> Any:  # pragma: no cover
    """The sum of the first `half` numbers by the fold of `sums.row_sums`, which overwrites them."""
    while half > 1:
        width, half = half, half // 2
        for i in range(half):
            folded[i] += folded[i + half]
        if width % 2:
            folded[0] += folded[width - 1]
    return folded[0]


@inline
def energy(x: Any, folded: Any) -> Any:  # pragma: no cover
    """The sum of squares of x by the fold of `sums.row_sums`; `folded` is half as long as x."""
    width = x.size
    if width == 1:
        return x[0] * x[0]
    half = width // 2
    for i in range(half):
        folded[i] = x[i] * x[i] + x[i + half] * x[i + half]
    if width % 2:
        folded[0] += x[width - 1] * x[width - 1]
    return fold(folded, half)


@inline
def magnitude(x: Any, folded: Any) -> Any:  # pragma: no cover
    """The sum of |x|, as `energy`."""
    width = x.size
    if width == 1:
        return abs(x[0])
    half = width // 2
    for i in range(half):
        folded[i] = abs(x[i]) + abs(x[i + half])
    if width % 2:
        folded[0] += abs(x[width - 1])
    return fold(folded, half)


@inline
def plain_sum(x: Any, folded: Any) -> Any:  # pragma: no cover
    """The sum of x, as `energy`."""
    width = x.size
    if width == 1:
        return x[0]
    half = width // 2
    for i in range(half):
        folded[i] = x[i] + x[i + half]
    if width % 2:
        folded[0] += x[width - 1]
    return fold(folded, half)


@loop(BOOL, U16_IN, U16_IN, F32)
def bf16_difference(a: Any, b: Any, out: Any) -> Any:  # pragma: no cover
    """out[i] = fp32(a[i]) - fp32(b[i]) of bf16 bit patterns; whether all of out is finite."""
    infinite = np.uint32(0x7F800000)
    bad = np.uint32(0)
    for i in range(out.size):
        value = np.float32(widened(a[i]) - widened(b[i]))
        out[i] = value
        bad |= np.uint32((value.view(np.uint32) & infinite) == infinite)
    return bad == 0


@loop(BOOL, U16_IN, U16_IN, INT, F32, F32)
def bf16_gaps(a: Any, b: Any, run: Any, folded: Any, out: Any) -> Any:  # pragma: no cover
    """out[k] = sum of squares of fp32(a) - fp32(b), bf16 bit patterns, over the k-th run of `run`.

    Whether a and b are the same bits. `folded` is half as long as a run, at least 1.
    """
    differing = np.uint16(0)
    for k in range(out.size):
        left, right = a[k * run : (k + 1) * run], b[k * run : (k + 1) * run]
        width = left.size
        half = width // 2
        folded[0] = np.float32(0)
        for i in range(half):
            j = i + half
            differing |= (left[i] ^ right[i]) | (left[j] ^ right[j])
            near = np.float32(widened(left[i]) - widened(right[i]))
            far = np.float32(widened(left[j]) - widened(right[j]))
            folded[i] = np.float32(near * near) + np.float32(far * far)
        if width % 2:
            differing |= left[width - 1] ^ right[width - 1]
            gap = np.float32(widened(left[width - 1]) - widened(right[width - 1]))
            folded[0] += np.float32(gap * gap)
        out[k] = fold(folded, half)
    return differing == 0


@loop(NOTHING, F32_IN, INT, F32, F32)
def energies(x: Any, run: Any, folded: Any, out: Any) -> None:  # pragma: no cover
    """out[k] = `energy` of the k-th run of `run` numbers of x; the last may be shorter."""
    for k in range(out.size):
        out[k] = energy(x[k * run : (k + 1) * run], folded)


@loop(NOTHING, F32_ROWS, F32, F64, F64)
def row_magnitudes(x: Any, folded: Any, first: Any, second: Any) -> None:  # pragma: no cover
    """first[i], second[i] = sum of |x[i]|, of x[i]² by the fold of `sums.row_sums`.

    Squares are left out where `second` is empty. `folded` is half as long as a row.
    """
    for r in range(len(x)):
        first[r] = magnitude(x[r], folded)
        if second.size:
            second[r] = energy(x[r], folded)


@loop(NOTHING, F32_ROWS, F32, F32)
def row_sums(x: Any, folded: Any, out: Any) -> None:  # pragma: no cover
    """out[i] = sum of x[i] by the fold of `sums.row_sums`; `folded` is half as long as a row."""
    for r in range(len(x)):
        out[r] = plain_sum(x[r], folded)


@inline
def take_row(total: Any, at: Any, left16: Any, left32: Any) -> None:  # pragma: no cover
    """total = the row that begins at `at`, of bf16 bit patterns or of fp32, or of -0.0, to which
    whatever is added stays what it is."""
    if left16.size:
        bits = left16[at : at + total.size]
        for j in range(total.size):
            total[j] = widened(bits[j])
    elif left32.size:
        values = left32[at : at + total.size]
        for j in range(total.size):
            total[j] = values[j]
    else:
        for j in range(total.size):
            total[j] = np.float32(-0.0)


@inline
def give_row(total: Any, at: Any, out16: Any, out32: Any) -> None:  # pragma: no cover
    """Puts `total` where that row of the result is, rounded where that is bf16."""
    if out16.size:
        bits = out16[at : at + total.size]
        for j in range(total.size):
            bits[j] = rounded(total[j])
    else:
        values = out32[at : at + total.size]
        for j in range(total.size):
            values[j] = total[j]


@loop(NOTHING, F32_IN, U16_IN, F32_IN, U16, F32)
def add(values: Any, left16: Any, left32: Any, out16: Any, out32: Any) -> None:  # pragma: no cover
    """out = left + values in fp32; left and out each bf16 bit patterns or fp32, the other empty."""
    stretch = np.empty(4096, np.float32)  # stays in the first cache
    for at in range(0, values.size, stretch.size):
        part = values[at : at + stretch.size]
        total = stretch[: part.size]
        take_row(total, at, left16, left32)
        for j in range(total.size):
            total[j] += part[j]
        give_row(total, at, out16, out32)
