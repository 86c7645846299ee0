"""`int`: integers of 2, 3, 4 or 8 bits, a scale for each group of columns (SPEC 6.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch

from bitdelta_hub.codecs.base import Allocate, Array, Decode, Params, Part, Parts, Source, View
from bitdelta_hub.codecs.content import check_finite, check_padding
from bitdelta_hub.codecs.half import HIGHEST, LOWEST, from_half, to_half
from bitdelta_hub.codecs.params import boolean, choice, integer, only_keys
from bitdelta_hub.codecs.uniform import quantise, search_constants
from bitdelta_hub.kernels import compiled
from bitdelta_hub.kernels.ops import is_compilable, odd_numbers, pack, to_tensor

WIDTHS = (2, 3, 4, 8)
LARGEST_GROUP = 2**20


@dataclass(frozen=True, slots=True)
class Int:
    """An odd number, moved by a zero where there is one, times the scale of its group."""

    name: ClassVar[str] = "int"

    bits: int
    group: int = 0
    exponent: int = 0
    zeros: bool = False

    def to_params(self) -> Params:
        return {
            "bits": self.bits,
            "group": self.group,
            "exponent": self.exponent,
            "zeros": self.zeros,
        }

    @classmethod
    def from_params(cls, params: Mapping[str, Any], view: View, at: str) -> Self:
        only_keys(params, ("bits", "group", "exponent", "zeros"), at)
        return cls(
            choice(params, "bits", WIDTHS, at),
            integer(params, "group", 0, LARGEST_GROUP, at),
            integer(params, "exponent", LOWEST, HIGHEST, at),
            boolean(params, "zeros", at),
        )

    def parts(self, view: View) -> dict[str, Part]:
        groups = -(-view.cols // self.group) if self.group else 1
        parts = {
            "code": Part("U8", (view.total_rows, -(-view.cols * self.bits // 8))),
            "scale": Part("F16", (view.total_rows, groups)),
        }
        if self.zeros:
            parts["zero"] = Part("I8", (view.total_rows, groups))
        return parts

    def decoder(self, parts: Parts, view: View, device: torch.device, at: str) -> Decode:
        code = parts["code"]
        check_padding(code, view.cols * self.bits, f"{at}.code")
        check_finite(parts["scale"], f"{at}.scale")
        scale = to_tensor(from_half(parts["scale"], self.exponent), device)
        zero = torch.empty((view.total_rows, 0), device=device)
        if self.zeros:
            zero = to_tensor(parts["zero"], device).float()
        buffer = torch.empty((0, view.cols), device=device)

        def decode(start: int, stop: int) -> torch.Tensor:
            nonlocal buffer
            packed = to_tensor(code[start:stop], device)
            native = compiled() if is_compilable(buffer) and view.numel else None
            if not native:
                return self._values(packed, scale[start:stop], zero[start:stop], view.cols)
            if len(buffer) < stop - start:
                buffer = torch.empty((stop - start, view.cols))
            out, group = buffer[: stop - start], self.group or view.cols
            scales = scale[start:stop].numpy(), zero[start:stop].numpy()
            native.int_values(packed.numpy(), self.bits, group, *scales, out.numpy())
            return out

        return decode

    def _values(
        self, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, cols: int
    ) -> torch.Tensor:
        values = odd_numbers(packed, self.bits, cols)
        for columns, groups in self.spans(cols):
            grouped = _by_group(values[:, columns], groups)
            if self.zeros:
                grouped += zero[:, groups, None]
            grouped *= scale[:, groups, None]
        return values

    def spans(self, cols: int) -> Iterator[tuple[slice, slice]]:
        """(columns, groups) of the groups of full width, then of the narrower last one."""
        width = min(self.group, cols) or cols
        full = cols // width if width else 0
        if full:
            yield slice(0, full * width), slice(0, full)
        if full * width < cols:
            yield slice(full * width, cols), slice(full, full + 1)


@dataclass(frozen=True, slots=True)
class IntEncoder:
    """Integers whose scales are fitted by squared error (`clip` = `mse`) or cover all (`max`)."""

    codec: ClassVar[str] = "int"

    bits: int
    group: int = 0
    zeros: bool = False
    clip: str = "mse"

    def describe(self) -> str:
        group = f" groups of {self.group}" if self.group else ""
        return f"int {self.bits}-bit{group}{' with zeros' if self.zeros else ''} {self.clip}"

    def predict(self, view: View) -> dict[str, Part] | None:
        return self._codec.parts(view)

    def encode(self, source: Source, allocate: Allocate) -> Int:
        codec = self._codec
        arrays = allocate(codec)
        scale = np.zeros(arrays["scale"].shape)
        zero = arrays["zero"] if self.zeros else np.empty((len(scale), 0), np.int8)
        for start, x in source.diff():
            rows = slice(start, start + len(x))
            self._encode(x, arrays["code"][rows], scale[rows], zero[rows])
        arrays["scale"][:], exponent = to_half(scale)
        return replace(codec, exponent=exponent)

    @property
    def _codec(self) -> Int:
        return Int(self.bits, self.group, zeros=self.zeros)

    def _encode(self, x: torch.Tensor, code: Array, scale: Array, zero: Array) -> None:
        """Fills the rows of all three that belong to `x`."""
        search, cols = self.clip == "mse", x.shape[1]
        native = compiled() if is_compilable(x) else None
        if native:
            group = min(self.group, cols) or cols
            how = self.bits, group, self.zeros, search, *search_constants(self.bits)
            native.encode_int(x.numpy(), *how, code, scale, zero)
            return
        codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
        for columns, groups in self._codec.spans(cols):
            rows = _by_group(x[:, columns], groups).flatten(0, 1)
            part = quantise(rows, self.bits, self.zeros, search)
            codes[:, columns] = part.codes.view(len(x), -1)
            scale[:, groups] = part.scale.reshape(len(x), -1)
            if self.zeros:
                zero[:, groups] = part.zero.reshape(len(x), -1)
        code[:] = pack(codes, self.bits).cpu().numpy()


def _by_group(x: torch.Tensor, groups: slice) -> torch.Tensor:
    """`x` `[n, columns]` as `[n, groups, columns of one]`, sharing its memory."""
    count = groups.stop - groups.start
    return x.view(len(x), count, x.shape[1] // count)
