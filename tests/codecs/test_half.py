"""Half parts keep eleven bits over 29 halvings, at any magnitude of fp32."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitdelta_hub.codecs.half import HIGHEST, LOWEST, eleven_bits, from_half, to_half

LARGEST = float(np.finfo(np.float32).max)


@given(st.lists(st.floats(-LARGEST, LARGEST, width=32), max_size=8))
def test_error_is_half_a_bit_of_eleven(values: list[float]) -> None:
    exact = np.array(values, np.float64)
    half, exponent = to_half(exact)
    assert half.dtype == np.float16
    assert np.isfinite(half).all()
    assert LOWEST <= exponent <= HIGHEST
    wrong = np.abs(from_half(half, exponent).astype(np.float64) - exact)
    largest = np.abs(exact).max(initial=0.0)
    # relative for what is near the largest, absolute for the rest and below fp32's normal range
    assert (wrong <= np.abs(exact) * 2.0**-11 + largest * 2.0**-39 + 2.0**-149).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -1e30, 1e-30, 2.0**-126, LARGEST])
def test_exponents(value: float) -> None:
    half, exponent = to_half(np.array([value]))
    assert float(from_half(half, exponent)[0]) == pytest.approx(value, rel=2**-11)


def test_nothing() -> None:
    half, exponent = to_half(np.zeros((0, 3)))
    assert half.shape == (0, 3)
    assert exponent == 0


@given(st.lists(st.floats(2.0**-20, 1.0), min_size=1, max_size=8))
def test_eleven_bits_are_what_a_half_part_keeps(values: list[float]) -> None:
    rounded = eleven_bits(np.array(values))
    half, exponent = to_half(rounded)
    assert np.array_equal(from_half(half, exponent), rounded)
