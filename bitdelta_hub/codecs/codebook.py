"""`codebook`: indices of 1 to 8 bits into a table of levels (SPEC 6.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch

from bitdelta_hub.codecs.base import Allocate, Array, Decode, Params, Part, Parts, Source, View
from bitdelta_hub.codecs.content import check_finite, check_padding
from bitdelta_hub.codecs.half import HIGHEST, LOWEST, from_half, to_half
from bitdelta_hub.codecs.levels import (
    KEYS,
    Cells,
    add_counts,
    lloyd_max,
    magnitude_blocks,
    pack_cells,
)
from bitdelta_hub.codecs.params import integer, only_keys
from bitdelta_hub.kernels.ops import lookup, to_tensor

MOST_ROWS = 2**20


@dataclass(frozen=True, slots=True)
class Codebook:
    """The level at an index, from the table of the row's group or matrix."""

    name: ClassVar[str] = "codebook"

    bits: int
    rows: int = 0
    exponent: int = 0

    def to_params(self) -> Params:
        return {"bits": self.bits, "rows": self.rows, "exponent": self.exponent}

    @classmethod
    def from_params(cls, params: Mapping[str, Any], view: View, at: str) -> Self:
        only_keys(params, ("bits", "rows", "exponent"), at)
        return cls(
            integer(params, "bits", 1, 8, at),
            integer(params, "rows", 0, MOST_ROWS, at),
            integer(params, "exponent", LOWEST, HIGHEST, at),
        )

    def parts(self, view: View) -> dict[str, Part]:
        return {
            "index": Part("U8", (view.total_rows, -(-view.cols * self.bits // 8))),
            "levels": Part("F16", (view.batch * self._tables(view), 2**self.bits)),
        }

    def decoder(self, parts: Parts, view: View, device: torch.device, at: str) -> Decode:
        index = parts["index"]
        check_padding(index, view.cols * self.bits, f"{at}.index")
        check_finite(parts["levels"], f"{at}.levels")
        levels = to_tensor(from_half(parts["levels"], self.exponent), device)

        def decode(start: int, stop: int) -> torch.Tensor:
            pieces = [torch.empty((0, view.cols), device=device)]
            for table, first, last in self.spans(view, start, stop):
                packed = to_tensor(index[first:last], device)
                pieces.append(lookup(packed, self.bits, view.cols, levels[table]))
            return pieces[1] if len(pieces) == 2 else torch.cat(pieces)

        return decode

    def spans(self, view: View, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(table, first row, last row + 1) of each table that has rows in start..stop."""
        rows = self.rows or view.rows
        for matrix, first, last in view.matrices(start, stop):
            origin = matrix * view.rows
            while first < last:
                group = (first - origin) // rows
                end = min(last, origin + (group + 1) * rows)
                yield matrix * self._tables(view) + group, first, end
                first = end

    def _tables(self, view: View) -> int:
        """Tables of one matrix."""
        return -(-view.rows // self.rows) if self.rows else 1


@dataclass(frozen=True, slots=True)
class CodebookEncoder:
    """Levels of least squared error (`fit` = `lloyd`), or a sign and magnitude `blocks` of equal
    population (`magnitude`; as many as the bits have room for where not given)."""

    codec: ClassVar[str] = "codebook"

    bits: int
    fit: str = "lloyd"
    rows: int = 0
    blocks: int | None = None

    def describe(self) -> str:
        fit = f"{self._blocks} magnitude blocks" if self.fit == "magnitude" else "Lloyd-Max"
        return f"codebook {self.bits}-bit {fit}" + (f" per {self.rows} rows" if self.rows else "")

    def predict(self, view: View) -> dict[str, Part] | None:
        return self._codec.parts(view)

    def encode(self, source: Source, allocate: Allocate) -> Codebook:
        codec = self._codec
        arrays = allocate(codec)
        cells = self._fit_tables(codec, source)
        for start, x in source.diff():
            for table, first, last in codec.spans(source.view, start, start + len(x)):
                rows, packed = x[first - start : last - start], arrays["index"][first:last]
                pack_cells(rows, cells[table].table(), self.bits, packed)
        levels = np.zeros(arrays["levels"].shape)
        for table, fitted in cells.items():
            levels[table, : len(fitted.levels)] = fitted.levels
        arrays["levels"][:], exponent = to_half(levels)
        return replace(codec, exponent=exponent)

    def _fit_tables(self, codec: Codebook, source: Source) -> dict[int, Cells]:
        """Cells of every table that has elements; tables come one after the other."""
        cells: dict[int, Cells] = {}
        counts, current = np.zeros(KEYS, np.int64), 0
        for start, x in source.diff():
            for table, first, last in codec.spans(source.view, start, start + len(x)):
                if table != current:
                    cells[current] = self._fit(counts)
                    counts, current = np.zeros(KEYS, np.int64), table
                add_counts(x[first - start : last - start], counts)
        if source.view.numel:
            cells[current] = self._fit(counts)
        return cells

    def _fit(self, counts: Array) -> Cells:
        if self.fit == "magnitude":
            return magnitude_blocks(counts, self._blocks)
        return lloyd_max(counts, 2**self.bits)

    @property
    def _codec(self) -> Codebook:
        return Codebook(self.bits, self.rows)

    @property
    def _blocks(self) -> int:
        return self.blocks or 2 ** (self.bits - 1)
