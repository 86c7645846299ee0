"""How far apart two checkpoints are, from slices at fixed places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from bitdelta_hub.checkpoint import Checkpoint
from bitdelta_hub.codecs.base import FLOATS
from bitdelta_hub.format.entries import Operand, Piece
from bitdelta_hub.outcomes import Note

# Unrelated weights are at 1 or above (1.41 for equal norms), whatever their scales; the hardest
# real fine-tunes known stay under 0.3, and long continued training under 0.6.
FAR = 0.7
ALMOST = 0.02
TENSORS = 12
WINDOWS = 16
WIDTH = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """`distances`: tensor -> ‖tuned - base‖ / ‖base‖ over the elements looked at.

    `changed_fraction` is the share of these elements that changed at all; `fp32_by_cast` is set
    where every tuned fp32 value looked at is a bf16 value.
    """

    distances: dict[str, float]
    elements: int
    changed_fraction: float
    fp32_by_cast: bool

    @property
    def notes(self) -> tuple[Note, ...]:
        """BDH005 for an fp32 fine-tune of bf16 values, BDH007 where almost nothing changed."""
        notes = []
        if self.fp32_by_cast:
            fact = "the fine-tune is fp32 by a cast only: its values are bf16, at twice the bytes"
            notes.append(Note("BDH005", fact))
        if self.elements and self.changed_fraction < ALMOST:
            share = f"{100 * self.changed_fraction:.2g} % of the sampled weights changed"
            notes.append(Note("BDH007", f"{share}: keeping them exactly is smaller"))
        return tuple(notes)


def sample(base: Checkpoint, tuned: Checkpoint, operands: Mapping[str, Operand]) -> Sample:
    """Distances of up to 12 of the larger float matrices with an operand, all over the model."""
    distances: dict[str, float] = {}
    elements = changed = 0
    by_cast = True
    for name in _chosen(base, tuned, operands):
        squares = np.zeros(2)
        for start, piece in _windows(operands[name], tuned.tensors[name].numel):
            ours = tuned.read(name, start, start + piece.stop - piece.start)
            theirs = base.read(*piece)
            elements += len(ours)
            changed += int(torch.count_nonzero(theirs.to(ours.dtype) != ours))
            by_cast = by_cast and ours.dtype == torch.float32 and _is_bf16(ours)
            squares += _squares(ours, theirs)
        if squares[1] > 0:
            distances[name] = float(np.sqrt(squares[0] / squares[1]))
    share = changed / elements if elements else 0.0
    return Sample(distances, elements, share, by_cast and elements > 0)


def _chosen(base: Checkpoint, tuned: Checkpoint, operands: Mapping[str, Operand]) -> list[str]:
    """Up to 12 names, evenly spaced in the checkpoint's order, of its larger matrices."""
    sizes = {
        name: info.numel
        for name, info in tuned.tensors.items()
        if name in operands and info.dtype in FLOATS and len(info.shape) > 1 and info.numel
    }
    large = [name for name, size in sizes.items() if 8 * size >= max(sizes.values())]
    count = min(TENSORS, len(large))
    return [large[index * len(large) // count] for index in range(count)]


def _windows(operand: Operand, numel: int) -> Iterator[tuple[int, Piece]]:
    """(first tuned element, run of a base tensor that it pairs with), none across two pieces."""
    pieces = (Piece(operand, 0, numel),) if isinstance(operand, str) else operand
    ends = list(accumulate(piece.stop - piece.start for piece in pieces))
    last = max(0, ends[-1] - WIDTH)
    for place in sorted({index * last // (WINDOWS - 1) for index in range(WINDOWS)}):
        index = int(np.searchsorted(ends, place, side="right"))
        piece = pieces[index]
        start = piece.stop - (ends[index] - place)
        yield place, Piece(piece.name, start, min(start + WIDTH, piece.stop))


def _squares(
    ours: torch.Tensor, theirs: torch.Tensor
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Sums of squares of the difference and of the base, over elements finite in both."""
    left, right = ours.double().numpy(), theirs.double().numpy()
    finite = np.isfinite(left) & np.isfinite(right)
    diff, right = left[finite] - right[finite], right[finite]
    return np.array([np.dot(diff, diff), np.dot(right, right)])


def _is_bf16(values: torch.Tensor) -> bool:
    return bool(torch.all((values.view(torch.int32) & 0xFFFF) == 0))
