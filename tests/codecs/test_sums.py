"""Sums with one order: whatever the blocks, the same bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitdelta_hub.codecs.sums import ColumnSums, magnitudes, row_sums, total


def folded(row: list[np.float32]) -> np.float32:
    """The order that `row_sums` documents, one addition at a time."""
    while len(row) > 1:
        half = len(row) // 2
        shorter = [row[i] + row[half + i] for i in range(half)]
        if len(row) % 2:
            shorter[0] += row[-1]
        row = shorter
    return row[0]


@pytest.mark.parametrize("cols", [1, 2, 3, 7, 8, 13, 64, 65, 127, 1000])
def test_row_sums_add_in_the_documented_order(cols: int) -> None:
    x = torch.randn((3, cols), generator=torch.Generator().manual_seed(cols))
    before = x.clone()
    assert row_sums(x).tolist() == [folded(list(row)) for row in x.numpy()]
    assert row_sums(x[1:2]).tolist() == row_sums(x)[1:2].tolist()
    assert torch.equal(x, before)


def test_row_sums_of_nothing() -> None:
    assert row_sums(torch.zeros(2, 0)).tolist() == [0, 0]
    assert row_sums(torch.zeros(0, 3)).tolist() == []


@given(st.data())
def test_column_sums_do_not_depend_on_blocks(data: st.DataObject) -> None:
    rows, batch = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 3))
    x = torch.randn((batch * rows, 5), generator=torch.Generator().manual_seed(rows))
    whole, parts = ColumnSums(rows), ColumnSums(rows)
    whole.add(x.clone())
    start = 0
    while start < len(x):
        stop = start + data.draw(st.integers(1, 20))
        parts.add(x[start:stop].clone())
        start = stop
    assert len(whole.sums()) == batch
    assert torch.equal(torch.stack(whole.sums()), torch.stack(parts.sums()))
    exact = x.double().view(batch, rows, 5).sum(1)
    assert torch.allclose(torch.stack(whole.sums()).double(), exact, atol=1e-4)


@pytest.mark.parametrize("magnitude", [1e-44, 1e-30, 1e-3, 1.0, 1e15, 1e30, 3e38])
def test_magnitudes_at_any_scale(magnitude: float) -> None:
    x = torch.rand((4, 50), generator=torch.Generator().manual_seed(0)) * magnitude
    x[1] = 0
    first, second = magnitudes(-x)
    exact = x.double()
    assert first == pytest.approx(exact.sum(1).tolist(), rel=1e-6)
    assert second == pytest.approx((exact * exact).sum(1).tolist(), rel=1e-6)
    assert first[1] == second[1] == 0


def test_magnitudes_of_one_row_do_not_depend_on_others() -> None:
    x = torch.randn((3, 33), generator=torch.Generator().manual_seed(0))
    x[1] *= 1e30
    together = np.stack(magnitudes(x.clone()))
    alone = np.stack([np.stack(magnitudes(row[None].clone()))[:, 0] for row in x], 1)
    assert np.array_equal(together, alone)


def test_total_is_rounded_once() -> None:
    values = [1e16, 1.0, -1e16, 1e-3] * 10
    assert total(values) == total(sorted(values)) == math.fsum(values)
