"""`raw`: the tensor itself (SPEC 6.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from bitdelta_hub.codecs.base import (
    NUMPY,
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


@dataclass(frozen=True, slots=True)
class Raw:
    """Part `data`, which is the rebuilt tensor."""

    name: ClassVar[str] = "raw"

    def to_params(self) -> Params:
        """No params."""
        return {}

    @classmethod
    def from_params(cls, params: Mapping[str, Any], view: View, at: str) -> Self:
        """The codec; raises CodecError (R24) for any param."""
        only_keys(params, (), at)
        return cls()

    def parts(self, view: View) -> dict[str, Part]:
        """`data`, dtype and shape of the tensor."""
        return {"data": Part(view.dtype, view.shape)}

    def row_step(self, view: View) -> int:
        """1: any range of rows will do."""
        return 1

    def overwriter(self, parts: Parts, view: View, at: str) -> Overwrite:
        """Copies rows of `data`."""
        data = as_bits(parts["data"], view.dtype).reshape(view.total_rows, view.cols)

        def overwrite(start: int, stop: int, bits: Array) -> None:
            bits[...] = data[start:stop]

        return overwrite


@dataclass(frozen=True, slots=True)
class RawEncoder:
    """Stores every element of the tuned tensor."""

    codec: ClassVar[str] = "raw"

    def describe(self) -> str:
        """`raw`."""
        return "raw"

    def predict(self, view: View) -> dict[str, Part]:
        """The part, always known."""
        return Raw().parts(view)

    def encode(self, source: Source, allocate: Allocate) -> Raw:
        """Copies the tuned bit patterns."""
        codec, view = Raw(), source.view
        data = as_bits(allocate(codec)["data"], view.dtype).reshape(view.total_rows, view.cols)
        for start, _, tuned in source.bits():
            data[start : start + len(tuned)] = tuned
        return codec


def as_bits(stored: Array, dtype: str) -> Array:
    """A stored array of container dtype `dtype` as unsigned bit patterns, sharing its memory."""
    return stored.view(np.dtype(f"u{np.dtype(NUMPY[dtype]).itemsize}"))
