"""Element types (R9) and shapes (R8) that a manifest and a container may hold."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np

from bitdelta_hub.errors import FormatError
from bitdelta_hub.format.names import quoted

ITEMSIZE: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8,
}  # fmt: skip
MOST: Final = 2**53
_MOST_EXTENT = 2**40
_MOST_AXES = 8


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of an array of this dtype and shape."""
    return prod(shape) * ITEMSIZE[dtype]


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The little-endian numpy dtype that holds `dtype`; bit patterns for types numpy lacks."""
    kind = "u" if dtype.startswith(("B", "U", "F8")) else dtype[0].lower()
    return np.dtype(f"<{kind}{ITEMSIZE[dtype]}")


def read_dtype(value: object, error: type[FormatError], at: str) -> str:
    """`value` as a dtype's name. Raises `error` for any that R9 does not list."""
    if not isinstance(value, str) or value not in ITEMSIZE:
        found = quoted(value) if isinstance(value, str) else "no string"
        raise error(
            f"unknown dtype (expected one of {' '.join(ITEMSIZE)}, found {found})",
            rule="R9",
            at=at,
        )
    return value


def read_shape(value: object, dtype: str, error: type[FormatError], at: str) -> tuple[int, ...]:
    """`value` as a shape. Raises `error` where it is none or too large (R8)."""
    if not isinstance(value, list) or len(value) > _MOST_AXES:
        raise error(f"not a shape (expected a list of at most {_MOST_AXES})", rule="R8", at=at)
    for i, extent in enumerate(value):
        if type(extent) is not int or not 0 <= extent <= _MOST_EXTENT:
            raise error(
                f"not an extent (expected an integer from 0 to {_MOST_EXTENT})",
                rule="R8",
                at=f"{at}[{i}]",
            )
    # Extents of 0 aside, so that no product of some of the extents overflows either.
    if nbytes(dtype, [extent or 1 for extent in value]) > MOST:
        raise error(f"too large (expected at most {MOST} bytes)", rule="R8", at=at)
    return tuple(value)
