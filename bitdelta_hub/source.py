"""Operands and diffs, read block by block (SPEC R12, R17).

A block is a run of whole rows that stays in a core's cache while everything that has to be done
with it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bitdelta_hub.checkpoint import Checkpoint
from bitdelta_hub.codecs.base import FLOATS, NUMPY, Array, Decode, Source, View, add_rows
from bitdelta_hub.codecs.sums import energies, scratch, total
from bitdelta_hub.kernels import compiled
from bitdelta_hub.pair import Operand

# Elements of a run: what energies are summed over, and what `steps` codes at once.
RUN = 1 << 17
# Elements of a block, whole runs. On a CPU smaller ones lose more to the cost of a call than they
# gain from the cache (measured from 2^15 to 2^20); a GPU wants enough to fill it.
BLOCK = {"cpu": 1 << 19, "cuda": 1 << 24}


def bits_dtype(dtype: str) -> np.dtype[np.unsignedinteger]:
    """The unsigned numpy type that is as wide as container dtype `dtype`."""
    return np.dtype(f"u{np.dtype(NUMPY[dtype]).itemsize}")


class _Unlocked:
    """Shows read-only memory as writable: torch warns about the former, nobody here writes."""

    def __init__(self, array: Array) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def as_float(bits: Array, dtype: str) -> torch.Tensor:
    """`bits` as a tensor of float dtype `dtype` (F16, BF16, F32), sharing their memory."""
    signed = bits.view(f"i{bits.itemsize}")
    if not signed.flags.writeable:
        signed = np.asarray(_Unlocked(signed))
    return torch.from_numpy(signed).view(FLOATS[dtype])


def as_bits(values: torch.Tensor, dtype: str) -> Array:
    """The bit patterns of CPU tensor `values`, sharing their memory."""
    signed = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    width = bits_dtype(dtype)
    return values.view(signed[width.itemsize]).numpy().view(width)


def subtract(left: Array, right: Array, dtypes: tuple[str, str], out: torch.Tensor) -> bool:
    """out = fp32(left) - fp32(right), bit patterns of `dtypes`; whether all of `out` is finite."""
    native = compiled() if dtypes == ("BF16", "BF16") and out.device.type == "cpu" else None
    if native and out.numel():
        flat = out.view(-1).numpy()
        return bool(native.bf16_difference(left.reshape(-1), right.reshape(-1), flat))
    out.copy_(as_float(left, dtypes[0]))
    # Subtracting in one type is twice as fast as letting torch widen bf16 on the way.
    out.sub_(as_float(right, dtypes[1]).to(out.device, torch.float32))
    # A sum is finite only if everything in it is; the exact test follows where it is not.
    return bool(torch.isfinite(out.sum())) or bool(torch.isfinite(out).all())


def compare(
    left: Array, right: Array, dtype: str, rows: int, device: torch.device
) -> tuple[bool, torch.Tensor]:
    """Whether both are the same bits of `dtype`, and the `energies` of fp32(left) - fp32(right),
    which are not finite where a gap is not."""
    native = compiled() if dtype == "BF16" and device.type == "cpu" else None
    if native and left.size:
        run = min(rows, len(left)) * left.shape[1]
        sums = np.empty(-(-len(left) // rows), np.float32)
        flat = left.reshape(-1), right.reshape(-1)
        same = native.bf16_gaps(*flat, run, scratch(run // 2), sums)
        return bool(same), torch.from_numpy(sums)
    gaps = torch.empty(left.shape, dtype=torch.float32, device=device)
    subtract(left, right, (dtype, dtype), gaps)
    return bool(np.array_equal(left, right)), energies(gaps, rows).cpu()


def run_rows(view: View) -> int:
    """Rows of the runs over which energies are summed; blocks on any device are whole runs."""
    return max(1, RUN // max(1, view.cols))


def blocks(view: View, device: torch.device) -> Iterator[tuple[int, int]]:
    """(start, stop) rows of every block of `view`, in order; none without elements."""
    if view.numel == 0:
        return
    step = run_rows(view) * (BLOCK[device.type] // RUN)
    for start in range(0, view.total_rows, step):
        yield start, min(start + step, view.total_rows)


class OperandReader:
    """The base values that a tensor seen as `view` starts from; None means zeros."""

    def __init__(self, operand: Operand | None, base: Checkpoint | None, view: View) -> None:
        self.view = view
        self.base = base
        if operand is None or base is None:
            self.pieces: Sequence[tuple[str, int, int]] = ()
        elif isinstance(operand, str):
            self.pieces = ((operand, 0, view.numel),)
        else:
            self.pieces = operand
        self.dtype = base.tensors[self.pieces[0][0]].dtype if base and self.pieces else view.dtype
        self.covered = sum(stop - start for _, start, stop in self.pieces)

    def bits(self, start: int, stop: int) -> Array:
        """Bit patterns `[stop - start, cols]` of those rows; read-only where nothing was joined."""
        cols = self.view.cols
        first, last = start * cols, stop * cols
        if len(self.pieces) == 1 and self.covered == self.view.numel:
            name, begin, _ = self.pieces[0]
            assert self.base is not None
            return self.base.read_bits(name, begin + first, begin + last).reshape(-1, cols)
        out = np.zeros(last - first, bits_dtype(self.dtype))
        at = 0
        for name, begin, end in self.pieces:
            low, high = max(first, at), min(last, at + end - begin)
            if low < high:
                assert self.base is not None
                window = self.base.read_bits(name, begin + low - at, begin + high - at)
                out[low - first : high - first] = window
            at += end - begin
        return out.reshape(-1, cols)

    def values(self, start: int, stop: int) -> torch.Tensor:
        """Those rows in their own dtype; not to be written to."""
        return as_float(self.bits(start, stop), self.dtype)


class DiffSource:
    """Tuned minus operand of one tensor, as encoders read it.

    Rows that the operand does not cover and elements that are not finite on either side count as
    unchanged here, so that they enter no scale (R17); `uncovered` and `nonfinite` say that there
    are some.
    """

    def __init__(
        self,
        name: str,
        tuned: Checkpoint,
        operand: OperandReader,
        device: torch.device,
    ) -> None:
        self.name = name
        self.tuned = tuned
        self.operand = operand
        self.view = operand.view
        self.device = device
        self.nonfinite = False
        self._energies: list[torch.Tensor] = []
        self._buffer: torch.Tensor | None = None
        covered = operand.covered if operand.pieces else self.view.numel
        self.uncovered = range(covered // max(1, self.view.cols), self.view.total_rows)

    def tuned_bits(self, start: int, stop: int) -> Array:
        """Bit patterns `[stop - start, cols]` of those rows of the tuned tensor; read-only."""
        cols = self.view.cols
        return self.tuned.read_bits(self.name, start * cols, stop * cols).reshape(-1, cols)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """fp32 diff `[stop - start, cols]` of those rows; valid until the next call."""
        if self._buffer is None or len(self._buffer) < stop - start:
            shape = (stop - start, self.view.cols)
            self._buffer = torch.empty(shape, dtype=torch.float32, device=self.device)
        diff = self._buffer[: stop - start]
        base, dtypes = self.operand.bits(start, stop), (self.view.dtype, self.operand.dtype)
        if not subtract(self.tuned_bits(start, stop), base, dtypes, diff):
            self.nonfinite = True
            diff.masked_fill_(~torch.isfinite(diff), 0)
        if start < self.uncovered.stop and stop > self.uncovered.start:
            diff[max(0, self.uncovered.start - start) :] = 0
        return diff

    def diff(self) -> Iterator[tuple[int, torch.Tensor]]:
        found = []
        for start, stop in blocks(self.view, self.device):
            rows = self.rows(start, stop)
            if not self._energies:
                found.append(energies(rows, run_rows(self.view)).cpu())
            yield start, rows
        self._energies = self._energies or found

    def energy(self) -> float:
        """The sum of squares of the diff; costs a pass only if none has been made yet."""
        if not self._energies:
            for _ in self.diff():
                pass
        return total(torch.cat(self._energies).tolist()) if self._energies else 0.0

    def matrix(self, index: int) -> torch.Tensor:
        return _matrix(self, index)

    def bits(self) -> Iterator[tuple[int, Array, Array]]:
        for start, stop in blocks(self.view, torch.device("cpu")):
            yield start, self.operand.bits(start, stop), self.tuned_bits(start, stop)


class Residual:
    """What terms already encoded leave of a source."""

    def __init__(self, source: DiffSource, decoded: Sequence[Decode]) -> None:
        self.source = source
        self.decoded = decoded
        self.view = source.view
        self.device = source.device

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """fp32 residual `[stop - start, cols]` of those rows; valid until the next call."""
        left = self.source.rows(start, stop)
        for decode in self.decoded:
            add_rows(decode, start, stop, left, left, negate=True)
        uncovered = self.source.uncovered
        if start < uncovered.stop and stop > uncovered.start:
            left[max(0, uncovered.start - start) :] = 0
        return left

    def diff(self) -> Iterator[tuple[int, torch.Tensor]]:
        for start, stop in blocks(self.view, self.device):
            yield start, self.rows(start, stop)

    def matrix(self, index: int) -> torch.Tensor:
        return _matrix(self, index)

    def bits(self) -> Iterator[tuple[int, Array, Array]]:
        return self.source.bits()


def _matrix(source: DiffSource | Residual, index: int) -> torch.Tensor:
    view = source.view
    out = torch.empty((view.rows, view.cols), dtype=torch.float32, device=source.device)
    first = index * view.rows
    step = run_rows(view) * (BLOCK[source.device.type] // RUN)
    for start in range(0, view.rows, step):
        stop = min(start + step, view.rows)
        out[start:stop] = source.rows(first + start, first + stop)
    return out


def residual(source: DiffSource, decoded: Sequence[Decode]) -> Source:
    """The source that the next term is encoded from."""
    return Residual(source, decoded) if decoded else source
