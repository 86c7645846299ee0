"""Loops compiled by numba, where it is installed: one pass and one call where numpy needs many.

Threads that work side by side lose more time to handing over the interpreter's lock, once per call,
than to arithmetic; each loop here runs without the lock. The order of every sum is that of
`codecs.sums`, and nothing is compiled with fast-math: the bits are the same with and without numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

U16, F32 = types.Array(types.uint16, 1, "C", readonly=True), types.float32[::1]


@njit(types.boolean(U16, U16, F32), nogil=True, cache=True)
def bf16_difference(a: Any, b: Any, out: Any) -> bool:  # pragma: no cover - compiled
    """out[i] = fp32(a[i]) - fp32(b[i]) of bf16 bit patterns; whether all of out is finite."""
    infinite = np.uint32(0x7F800000)
    bad = np.uint32(0)
    for i in range(out.size):
        left = np.uint32(np.uint32(a[i]) << np.uint32(16)).view(np.float32)
        right = np.uint32(np.uint32(b[i]) << np.uint32(16)).view(np.float32)
        value = left - right
        out[i] = value
        bad |= np.uint32((np.float32(value).view(np.uint32) & infinite) == infinite)
    return bad == 0


@njit(types.float32(types.uint16, types.uint16), nogil=True, cache=True, inline="always")
def _gap(a: Any, b: Any) -> Any:  # pragma: no cover - compiled
    left = np.uint32(np.uint32(a) << np.uint32(16)).view(np.float32)
    right = np.uint32(np.uint32(b) << np.uint32(16)).view(np.float32)
    gap = np.float32(left - right)
    return np.float32(gap * gap)


@njit(types.float32(F32, types.int64), nogil=True, cache=True, inline="always")
def _fold(folded: Any, half: Any) -> Any:  # pragma: no cover - compiled
    while half > 1:
        width, half = half, half // 2
        for i in range(half):
            folded[i] += folded[i + half]
        if width % 2:
            folded[0] += folded[width - 1]
    return folded[0]


@njit(types.float32(F32, F32), nogil=True, cache=True)
def energy(x: Any, folded: Any) -> Any:  # pragma: no cover - compiled
    """The sum of squares of x by the fold of `sums.row_sums`; `folded` is half as long as x."""
    width = x.size
    if width == 1:
        return x[0] * x[0]
    half = width // 2
    for i in range(half):
        folded[i] = x[i] * x[i] + x[i + half] * x[i + half]
    if width % 2:
        folded[0] += x[width - 1] * x[width - 1]
    return _fold(folded, half)


@njit(types.void(types.float32[:, ::1], F32, F32, F32), nogil=True, cache=True)
def row_magnitudes(x: Any, folded: Any, first: Any, second: Any) -> None:  # pragma: no cover
    """first[i], second[i] = sum of |x[i]|, of x[i]² by the fold of `sums.row_sums`.

    Squares are left out where `second` is empty. `folded` is half as long as a row.
    """
    rows, width = x.shape
    half = width // 2
    for r in range(rows):
        if width == 1:
            first[r] = abs(x[r, 0])
            if second.size:
                second[r] = x[r, 0] * x[r, 0]
            continue
        for i in range(half):
            folded[i] = abs(x[r, i]) + abs(x[r, i + half])
        if width % 2:
            folded[0] += abs(x[r, width - 1])
        first[r] = _fold(folded, half)
        if second.size:
            second[r] = energy(x[r], folded)


@njit(types.void(types.float32[:, ::1], F32, F32), nogil=True, cache=True)
def row_sums(x: Any, folded: Any, out: Any) -> None:  # pragma: no cover - compiled
    """out[i] = sum of x[i] by the fold of `sums.row_sums`; `folded` is half as long as a row."""
    rows, width = x.shape
    half = width // 2
    for r in range(rows):
        if width == 1:
            out[r] = x[r, 0]
            continue
        for i in range(half):
            folded[i] = x[r, i] + x[r, i + half]
        if width % 2:
            folded[0] += x[r, width - 1]
        out[r] = _fold(folded, half)


@njit(types.float32(U16, U16, F32), nogil=True, cache=True)
def bf16_gap(a: Any, b: Any, folded: Any) -> Any:  # pragma: no cover - compiled
    """`energy` of fp32(a) - fp32(b), bf16 bit patterns; not finite where one of the gaps is not."""
    width = a.size
    half = max(1, width // 2)
    if width == 1:
        return _gap(a[0], b[0])
    for i in range(half):
        folded[i] = _gap(a[i], b[i]) + _gap(a[i + half], b[i + half])
    if width % 2:
        folded[0] += _gap(a[width - 1], b[width - 1])
    return _fold(folded, half)


@njit(types.void(F32), nogil=True, cache=True)
def round_bf16(x: Any) -> None:  # pragma: no cover - compiled
    """x[i] = fp32(bf16(x[i])), to nearest even; x is finite."""
    for i in range(x.size):
        bits = np.float32(x[i]).view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        bits = np.uint32(bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
        x[i] = np.uint32(bits).view(np.float32)


@njit(types.void(types.float32[:, ::1], types.uint8[:, ::1]), nogil=True, cache=True)
def pack_signs(x: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Bit j of run out[i] = x[i, j] >= 0 (`ops.pack_signs`)."""
    rows, width = x.shape
    for r in range(rows):
        for k in range(width // 8):
            byte = np.uint8(0)
            for j in range(8):
                byte |= np.uint8(x[r, 8 * k + j] >= 0) << np.uint8(j)
            out[r, k] = byte
        if width % 8:
            byte = np.uint8(0)
            for j in range(width // 8 * 8, width):
                byte |= np.uint8(x[r, j] >= 0) << np.uint8(j % 8)
            out[r, width // 8] = byte


@njit(
    types.void(types.Array(types.uint8, 2, "C", readonly=True), F32, F32, types.float32[:, ::1]),
    nogil=True,
    cache=True,
)
def signed(packed: Any, row: Any, col: Any, out: Any) -> None:  # pragma: no cover - compiled
    """out[i, j] = row[i] · col[j], negated where the bit is 0; `row`, `col` may hold one number."""
    rows, width = out.shape
    flip = np.uint32(0x80000000)
    whole = width // 8
    for r in range(rows):
        scale = row[r] if row.size > 1 else row[0]
        if col.size > 1:
            for j in range(width):
                out[r, j] = scale * col[j]
        else:
            out[r, :] = scale * col[0]
        bits = out[r].view(np.uint32)
        for k in range(whole):
            minus = ~np.uint32(packed[r, k])
            for j in range(8):
                bits[8 * k + j] ^= (minus << np.uint32(31 - j)) & flip
        for j in range(8 * whole, width):
            minus = ~np.uint32(packed[r, whole])
            bits[j] ^= (minus << np.uint32(31 - j % 8)) & flip
