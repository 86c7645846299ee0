"""`rows`: whole rows of the tuned tensor (SPEC 6.7)."""

from __future__ import annotations

from collections.abc import Mapping
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
from bitdelta_hub.codecs.params import integer, only_keys
from bitdelta_hub.codecs.raw import as_bits
from bitdelta_hub.errors import CodecError


@dataclass(frozen=True, slots=True)
class Rows:
    """Parts `index` and `data`: `count` rows of the view that replace what is there."""

    name: ClassVar[str] = "rows"

    count: int

    def to_params(self) -> Params:
        """`count`."""
        return {"count": self.count}

    @classmethod
    def from_params(cls, params: Mapping[str, Any], view: View, at: str) -> Self:
        """The codec; raises CodecError (R24) unless `count` is from 0 to the number of rows."""
        only_keys(params, ("count",), at)
        return cls(integer(params, "count", 0, view.total_rows, at))

    def parts(self, view: View) -> dict[str, Part]:
        """`index` U32 `[count]` and `data` `[count, cols]`."""
        return {
            "index": Part("U32", (self.count,)),
            "data": Part(view.dtype, (self.count, view.cols)),
        }

    def row_step(self, view: View) -> int:
        """1: any range of rows will do."""
        return 1

    def overwriter(self, parts: Parts, view: View, at: str) -> Overwrite:
        """Copies the rows that lie in the range; raises CodecError (R28) for a bad `index`."""
        index = parts["index"].astype(np.int64)
        data = as_bits(parts["data"], view.dtype)
        _check_index(index, view.total_rows, f"{at}.index")

        def overwrite(start: int, stop: int, bits: Array) -> None:
            first, last = np.searchsorted(index, (start, stop))
            bits[index[first:last] - start] = data[first:last]

        return overwrite


@dataclass(frozen=True, slots=True, eq=False)
class RowsEncoder:
    """Stores the given `rows` (ascending indices), or every row in which an element changed.

    `count` is the number of changed rows if the caller knows it; it serves prediction only.
    """

    codec: ClassVar[str] = "rows"

    rows: Array | None = None
    count: int | None = None

    def describe(self) -> str:
        """`rows`."""
        return "rows"

    def predict(self, view: View) -> dict[str, Part] | None:
        """The parts where the number of rows is known."""
        count = self.count if self.rows is None else len(self.rows)
        return None if count is None else Rows(count).parts(view)

    def encode(self, source: Source, allocate: Allocate) -> Rows:
        """Finds the rows where they are not given, then copies them."""
        index = changed_rows(source) if self.rows is None else self.rows.astype(np.int64)
        codec = Rows(len(index))
        arrays = allocate(codec)
        arrays["index"][:] = index
        data = as_bits(arrays["data"], source.view.dtype)
        for start, _, tuned in source.bits() if len(index) else ():
            first, last = np.searchsorted(index, (start, start + len(tuned)))
            data[first:last] = tuned[index[first:last] - start]
        return codec


def changed_rows(source: Source) -> Array:
    """Ascending indices, int64, of the rows in which a bit pattern changed."""
    found = [
        start + np.flatnonzero((base != tuned).any(axis=1)) for start, base, tuned in source.bits()
    ]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _check_index(index: Array, rows: int, at: str) -> None:
    stuck = np.flatnonzero(index[1:] <= index[:-1])
    if stuck.size:
        i = int(stuck[0])
        fact = f"row {index[i + 1]} follows {index[i]} (expected strictly increasing)"
        raise CodecError(fact, rule="R28", at=at)
    if index.size and int(index[-1]) >= rows:
        raise CodecError(f"row {index[-1]} (expected below {rows})", rule="R28", at=at)
