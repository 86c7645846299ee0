"""How much of a tensor changed: sampled first, counted where an exact codec may be worth it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from bitdelta_hub.codecs.base import FLOATS
from bitdelta_hub.source import DiffSource, as_bits, blocks

SAMPLES = 16
SAMPLE_ELEMENTS = 4096
# Above this share no list of changed elements is smaller than an encoding of all of them.
WORTH_COUNTING = 0.25
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Changes:
    """Changed elements and rows; of the whole tensor if `counted`, else of the samples."""

    elements: int
    rows: int
    counted: bool


def count_changes(source: DiffSource) -> Changes:
    """Changes of a tensor whose operand has its dtype.

    Samples at fixed places settle the usual case, in which most elements changed.
    """
    sampled = _count(source, _samples(source))
    looked_at = sum((stop - start) for start, stop in _samples(source)) * source.view.cols
    if looked_at == source.view.numel:
        return replace(sampled, counted=True)
    if sampled.elements > WORTH_COUNTING * looked_at:
        return sampled
    return replace(_count(source, blocks(source.view, CPU)), counted=True)


def equal_when_cast(source: DiffSource) -> bool:
    """Whether the tuned tensor is its operand cast to its dtype, bit for bit."""
    dtype = FLOATS[source.view.dtype]
    for start, stop in blocks(source.view, CPU):
        cast = as_bits(source.operand.values(start, stop).float().to(dtype), source.view.dtype)
        if not np.array_equal(cast, source.tuned_bits(start, stop)):
            return False
    return True


def _count(source: DiffSource, windows: Iterator[tuple[int, int]]) -> Changes:
    elements = rows = 0
    for start, stop in windows:
        changed = source.operand.bits(start, stop) != source.tuned_bits(start, stop)
        found = int(np.count_nonzero(changed))
        if found:
            elements += found
            rows += int(np.count_nonzero(changed.any(axis=1)))
    return Changes(elements, rows, counted=False)


def _samples(source: DiffSource) -> Iterator[tuple[int, int]]:
    """Runs of rows spread evenly over the tensor, always the same ones."""
    total = source.view.total_rows
    height = max(1, SAMPLE_ELEMENTS // source.view.cols)
    if total <= height * SAMPLES:
        yield 0, total
        return
    for index in range(SAMPLES):
        start = index * (total - height) // (SAMPLES - 1)
        yield start, start + height
