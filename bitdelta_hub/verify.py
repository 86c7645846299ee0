"""Verify: look for faults in a delta and change nothing."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bitdelta_hub.checkpoint import Checkpoint, open_checkpoint
from bitdelta_hub.codecs.base import FLOATS
from bitdelta_hub.delta import Delta, open_delta
from bitdelta_hub.errors import DigestMismatch, UsageError
from bitdelta_hub.format.manifest import FileRef
from bitdelta_hub.format.names import quoted
from bitdelta_hub.source import DiffSource, OperandReader, as_float
from bitdelta_hub.workers import Progress, Workers, pick_device, workers

LEVELS = ("files", "base", "weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What was looked at, with no fault found; `error` compares with tuned where it was given."""

    level: str
    checked_files: int
    checked_tensors: int
    bytes: int
    seconds: float
    error: dict[str, float | int] | None = None


def verify(
    delta: str | Path,
    *,
    level: str = "weights",
    base: str | Path | None = None,
    against: str | Path | None = None,
    device: str = "auto",
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> VerifyResult:
    """Checks a delta: every rule of the spec and every file's SHA-256 (`files`), also every base
    tensor's digest (`base`), also every rebuilt tensor's digest (`weights`).

    `against` is the tuned checkpoint: tensors called exact are then compared bit for bit, and
    the relative errors measured anew and compared with those recorded.

    Raises FormatError, DigestMismatch, BaseMismatch or StorageError at the first fault.
    """
    began = time.perf_counter()
    if level not in LEVELS:
        raise UsageError(f"--level: no level {level!r}", fix=f"one of {', '.join(LEVELS)}")
    if level == "files" and against is not None:
        raise UsageError(
            "--against: level files rebuilds nothing to compare with",
            fix="leave it out, or use --level weights with --base",
        )
    if level != "files" and base is None:
        raise UsageError(
            f"{delta}: level {level} needs the base",
            fix="pass it with --base, or use --level files",
        )
    where = pick_device(device)
    with open_delta(delta) as opened, workers(where, progress) as pool:
        checker = _Checker(opened, where, pool)
        checker.files()
        error = None
        if level != "files" and base is not None:
            with open_checkpoint(base, allow_pickle=allow_pickle) as found:
                checker.base(found)
                if level == "weights":
                    checker.weights(found)
                if against is not None:
                    with open_checkpoint(against, allow_pickle=allow_pickle) as tuned:
                        error = checker.against(found, tuned)
    return VerifyResult(
        level=level,
        checked_files=checker.checked_files,
        checked_tensors=checker.checked_tensors,
        bytes=checker.bytes,
        seconds=time.perf_counter() - began,
        error=error,
    )


class _Checker:
    def __init__(self, delta: Delta, device: torch.device, pool: Workers) -> None:
        self.delta = delta
        self.device = device
        self.pool = pool
        self.checked_files = 0
        self.checked_tensors = 0
        self.bytes = 0

    def files(self) -> None:
        """Size and SHA-256 of every shard and every carried file."""
        manifest = self.delta.manifest
        listed = [(f"shards[{i}]", file) for i, file in enumerate(manifest.shards)]
        listed += [(f"files[{i}]", file) for i, file in enumerate(manifest.files)]

        def one(item: tuple[str, FileRef]) -> None:
            self.delta.check_file(*item)
            self.pool.advance(item[1].size)

        size = sum(file.size for _, file in listed)
        self.pool.run("verify files", size, one, listed)
        self.checked_files = len(listed)
        self.bytes += size

    def base(self, base: Checkpoint) -> None:
        """Digest of every base tensor that the delta starts from."""
        self.delta.check_base(base)
        names = list(self.delta.manifest.base.tensors)

        def one(name: str) -> None:
            self.delta.check_base_tensor(base, name)
            self.pool.advance(base.tensors[name].nbytes)

        size = sum(base.tensors[name].nbytes for name in names)
        self.pool.run("verify base", size, one, names, base.prefetch)
        self.bytes += size

    def weights(self, base: Checkpoint) -> None:
        """Digest of every rebuilt tensor."""
        names = list(self.delta.manifest.tensors)

        def one(name: str) -> None:
            for _, bits in self.delta.rebuilt(name, base, self.device):
                self.pool.advance(bits.nbytes)

        size = sum(self.delta.view(name).nbytes for name in names)
        self.pool.run("verify weights", size, one, names)
        self.checked_tensors = len(names)
        self.bytes += size

    def against(self, base: Checkpoint, tuned: Checkpoint) -> dict[str, float | int]:
        """Median and worst relative error of the lossy tensors; exact ones must be identical."""
        entries = self.delta.manifest.tensors
        for name in tuned.tensors:
            if name not in entries:
                raise _another_tuned("of the fine-tune, but not of the delta", name)

        def one(name: str) -> float | None:
            info, entry = tuned.tensors.get(name), entries[name]
            if info is None or (info.dtype, tuple(info.shape)) != (entry.dtype, entry.shape):
                raise _another_tuned(
                    "not a tensor of the fine-tune with this dtype and shape", name
                )
            error = self._error(name, base, tuned)
            self.pool.advance(info.nbytes)
            return error

        size = sum(self.delta.view(name).nbytes for name in entries)
        errors = self.pool.run("compare", size, one, list(entries))
        lossy = [error for error in errors if error is not None]
        return {
            "lossy_tensors": len(lossy),
            "exact_tensors": len(self.delta.manifest.tensors) - len(lossy),
            "median": median(lossy) if lossy else 0.0,
            "worst": max(lossy, default=0.0),
        }

    def _error(self, name: str, base: Checkpoint, tuned: Checkpoint) -> float | None:
        entry = self.delta.manifest.tensors[self.delta.resolve(name)]
        view = self.delta.view(name)
        source = DiffSource(name, tuned, OperandReader(entry.base, base, view), self.device)
        missed, moved, same = 0.0, 0.0, True
        for start, bits in self.delta.rebuilt(name, base, self.device):
            stop = start + len(bits)
            wanted = source.tuned_bits(start, stop)
            same = same and np.array_equal(bits, wanted)
            if view.dtype in FLOATS and entry.kind == "sum":
                gap = as_float(bits, view.dtype).float() - as_float(wanted, view.dtype).float()
                missed += _energy(gap.nan_to_num_(0, 0, 0))
                moved += _energy(source.rows(start, stop))
        if same:
            return None
        if entry.kind != "sum" or entry.error == 0:
            raise _another_tuned("called exact, but differs from the fine-tune", name)
        error = math.sqrt(missed / max(moved, 1e-300))
        # The writer's squares are fp32: below this it may not have measured well. The tolerance is
        # for sums in another order; another fine-tune is far off.
        recorded = entry.error if moved == 0 or moved > 1e-30 * view.numel else None
        if recorded is not None and not math.isclose(error, recorded, rel_tol=0.01):
            raise _another_tuned(
                f"another relative error (expected {recorded:.4g}, found {error:.4g})", name
            )
        return error


def _energy(x: torch.Tensor) -> float:
    """The sum of squares in fp64, which no fp32 values overflow; its order is the library's."""
    return float(x.double().square_().sum())


def _another_tuned(message: str, name: str) -> DigestMismatch:
    return DigestMismatch(
        message,
        at=f"tensors[{quoted(name)}]",
        fix="--against takes the fine-tune that the delta was made from",
    )
