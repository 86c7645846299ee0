"""Operands joined from pieces, and diffs block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from bitdelta_hub.checkpoint import Checkpoint, open_checkpoint
from bitdelta_hub.codecs.base import FLOATS, View
from bitdelta_hub.codecs.steps import Steps
from bitdelta_hub.format.entries import Operand, Piece
from bitdelta_hub.source import (
    BLOCK,
    DiffSource,
    OperandReader,
    as_bits,
    as_float,
    blocks,
    residual,
    run_rows,
)
from tests.handmade import bits, moved, noise, save
from tests.models import Tensors

CPU = torch.device("cpu")
Open = Callable[[Tensors], Checkpoint]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """opened(tensors): a checkpoint of them, closed after the test."""
    with ExitStack() as stack:

        def make(tensors: Tensors) -> Checkpoint:
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            return stack.enter_context(open_checkpoint(save(folder, tensors)))

        yield make


SHAPES = [
    (), (1,), (7,), (300_000,), (300_000, 1), (200_000, 3), (90_001, 17), (2, 300_000), (1000, 700),
    (5, 33, 900), (12, 200, 300), (3, 131_072), (3, 131_073), (40, 65_537),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_blocks_are_whole_runs_and_whole_chunks(shape: tuple[int, ...], device: str) -> None:
    """So that energies have the same bits on any device and `steps` decodes block by block."""
    view = View(shape, "BF16")
    found = list(blocks(view, torch.device(device)))
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == view.total_rows
    step = Steps(0).row_step(view)
    for start, stop in found:
        assert start % run_rows(view) == 0
        assert start % step == 0
        assert (stop - start) * view.cols <= max(
            BLOCK[device], view.cols * BLOCK[device] // (1 << 17)
        )


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_nothing_has_no_blocks(shape: tuple[int, ...]) -> None:
    assert list(blocks(View(shape, "F32"), CPU)) == []


@pytest.mark.parametrize("dtype", FLOATS)
def test_bits_and_floats_share_memory(dtype: str) -> None:
    values = noise(5, 6, dtype=FLOATS[dtype])
    found = as_bits(values, dtype)
    assert found.dtype == np.dtype(f"u{values.itemsize}")
    back = as_float(found, dtype)
    assert back.data_ptr() == values.data_ptr()
    found.flags.writeable = False
    assert torch.equal(as_float(found, dtype), values)


@pytest.mark.parametrize(
    "operand",
    [
        "a",
        (Piece("a", 0, 6000),),
        (Piece("a", 0, 600), Piece("b", 100, 900), Piece("a", 3000, 6000)),
        (Piece("b", 0, 1), Piece("a", 5999, 6000)),
        tuple(Piece("a", i, i + 1) for i in range(700)),
        None,
    ],
)
def test_an_operand_is_its_pieces_then_zeros(operand: Operand | None, opened: Open) -> None:
    tensors = {"a": noise(100, 60), "b": noise(1000)}
    reader = OperandReader(operand, opened(tensors), View((100, 60), "BF16"))
    pieces = [Piece(operand, 0, 6000)] if isinstance(operand, str) else operand or ()
    flat = {name: bits(tensor).view(np.uint16) for name, tensor in tensors.items()}
    wanted = np.zeros(6000, np.uint16)
    joined = np.concatenate([np.empty(0, np.uint16), *(flat[n][a:b] for n, a, b in pieces)])
    wanted[: len(joined)] = joined
    for start, stop in ((0, 100), (0, 1), (7, 9), (50, 51), (99, 100)):
        found = reader.bits(start, stop)
        assert np.array_equal(found, wanted.reshape(100, 60)[start:stop])
        assert torch.equal(reader.values(start, stop), as_float(found, "BF16"))


@pytest.mark.parametrize("dtype", FLOATS.values())
@pytest.mark.parametrize("shape", [(1000, 700), (40, 30), (5001,), (200_000, 3)])
def test_a_diff_is_tuned_minus_base_in_fp32(
    shape: tuple[int, ...], dtype: torch.dtype, opened: Open
) -> None:
    base, tuned = noise(*shape, dtype=dtype), moved(noise(*shape, dtype=dtype))
    source = diff_source(opened, base, tuned)
    wanted = (tuned.float() - base.float()).reshape(-1, shape[-1])
    found = torch.cat([rows.clone() for _, rows in source.diff()])
    assert torch.equal(found, wanted)
    assert not source.nonfinite
    assert source.energy() == pytest.approx(float(wanted.double().square().sum()), rel=1e-5)


def diff_source(opened: Open, base: torch.Tensor, tuned: torch.Tensor) -> DiffSource:
    before, after = opened({"w": base}), opened({"w": tuned})
    view = View(tuple(tuned.shape), after.tensors["w"].dtype)
    covered = min(base.numel(), tuned.numel())
    reader = OperandReader((Piece("w", 0, covered),), before, view)
    return DiffSource("w", after, reader, CPU)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", FLOATS.values())
@pytest.mark.parametrize("side", ["base", "tuned", "both"])
def test_what_is_not_finite_counts_as_unchanged(
    side: str, dtype: torch.dtype, bad: float, opened: Open
) -> None:
    base, tuned = noise(900, 700, dtype=dtype), moved(noise(900, 700, dtype=dtype))
    wanted = tuned.float() - base.float()
    for place in ((0, 0), (450, 3), (899, 699)):
        if side != "tuned":
            base[place] = bad
        if side != "base":
            tuned[place] = bad
        wanted[place] = 0
    source = diff_source(opened, base, tuned)
    assert torch.equal(torch.cat([rows.clone() for _, rows in source.diff()]), wanted)
    assert source.nonfinite
    assert torch.equal(source.matrix(0), wanted)


@pytest.mark.parametrize(("rows", "uncovered"), [(40, range(40, 40)), (55, range(40, 55))])
def test_rows_beyond_the_base_count_as_unchanged(rows: int, uncovered: range, opened: Open) -> None:
    base, tuned = noise(40, 30), moved(noise(rows, 30))
    source = diff_source(opened, base, tuned)
    assert source.uncovered == uncovered
    wanted = torch.zeros(rows, 30)
    wanted[:40] = tuned[:40].float() - base.float()
    assert torch.equal(source.rows(0, rows), wanted)
    half = torch.full((1, 1), 0.5)
    left = residual(source, [lambda start, stop: half.expand(stop - start, 30)])
    (found,) = [rows.clone() for _, rows in left.diff()]
    assert torch.equal(found[:40], wanted[:40] - 0.5)
    assert not found[40:].any()


def test_a_residual_of_nothing_is_the_source_itself(opened: Open) -> None:
    source = diff_source(opened, noise(40, 30), moved(noise(40, 30)))
    assert residual(source, []) is source


def test_matrices_of_a_batch(opened: Open) -> None:
    base, tuned = noise(5, 300, 500), moved(noise(5, 300, 500))
    source = diff_source(opened, base, tuned)
    wanted = tuned.float() - base.float()
    twice = residual(source, [lambda start, stop: wanted.reshape(-1, 500)[start:stop] / 2])
    for index in range(5):
        assert torch.equal(source.matrix(index), wanted[index])
        assert torch.equal(twice.matrix(index), wanted[index] - wanted[index] / 2)
