"""Position lists: sizes, worked bytes, round trips, refusals."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitdelta_hub.codecs import positions as module
from bitdelta_hub.codecs.base import Array
from bitdelta_hub.codecs.positions import Positions
from bitdelta_hub.errors import CodecError

FORMS = [Positions("bitmap", 0)] + [Positions("elias-fano", 0, low) for low in (0, 1, 3, 7, 40)]


def of_kind(form: Positions, count: int) -> Positions:
    return Positions(form.kind, count, form.low_bits)


@st.composite
def lists(draw: st.DrawFn) -> tuple[Array, int]:
    n = draw(st.integers(0, 3000))
    seed = draw(st.integers(0, 2**32 - 1))
    count = draw(st.integers(0, n))
    chosen = np.random.default_rng(seed).permutation(n)[:count]
    return np.sort(chosen).astype(np.int64), n


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.kind}-{form.low_bits}")
@given(lists())
@settings(max_examples=60, deadline=None)
def test_unpack_gives_back_what_was_packed(form: Positions, drawn: tuple[Array, int]) -> None:
    indices, n = drawn
    form = of_kind(form, len(indices))
    parts = form.pack(indices, n)
    described = {name: (part.shape, "U8") for name, part in form.parts(n).items()}
    assert {name: (array.shape, "U8") for name, array in parts.items()} == described
    assert np.array_equal(form.unpack(parts, n, "t"), indices)


@pytest.mark.parametrize("kind", ["bitmap", "elias-fano"])
def test_lists_longer_than_a_block(kind: str) -> None:
    n = 9 * module.BLOCK + 5
    indices = np.flatnonzero(np.random.default_rng(0).random(n) < 0.3)
    form = Positions(kind, len(indices), 11 if kind == "elias-fano" else 0)
    assert np.array_equal(form.unpack(form.pack(indices, n), n, "t"), indices)


def test_positions_beyond_32_bits() -> None:
    indices = np.array([0, 2**33, 2**40 + 1], dtype=np.int64)
    form = Positions("elias-fano", 3, 36)
    assert np.array_equal(form.unpack(form.pack(indices, 2**41), 2**41, "t"), indices)


def test_worked_bytes() -> None:
    indices = np.array([1, 4, 13], dtype=np.int64)
    assert Positions("bitmap", 3).pack(indices, 14)["bitmap"].tolist() == [0b00010010, 0b00100000]
    parts = Positions("elias-fano", 3, 2).pack(indices, 14)
    assert parts["low"].tolist() == [0b010001]  # 1, 0, 1 in two bits each
    assert parts["high"].tolist() == [0b00100101]  # bits 0 + 0, 1 + 1, 3 + 2


@pytest.mark.parametrize(
    ("count", "n", "expected"),
    [
        (0, 0, Positions("bitmap", 0)),
        (0, 1000, Positions("elias-fano", 0, 7)),
        (500, 1000, Positions("bitmap", 500)),
        (10, 10, Positions("bitmap", 10)),
        (1, 2**41, Positions("elias-fano", 1, 39)),
    ],
)
def test_choose(count: int, n: int, expected: Positions) -> None:
    chosen = Positions.choose(count, n)
    assert chosen == expected
    assert chosen.nbytes(n) <= Positions("bitmap", count).nbytes(n)


def test_choose_is_near_the_information_bound() -> None:
    count, n = 10_000, 1_000_000
    bound = n * (-0.01 * np.log2(0.01) - 0.99 * np.log2(0.99)) / 8
    assert Positions.choose(count, n).nbytes(n) < 1.06 * bound


@pytest.mark.parametrize("form", [Positions("bitmap", 7), Positions("elias-fano", 7, 3)])
def test_params_round_trip(form: Positions) -> None:
    assert tuple(form.to_params()) == module.KEYS
    assert Positions.from_params(form.to_params(), 100, "t") == form


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 11}, "t.count: wrong value (expected an integer from 0 to 10, found 11) [R24]"),
        (
            {"count": True},
            "t.count: wrong value (expected an integer from 0 to 10, found true) [R24]",
        ),
        (
            {"positions": "list"},
            't.positions: wrong value (expected one of "bitmap", "elias-fano", found "list") [R24]',
        ),
        (
            {"low_bits": 1},
            "t.low_bits: wrong value (expected an integer from 0 to 0, found 1) [R24]",
        ),
        (
            {"positions": "elias-fano", "low_bits": 41},
            "t.low_bits: wrong value (expected an integer from 0 to 40, found 41) [R24]",
        ),
    ],
)
def test_params_are_strict(change: dict[str, Any], message: str) -> None:
    params = {"count": 3, "positions": "bitmap", "low_bits": 0} | change
    with pytest.raises(CodecError, match=f"^{re.escape(message)}$"):
        Positions.from_params(params, 10, "t")


@pytest.mark.parametrize(
    ("form", "n", "parts", "message"),
    [
        (
            Positions("bitmap", 2),
            6,
            {"bitmap": [0b000111]},
            "t.bitmap: wrong number of positions (expected 2, found 3) [R29]",
        ),
        (
            Positions("bitmap", 2),
            6,
            {"bitmap": [0b1000001]},
            "t.bitmap: padding bits are not zero in run 0 [R25]",
        ),
        (
            Positions("elias-fano", 2, 1),
            10,
            {"low": [0b100], "high": [0b11]},
            "t.low: padding bits are not zero in run 0 [R25]",
        ),
        (
            Positions("elias-fano", 2, 0),
            2,
            {"low": [], "high": [0b100011]},
            "t.high: padding bits are not zero in run 0 [R25]",
        ),
        (
            Positions("elias-fano", 2, 1),
            10,
            {"low": [0b10], "high": [0b1]},
            "t.high: wrong number of positions (expected 2, found 1) [R29]",
        ),
        (
            Positions("elias-fano", 2, 1),
            10,
            {"low": [0b01], "high": [0b11]},
            "t: position 0 follows 1 (expected strictly increasing) [R29]",
        ),
        (
            Positions("elias-fano", 1, 2),
            10,
            {"low": [0b11], "high": [0b100]},
            "t: position 11 (expected below 10) [R29]",
        ),
    ],
)
def test_unpack_refuses(form: Positions, n: int, parts: dict[str, list[int]], message: str) -> None:
    arrays = {name: np.array(data, dtype=np.uint8) for name, data in parts.items()}
    assert {name: part.shape for name, part in form.parts(n).items()} == {
        name: array.shape for name, array in arrays.items()
    }
    with pytest.raises(CodecError, match=f"^{re.escape(message)}$"):
        form.unpack(arrays, n, "t")
