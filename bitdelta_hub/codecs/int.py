"""`int`: integers of 2, 3, 4 or 8 bits, a scale for each group of columns (SPEC 6.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch

from bitdelta_hub.codecs.base import Allocate, Decode, Params, Part, Parts, Source, View
from bitdelta_hub.codecs.content import check_finite, check_padding
from bitdelta_hub.codecs.half import HIGHEST, LOWEST, from_half, to_half
from bitdelta_hub.codecs.params import boolean, choice, integer, only_keys
from bitdelta_hub.codecs.uniform import Uniform, quantise
from bitdelta_hub.kernels.ops import odd_numbers, pack, to_tensor

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
        zero = to_tensor(parts["zero"], device).float() if self.zeros else None

        def decode(start: int, stop: int) -> torch.Tensor:
            packed = to_tensor(code[start:stop], device)
            values = odd_numbers(packed, self.bits, view.cols)
            for columns, groups in self.spans(view.cols):
                grouped = _by_group(values[:, columns], groups)
                if zero is not None:
                    grouped += zero[start:stop, groups, None]
                grouped *= scale[start:stop, groups, None]
            return values

        return decode

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
        for start, x in source.diff():
            stop = start + len(x)
            codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
            for columns, groups in codec.spans(source.view.cols):
                part = self._quantise(x[:, columns], groups)
                codes[:, columns] = part.codes.view(len(x), -1)
                scale[start:stop, groups] = part.scale.reshape(len(x), -1)
                if self.zeros:
                    arrays["zero"][start:stop, groups] = part.zero.reshape(len(x), -1)
            arrays["code"][start:stop] = pack(codes, self.bits).cpu().numpy()
        arrays["scale"][:], exponent = to_half(scale)
        return replace(codec, exponent=exponent)

    @property
    def _codec(self) -> Int:
        return Int(self.bits, self.group, zeros=self.zeros)

    def _quantise(self, x: torch.Tensor, groups: slice) -> Uniform:
        rows = _by_group(x, groups).flatten(0, 1)
        return quantise(rows, self.bits, self.zeros, self.clip == "mse")


def _by_group(x: torch.Tensor, groups: slice) -> torch.Tensor:
    """`x` `[n, columns]` as `[n, groups, columns of one]`, sharing its memory."""
    count = groups.stop - groups.start
    return x.view(len(x), count, x.shape[1] // count)
