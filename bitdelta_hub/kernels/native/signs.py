"""`sign`: encoded and decoded in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitdelta_hub.kernels.native.floats import (
    energy,
    give_row,
    magnitude,
    rounded,
    take_row,
    widened,
)
from bitdelta_hub.kernels.native.jit import (
    BOOL,
    F32,
    F32_IN,
    F32_ROWS,
    F64,
    INT,
    NOTHING,
    U8_ROWS,
    U8_ROWS_IN,
    U16,
    U16_IN,
    inline,
    loop,
)


@inline
def pack_row(x: Any, out: Any) -> None:  # pragma: no cover
    width = x.size
    for k in range(width // 8):
        byte = np.uint8(0)
        for j in range(8):
            byte |= np.uint8(x[8 * k + j] >= 0) << np.uint8(j)
        out[k] = byte
    if width % 8:
        byte = np.uint8(0)
        for j in range(width // 8 * 8, width):
            byte |= np.uint8(x[j] >= 0) << np.uint8(j % 8)
        out[width // 8] = byte


@loop(NOTHING, F32_ROWS, BOOL, U8_ROWS, F32, F64, F64)
def encode_signs(
    x: Any, as_bf16: Any, out: Any, folded: Any, first: Any, second: Any
) -> None:  # pragma: no cover
    """Rounds finite x to bf16 in place where asked to, then packs its signs (`ops.pack_signs`) and
    sums its magnitudes (`row_magnitudes`); neither sum where `first` is empty."""
    for r in range(len(x)):
        row = x[r]
        if as_bf16:
            for j in range(row.size):
                row[j] = widened(rounded(row[j]))
        pack_row(row, out[r])
        if first.size:
            first[r] = magnitude(row, folded)
        if second.size:
            second[r] = energy(row, folded)


@inline
def negate_row(x: Any, run: Any) -> None:  # pragma: no cover
    """Flips the sign of each number whose bit is 0."""
    flip = np.uint32(0x80000000)
    bits = x.view(np.uint32)
    for k in range(x.size // 8):
        minus = ~np.uint32(run[k])
        for j in range(8):
            bits[8 * k + j] ^= (minus << np.uint32(31 - j)) & flip
    for j in range(x.size // 8 * 8, x.size):
        bits[j] ^= (~np.uint32(run[j // 8]) << np.uint32(31 - j % 8)) & flip


@loop(NOTHING, INT, U8_ROWS_IN, F32_IN, F32_IN, U16_IN, F32_IN, U16, F32)
def add_signed(
    width: Any, packed: Any, row: Any, col: Any, left16: Any, left32: Any, out16: Any, out32: Any
) -> None:  # pragma: no cover
    """out[i, j] = left[i, j] + row[i] · col[j], the product negated where the bit is 0; each
    rounded to fp32, the sum to bf16 where out is.

    `row` and `col` may hold one number. `left` and `out` are bf16 bit patterns or fp32, the other
    is empty; without `left` it is the product alone.
    """
    total, term = np.empty(width, np.float32), np.empty(width, np.float32)
    for r in range(len(packed)):
        scale = row[r] if row.size > 1 else row[0]
        if col.size > 1:
            for j in range(width):
                term[j] = scale * col[j]
        else:
            value = np.float32(scale * col[0])
            for j in range(width):
                term[j] = value
        negate_row(term, packed[r])
        take_row(total, r * width, left16, left32)
        for j in range(width):
            total[j] += term[j]
        give_row(total, r * width, out16, out32)
