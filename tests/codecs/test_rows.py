"""`rows`: changed or chosen rows come back, the others stay; a bad index is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from bitdelta_hub.codecs.base import View
from bitdelta_hub.codecs.rows import Rows, RowsEncoder
from bitdelta_hub.errors import CodecError
from tests.codecs.exact import AT, BitsSource, check_exact, encode, rebuild, sources


@given(sources())
def test_any_tensor_comes_back(source: BitsSource) -> None:
    codec, _ = check_exact(RowsEncoder(), source)
    assert codec == Rows(int((source.base != source.tuned).any(axis=1).sum()))


def pair() -> BitsSource:
    base = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    tuned = base.copy()
    tuned[0, 1, 2] = 100
    tuned[1, 2] = 200
    return BitsSource(base, tuned, "BF16")


def test_rows_are_counted_through_the_batch() -> None:
    codec, parts = check_exact(RowsEncoder(), pair())
    assert codec.to_params() == {"count": 2}
    assert parts["index"].tolist() == [1, 5]
    assert parts["data"].tolist() == [[4, 5, 100, 7], [200] * 4]


def test_given_rows_are_stored_changed_or_not() -> None:
    source = pair()
    encoder = RowsEncoder(rows=np.array([0, 5]))
    codec, parts = encode(encoder, source)
    assert encoder.predict(source.view) == codec.parts(source.view)
    out = rebuild(codec, parts, source)
    assert np.array_equal(out[5], source.tuned[5])
    assert np.array_equal(out[:5], source.base[:5])


def test_prediction_from_a_count() -> None:
    view = View((10, 3), "F32")
    predicted = RowsEncoder(count=4).predict(view)
    assert predicted is not None
    assert sum(part.nbytes for part in predicted.values()) == 4 * 4 + 4 * 3 * 4
    assert RowsEncoder().predict(view) is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, f'{AT}: wrong params (expected ["count"], found []) [R24]'),
        ({"count": 7}, f"{AT}.count: wrong value (expected an integer from 0 to 6, found 7) [R24]"),
        (
            {"count": True},
            f"{AT}.count: wrong value (expected an integer from 0 to 6, found true) [R24]",
        ),
        (
            {"count": -1},
            f"{AT}.count: wrong value (expected an integer from 0 to 6, found -1) [R24]",
        ),
    ],
)
def test_params_are_strict(params: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=f"^{re.escape(message)}$"):
        Rows.from_params(params, View((2, 3, 4), "BF16"), AT)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([1, 1], f"{AT}.index: row 1 follows 1 (expected strictly increasing) [R28]"),
        ([5, 0], f"{AT}.index: row 0 follows 5 (expected strictly increasing) [R28]"),
        ([1, 6], f"{AT}.index: row 6 (expected below 6) [R28]"),
        ([1, 2**32 - 1], f"{AT}.index: row 4294967295 (expected below 6) [R28]"),
    ],
)
def test_a_bad_index_is_refused(index: list[int], message: str) -> None:
    parts = {"index": np.array(index, np.uint32), "data": np.zeros((2, 4), np.uint16)}
    with pytest.raises(CodecError, match=f"^{re.escape(message)}$"):
        Rows(2).overwriter(parts, View((2, 3, 4), "BF16"), AT)
