"""`patch`: changed or chosen elements come back, the others stay; bad positions are refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from bitdelta_hub.codecs.base import View
from bitdelta_hub.codecs.patch import Patch, PatchEncoder
from bitdelta_hub.codecs.positions import Positions
from bitdelta_hub.errors import CodecError
from tests.codecs.exact import AT, BitsSource, check_exact, encode, rebuild, sources


@given(sources())
def test_any_tensor_comes_back(source: BitsSource) -> None:
    codec, _ = check_exact(PatchEncoder(), source)
    assert codec.to_params()["count"] == int((source.base != source.tuned).sum())


def test_few_changes_cost_few_bytes() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**16, (500, 400), dtype=np.uint16)
    tuned = base.copy()
    changed = rng.random(base.shape) < 0.01
    tuned[changed] ^= 1
    _, parts = check_exact(PatchEncoder(), BitsSource(base, tuned, "BF16"))
    assert sum(part.nbytes for part in parts.values()) < changed.sum() * 3.1


def test_given_positions_are_stored_changed_or_not() -> None:
    base = np.zeros((3, 4), np.uint16)
    tuned = np.arange(12, dtype=np.uint16).reshape(3, 4)
    source = BitsSource(base, tuned, "F16", block_rows=1)
    encoder = PatchEncoder(positions=np.array([2, 7, 8]))
    codec, parts = encode(encoder, source)
    assert encoder.predict(source.view) == codec.parts(source.view)
    assert rebuild(codec, parts, source).tolist() == [[0, 0, 2, 0], [0, 0, 0, 7], [8, 0, 0, 0]]


def test_prediction_from_a_count() -> None:
    view = View((8, 8), "F64")
    predicted = PatchEncoder(count=3).predict(view)
    assert predicted == Patch(Positions.choose(3, 64)).parts(view)
    assert PatchEncoder().predict(view) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"extra": 1},
            f'{AT}: wrong params (expected ["count", "positions", "low_bits"], '
            'found ["count", "extra", "low_bits", "positions"]) [R24]',
        ),
        (
            {"count": 13},
            f"{AT}.count: wrong value (expected an integer from 0 to 12, found 13) [R24]",
        ),
        (
            {"low_bits": 2},
            f"{AT}.low_bits: wrong value (expected an integer from 0 to 0, found 2) [R24]",
        ),
    ],
)
def test_params_are_strict(change: dict[str, Any], message: str) -> None:
    params = {"count": 3, "positions": "bitmap", "low_bits": 0} | change
    with pytest.raises(CodecError, match=f"^{re.escape(message)}$"):
        Patch.from_params(params, View((3, 4), "BF16"), AT)


@pytest.mark.parametrize(
    ("bitmap", "message"),
    [
        ([7, 0], f"{AT}.bitmap: wrong number of positions (expected 2, found 3) [R29]"),
        ([1, 16], f"{AT}.bitmap: padding bits are not zero in run 0 [R25]"),
    ],
)
def test_bad_positions_are_refused(bitmap: list[int], message: str) -> None:
    parts = {"bitmap": np.array(bitmap, np.uint8), "value": np.zeros(2, np.uint16)}
    with pytest.raises(CodecError, match=f"^{re.escape(message)}$"):
        Patch(Positions("bitmap", 2)).overwriter(parts, View((3, 4), "BF16"), AT)
