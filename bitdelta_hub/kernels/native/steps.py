"""`steps`: elements sorted by exponent, split into symbols, bit planes and escapes; and back.

`mantissa` is that of the dtype, whose exponent has at most 8 bits. `places` is I64 [4 · 256]: the
elements are sorted as four quarters side by side: one alone would wait for its own counters.
`ends` is I64 [256]: how many elements have a context up to each. `octets` is U8 [3, 8 · words].
Whatever the elements hold, no place is beyond twice their number: what places lead to has as many.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from bitdelta_hub.kernels.native.jit import (
    I64,
    INT,
    NOTHING,
    U8,
    U8_IN,
    U8_ROWS,
    U8_ROWS_IN,
    U16,
    U16_IN,
    inline,
    loop,
)

I16, I32, U32, U64 = types.int16[::1], types.int32[::1], types.uint32[::1], types.uint64[::1]
U32_IN = types.Array(types.uint32, 1, "C", readonly=True)
CONTEXTS, LANES = 256, 4
ESCAPE, MAX_ANCHOR = -128, 511
# Words of eight octets that are turned at a time; they stay in the first cache.
STRETCH = 512


@inline
def context(bits: Any, mantissa: Any, mask: Any) -> Any:  # pragma: no cover
    return (np.uint64(bits) >> mantissa) & mask


@inline
def exponent_mask(base: Any, mantissa: Any) -> Any:  # pragma: no cover
    """At most 255, for any mantissa."""
    width = np.iinfo(base.dtype).bits
    return np.uint64(min(CONTEXTS, 1 << (width - 1 - mantissa)) - 1)


@inline
def count(base: Any, mantissa: Any, places: Any, ends: Any) -> None:  # pragma: no cover
    """places[256 · q + c] = where the first element of quarter q and context c belongs."""
    mask, shift = exponent_mask(base, mantissa), np.uint64(mantissa)
    for i in range(places.size):
        places[i] = 0
    quarter = base.size // LANES
    for i in range(quarter):
        for lane in range(LANES):
            c = context(base[lane * quarter + i], shift, mask)
            places[np.uint64(lane * CONTEXTS) + c] += 1
    for i in range(LANES * quarter, base.size):
        c = context(base[i], shift, mask)
        places[np.uint64((LANES - 1) * CONTEXTS) + c] += 1
    at = 0
    for c in range(CONTEXTS):
        for lane in range(LANES):
            size = places[lane * CONTEXTS + c]
            places[lane * CONTEXTS + c] = at
            at += size
        ends[c] = at


@inline
def take_place(places: Any, lane: Any, c: Any) -> Any:  # pragma: no cover
    """The next place for an element of this quarter and context."""
    index = np.uint64(lane * CONTEXTS) + c
    place = np.uint64(places[index])
    places[index] += 1
    return place


@inline
def sort(base: Any, tuned: Any, mantissa: Any, places: Any, pairs: Any) -> None:  # pragma: no cover
    """pairs = base's bits with those of tuned above them, in the order of `places`."""
    mask, shift = exponent_mask(base, mantissa), np.uint64(mantissa)
    above = np.uint64(np.iinfo(base.dtype).bits)
    quarter = base.size // LANES
    for i in range(quarter):
        for lane in range(LANES):
            at = lane * quarter + i
            bits = base[at]
            place = take_place(places, lane, context(bits, shift, mask))
            pairs[place] = np.uint64(bits) | (np.uint64(tuned[at]) << above)
    for at in range(LANES * quarter, base.size):
        bits = base[at]
        place = take_place(places, LANES - 1, context(bits, shift, mask))
        pairs[place] = np.uint64(bits) | (np.uint64(tuned[at]) << above)


@inline
def value(pair: Any, numbers: Any, from_base: Any) -> Any:  # pragma: no cover
    """The number of an element: of tuned itself, or counted from base where that is -1, not 0."""
    signed = numbers.dtype.type
    width = np.iinfo(numbers.dtype).bits
    top = 1 << (width - 1)
    base = signed(pair)
    folded = signed(signed(pair >> np.uint64(width)) ^ signed(base & signed(top)))
    folded = signed(folded ^ signed(signed(folded >> (width - 1)) & signed(top - 1)))
    return signed(folded - signed(signed(base & signed(top - 1)) & signed(from_base)))


