"""Codec `lowrank`: singular vectors as integer codes under integer gains (SPEC 6.4).

All products of codes and gains are integers whose sum is exact in any order, so a decoded slice
has the same bits on every device, library and block shape. One multiplication by an fp32 scale
follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from bitdelta_hub.codecs.base import (
    Allocate,
    Array,
    Decode,
    Params,
    Part,
    Parts,
    Source,
    View,
)
from bitdelta_hub.codecs.content import check_finite, check_padding
from bitdelta_hub.codecs.factor import factorise
from bitdelta_hub.codecs.params import choice, integer, only_keys, shown
from bitdelta_hub.errors import CodecError
from bitdelta_hub.kernels import ops

WIDTHS = (2, 3, 4, 8, 16)
MAX_GROUPS = 16
MAX_RANK = 1 << 16
MAX_GAIN = (1 << 16) - 1
# Integers below these are exact in fp32 and fp64 (R27).
EXACT_SINGLE, EXACT_DOUBLE = 1 << 24, 1 << 53
# Gains of at least this many steps for the largest are fine enough to stay below EXACT_SINGLE.
FINE_GAIN = 1 << 10
# What the name, dtype, shape and offsets of a part take in a shard's header, about.
HEADER_BYTES = 120

Group = tuple[int, int, int]


def _top(bits: int) -> int:
    return (1 << bits) - 1


@dataclass(frozen=True, slots=True)
class LowRank:
    """`groups` of (rank, bits of u, bits of v); the codec's wire form."""

    name: ClassVar[str] = "lowrank"

    groups: tuple[Group, ...]

    def to_params(self) -> Params:
        """The params in the spec's order."""
        return {"groups": [list(group) for group in self.groups]}

    @classmethod
    def from_params(cls, params: Mapping[str, Any], view: View, at: str) -> Self:
        """The codec that `params` describe; raises CodecError (R24)."""
        only_keys(params, ("groups",), at)
        groups = params["groups"]
        if type(groups) is not list or not 1 <= len(groups) <= MAX_GROUPS:
            expected = f"1 to {MAX_GROUPS} groups"
            raise _wrong(groups, expected, f"{at}.groups")
        return cls(tuple(_group(group, f"{at}.groups[{g}]") for g, group in enumerate(groups)))

    def parts(self, view: View) -> dict[str, Part]:
        """`u0`, `v0`, `gain0`, `u1`, ..., `scale`."""
        out: dict[str, Part] = {}
        for g, (rank, u_bits, v_bits) in enumerate(self.groups):
            out[f"u{g}"] = Part("U8", (view.batch, rank, -(-view.rows * u_bits // 8)))
            out[f"v{g}"] = Part("U8", (view.batch, rank, -(-view.cols * v_bits // 8)))
            out[f"gain{g}"] = Part("U16", (view.batch, rank))
        out["scale"] = Part("F32", (view.batch, len(self.groups)))
        return out

    def decoder(self, parts: Parts, view: View, device: torch.device, at: str) -> Decode:
        """Values of any run of rows; raises CodecError R25, R26 or R27 for wrong content.

        Keeps the right vectors of one matrix as integers in fp32 or fp64.
        """
        _check(self.groups, parts, view, at)
        matrices = _Matrices(self.groups, parts, view, device)

        def decode(start: int, stop: int) -> torch.Tensor:
            out = torch.empty((stop - start, view.cols), dtype=torch.float32, device=device)
            for index, first, last in view.matrices(start, stop):
                top = index * view.rows
                target = out[first - start : last - start]
                matrices[index].write(target, first - top, last - top)
            return out

        return decode


def _group(group: Any, at: str) -> Group:
    if type(group) is not list or len(group) != 3:
        raise _wrong(group, "[rank, bits of u, bits of v]", at)
    named = dict(zip(("rank", "u_bits", "v_bits"), group, strict=True))
    rank = integer(named, "rank", 1, MAX_RANK, at)
    return rank, choice(named, "u_bits", WIDTHS, at), choice(named, "v_bits", WIDTHS, at)


def _wrong(value: Any, expected: str, at: str) -> CodecError:
    fact = f"wrong value (expected {expected}, found {shown(value)})"
    return CodecError(fact, rule="R24", at=at)


def _weight(u_bits: int, v_bits: int) -> int:
    """The largest product of a code of u and one of v."""
    return _top(u_bits) * _top(v_bits)


def _bounds(gains: Array, group: Group) -> list[int]:
    """What no sum of products of each matrix can exceed, from `gains` `[batch, rank]`."""
    weight = _weight(group[1], group[2])
    return [int(total) * weight for total in gains.sum(axis=1, dtype=np.int64)]


def _check(groups: Sequence[Group], parts: Parts, view: View, at: str) -> None:
    for g, group in enumerate(groups):
        check_padding(parts[f"u{g}"], view.rows * group[1], f"{at}.u{g}")
        check_padding(parts[f"v{g}"], view.cols * group[2], f"{at}.v{g}")
        for index, bound in enumerate(_bounds(parts[f"gain{g}"], group)):
            if bound >= EXACT_DOUBLE:
                fact = f"sum of products in matrix {index} may reach {bound} (expected below 2^53)"
                raise CodecError(fact, rule="R27", at=f"{at}.gain{g}")
    check_finite(parts["scale"], f"{at}.scale")


@dataclass(frozen=True, slots=True)
class _Term:
    """One group of one matrix, ready to be multiplied out."""

    packed_u: torch.Tensor
    u_bits: int
    gain: torch.Tensor
    v: torch.Tensor
    scale: torch.Tensor

    def values(self, first: int, last: int) -> torch.Tensor:
        """fp32 `[last - first, cols]`."""
        codes = ops.unpack(self.packed_u, self.u_bits, first, last)
        u = codes.to(self.v.dtype).mul_(2).sub_(_top(self.u_bits)).mul_(self.gain)
        # A sum of zeros of either sign is the integer 0, which has none.
        return _exact_product(u.T, self.v).float().add_(0.0).mul_(self.scale)


class _Matrices:
    """Matrix by index, prepared once; only the last one asked for is kept."""

    def __init__(
        self, groups: Sequence[Group], parts: Parts, view: View, device: torch.device
    ) -> None:
        self._groups = groups
        self._parts = parts
        self._view = view
        self._device = device
        self._bounds = [_bounds(parts[f"gain{g}"], group) for g, group in enumerate(groups)]
        self._last: tuple[int, _Matrix] | None = None

    def __getitem__(self, index: int) -> _Matrix:
        last = self._last  # one read: another thread may replace it meanwhile
        if last is None or last[0] != index:
            last = index, _Matrix([self._term(g, index) for g in range(len(self._groups))])
            self._last = last
        return last[1]

    def _term(self, g: int, index: int) -> _Term:
        _, u_bits, v_bits = self._groups[g]
        # On CUDA an fp32 product may silently be TF32, by a flag of the process; fp64 may not.
        single = self._bounds[g][index] < EXACT_SINGLE and self._device.type == "cpu"
        dtype = torch.float32 if single else torch.float64
        codes = ops.unpack(self._load(f"v{g}", index), v_bits, 0, self._view.cols)
        gain = torch.from_numpy(self._parts[f"gain{g}"][index].astype(np.float64))
        return _Term(
            packed_u=self._load(f"u{g}", index),
            u_bits=u_bits,
            gain=gain[:, None].to(self._device, dtype),
            v=codes.to(dtype).mul_(2).sub_(_top(v_bits)),
            scale=torch.tensor(float(self._parts["scale"][index, g]), dtype=torch.float32),
        )

    def _load(self, part: str, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self._parts[part][index])).to(self._device)


@dataclass(frozen=True, slots=True)
class _Matrix:
    terms: list[_Term]

    def write(self, out: torch.Tensor, first: int, last: int) -> None:
        """Fills `out` with rows first..last: the groups' values added in order."""
        out.copy_(self.terms[0].values(first, last))
        for term in self.terms[1:]:
            out.add_(term.values(first, last))


def _exact_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left @ right` of integers whose sums of magnitudes the type holds exactly."""
    if left.device.type == "cpu":
        # Not by torch, whose flags let a CPU with bf16 units take fp32 products there.
        return torch.from_numpy(np.asarray(left.numpy() @ right.numpy()))
    return left @ right


@dataclass(frozen=True, slots=True)
class LowRankEncoder:
    """Encodes in `groups` of (rank, bits of u, bits of v), clipped to the rank of the matrix.

    `unbiased` gains restore the length that quantising takes from each singular pair; gains of
    least squares have a smaller error and, on fine-tuned models, several times the KL divergence.
    The same source gives the same bytes on one device with one set of libraries.
    """

    codec: ClassVar[str] = "lowrank"

    groups: tuple[Group, ...]
    unbiased: bool = True

    def __post_init__(self) -> None:
        assert 1 <= len(self.groups) <= MAX_GROUPS
        assert all(1 <= rank <= MAX_RANK for rank, _, _ in self.groups)
        assert all(u in WIDTHS and v in WIDTHS for _, u, v in self.groups)

    def describe(self) -> str:
        """E.g. `lowrank 2x8+24x3`: rank x bits."""
        return "lowrank " + "+".join(
            f"{rank}x{u}" if u == v else f"{rank}x{u}/{v}" for rank, u, v in self.groups
        )

    def predict(self, view: View) -> dict[str, Part]:
        return self._clipped(view).parts(view)

    def encode(self, source: Source, allocate: Allocate) -> LowRank:
        """Takes one matrix at a time, in fp64: some five times its fp32 bytes."""
        codec = self._clipped(source.view)
        arrays = allocate(codec)
        if source.view.numel:
            for index in range(source.view.batch):
                _encode_matrix(source.matrix(index), codec.groups, self.unbiased, arrays, index)
        return codec

    def _clipped(self, view: View) -> LowRank:
        left = max(1, min(view.rows, view.cols))
        groups = []
        for rank, u_bits, v_bits in self.groups:
            if rank := min(rank, left):
                groups.append((rank, u_bits, v_bits))
                left -= rank
        return LowRank(tuple(groups))


@dataclass(frozen=True, slots=True)
class BudgetLowRankEncoder:
    """Encodes at most `bits` bits per weight, header included, with ranks from the shape.

    `shares` are (bits of both codes, share of the budget), the leading singular vectors first.
    What a group cannot spend goes to the next. A matrix too small for any vector gets one.
    """

    codec: ClassVar[str] = "lowrank"

    bits: float = 1.0
    shares: tuple[tuple[int, float], ...] = ((8, 0.03), (4, 0.37), (2, 0.6))
    unbiased: bool = True

    def describe(self) -> str:
        """E.g. `lowrank 8+3+2 bits, 1 a weight`."""
        widths = "+".join(str(width) for width, _ in self.shares)
        return f"lowrank {widths} bits, {self.bits:g} a weight"

    def predict(self, view: View) -> dict[str, Part]:
        return self.fixed(view).predict(view)

    def encode(self, source: Source, allocate: Allocate) -> LowRank:
        """Takes one matrix at a time, as `LowRankEncoder` does."""
        return self.fixed(source.view).encode(source, allocate)

    def fixed(self, view: View) -> LowRankEncoder:
        """The encoder with the ranks that a tensor seen as `view` is given."""
        part = HEADER_BYTES / max(1, view.batch)
        total = self.bits * view.rows * view.cols / 8 - part
        left = min(view.rows, view.cols, MAX_RANK)
        groups: list[Group] = []
        unspent = 0.0
        for width, share in self.shares:
            fixed = 3 * part + 4
            vector = -(-view.rows * width // 8) + -(-view.cols * width // 8) + 2
            unspent += share * total
            rank = min(left, math.floor((unspent - fixed) / vector))
            if rank > 0:
                groups.append((rank, width, width))
                unspent -= fixed + rank * vector
                left -= rank
        smallest = (1, self.shares[-1][0], self.shares[-1][0])
        return LowRankEncoder(tuple(groups) or (smallest,), self.unbiased)


def _encode_matrix(
    matrix: torch.Tensor, groups: Sequence[Group], unbiased: bool, arrays: Parts, index: int
) -> None:
    exponent = math.frexp(float(matrix.abs().max()))[1]
    tops = [(rank, _top(u_bits), _top(v_bits)) for rank, u_bits, v_bits in groups]
    unit = matrix.double() * 2.0**-exponent
    factors = factorise(unit, tops, unbiased=unbiased)
    first = 0
    for g, group in enumerate(groups):
        part = slice(first, first + group[0])
        first += group[0]
        scale, gains = _integer_gains(factors.gain[part].cpu().numpy(), exponent, group)
        arrays[f"u{g}"][index] = _pack(factors.u[part], group[1])
        arrays[f"v{g}"][index] = _pack(factors.v[part], group[2])
        arrays[f"gain{g}"][index] = gains
        arrays["scale"][index, g] = scale


def _pack(odd: torch.Tensor, bits: int) -> Array:
    codes = odd.add(_top(bits)).div_(2).to(torch.uint8 if bits <= 8 else torch.int32)
    return ops.pack(codes, bits).cpu().numpy()


def _integer_gains(gain: Array, exponent: int, group: Group) -> tuple[np.float32, Array]:
    """An fp32 scale and u16 gains `[rank]` whose products are nearest to `gain * 2^exponent`.

    Gains stay so small that fp32 holds every sum, if the largest still has ten bits then (R27).
    """
    peak = float(gain.max())
    if peak == 0:
        return np.float32(0), np.zeros(len(gain), np.uint16)
    relative = gain / peak
    highest = _highest_gain(relative, group, EXACT_SINGLE)
    if highest < FINE_GAIN:
        highest = _highest_gain(relative, group, EXACT_DOUBLE)
    ideal = math.ldexp(peak / highest, exponent)
    scale = np.float32(min(ideal, float(np.finfo(np.float32).max)))
    if scale == 0:
        return scale, np.zeros(len(gain), np.uint16)
    steps = np.ldexp(gain, exponent) / np.float64(scale)
    return scale, np.clip(np.rint(steps), 0, highest).astype(np.uint16)


def _highest_gain(relative: Array, group: Group, limit: int) -> int:
    """The highest integer for the largest gain that keeps every sum of products below `limit`."""
    rank, u_bits, v_bits = group
    room = (limit - 1) // _weight(u_bits, v_bits) - rank / 2
    return max(0, min(MAX_GAIN, math.floor(room / math.fsum(relative))))
