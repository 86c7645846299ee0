"""Fits to exact histograms: means, nearest levels, equal populations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitdelta_hub.codecs.levels import (
    KEYS,
    ORDER,
    VALUES,
    Cells,
    add_counts,
    keys_of,
    lloyd_max,
    magnitude_blocks,
)


def sample() -> torch.Tensor:
    return torch.randn(50_000, generator=torch.Generator().manual_seed(3)).bfloat16().float()


def count(x: torch.Tensor) -> np.ndarray:
    counts = np.zeros(KEYS, np.int64)
    add_counts(x, counts)
    return counts


def cells_of(x: torch.Tensor, cells: Cells) -> np.ndarray:
    return cells.table()[keys_of(x).numpy()]


def test_keys_are_every_finite_bf16_number_once() -> None:
    assert len(set(ORDER.tolist())) == len(ORDER) == 2 * 0x7F80
    assert (np.diff(VALUES) >= 0).all()
    assert keys_of(torch.tensor([0.0, -0.0, 1.0, 3.4e38])).tolist() == [0, 0x8000, 0x3F80, 0x7F7F]


def test_counts() -> None:
    counts = count(torch.tensor([[1.0, 1.0], [-2.0, 1.001]]))
    assert counts.shape == (KEYS,)
    assert counts[0x3F80] == 3
    assert counts.sum() == 4


@pytest.mark.parametrize("size", [2, 3, 8, 256])
def test_lloyd_max_conditions(size: int) -> None:
    x = sample()
    cells = lloyd_max(count(x), size)
    assert (np.diff(cells.levels) >= 0).all()
    index = cells_of(x, cells)
    values = x.double().numpy()
    chosen = np.abs(values - cells.levels[index])
    nearest = np.abs(values[:, None] - cells.levels).min(1)
    assert np.allclose(chosen, nearest, atol=1e-3)
    for cell in np.unique(index)[:: max(1, size // 8)]:
        mean = values[index == cell].mean()
        assert cells.levels[cell] == pytest.approx(mean, rel=0.05, abs=0.01)


def test_fewer_values_than_levels_are_kept_exactly() -> None:
    x = torch.tensor([-3.0, 0.5, 0.5, 2.0, 8.0])
    cells = lloyd_max(count(x), 16)
    assert cells.levels[cells_of(x, cells)].tolist() == x.tolist()


def test_nothing_to_fit() -> None:
    for cells in (lloyd_max(np.zeros(KEYS, np.int64), 4), magnitude_blocks(np.zeros(KEYS, int), 2)):
        assert np.isfinite(cells.levels).all()
        assert len(cells.bounds) == 5


@pytest.mark.parametrize("blocks", [1, 2, 3, 8])
def test_magnitude_blocks(blocks: int) -> None:
    x = sample()
    cells = magnitude_blocks(count(x), blocks)
    assert cells.levels.tolist() == (-cells.levels[::-1]).tolist()
    index = cells_of(x, cells)
    assert np.array_equal(index >= blocks, ~torch.signbit(x).numpy())
    block = np.where(index >= blocks, index - blocks, blocks - 1 - index.astype(int))
    magnitudes = x.abs().double().numpy()
    for i in range(blocks):
        share = (block == i).mean()
        assert share == pytest.approx(1 / blocks, abs=0.01)
        assert cells.levels[blocks + i] == pytest.approx(magnitudes[block == i].mean(), rel=1e-12)
