"""One chunk of a `steps` term: numbers to symbols, low bits and escapes, and back (SPEC 6.9)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from bitdelta_hub.codecs.base import Array
from bitdelta_hub.codecs.ordered import CONTEXTS, Ordered

ESCAPE = -128
MAX_ANCHOR = 511


class Split(NamedTuple):
    """What a chunk's numbers count from, and how many low bits they set apart, by context.

    Below context `direct` a number is the tuned value's own and sets `max_shift` bits apart;
    from there on it is the distance from base, and one bit fewer with each context up to `anchor`.
    """

    direct: int
    anchor: int

    def contexts_above(self, bit: int) -> int:
        """How many contexts, the first ones, set more than `bit` < `max_shift` bits apart."""
        return min(CONTEXTS, max(self.direct, self.anchor - bit))


def below(ends: Array, context: int) -> int:
    """How many elements have a smaller context, where `ends[c]` have one up to `c`."""
    return int(ends[context - 1]) if context else 0


def deeper_than(ends: Array, split: Split, max_shift: int) -> list[int]:
    """How many elements set more than 0, 1, ..., `max_shift` - 1 bits apart: the first ones."""
    return [below(ends, split.contexts_above(bit)) for bit in range(max_shift)]


def arrange(contexts: Array) -> tuple[Array, Array]:
    """(stable order of `contexts`, uint8; for each context how many have one up to it)."""
    order = np.argsort(contexts, kind="stable")
    return order, np.searchsorted(contexts[order], np.arange(CONTEXTS), side="right")


def _runs(deeper: list[int], n: int) -> Iterator[tuple[int, slice]]:
    """(shift, elements that set so many bits apart), without those that set none apart."""
    for shift in range(1, len(deeper) + 1):
        start = deeper[shift] if shift < len(deeper) else 0
        if start < deeper[shift - 1]:
            yield shift, slice(start, deeper[shift - 1])


class Planes(NamedTuple):
    """What a chunk is stored as, before entropy coding."""

    symbols: Array  # int8 [n], in the order of the arrangement
    low: Array  # uint8, bit planes from bit 0 up, each padded to whole bytes
    escapes: Array  # uint8, byte planes from byte 0 up, of the numbers without a symbol


class SortedChunk:
    """The elements of a chunk sorted by context; `ends[c]` have a context up to `c`."""

    def __init__(self, ordered: Ordered, base: Array, tuned: Array) -> None:
        self._ordered = ordered
        self._contexts = ordered.contexts(base)
        self._order, self.ends = arrange(self._contexts)
        self._values = ordered.fold(base, tuned)
        self._distances = (self._values - ordered.origin(base))[self._order]

    def choose_split(self, step: int) -> Split:
        """A good split, from every `step`-th element."""
        sample = slice(None, None, step)
        contexts = self._contexts[self._order[sample]]
        return choose_split(self._ordered, contexts, self._distances[sample])

    def planes(self, split: Split) -> Planes:
        """What the chunk is stored as."""
        numbers = self._distances.copy()
        direct = self._order[: below(self.ends, split.direct)]
        numbers[: len(direct)] = self._values[direct]
        return split_numbers(numbers, deeper_than(self.ends, split, self._ordered.max_shift))


def split_numbers(numbers: Array, deeper: list[int]) -> Planes:
    """The planes of `numbers`, signed `[n]` in the order of the arrangement."""
    high = numbers.copy()
    for shift, run in _runs(deeper, len(numbers)):
        high[run] >>= shift
    symbols = high.astype(np.int8)
    far = np.flatnonzero((symbols != high) | (symbols == ESCAPE))
    symbols[far] = ESCAPE
    octets = high[far].view(np.uint8).reshape(-1, high.itemsize)
    return Planes(symbols, _pack_low(numbers, deeper), octets.T.reshape(-1))


def low_bytes(deeper: list[int]) -> int:
    """The size of all bit planes."""
    return sum(-(-count // 8) for count in deeper)


def dirty_plane(low: Array, deeper: list[int]) -> int | None:
    """The first bit plane whose padding is not zero."""
    ends = accumulate(-(-count // 8) for count in deeper)
    for bit, (count, end) in enumerate(zip(deeper, ends, strict=True)):
        if count % 8 and int(low[end - 1]) >> (count % 8):
            return bit
    return None


def join_numbers(planes: Planes, deeper: list[int], width: int) -> Array:
    """The numbers of `planes`, whose sizes are right."""
    numbers = planes.symbols.astype(f"<i{width // 8}")
    far = np.flatnonzero(planes.symbols == ESCAPE)
    octets = planes.escapes.reshape(width // 8, -1).T
    numbers[far] = np.ascontiguousarray(octets).view(numbers.dtype)[:, 0]
    for shift, run in _runs(deeper, len(numbers)):
        numbers[run] <<= shift
    _add_low(numbers, planes.low, deeper)
    return numbers


def _pack_low(numbers: Array, deeper: list[int]) -> Array:
    planes = [np.empty(0, np.uint8)]
    for first in range(0, len(deeper), 8):
        octets = (numbers[: deeper[first]] >> first).astype(np.uint8)
        for bit, count in enumerate(deeper[first : first + 8]):
            planes.append(np.packbits(octets[:count] & np.uint8(1 << bit), bitorder="little"))
    return np.concatenate(planes)


def _add_low(numbers: Array, low: Array, deeper: list[int]) -> None:
    sizes = [-(-count // 8) for count in deeper]
    starts = [0, *accumulate(sizes)]
    for first in range(0, len(deeper), 8):
        octets = np.zeros(deeper[first], np.uint8)
        for bit in reversed(range(first, min(first + 8, len(deeper)))):
            plane = low[starts[bit] : starts[bit + 1]]
            octets += octets
            octets[: deeper[bit]] |= np.unpackbits(plane, count=deeper[bit], bitorder="little")
        numbers[: len(octets)] |= octets.astype(numbers.dtype) << first


def choose_split(ordered: Ordered, contexts: Array, distances: Array) -> Split:
    """A good split for a sample of a chunk: distances from base and their contexts, ascending.

    Any split is decodable; this one loses a few hundredths of a bit against the best.
    """
    size = np.where(distances < 0, ~distances, distances).view(f"u{distances.itemsize}")
    direct = _choose_direct(ordered, contexts, size)
    start = int(np.searchsorted(contexts, direct))
    if start == len(contexts):
        return Split(direct, 0)
    bits = np.frexp(size[start:].astype(np.float64))[1]
    levels = contexts[start:].astype(np.int64)
    need = np.sort(np.where(bits > 5, levels + bits - 5, 0))
    # All but one number in 128 get a symbol from -32 to 31: finer symbols cost larger tables
    # and more escapes. And a symbol keeps the top two bits of the median: below is noise.
    rare = int(need[len(need) - 1 - len(need) // 128])
    middle = int(np.median(levels + bits)) - 2
    return Split(direct, min(max(0, min(rare, middle)), MAX_ANCHOR))


def _choose_direct(ordered: Ordered, contexts: Array, size: Array) -> int:
    """The first context at which the distance from base says more than the tuned value alone."""
    if ordered.mantissa is None or ordered.width == 64:
        return 0  # a symbol is too narrow for F64's exponents
    far = np.where(size > 0.6 * 2**ordered.mantissa, 1, -1)
    gain = np.cumsum(np.bincount(contexts, weights=far, minlength=CONTEXTS))
    best = int(np.argmax(gain))
    return best + 1 if gain[best] > 0 else 0
