"""How much of a tensor changed: samples settle the usual case, the rest is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bitdelta_hub.changes import CPU, Changes, count_changes, equal_when_cast
from bitdelta_hub.checkpoint import open_checkpoint
from bitdelta_hub.codecs.base import View
from bitdelta_hub.source import DiffSource, OperandReader
from tests.handmade import moved, noise, save_pair


def source(root: Path, base: torch.Tensor, tuned: torch.Tensor) -> DiffSource:
    folders = save_pair(root, {"w": base}, {"w": tuned})
    before, after = (open_checkpoint(folder) for folder in folders)
    info = after.tensors["w"]
    view = View(info.shape, info.dtype)
    return DiffSource("w", after, OperandReader("w", before, view), CPU)


@pytest.mark.parametrize("shape", [(5000, 700), (1, 90_000), (90_000, 1), (7,), (3, 200, 900)])
def test_changes_are_counted_to_the_last(shape: tuple[int, ...], tmp_path: Path) -> None:
    base = noise(*shape)
    tuned = base.clone()
    rows = tuned.view(-1, shape[-1])
    rows[-1, -1] += 1
    rows[0, 0] += 1
    found = count_changes(source(tmp_path, base, tuned))
    assert found == Changes(2, len({0, len(rows) - 1}), counted=True)


def test_nothing_changed(tmp_path: Path) -> None:
    base = noise(3000, 100)
    assert count_changes(source(tmp_path, base, base)) == Changes(0, 0, counted=True)


def test_samples_suffice_where_most_changed(tmp_path: Path) -> None:
    base = noise(3000, 100)
    found = count_changes(source(tmp_path, base, moved(base)))
    assert not found.counted
    assert 0 < found.elements < base.numel()


def test_a_sign_of_zero_and_a_payload_of_nan_count(tmp_path: Path) -> None:
    base = torch.zeros(40, 40)
    tuned = base.clone()
    tuned[1, 1] = -0.0
    assert count_changes(source(tmp_path, base, tuned)) == Changes(1, 1, counted=True)


@pytest.mark.parametrize("theirs", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("ours", [torch.bfloat16, torch.float16, torch.float32])
def test_a_cast_is_told_from_a_change(
    ours: torch.dtype, theirs: torch.dtype, tmp_path: Path
) -> None:
    base = noise(900, 700, dtype=torch.float32).to(theirs)
    cast = base.to(ours)
    assert equal_when_cast(source(tmp_path / "same", base, cast))
    cast = cast.clone()
    cast[-1, -1] += 1
    assert not equal_when_cast(source(tmp_path / "changed", base, cast))
