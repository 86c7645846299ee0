from __future__ import annotations

import numpy as np
import pytest

from bitdelta_hub.codecs.base import NUMPY
from bitdelta_hub.format.dtypes import ITEMSIZE, nbytes, numpy_dtype


def test_the_codecs_know_the_same_dtypes() -> None:
    assert {name: np.dtype(dtype) for name, dtype in NUMPY.items()} == {
        name: numpy_dtype(name) for name in ITEMSIZE
    }


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("F8_E4M3", (3,), 3), ("BF16", (), 2), ("F64", (2, 0), 0), ("U16", (2**40,), 2**41)],
)
def test_nbytes(dtype: str, shape: tuple[int, ...], size: int) -> None:
    assert nbytes(dtype, shape) == size
