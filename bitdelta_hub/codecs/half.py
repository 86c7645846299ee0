"""Half parts: fp16 numbers under one power of two (SPEC section 1, "Half parts")."""

from __future__ import annotations

import math

import numpy as np

from bitdelta_hub.codecs.base import Array

LOWEST, HIGHEST = -126, 112
LARGEST = float(np.finfo(np.float16).max)
# The largest number lands in [2^14, 2^15), one doubling below the top, so that rounding cannot
# overflow; 29 halvings below it numbers still have all eleven bits.
TOP = 15


def to_half(values: Array) -> tuple[Array, int]:
    """(fp16 array, exponent) nearest to finite `values` (fp32 or fp64, any shape)."""
    largest = float(np.max(np.abs(values), initial=0.0))
    exponent = math.frexp(largest)[1] - TOP if largest else 0
    exponent = min(max(exponent, LOWEST), HIGHEST)
    scaled = np.ldexp(values.astype(np.float64), -exponent)
    return np.clip(scaled, -LARGEST, LARGEST).astype(np.float16), exponent


def from_half(half: Array, exponent: int) -> Array:
    """The fp32 values `fp32(half) · 2^exponent`, of `half`'s shape."""
    values: Array = half.astype(np.float32) * np.float32(2.0**exponent)
    return values


def eleven_bits(values: Array) -> Array:
    """fp64 `values` rounded to the eleven significant bits that a half part can keep.

    What an encoder may reckon with before it knows the exponent of the whole part.
    """
    fraction, exponent = np.frexp(values)
    rounded: Array = np.ldexp(np.rint(np.ldexp(fraction, 11)), exponent - 11)
    return rounded
