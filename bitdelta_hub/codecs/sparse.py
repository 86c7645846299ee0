"""Codec `sparse`: a few elements by position, nothing elsewhere (SPEC 6.5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from bitdelta_hub.codecs.base import Allocate, Array, Decode, Params, Part, Parts, Source, View
from bitdelta_hub.codecs.content import check_finite, check_padding
from bitdelta_hub.codecs.half import HIGHEST, LOWEST, from_half, to_half
from bitdelta_hub.codecs.params import choice, integer, only_keys
from bitdelta_hub.codecs.positions import KEYS, Positions
from bitdelta_hub.codecs.sums import total
from bitdelta_hub.kernels import ops

WIDTHS = (4, 8, 16)
METHODS = ("topk", "dare")
LARGEST = float(np.finfo(np.float32).max)
# A histogram of magnitudes splits the 31 bits of an fp32 pattern here: 2^16 bins of 2^15 patterns.
LOW_BITS = 15
BINS = 1 << 16
# Scales that are tried: the largest code reaches the largest value times 2^(-i/6).
SCALES = 33
# Values that are turned into codes at a time; a multiple of 8, so that each block fills bytes.
BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Sparse:
    """Values of `bits` at `positions`; `exponent` is that of the half part of 16 bits."""

    name: ClassVar[str] = "sparse"

    positions: Positions
    bits: int
    exponent: int = 0

    def to_params(self) -> Params:
        params = self.positions.to_params() | {"bits": self.bits}
        return params | {"exponent": self.exponent} if self.bits == 16 else params

    @classmethod
    def from_params(cls, params: Mapping[str, Any], view: View, at: str) -> Self:
        half = params.get("bits") == 16
        only_keys(params, (*KEYS, "bits", *(("exponent",) if half else ())), at)
        positions = Positions.from_params(params, view.numel, at)
        bits = choice(params, "bits", WIDTHS, at)
        return cls(positions, bits, integer(params, "exponent", LOWEST, HIGHEST, at) if half else 0)

    def parts(self, view: View) -> dict[str, Part]:
        count = self.positions.count
        parts = self.positions.parts(view.numel)
        if self.bits == 16:
            return parts | {"value": Part("F16", (count,))}
        code = Part("U8", (-(-count * self.bits // 8),))
        return parts | {"code": code, "scale": Part("F32", (1,))}

    def decoder(self, parts: Parts, view: View, device: torch.device, at: str) -> Decode:
        """Values of any run of rows; raises CodecError R25, R26 or R29 for wrong content.

        Keeps 8 bytes a position.
        """
        values = self._values(parts, at)
        positions = self.positions.unpack(parts, view.numel, at)
        cols = view.cols

        def decode(start: int, stop: int) -> torch.Tensor:
            first, last = np.searchsorted(positions, (start * cols, stop * cols)).tolist()
            # x + -0.0 is x, whatever the sign of a zero x; x + 0.0 is not.
            out = torch.full(((stop - start) * cols,), -0.0, device=device)
            places = torch.from_numpy(positions[first:last] - start * cols)
            out[places.to(device)] = torch.from_numpy(values(first, last)).to(device)
            return out.view(stop - start, cols)

        return decode

    def _values(self, parts: Parts, at: str) -> Callable[[int, int], Array]:
        """fp32 values first..last of the list."""
        if self.bits == 16:
            check_finite(parts["value"], f"{at}.value")
            return lambda first, last: from_half(parts["value"][first:last], self.exponent)
        check_padding(parts["code"], self.positions.count * self.bits, f"{at}.code")
        check_finite(parts["scale"], f"{at}.scale")
        code = ops.to_tensor(parts["code"], torch.device("cpu"))
        scale = np.float32(parts["scale"][0])

        def values(first: int, last: int) -> Array:
            numbers = ops.unpack(code, self.bits, first, last).numpy().astype(np.float32)
            return (2 * numbers - np.float32(2**self.bits - 1)) * scale

        return values


@dataclass(frozen=True, slots=True)
class SparseEncoder:
    """Stores the share `density` of the elements, chosen by `method`, at `bits` each.

    `topk` takes the largest magnitudes, the first of equal ones; `dare` takes each element with
    probability `density`, by a hash of `seed` and its position, and divides it by `density`.
    Zeros are never stored. Takes 12 bytes a stored element.
    """

    codec: ClassVar[str] = "sparse"

    method: str = "topk"
    density: float = 0.05
    bits: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.method in METHODS
        assert 0 < self.density <= 1
        assert self.bits in WIDTHS

    def describe(self) -> str:
        return f"sparse {self.method} {self.density:.4g}, {self.bits} bits"

    def predict(self, view: View) -> dict[str, Part] | None:
        """None: zeros count for nothing."""
        return None

    def encode(self, source: Source, allocate: Allocate) -> Sparse:
        view = source.view
        choose = self._dare() if self.method == "dare" else _topk(source, self.density)
        positions, values = _collect(source, choose)
        if self.method == "dare":
            with np.errstate(over="ignore"):
                values = values / np.float32(self.density)
            np.clip(values, -LARGEST, LARGEST, out=values)
        form = Positions.choose(len(positions), view.numel)
        arrays = allocate(Sparse(form, self.bits))
        for name, array in form.pack(positions, view.numel).items():
            arrays[name][:] = array
        if self.bits == 16:
            arrays["value"][:], exponent = to_half(values)
            return Sparse(form, self.bits, exponent)
        arrays["scale"][0] = scale = fitted_scale(values, self.bits)
        _write_codes(arrays["code"], values, float(scale), self.bits)
        return Sparse(form, self.bits)

    def _dare(self) -> Choose:
        last = max(1, round(self.density * 2**32)) - 1 - 2**31

        def choose(first: int, diff: torch.Tensor) -> torch.Tensor:
            kept = position_hash(self.seed, first, diff.numel(), diff.device) <= last
            return kept.view(diff.shape) & (diff != 0)

        return choose


# choose(position of the first element, fp32 block) -> bool block of those to store
Choose = Callable[[int, torch.Tensor], torch.Tensor]


def _collect(source: Source, choose: Choose) -> tuple[Array, Array]:
    """Positions (int64, ascending) and fp32 values of the chosen elements."""
    positions, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for row, diff in source.diff():
        first = row * source.view.cols
        chosen = choose(first, diff).flatten().nonzero()[:, 0]
        values.append(diff.flatten()[chosen].cpu().numpy())
        positions.append(chosen.cpu().numpy() + first)
    return np.concatenate(positions), np.concatenate(values)


def position_hash(seed: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """int32 `[count]`, evenly spread over all its values: of positions first, first + 1, ..."""
    position = torch.arange(first, first + count, dtype=torch.int64, device=device)
    high = (position >> 32).to(torch.int32).add_(_signed(seed * 0x9E3779B9))
    low = (position & 0xFFFFFFFF).sub_((position & 0x80000000) << 1).to(torch.int32)
    return _mix(_mix(high) ^ low)


def _signed(x: int) -> int:
    """The int32 with the low 32 bits of `x`."""
    return (x + 2**31) % 2**32 - 2**31


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 in which every bit depends on every bit; changes `x`."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= (x >> shift) & ((1 << (32 - shift)) - 1)
        x *= _signed(factor)  # wraps
    x ^= (x >> 16) & 0xFFFF
    return x


def _topk(source: Source, density: float) -> Choose:
    """Chooses the first `density` of the elements, ordered by falling magnitude, then position."""
    wanted = round(density * source.view.numel)
    bin_, above = _threshold(_histogram(source, lambda x: x >> LOW_BITS), wanted)
    low, above_low = _threshold(
        _histogram(source, lambda x: (x & ((1 << LOW_BITS) - 1))[x >> LOW_BITS == bin_]),
        wanted - above,
    )
    least = bin_ << LOW_BITS | low
    ties = wanted - above - above_low if least else 0

    def choose(first: int, diff: torch.Tensor) -> torch.Tensor:
        nonlocal ties
        pattern = _pattern(diff)
        equal = (pattern == least).flatten().nonzero()[:, 0][:ties]
        ties -= len(equal)
        chosen = pattern > least
        chosen.view(-1)[equal] = True
        return chosen

    return choose


def _pattern(diff: torch.Tensor) -> torch.Tensor:
    """int32 bits of |diff|, which order as the magnitudes do."""
    return diff.contiguous().view(torch.int32) & 0x7FFFFFFF


def _histogram(source: Source, bins: Callable[[torch.Tensor], torch.Tensor]) -> Array:
    counts = torch.zeros(BINS, dtype=torch.int64, device=source.device)
    for _, diff in source.diff():
        counts += torch.bincount(bins(_pattern(diff)).flatten(), minlength=BINS)
    on_cpu: Array = counts.cpu().numpy()
    return on_cpu


def _threshold(counts: Array, wanted: int) -> tuple[int, int]:
    """The highest bin from which on there are `wanted`, or 0; and how many lie above it."""
    from_top = np.cumsum(counts[::-1])
    reached = min(int(np.searchsorted(from_top, wanted)), BINS - 1)
    bin_ = BINS - 1 - reached
    return bin_, int(from_top[reached] - counts[bin_])


def fitted_scale(values: Array, bits: int) -> np.float32:
    """The scale under which odd codes of `bits` bits leave the least squared error.

    By a histogram of magnitudes, so that neither order nor block size enters.
    """
    magnitude = np.abs(values).view(np.int32) >> LOW_BITS
    counts = np.bincount(magnitude, minlength=1)
    bins = np.flatnonzero(counts)
    middle = (bins << LOW_BITS | 1 << (LOW_BITS - 1)).astype(np.int32).view(np.float32)
    middle = middle.astype(np.float64)
    peak = float(np.abs(values).max(initial=0))
    top = 2**bits - 1
    trials = [np.float32(peak / top * 2 ** (-i / 6)) for i in range(SCALES if peak else 0)]
    best, least = np.float32(0), np.inf
    for trial in trials:
        coded = (2 * _codes(middle, float(trial), bits) - top) * np.float64(trial)
        if (error := total(counts[bins] * (coded - middle) ** 2)) < least:
            best, least = trial, error
    return best


def _codes(values: Array, scale: float, bits: int) -> Array:
    """fp64 codes of the odd numbers nearest to `values / scale`."""
    middle = 2 ** (bits - 1)
    if scale == 0:
        return np.full(len(values), middle, np.float64)
    codes: Array = np.clip(np.floor(values / (2 * scale)) + middle, 0, 2 * middle - 1)
    return codes


def _write_codes(out: Array, values: Array, scale: float, bits: int) -> None:
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK].astype(np.float64)
        codes = torch.from_numpy(_codes(block, scale, bits).astype(np.uint8))
        packed = ops.pack(codes, bits).numpy()
        first = start * bits // 8
        out[first : first + len(packed)] = packed
