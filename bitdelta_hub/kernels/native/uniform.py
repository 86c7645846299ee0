"""`codecs.uniform.quantise`, operation by operation, one group of columns after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitdelta_hub.kernels.native.codes import pack_row
from bitdelta_hub.kernels.native.floats import energy, fold, plain_sum
from bitdelta_hub.kernels.native.jit import (
    BOOL,
    F32_IN,
    F32_ROWS,
    F64_ROWS,
    FLOAT,
    I8_ROWS,
    INT,
    NOTHING,
    U8_ROWS,
    inline,
    loop,
)

ONE, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)


@inline
def largest(x: Any) -> Any:  # pragma: no cover
    """max |x|; patterns without their sign order as magnitudes do."""
    top = np.uint32(0)
    for i in range(x.size):
        top = max(top, np.float32(x[i]).view(np.uint32) & np.uint32(0x7FFFFFFF))
    return np.uint32(top).view(np.float32)


@inline
def number(y: Any, ratio: Any, half: Any) -> Any:  # pragma: no cover
    return min(max(np.floor(np.float32(y * ratio)), -half), half - ONE)


@inline
def missed(y: Any, ratio: Any, half: Any) -> Any:  # pragma: no cover
    steps = np.float32(y * ratio)
    off = np.float32(steps - min(max(np.floor(steps), -half), half - ONE)) - HALF
    return np.float32(off * off)


@inline
def error(y: Any, scale: Any, half: Any, folded: Any) -> Any:  # pragma: no cover
    """The squared error of y under `scale`."""
    ratio = np.float32(ONE / scale) * HALF
    width = y.size
    middle = width // 2
    if width == 1:
        total = missed(y[0], ratio, half)
    else:
        for i in range(middle):
            folded[i] = missed(y[i], ratio, half) + missed(y[i + middle], ratio, half)
        if width % 2:
            folded[0] += missed(y[width - 1], ratio, half)
        total = fold(folded, middle)
    double = TWO * scale
    return total * np.float32(double * double)


@inline
def product_sum(a: Any, b: Any, folded: Any) -> Any:  # pragma: no cover
    """The sum of a · b by the fold of `sums.row_sums`."""
    width = a.size
    half = width // 2
    if width == 1:
        return a[0] * b[0]
    for i in range(half):
        folded[i] = np.float32(a[i] * b[i]) + np.float32(a[i + half] * b[i + half])
    if width % 2:
        folded[0] += np.float32(a[width - 1] * b[width - 1])
    return fold(folded, half)


@inline
def searched(
    y: Any, half: Any, cover: Any, gaussian: Any, steps: Any, least: Any, q: Any, folded: Any
) -> Any:  # pragma: no cover
    """The scale of least error of those tried; `q` is as long as y."""
    deviation = np.sqrt(np.float32(energy(y, folded) / np.float32(y.size)))
    scale, best = cover, error(y, cover, half, folded)
    start = np.float32(deviation * gaussian)
    middle = scale
    for t in range(3 + 2 * steps.size):
        if t == 0:
            trial = start
        elif t == 1:
            trial = np.sqrt(np.float32(start * cover))
        elif t < 2 + 2 * steps.size:
            if t % 2 == 0:
                middle = scale
                trial = np.float32(middle * steps[(t - 2) // 2])
            else:
                trial = np.float32(middle / steps[(t - 2) // 2])
        else:
            ratio = np.float32(ONE / scale) * HALF
            for i in range(y.size):
                q[i] = np.float32(number(y[i], ratio, half) * TWO) + ONE
            trial = product_sum(y, q, folded) / product_sum(q, q, folded)
        trial = max(min(trial, cover), least)
        new = error(y, trial, half, folded)
        if new < best:
            scale, best = trial, new
    return scale


@inline
def eleven_bits(x: Any) -> Any:  # pragma: no cover
    """Positive fp64 x rounded to eleven significant bits, ties to even (`half.eleven_bits`)."""
    bits = np.float64(x).view(np.uint64)
    odd = (bits >> np.uint64(42)) & np.uint64(1)
    kept = np.uint64(0xFFFFFC0000000000)
    return np.uint64((bits + np.uint64(0x1FFFFFFFFFF) + odd) & kept).view(np.float64)


@loop(NOTHING, F32_ROWS, INT, INT, BOOL, BOOL, FLOAT, F32_IN, F32_IN, U8_ROWS, F64_ROWS, I8_ROWS)
def encode_int(
    x: Any,
    bits: Any,
    group: Any,
    zeros: Any,
    search: Any,
    gaussian: Any,
    steps: Any,
    limits: Any,
    packed: Any,
    scale: Any,
    zero: Any,
) -> None:  # pragma: no cover
    """Runs, scales and, with `zeros`, zeros of finite x, in groups of `group` columns.

    `limits`: the least scale, the largest zero, the largest factor.
    """
    rows, cols = x.shape
    half = np.float32(1 << (bits - 1))
    least, most_zero, most_factor = limits[0], limits[1], limits[2]
    scaled = np.empty(group, np.float32)
    about = np.empty(group, np.float32)
    numbers = np.empty(group, np.float32)
    folded = np.empty(max(1, group // 2), np.float32)
    codes = np.empty(cols, np.uint8)
    for r in range(rows):
        for g in range(scale.shape[1]):
            values = x[r, g * group : min((g + 1) * group, cols)]
            width = values.size
            y, centred = scaled[:width], about[:width]
            top = largest(values)
            factor = min(np.float32(ONE / top), most_factor)
            for i in range(width):
                y[i] = values[i] * factor
            centre = np.float32(0)
            if zeros:
                if search:
                    centre = plain_sum(y, folded) / np.float32(width)
                else:
                    high, low = y[0], y[0]
                    for i in range(width):
                        high, low = max(high, y[i]), min(low, y[i])
                    centre = np.float32(high + low) / TWO
                for i in range(width):
                    centred[i] = y[i] - centre
            else:
                centred = y
            fitted = max(largest(centred) / np.float32((1 << bits) - 1), least)
            if search:
                q = numbers[:width]
                fitted = searched(centred, half, fitted, gaussian, steps, least, q, folded)
            fitted = max(fitted, np.float32(abs(centre) / most_zero))
            unit = np.float64(factor)
            stored = eleven_bits(np.float64(fitted) / unit)
            near = np.float32(stored * unit)
            ratio = np.float32(ONE / near) * HALF
            shift = np.float32(0)
            if zeros:
                shift = min(max(np.rint(np.float32(centre / near)), -most_zero), most_zero)
                zero[r, g] = np.int8(shift)
                shift = np.float32(near * shift)
            first = g * group
            for i in range(width):
                code = number(np.float32(y[i] - shift), ratio, half) + half
                codes[first + i] = np.uint8(np.int32(code))
            scale[r, g] = np.float64(0) if top == 0 else stored
        pack_row(codes, bits, packed[r])
