"""`raw`: every tensor comes back; params are refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given

from bitdelta_hub.codecs.base import View
from bitdelta_hub.codecs.raw import Raw, RawEncoder
from bitdelta_hub.errors import CodecError
from tests.codecs.exact import AT, BitsSource, check_exact, sources


@given(sources())
def test_any_tensor_comes_back(source: BitsSource) -> None:
    _, parts = check_exact(RawEncoder(), source)
    assert parts["data"].tobytes() == source.tuned.tobytes()


def test_a_scalar_keeps_its_shape() -> None:
    source = BitsSource(np.array(7, np.uint16), np.array(9, np.uint16), "BF16")
    _, parts = check_exact(RawEncoder(), source)
    assert parts["data"].shape == ()


def test_params_are_refused() -> None:
    message = f'{AT}: wrong params (expected [], found ["level"]) [R24]'
    with pytest.raises(CodecError, match=f"^{re.escape(message)}$"):
        Raw.from_params({"level": 1}, View((2, 3), "BF16"), AT)


def test_describe() -> None:
    assert RawEncoder().describe() == "raw"
