"""The kernels in numpy, one core. Meaning and shapes stand in `ops`, the oracle in `reference`.

Codes lie one in a byte when unpacked. A word is as many bytes as hold whole codes both unpacked
and packed; in log2 steps on whole words, neighbouring lanes of codes are pushed together or apart.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# bits -> codes in a word; the packed word has codes·bits/8 bytes
CODES = {1: 8, 2: 4, 3: 8, 4: 2, 5: 8, 6: 8, 7: 8}


def pack(codes: Array, bits: int) -> Array:
    n = codes.shape[-1]
    if bits == 1:
        return np.packbits(codes, axis=-1, bitorder="little")
    if bits == 8:
        return codes
    if bits == 16:
        return _bytes(codes.astype("<u2"))
    words = _bytes(_padded(codes, CODES[bits])).view(f"<u{CODES[bits]}")
    for lane, gap, lower in _steps(bits, words.dtype.itemsize):
        words = (words & lower) | ((words >> gap) & (lower << lane))
    return _narrow(words, CODES[bits] * bits // 8)[..., : -(-n * bits // 8)]


def unpack(packed: Array, bits: int, start: int, stop: int) -> Array:
    if bits == 8:
        return packed[..., start:stop]
    if bits == 16:
        return _bytes(packed[..., 2 * start : 2 * stop]).view("<u2").astype(np.int32)
    size = CODES[bits]
    first, last = start // size, -(-stop // size)
    width = size * bits // 8
    packed = packed[..., first * width : last * width]
    if bits == 1:
        codes = np.unpackbits(packed, axis=-1, bitorder="little")
    else:
        words = _widen(_padded(packed, width), width, size)
        for lane, gap, lower in reversed(_steps(bits, size)):
            words = (words & lower) | ((words & (lower << lane)) << gap)
        codes = words.view(np.uint8)
    return codes[..., start - first * size : stop - first * size]


def pack_signs(x: Array) -> Array:
    return np.packbits(np.greater_equal(x, 0), axis=-1, bitorder="little")


def lookup(packed: Array, bits: int, cols: int, table: Array) -> Array:
    if 8 % bits:
        return take(table, unpack(packed, bits, 0, cols))
    entries = table[_codes_of_bytes(bits)]
    wide = (*packed.shape[:-1], packed.shape[-1] * 8 // bits)
    return np.take(entries, packed, axis=0, mode="clip").reshape(wide)[..., :cols]


def take(table: Array, indices: Array) -> Array:
    return np.take(table, indices, mode="clip")  # clip: no second pass that looks for bad ones


def count(indices: Array, size: int) -> Array:
    return np.bincount(indices.reshape(-1), minlength=size)


def odd_numbers(packed: Array, bits: int, cols: int) -> Array:
    if bits <= 2:
        return lookup(packed, bits, cols, _odd_table(bits))
    numbers = unpack(packed, bits, 0, cols).astype(np.float32)
    numbers *= 2
    numbers -= 2**bits - 1
    return numbers


@cache
def _codes_of_bytes(bits: int) -> Array:
    """The codes `[256, 8 / bits]` in each byte, for bits 1, 2, 4, 8."""
    every = np.arange(256, dtype=np.uint8)[:, None]
    return (every >> np.arange(0, 8, bits, dtype=np.uint8)) & np.uint8(2**bits - 1)


@cache
def _odd_table(bits: int) -> Array:
    return np.arange(1 - 2**bits, 2**bits, 2, dtype=np.float32)


@cache
def _steps(bits: int, size: int) -> tuple[tuple[Any, Any, Any], ...]:
    """(packed width, gap, mask of the lower lanes) of each step, for words of `size` bytes."""
    word = np.dtype(f"<u{size}").type
    steps = []
    half = 8
    while half < 8 * size:
        lane = half // 8 * bits
        lower = sum(((1 << lane) - 1) << at for at in range(0, 8 * size, 2 * half))
        steps.append((word(lane), word(half - lane), word(lower)))
        half *= 2
    return tuple(steps)


def _narrow(words: Array, width: int) -> Array:
    """The low `width` bytes of each word, joined."""
    size = words.dtype.itemsize
    wide = words.view(np.uint8).reshape(*words.shape, size)
    narrow = np.empty((*words.shape, width), np.uint8)
    for i in range(width):  # columns: a copy of rows of so few bytes is several times slower
        narrow[..., i] = wide[..., i]
    return narrow.reshape(*words.shape[:-1], words.shape[-1] * width)


def _widen(packed: Array, width: int, size: int) -> Array:
    """Words of `size` bytes, each from `width` bytes."""
    shape = (*packed.shape[:-1], packed.shape[-1] // width)
    narrow = packed.reshape(*shape, width)
    wide = np.zeros((*shape, size), np.uint8)
    for i in range(width):
        wide[..., i] = narrow[..., i]
    return wide.reshape(*packed.shape[:-1], shape[-1] * size).view(f"<u{size}")


def _padded(values: Array, multiple: int) -> Array:
    """`values` with its last axis filled with zeros to a multiple, C-contiguous."""
    n = values.shape[-1]
    if n % multiple == 0:
        return np.ascontiguousarray(values)
    padded = np.zeros((*values.shape[:-1], n + -n % multiple), values.dtype)
    padded[..., :n] = values
    return padded


def _bytes(values: Array) -> Array:
    """The bytes of `values`, along the last axis."""
    values = np.ascontiguousarray(values)
    shape = (*values.shape[:-1], values.shape[-1] * values.itemsize)
    return values.view(np.uint8).reshape(shape)