@inline
def choose(
    pairs: Any, ends: Any, mantissa: Any, numbers: Any, found: Any
) -> None:  # pragma: no cover
    """found = direct and anchor, as `stepcode.choose_split`, from every `found[0]`-th element."""
    n, step = ends[CONTEXTS - 1], found[0]
    samples = -(-n // step)
    levels, bits = np.empty(samples, np.int64), np.empty(samples, np.int64)
    gain = np.zeros(CONTEXTS, np.int64)
    most = int(0.6 * (1 << mantissa))
    c = 0
    for k in range(samples):
        while ends[c] <= k * step:
            c += 1
        distance = np.int64(value(pairs[k * step], numbers, -1))
        size = ~distance if distance < 0 else distance
        levels[k] = c
        bits[k] = math.frexp(float(size))[1]
        gain[c] += 1 if size > most else -1
    best, direct, total = 0, 0, 0
    for c in range(CONTEXTS):
        total += gain[c]
        if total > best:
            best, direct = total, c + 1
    needs, tops = np.zeros(2 * CONTEXTS, np.int64), np.zeros(2 * CONTEXTS, np.int64)
    rest = 0
    for k in range(samples):
        if levels[k] >= direct:
            needs[levels[k] + bits[k] - 5 if bits[k] > 5 else 0] += 1
            tops[levels[k] + bits[k]] += 1
            rest += 1
    found[0] = direct
    found[1] = 0
    if rest:
        rare = ranked(needs, rest - 1 - rest // 128)
        middle = (ranked(tops, (rest - 1) // 2) + ranked(tops, rest // 2)) // 2 - 2
        found[1] = min(max(0, min(rare, middle)), MAX_ANCHOR)


@inline
def ranked(counts: Any, rank: Any) -> Any:  # pragma: no cover
    """The number at place `rank` of those that are counted, ascending."""
    seen = 0
    for number in range(counts.size):
        seen += counts[number]
        if seen > rank:
            return number
    return counts.size


@inline
def shift_of(c: Any, direct: Any, anchor: Any, most: Any) -> Any:  # pragma: no cover
    return most if c < direct else min(most, max(0, anchor - c))


@inline
def split(
    pairs: Any, ends: Any, direct: Any, anchor: Any, most: Any,
    numbers: Any, symbols: Any, octets: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """symbols, and the low bits byte by byte, where there are any."""
    start = 0
    for c in range(CONTEXTS):
        run = slice(start, ends[c])
        start = ends[c]
        k = shift_of(c, direct, anchor, most)
        part = numbers[run]
        fold_run(pairs[run], 0 if c < direct else -1, part)
        for level in range((k + 7) // 8):
            low_run(part, 8 * level, k, octets[level, run])
        if np.iinfo(part.dtype).bits == 16:
            symbols_of_16(part, k, symbols[run])
        else:
            symbols_of_32(part, k, symbols[run])


@inline
def fold_run(pairs: Any, from_base: Any, numbers: Any) -> None:  # pragma: no cover
    for i in range(numbers.size):
        numbers[i] = value(pairs[i], numbers, from_base)


@inline
def low_run(numbers: Any, first: Any, k: Any, octets: Any) -> None:  # pragma: no cover
    mask = np.uint8((((1 << k) - 1) >> first) & 255)
    if first == 0:
        for i in range(numbers.size):
            octets[i] = np.uint8(numbers[i]) & mask
    else:
        for i in range(numbers.size):
            octets[i] = np.uint8(numbers[i] >> first) & mask


@inline
def symbols_of_16(numbers: Any, k: Any, symbols: Any) -> None:  # pragma: no cover
    # A factor and a fixed shift: a shift by what is only known later is made in 64 bits.
    factor = np.int32(1 << (16 - k))
    for i in range(numbers.size):
        high = np.int16(np.int32(np.int32(numbers[i]) * factor) >> 16)
        far = (high > np.int16(127)) | (high < np.int16(-127))
        symbols[i] = np.uint8(128) if far else np.uint8(high)


@inline
def symbols_of_32(numbers: Any, k: Any, symbols: Any) -> None:  # pragma: no cover
    for i in range(numbers.size):
        high = np.int32(np.int64(numbers[i]) >> k)
        far = (high > np.int32(127)) | (high < np.int32(-127))
        symbols[i] = np.uint8(128) if far else np.uint8(high)


@inline
def has_escape(word: Any) -> Any:  # pragma: no cover
    """Whether one of eight symbols is an escape: becomes zero, from which borrowing 1 shows."""
    other = word ^ np.uint64(0x8080808080808080)
    borrowed = (other - np.uint64(0x0101010101010101)) & ~other
    return (borrowed & np.uint64(0x8080808080808080)) != np.uint64(0)


@inline
def find_escapes(symbols: Any, places: Any) -> None:  # pragma: no cover
    """places = where the escapes are, as many as there are or as `places` has room for."""
    found = 0
    words = symbols[: symbols.size // 8 * 8].view(np.uint64)
    for g in range(words.size):
        if has_escape(words[g]):
            for i in range(8 * g, 8 * g + 8):
                if symbols[i] == np.uint8(128) and found < places.size:
                    places[found] = i
                    found += 1
    for i in range(8 * words.size, symbols.size):
        if symbols[i] == np.uint8(128) and found < places.size:
            places[found] = i
            found += 1


@inline
def gather_escapes(
    numbers: Any, symbols: Any, ends: Any, direct: Any, anchor: Any, most: Any, escapes: Any
) -> None:  # pragma: no cover
    """escapes[j, i] = byte j of the i-th number without a symbol, shifted."""
    places = np.zeros(escapes.shape[1], np.int64)
    find_escapes(symbols, places)
    c = 0
    for found in range(places.size):
        while ends[c] <= places[found]:
            c += 1
        high = np.int64(numbers[places[found]]) >> shift_of(c, direct, anchor, most)
        for j in range(len(escapes)):
            escapes[j, found] = np.uint8((high >> (8 * j)) & 255)


@inline
def put_escapes(
    symbols: Any, escapes: Any, ends: Any, direct: Any, anchor: Any, most: Any, numbers: Any
) -> None:  # pragma: no cover
    """Undoes `gather_escapes` where the low bits are in place already."""
    places = np.zeros(escapes.shape[1], np.int64)
    find_escapes(symbols, places)
    c = 0
    for found in range(places.size):
        while ends[c] <= places[found]:
            c += 1
        k = shift_of(c, direct, anchor, most)
        high = np.uint64(0)
        for j in range(len(escapes)):
            high |= np.uint64(escapes[j, found]) << np.uint64(8 * j)
        low = np.int64(numbers[places[found]]) & ((1 << k) - 1)
        numbers[places[found]] = (np.int64(high) << k) | low


@inline
def turned(word: Any) -> Any:  # pragma: no cover
    """Bit i of byte j is what bit j of byte i was."""
    other = (word ^ (word >> np.uint64(7))) & np.uint64(0x00AA00AA00AA00AA)
    word = word ^ other ^ (other << np.uint64(7))
    other = (word ^ (word >> np.uint64(14))) & np.uint64(0x0000CCCC0000CCCC)
    word = word ^ other ^ (other << np.uint64(14))
    other = (word ^ (word >> np.uint64(28))) & np.uint64(0x00000000F0F0F0F0)
    return word ^ other ^ (other << np.uint64(28))


@loop(NOTHING, I64, U8_ROWS, U8)
def pack_planes(deeper: Any, octets: Any, low: Any) -> None:  # pragma: no cover
    """low = for each bit a plane of the first deeper[bit] octets' bits, padded to whole bytes.

    `octets` is overwritten."""
    at = 0
    for first in range(0, deeper.size, 8):
        words = octets[first // 8].view(np.uint64)
        count = (deeper[first] + 7) // 8
        for i in range(deeper[first], 8 * count):
            octets[first // 8, i] = 0
        for start in range(0, count, STRETCH):
            stop = min(start + STRETCH, count)
            for g in range(start, stop):
                words[g] = turned(words[g])
            plane = at
            for bit in range(first, min(first + 8, deeper.size)):
                size = (deeper[bit] + 7) // 8
                until = min(stop, size)
                shift = np.uint64(8 * (bit - first))
                if start < until:
                    source, target = words[start:until], low[plane + start : plane + until]
                    for g in range(target.size):
                        target[g] = np.uint8((source[g] >> shift) & np.uint64(255))
                plane += size
        for bit in range(first, min(first + 8, deeper.size)):
            at += (deeper[bit] + 7) // 8


@loop(NOTHING, I64, U8_IN, U8_ROWS)
def unpack_planes(deeper: Any, low: Any, octets: Any) -> None:  # pragma: no cover
    """octets[i, j] = bits 8i to 8i + 7 of element j, for the first deeper[8i] elements."""
    at = 0
    for first in range(0, deeper.size, 8):
        words = octets[first // 8].view(np.uint64)
        count = (deeper[first] + 7) // 8
        for start in range(0, count, STRETCH):
            stop = min(start + STRETCH, count)
            for g in range(start, stop):
                words[g] = np.uint64(0)
            plane = at
            for bit in range(first, min(first + 8, deeper.size)):
                size = (deeper[bit] + 7) // 8
                until = min(stop, size)
                shift = np.uint64(8 * (bit - first))
                if start < until:
                    source, target = low[plane + start : plane + until], words[start:until]
                    for g in range(target.size):
                        target[g] |= np.uint64(source[g]) << shift
                plane += size
            for g in range(start, stop):
                words[g] = turned(words[g])
        for bit in range(first, min(first + 8, deeper.size)):
            at += (deeper[bit] + 7) // 8


@inline
def join(
    symbols: Any, octets: Any, escapes: Any, ends: Any, direct: Any, anchor: Any, most: Any,
    numbers: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """numbers, sorted; `escapes` has a column for each symbol that is an escape."""
    start = 0
    for c in range(CONTEXTS):
        run = slice(start, ends[c])
        start = ends[c]
        k = shift_of(c, direct, anchor, most)
        part, high = numbers[run], symbols[run]
        if k == 0:
            for i in range(part.size):
                part[i] = np.int8(high[i])
        else:
            join_run(high, octets[0, run], k, part)
            for level in range(1, (k + 7) // 8):
                add_run(octets[level, run], 8 * level, part)
    if escapes.shape[1]:
        put_escapes(symbols, escapes, ends, direct, anchor, most, numbers)


@inline
def join_run(high: Any, low: Any, k: Any, numbers: Any) -> None:  # pragma: no cover
    signed = numbers.dtype.type
    factor = signed(1 << k)
    for i in range(numbers.size):
        numbers[i] = signed(signed(signed(np.int8(high[i])) * factor) | signed(low[i]))


@inline
def add_run(low: Any, first: Any, numbers: Any) -> None:  # pragma: no cover
    signed = numbers.dtype.type
    for i in range(numbers.size):
        numbers[i] |= signed(signed(low[i]) << first)


@inline
def unfolded(base: Any, number: Any, from_base: Any, numbers: Any) -> Any:  # pragma: no cover
    """`value` undone."""
    signed = numbers.dtype.type
    width = np.iinfo(numbers.dtype).bits
    top = 1 << (width - 1)
    base = signed(base)
    folded = signed(number + signed(signed(base & signed(top - 1)) & signed(from_base)))
    folded = signed(folded ^ signed(signed(folded >> (width - 1)) & signed(top - 1)))
    return signed(folded ^ signed(base & signed(top)))


@inline
def unfold_run(numbers: Any, direct: Any, mantissa: Any, bits: Any) -> None:  # pragma: no cover
    """Turns base into tuned in place."""
    # Contexts are compared where they are, as the exponents that they are.
    signed = numbers.dtype.type
    low = signed((1 << (np.iinfo(numbers.dtype).bits - 1)) - 1)
    first = np.int64(direct) << mantissa
    for i in range(bits.size):
        from_base = -(np.int64(signed(bits[i]) & low) >= first)
        bits[i] = unfolded(bits[i], numbers[i], from_base, numbers)


@inline
def unsort(
    numbers: Any, direct: Any, mantissa: Any, places: Any, bits: Any
) -> None:  # pragma: no cover
    """Turns base into tuned in place: each element takes its number back from where it is."""
    mask, shift = exponent_mask(bits, mantissa), np.uint64(mantissa)
    taken = np.empty((LANES, STRETCH), numbers.dtype)
    quarter = bits.size // LANES
    for start in range(0, quarter, STRETCH):
        size = min(STRETCH, quarter - start)
        for i in range(size):
            for lane in range(LANES):
                c = context(bits[lane * quarter + start + i], shift, mask)
                taken[lane, i] = numbers[take_place(places, lane, c)]
        for lane in range(LANES):
            at = lane * quarter + start
            unfold_run(taken[lane, :size], direct, mantissa, bits[at : at + size])
    for at in range(LANES * quarter, bits.size):
        c = context(bits[at], shift, mask)
        taken[0, 0] = numbers[take_place(places, LANES - 1, c)]
        unfold_run(taken[0, :1], direct, mantissa, bits[at : at + 1])


@loop(NOTHING, U16_IN, INT, I64, I64)
def count_16(base: Any, mantissa: Any, places: Any, ends: Any) -> None:  # pragma: no cover
    count(base, mantissa, places, ends)


@loop(NOTHING, U32_IN, INT, I64, I64)
def count_32(base: Any, mantissa: Any, places: Any, ends: Any) -> None:  # pragma: no cover
    count(base, mantissa, places, ends)


@loop(NOTHING, U16_IN, U16_IN, INT, I64, U32)
def sort_16(
    base: Any, tuned: Any, mantissa: Any, places: Any, pairs: Any
) -> None:  # pragma: no cover
    sort(base, tuned, mantissa, places, pairs)


@loop(NOTHING, U32_IN, U32_IN, INT, I64, U64)
def sort_32(
    base: Any, tuned: Any, mantissa: Any, places: Any, pairs: Any
) -> None:  # pragma: no cover
    sort(base, tuned, mantissa, places, pairs)


@loop(NOTHING, U32, I64, INT, I16, I64)
def choose_16(
    pairs: Any, ends: Any, mantissa: Any, numbers: Any, found: Any
) -> None:  # pragma: no cover
    choose(pairs, ends, mantissa, numbers, found)


@loop(NOTHING, U64, I64, INT, I32, I64)
def choose_32(
    pairs: Any, ends: Any, mantissa: Any, numbers: Any, found: Any
) -> None:  # pragma: no cover
    choose(pairs, ends, mantissa, numbers, found)


@loop(NOTHING, U32, I64, INT, INT, INT, I16, U8, U8_ROWS)
def split_16(
    pairs: Any,
    ends: Any,
    direct: Any,
    anchor: Any,
    most: Any,
    numbers: Any,
    symbols: Any,
    octets: Any,
) -> None:  # pragma: no cover
    split(pairs, ends, direct, anchor, most, numbers, symbols, octets)


@loop(NOTHING, U64, I64, INT, INT, INT, I32, U8, U8_ROWS)
def split_32(
    pairs: Any,
    ends: Any,
    direct: Any,
    anchor: Any,
    most: Any,
    numbers: Any,
    symbols: Any,
    octets: Any,
) -> None:  # pragma: no cover
    split(pairs, ends, direct, anchor, most, numbers, symbols, octets)


@loop(NOTHING, I16, U8, I64, INT, INT, INT, U8_ROWS)
def gather_escapes_16(
    numbers: Any, symbols: Any, ends: Any, direct: Any, anchor: Any, most: Any, escapes: Any
) -> None:  # pragma: no cover
    gather_escapes(numbers, symbols, ends, direct, anchor, most, escapes)


@loop(NOTHING, I32, U8, I64, INT, INT, INT, U8_ROWS)
def gather_escapes_32(
    numbers: Any, symbols: Any, ends: Any, direct: Any, anchor: Any, most: Any, escapes: Any
) -> None:  # pragma: no cover
    gather_escapes(numbers, symbols, ends, direct, anchor, most, escapes)


@loop(NOTHING, U8_IN, U8_ROWS, U8_ROWS_IN, I64, INT, INT, INT, I16)
def join_16(
    symbols: Any,
    octets: Any,
    escapes: Any,
    ends: Any,
    direct: Any,
    anchor: Any,
    most: Any,
    numbers: Any,
) -> None:  # pragma: no cover
    join(symbols, octets, escapes, ends, direct, anchor, most, numbers)


@loop(NOTHING, U8_IN, U8_ROWS, U8_ROWS_IN, I64, INT, INT, INT, I32)
def join_32(
    symbols: Any,
    octets: Any,
    escapes: Any,
    ends: Any,
    direct: Any,
    anchor: Any,
    most: Any,
    numbers: Any,
) -> None:  # pragma: no cover
    join(symbols, octets, escapes, ends, direct, anchor, most, numbers)


@loop(NOTHING, I16, INT, INT, I64, U16)
def unsort_16(
    numbers: Any, direct: Any, mantissa: Any, places: Any, bits: Any
) -> None:  # pragma: no cover
    unsort(numbers, direct, mantissa, places, bits)


@loop(NOTHING, I32, INT, INT, I64, U32)
def unsort_32(
    numbers: Any, direct: Any, mantissa: Any, places: Any, bits: Any
) -> None:  # pragma: no cover
    unsort(numbers, direct, mantissa, places, bits)
