"""Chunks of a `steps` term by compiled loops, to the bytes and bits that `stepcode` has for them.

The loops check no bounds. What they index with is counted from base, or was checked against that.
"""

from __future__ import annotations

import threading
from typing import Any, Self

import numpy as np

from bitdelta_hub.codecs.base import Array
from bitdelta_hub.codecs.ordered import CONTEXTS, Ordered
from bitdelta_hub.codecs.stepcode import ESCAPE, Planes, Split, deeper_than, low_bytes
from bitdelta_hub.kernels import compiled

WIDTHS = (16, 32)
# Memory for chunks of more elements is not kept.
KEPT = 1 << 17
_kept = threading.local()


class Loops:
    """The loops for one dtype and memory of one thread for a chunk; what they return lies there."""

    def __init__(self, native: Any, ordered: Ordered, size: int) -> None:
        words = -(-size // 8)
        self._native, self._ordered, self.size = native, ordered, size
        self._n = 0
        self.ends = np.empty(CONTEXTS, np.int64)
        self._places = np.empty(4 * CONTEXTS, np.int64)
        # Should base change meanwhile, twice as many elements still hold wherever a place is.
        self._numbers = np.empty(2 * size, f"i{ordered.width // 8}")
        self._octets = np.empty((-(-ordered.max_shift // 8), 8 * words), np.uint8)
        # What only encoders need is allocated when first needed.
        self._pairs = np.empty(0, f"u{ordered.width // 4}")
        self._symbols = self._low = np.empty(0, np.uint8)

    @classmethod
    def of(cls, ordered: Ordered, n: int) -> Self | None:
        """Loops for `n` elements; None where there are none, for want of numba or of need."""
        native = compiled()
        if native is None or n == 0 or ordered.mantissa is None or ordered.width not in WIDTHS:
            return None
        if n > KEPT:
            return cls(native, ordered, n)
        key = f"{ordered.width} {ordered.mantissa}"
        kept: Self | None = getattr(_kept, key, None)
        if kept is None or kept.size < n:
            kept = cls(native, ordered, n)
            setattr(_kept, key, kept)
        return kept

    def sort(self, base: Array, tuned: Array) -> Self:
        """Itself, with the elements of a chunk sorted by context."""
        base, tuned = _flat(base), _flat(tuned)
        assert len(tuned) == len(base)
        self.count(base)
        if not self._pairs.size:
            self._pairs = np.empty(2 * self.size, self._pairs.dtype)
            self._symbols = np.empty(self.size, np.uint8)
            self._low = np.empty(self._ordered.max_shift * -(-self.size // 8), np.uint8)
        self._call("sort", base, tuned, self._ordered.mantissa, self._places, self._pairs)
        return self

    def count(self, base: Array) -> Array:
        """For each context, how many elements of `base` have one up to it."""
        assert len(base) <= self.size
        self._n = len(base)
        self._call("count", _flat(base), self._ordered.mantissa, self._places, self.ends)
        return self.ends

    def choose_split(self, step: int) -> Split:
        """As of `SortedChunk`."""
        found = np.array([step, 0], np.int64)
        mantissa = self._ordered.mantissa
        self._call("choose", self._pairs, self.ends, mantissa, self._numbers, found)
        return Split(*found.tolist())

    def planes(self, split: Split) -> Planes:
        """As of `SortedChunk`, until the next call."""
        symbols, how = self._symbols[: self._n], self._how(split)
        self._call("split", self._pairs, self.ends, *how, self._numbers, symbols, self._octets)
        deeper = deeper_than(self.ends, split, self._ordered.max_shift)
        low = self._low[: low_bytes(deeper)]
        self._native.pack_planes(np.array(deeper, np.int64), self._octets, low)
        far = int(np.count_nonzero(symbols == ESCAPE % 256))
        escapes = np.empty((self._ordered.width // 8, far), np.uint8)
        if far:
            self._call("gather_escapes", self._numbers, symbols, self.ends, *how, escapes)
        return Planes(symbols.view(np.int8), low, escapes.reshape(-1))

    def join(self, planes: Planes, split: Split, deeper: list[int], base: Array) -> Array:
        """The tuned bit patterns, in the memory of `base`, which was counted, if that can be."""
        symbols = planes.symbols.view(np.uint8)
        escapes = planes.escapes.reshape(self._ordered.width // 8, -1)
        assert len(symbols) == len(base) == self._n
        assert len(planes.low) == low_bytes(deeper)
        self._native.unpack_planes(np.array(deeper, np.int64), planes.low, self._octets)
        how = self._how(split)
        self._call("join", symbols, self._octets, escapes, self.ends, *how, self._numbers)
        tuned = _flat(base)
        mantissa = self._ordered.mantissa
        self._call("unsort", self._numbers, split.direct, mantissa, self._places, tuned)
        return tuned

    def _how(self, split: Split) -> tuple[int, int, int]:
        return (*split, self._ordered.max_shift)

    def _call(self, name: str, *arguments: Any) -> None:
        getattr(self._native, f"{name}_{self._ordered.width}")(*arguments)


def _flat(bits: Array) -> Array:
    """`bits` where a loop can take them: a file may hold them at an odd address."""
    return np.require(bits, requirements=["C", "A"])
