"""A strictly increasing list of positions, as a bitmap or in Elias-Fano form (SPEC 6.10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from bitdelta_hub.codecs.base import Array, Params, Part, Parts
from bitdelta_hub.codecs.content import check_padding
from bitdelta_hub.codecs.params import choice, integer
from bitdelta_hub.errors import CodecError

KEYS = ("count", "positions", "low_bits")
MAX_LOW_BITS = 40
# Bytes of a bit stream, or codes, that are spread out into single bits at a time.
BLOCK = 1 << 16
_POPCOUNT = np.array([i.bit_count() for i in range(256)], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Positions:
    """The stored form of `count` positions below some n; `kind` is `bitmap` or `elias-fano`."""

    kind: str
    count: int
    low_bits: int = 0

    @classmethod
    def choose(cls, count: int, n: int) -> Self:
        """The smallest form for `count` positions below `n`; on a tie the simplest one."""
        forms = [cls("bitmap", count)]
        forms += [cls("elias-fano", count, low) for low in range(MAX_LOW_BITS + 1)]
        return min(forms, key=lambda form: form.nbytes(n))

    @classmethod
    def from_params(cls, params: Mapping[str, Any], n: int, at: str) -> Self:
        """The form that the params `count`, `positions` and `low_bits` describe (R24)."""
        count = integer(params, "count", 0, n, at)
        kind = choice(params, "positions", ("bitmap", "elias-fano"), at)
        highest = MAX_LOW_BITS if kind == "elias-fano" else 0
        return cls(kind, count, integer(params, "low_bits", 0, highest, at))

    def to_params(self) -> Params:
        """The params `count`, `positions`, `low_bits`, in this order."""
        return {"count": self.count, "positions": self.kind, "low_bits": self.low_bits}

    def nbytes(self, n: int) -> int:
        """Bytes of all parts for positions below `n`."""
        return sum(part.nbytes for part in self.parts(n).values())

    def parts(self, n: int) -> dict[str, Part]:
        """dtype and shape of `bitmap`, or of `low` and `high`, in stored order."""
        if self.kind == "bitmap":
            return {"bitmap": Part("U8", (_bytes(n),))}
        return {
            "low": Part("U8", (_bytes(self.count * self.low_bits),)),
            "high": Part("U8", (_bytes(self._high_bits(n)),)),
        }

    def pack(self, indices: Array, n: int) -> dict[str, Array]:
        """The parts for `indices`, int64 `[count]`, strictly increasing and below `n`."""
        assert len(indices) == self.count
        if self.kind == "bitmap":
            return {"bitmap": _pack_ones(indices, n)}
        ones = (indices >> self.low_bits) + np.arange(self.count, dtype=np.int64)
        return {
            "low": _pack_codes(indices, self.low_bits),
            "high": _pack_ones(ones, self._high_bits(n)),
        }

    def unpack(self, parts: Parts, n: int, at: str) -> Array:
        """The positions, int64 `[count]`, strictly increasing and below `n`.

        Raises CodecError R25 for padding that is not zero, R29 for anything but `count` such
        positions. Allocates 8 bytes a position, after counting that many bits in the parts.
        """
        if self.kind == "bitmap":
            return _unpack_ones(parts["bitmap"], self.count, n, f"{at}.bitmap")
        low_bits = self.low_bits
        check_padding(parts["low"], self.count * low_bits, f"{at}.low")
        found = _unpack_ones(parts["high"], self.count, self._high_bits(n), f"{at}.high")
        found -= np.arange(self.count, dtype=np.int64)
        found <<= low_bits
        _add_codes(found, parts["low"], low_bits)
        if self.count and int(found[-1]) >= n:
            raise CodecError(f"position {found[-1]} (expected below {n})", rule="R29", at=at)
        stuck = np.flatnonzero(found[1:] <= found[:-1])
        if stuck.size:
            i = int(stuck[0])
            fact = f"position {found[i + 1]} follows {found[i]} (expected strictly increasing)"
            raise CodecError(fact, rule="R29", at=at)
        return found

    def _high_bits(self, n: int) -> int:
        return self.count + (n >> self.low_bits) + 1


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _pack_ones(ones: Array, bits: int) -> Array:
    """A stream of `bits` bits that are 1 at `ones` (ascending), built block by block."""
    out = np.empty(_bytes(bits), np.uint8)
    edges = np.arange(0, len(out) + BLOCK, BLOCK)
    cuts = np.searchsorted(ones, edges * 8)
    for start, first, last in zip(edges, cuts, cuts[1:], strict=False):
        spread = np.zeros(8 * len(out[start : start + BLOCK]), np.bool_)
        spread[ones[first:last] - 8 * start] = True
        out[start : start + BLOCK] = np.packbits(spread, bitorder="little")
    return out


def _unpack_ones(stream: Array, count: int, bits: int, at: str) -> Array:
    """Where the stream is 1, int64 `[count]`."""
    check_padding(stream, bits, at)
    total = sum(
        int(_POPCOUNT[stream[start : start + BLOCK]].sum(dtype=np.int64))
        for start in range(0, len(stream), BLOCK)
    )
    if total != count:
        raise CodecError(
            f"wrong number of positions (expected {count}, found {total})", rule="R29", at=at
        )
    out = np.empty(count, np.int64)
    filled = 0
    for start in range(0, len(stream), BLOCK):
        hits = np.flatnonzero(np.unpackbits(stream[start : start + BLOCK], bitorder="little"))
        out[filled : filled + len(hits)] = hits
        out[filled : filled + len(hits)] += 8 * start
        filled += len(hits)
    return out


def _pack_codes(values: Array, bits: int) -> Array:
    """The run of the low `bits` bits of each of `values`, int64."""
    out = np.empty(_bytes(len(values) * bits), np.uint8)
    # BLOCK is a multiple of 8, so each block of codes ends on a whole byte of the run.
    for start in range(0, len(values) if bits else 0, BLOCK):
        octets = values[start : start + BLOCK].astype("<i8").view(np.uint8).reshape(-1, 8)
        spread = np.unpackbits(octets, axis=1, count=bits, bitorder="little")
        packed = np.packbits(spread, bitorder="little")
        first = start * bits // 8
        out[first : first + len(packed)] = packed
    return out


def _add_codes(values: Array, run: Array, bits: int) -> None:
    """Adds code i of `run` to `values[i]`."""
    for start in range(0, len(values) if bits else 0, BLOCK):
        block = values[start : start + BLOCK]
        piece = run[start * bits // 8 : _bytes((start + len(block)) * bits)]
        spread = np.unpackbits(piece, count=len(block) * bits, bitorder="little")
        octets = np.packbits(spread.reshape(-1, bits), axis=1, bitorder="little")
        codes = np.zeros((len(block), 8), np.uint8)
        codes[:, : octets.shape[1]] = octets
        block += codes.view("<i8")[:, 0]
