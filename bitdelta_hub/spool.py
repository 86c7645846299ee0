"""Where parts wait until every size is known: one scratch file, then the shards.

Encoders write straight into windows of the scratch file, so that a part of any size costs no
memory of its own; the shards are laid out and hashed in one sequential pass at the end.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from bitdelta_hub.codecs.base import NUMPY, Array, Codec, Part, View
from bitdelta_hub.format.container import layout
from bitdelta_hub.format.manifest import FileRef
from bitdelta_hub.format.storage import write_at

# Regions below this live in memory until they are written: a mapping costs more than it saves.
SMALL = 1 << 20
COPY = 1 << 20


@dataclass(frozen=True, slots=True)
class SpooledPart:
    """One part of one term in the scratch file."""

    name: str
    part: Part
    offset: int


class Region:
    """The arrays of one term, in the scratch file or on their way to it."""

    def __init__(self, spool: Spool, parts: dict[str, Part]) -> None:
        self.parts = parts
        self._spool = spool
        self._size = sum(_padded(part.nbytes) for part in parts.values())
        self._offset = spool.reserve(self._size)
        self._memory: bytearray | mmap.mmap
        if self._size < SMALL:
            self._memory = bytearray(self._size)
        else:
            self._memory = mmap.mmap(spool.file, self._size, offset=self._offset)
        self.arrays = dict(self._arrays())

    def _arrays(self) -> Iterator[tuple[str, Array]]:
        at = 0
        for name, part in self.parts.items():
            yield name, np.ndarray(part.shape, NUMPY[part.dtype], self._memory, at)
            at += _padded(part.nbytes)

    def close(self, prefix: str) -> list[SpooledPart]:
        """Writes what is still in memory; the parts under their stored names `prefix` + part."""
        self.arrays = {}
        if isinstance(self._memory, bytearray):
            write_at(self._spool.file, self._memory, self._offset)
        placed, at = [], self._offset
        for name, part in self.parts.items():
            placed.append(SpooledPart(prefix + name, part, at))
            at += _padded(part.nbytes)
        return placed


class Spool:
    """A scratch file that any number of threads reserve regions of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._end = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Closes and removes the file."""
        os.close(self.file)
        self.path.unlink(missing_ok=True)

    def reserve(self, size: int) -> int:
        """The offset of `size` fresh bytes; OSError now, not later, if the disk is full."""
        with self._lock:
            offset = self._end
            self._end += -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file, offset, size)
        elif size:
            os.pwrite(self.file, b"\0", offset + size - 1)
        return offset

    def region(self, codec: Codec, view: View) -> Region:
        """Zeroed arrays for the parts of `codec`."""
        return Region(self, codec.parts(view))


def _padded(size: int) -> int:
    return -(-size // 64) * 64


def stored_order(parts: Sequence[SpooledPart]) -> list[SpooledPart]:
    """Wide elements first, so that every array lies on a multiple of its element size."""
    return sorted(parts, key=lambda spooled: -np.dtype(NUMPY[spooled.part.dtype]).itemsize)


def shards_of(tensors: Sequence[list[SpooledPart]], largest: int) -> list[list[SpooledPart]]:
    """The parts of consecutive tensors in shards of at most `largest` bytes where possible."""
    shards: list[list[SpooledPart]] = [[]]
    filled = 0
    for parts in tensors:
        size = sum(spooled.part.nbytes for spooled in parts)
        if shards[-1] and filled + size > largest:
            shards.append([])
            filled = 0
        shards[-1] += parts
        filled += size
    return [stored_order(parts) for parts in shards]


def shard_name(index: int, count: int) -> str:
    """The file name of shard `index` (from 0) of `count`."""
    return "delta.safetensors" if count == 1 else f"delta-{index + 1:05}-of-{count:05}.safetensors"


def shard_size(parts: Sequence[SpooledPart]) -> int:
    """Bytes of the shard that `write_shard` writes for `parts`."""
    return layout(_entries(parts)).size


def _entries(parts: Sequence[SpooledPart]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(spooled.name, spooled.part.dtype, spooled.part.shape) for spooled in parts]


def write_shard(spool: Spool, parts: Sequence[SpooledPart], path: Path) -> FileRef:
    """Writes `parts` as the safetensors file `path`; its descriptor, hashed on the way."""
    digest = hashlib.sha256()
    size = 0
    header = layout(_entries(parts)).header
    with path.open("xb", buffering=0) as file:
        for chunk in chain([header], _chunks(spool, parts)):
            write_at(file.fileno(), chunk, size)
            digest.update(chunk)
            size += len(chunk)
    return FileRef(file=path.name, size=size, sha256=digest.hexdigest())


def _chunks(spool: Spool, parts: Sequence[SpooledPart]) -> Iterator[bytes]:
    for spooled in parts:
        for at in range(0, spooled.part.nbytes, COPY):
            count = min(COPY, spooled.part.nbytes - at)
            yield os.pread(spool.file, count, spooled.offset + at)
