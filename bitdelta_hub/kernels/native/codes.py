"""Codes of 1 to 8 bits: packed, unpacked, looked up; numbers counted and put into cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitdelta_hub.kernels.native.floats import rounded
from bitdelta_hub.kernels.native.jit import (
    F32_IN,
    F32_ROWS,
    I64,
    INT,
    NOTHING,
    U8_IN,
    U8_ROWS,
    U8_ROWS_IN,
    inline,
    loop,
)

# Eight codes of b bits are a word of b bytes. Words are read and written as eight bytes each, of
# which the next word sees or overwrites what is too many; the last ones byte by byte.


@inline
def lanes(bits: Any, half: Any) -> Any:  # pragma: no cover
    """The lower one of each two neighbouring fields, which when spread are `half` bits wide."""
    field = (np.uint64(1) << np.uint64(half // 8 * bits)) - np.uint64(1)
    mask = np.uint64(0)
    for at in range(0, 64, 2 * half):
        mask |= field << np.uint64(at)
    return mask


@inline
def unpack_row(run: Any, bits: Any, codes: Any) -> None:  # pragma: no cover
    if bits == 8:
        for j in range(codes.size):
            codes[j] = run[j]
        return
    b = np.uint64(bits)
    four, two, one = lanes(bits, 32), lanes(bits, 16), lanes(bits, 8)
    b4, gap4 = np.uint64(4) * b, np.uint64(32) - np.uint64(4) * b
    b2, gap2 = np.uint64(2) * b, np.uint64(16) - np.uint64(2) * b
    gap1 = np.uint64(8) - b
    whole = min(codes.size // 8, max(0, (run.size - 8) // bits + 1))
    for k in range(whole):
        source = run[k * bits : k * bits + 8]
        target = codes[8 * k : 8 * k + 8]
        word = np.uint64(source[0])
        for i in range(1, 8):
            word |= np.uint64(source[i]) << np.uint64(8 * i)
        # Fields are pushed apart in halves: fours, then twos, then ones.
        word = (word & four) | ((word & (four << b4)) << gap4)
        word = (word & two) | ((word & (two << b2)) << gap2)
        word = (word & one) | ((word & (one << b)) << gap1)
        for j in range(8):
            target[j] = np.uint8((word >> np.uint64(8 * j)) & np.uint64(255))
    mask = (np.uint32(1) << np.uint32(bits)) - np.uint32(1)
    for j in range(8 * whole, codes.size):
        place = j * bits
        pair = np.uint32(run[place // 8])
        if place % 8 + bits > 8:
            pair |= np.uint32(run[place // 8 + 1]) << np.uint32(8)
        codes[j] = np.uint8((pair >> np.uint32(place % 8)) & mask)


@inline
def pack_row(codes: Any, bits: Any, run: Any) -> None:  # pragma: no cover
    if bits == 8:
        for j in range(codes.size):
            run[j] = codes[j]
        return
    whole = min(codes.size // 8, max(0, (run.size - 8) // bits + 1))
    for k in range(whole):
        source = codes[8 * k : 8 * k + 8]
        target = run[k * bits : k * bits + 8]
        word = np.uint64(source[0])
        for j in range(1, 8):
            word |= np.uint64(source[j]) << np.uint64(bits * j)
        for i in range(8):
            target[i] = np.uint8((word >> np.uint64(8 * i)) & np.uint64(255))
    for i in range(whole * bits, run.size):
        run[i] = 0
    for j in range(8 * whole, codes.size):
        place = j * bits
        pair = np.uint32(codes[j]) << np.uint32(place % 8)
        run[place // 8] |= np.uint8(pair & np.uint32(255))
        if place % 8 + bits > 8:
            run[place // 8 + 1] |= np.uint8(pair >> np.uint32(8))


@loop(NOTHING, U8_ROWS_IN, INT, U8_ROWS)
def unpack(packed: Any, bits: Any, codes: Any) -> None:  # pragma: no cover
    """codes[i] = the codes of run packed[i]."""
    for r in range(len(packed)):
        unpack_row(packed[r], bits, codes[r])


@loop(NOTHING, U8_ROWS_IN, INT, F32_IN, F32_ROWS)
def lookup(packed: Any, bits: Any, table: Any, out: Any) -> None:  # pragma: no cover
    """out[i, j] = table[code j of run packed[i]]."""
    codes = np.empty(out.shape[1], np.uint8)
    for r in range(len(packed)):
        unpack_row(packed[r], bits, codes)
        values = out[r]
        for j in range(codes.size):
            values[j] = table[codes[j]]


@loop(NOTHING, U8_ROWS_IN, INT, INT, F32_ROWS, F32_ROWS, F32_ROWS)
def int_values(
    packed: Any, bits: Any, group: Any, scale: Any, zero: Any, out: Any
) -> None:  # pragma: no cover
    """out[i, j] = scale · (2 · code - (2^bits - 1) + zero), scale and zero those of column j div
    `group` in row i; no zeros where `zero` is empty."""
    codes = np.empty(out.shape[1], np.uint8)
    top = np.int32((1 << bits) - 1)
    for r in range(len(packed)):
        unpack_row(packed[r], bits, codes)
        for g in range(scale.shape[1]):
            s = scale[r, g]
            z = zero[r, g] if zero.size else np.float32(0)
            part = codes[g * group : (g + 1) * group]
            values = out[r, g * group : (g + 1) * group]
            for j in range(part.size):
                number = np.int32(np.int32(part[j]) << np.int32(1)) - top
                values[j] = np.float32(np.float32(number) + z) * s


@inline
def keys_of(x: Any, keys: Any) -> None:  # pragma: no cover
    """keys[i] = the bits of the bf16 number nearest to finite x[i], at most the largest finite."""
    for i in range(x.size):
        key = rounded(x[i])
        keys[i] = key - np.uint16((key & np.uint16(0x7FFF)) == np.uint16(0x7F80))


@loop(NOTHING, F32_IN, I64)
def count_keys(x: Any, counts: Any) -> None:  # pragma: no cover
    """counts[key] += 1 for the key of each of x."""
    keys = np.empty(4096, np.uint16)
    for at in range(0, x.size, keys.size):
        part = x[at : at + keys.size]
        keys_of(part, keys)
        for i in range(part.size):
            counts[keys[i]] += 1


@loop(NOTHING, F32_ROWS, U8_IN, INT, U8_ROWS)
def pack_cells(x: Any, cells: Any, bits: Any, out: Any) -> None:  # pragma: no cover
    """Run out[i] = the codes cells[key of x[i, j]]."""
    codes = np.empty(x.shape[1], np.uint8)
    keys = np.empty(x.shape[1], np.uint16)
    for r in range(len(x)):
        keys_of(x[r], keys)
        for j in range(codes.size):
            codes[j] = cells[keys[j]]
        pack_row(codes, bits, out[r])
