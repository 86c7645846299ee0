"""`patch`: single elements of the tuned tensor (SPEC 6.8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from bitdelta_hub.codecs.base import (
    Allocate,
    Array,
    Overwrite,
    Params,
    Part,
    Parts,
    Source,
    View,
)
from bitdelta_hub.codecs.params import only_keys
from bitdelta_hub.codecs.positions import KEYS, Positions
from bitdelta_hub.codecs.raw import as_bits


@dataclass(frozen=True, slots=True)
class Patch:
    """The positions' parts and `value`: new bit patterns for the listed elements."""

    name: ClassVar[str] = "patch"

    positions: Positions

    def to_params(self) -> Params:
        """`count`, `positions`, `low_bits`."""
        return self.positions.to_params()

    @classmethod
    def from_params(cls, params: Mapping[str, Any], view: View, at: str) -> Self:
        """The codec; raises CodecError (R24) for anything else than the positions' params."""
        only_keys(params, KEYS, at)
        return cls(Positions.from_params(params, view.numel, at))

    def parts(self, view: View) -> dict[str, Part]:
        """The positions' parts, then `value` of the tensor's dtype, `[count]`."""
        value = Part(view.dtype, (self.positions.count,))
        return {**self.positions.parts(view.numel), "value": value}

    def row_step(self, view: View) -> int:
        """1: any range of rows will do."""
        return 1

    def overwriter(self, parts: Parts, view: View, at: str) -> Overwrite:
        """Sets the listed elements of the range; raises CodecError (R25, R29)."""
        positions = self.positions.unpack(parts, view.numel, at)
        values = as_bits(parts["value"], view.dtype)
        cols = view.cols

        def overwrite(start: int, stop: int, bits: Array) -> None:
            first, last = np.searchsorted(positions, (start * cols, stop * cols))
            rows, columns = np.divmod(positions[first:last], cols)
            bits[rows - start, columns] = values[first:last]

        return overwrite


@dataclass(frozen=True, slots=True, eq=False)
class PatchEncoder:
    """Stores the elements at `positions` (ascending), or every element that changed.

    `count` is the number of changed elements if the caller knows it; it serves prediction only.
    """

    codec: ClassVar[str] = "patch"

    positions: Array | None = None
    count: int | None = None

    def describe(self) -> str:
        """`patch`."""
        return "patch"

    def predict(self, view: View) -> dict[str, Part] | None:
        """The parts where the number of elements is known."""
        count = self.count if self.positions is None else len(self.positions)
        return None if count is None else Patch(Positions.choose(count, view.numel)).parts(view)

    def encode(self, source: Source, allocate: Allocate) -> Patch:
        """Gathers positions and values in one pass, 8 bytes and one element for each."""
        pairs = list(self._gather(source))
        positions = np.concatenate([found for found, _ in pairs] or [np.empty(0, np.int64)])
        n = source.view.numel
        codec = Patch(Positions.choose(len(positions), n))
        arrays = allocate(codec)
        for part, packed in codec.positions.pack(positions, n).items():
            arrays[part][:] = packed
        if pairs:
            values = np.concatenate([values for _, values in pairs])
            as_bits(arrays["value"], source.view.dtype)[:] = values
        return codec

    def _gather(self, source: Source) -> Iterator[tuple[Array, Array]]:
        for start, base, tuned in source.bits():
            first = start * source.view.cols
            flat = tuned.reshape(-1)
            if self.positions is None:
                local = np.flatnonzero(base.reshape(-1) != flat)
            else:
                low, high = np.searchsorted(self.positions, (first, first + flat.size))
                local = self.positions[low:high] - first
            yield local + first, flat[local]
