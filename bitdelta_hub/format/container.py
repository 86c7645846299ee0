"""Safetensors files: a header reader for untrusted bytes, and the writer's layout (R20, R21).

The reader takes model checkpoints as well as a delta's shards. `place` is what messages call
the file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from bitdelta_hub.errors import ContainerError
from bitdelta_hub.format.document import parse_json
from bitdelta_hub.format.dtypes import nbytes, numpy_dtype, read_dtype, read_shape
from bitdelta_hub.format.names import TENSOR_NAME_BYTES, check_tensor_name, quoted
from bitdelta_hub.format.storage import open_regular, storage_errors

LONGEST_HEADER: Final = 26_214_400
ARRAY_NAME_BYTES: Final = TENSOR_NAME_BYTES + 64  # a tensor's name, a term's index, a part's name
_PREFIX = 8
_ALIGNMENT = 8
_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One array: its bytes are `start` to `stop` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """The arrays of a file in the order of their bytes; `size` is that of the whole file."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int
    size: int


def read_header(path: Path, place: str = "") -> Header:
    """The checked header of the file at `path`; `place` is the file's name by default.

    Raises ContainerError where it breaks R20 or R21, StorageError where it cannot be read.
    """
    place = place or path.name
    with open_regular(path) as file, storage_errors(path):
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(_PREFIX)
        prefix += file.read(header_size(prefix, size, place) - _PREFIX)
    return parse_header(prefix, size, place)


def header_size(prefix: bytes, file_size: int, place: str) -> int:
    """Bytes before the data, from the file's first 8 or more bytes. Raises ContainerError (R20)."""
    if file_size < _PREFIX or len(prefix) < _PREFIX:
        raise ContainerError(
            f"too short for a safetensors file (expected at least 8 bytes, found {file_size})",
            rule="R20",
            at=place,
        )
    length = int.from_bytes(prefix[:_PREFIX], "little")
    if length > LONGEST_HEADER:
        raise ContainerError(
            f"header too long (expected at most {LONGEST_HEADER} bytes, found {length})",
            rule="R20",
            at=place,
        )
    if length > file_size - _PREFIX:
        raise ContainerError(
            "cut short within the header "
            f"(expected at least {_PREFIX + length} bytes, found {file_size})",
            rule="R20",
            at=place,
        )
    return _PREFIX + length


def parse_header(prefix: bytes, file_size: int, place: str) -> Header:
    """The checked header of a file of `file_size` bytes that starts with `prefix`.

    `prefix` holds at least the `header_size` first bytes. Raises ContainerError (R20, R21).
    """
    data_start = header_size(prefix, file_size, place)
    assert len(prefix) >= data_start, "read header_size bytes first"
    text = bytes(prefix[_PREFIX:data_start])
    if not text.startswith(b"{"):
        raise ContainerError("the header does not start with {", rule="R20", at=place)
    table = parse_json(text, ContainerError, "R20", place)
    metadata = _read_metadata(table.pop("__metadata__", {}), place)
    entries = {name: _read_entry(name, item, data_start, place) for name, item in table.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    _check_contiguous(ordered, data_start, file_size, place)
    return Header(ordered, metadata, data_start, file_size)


def _read_metadata(value: Any, place: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ContainerError("not an object of strings", rule="R21", at=f'{place}["__metadata__"]')
    return value


def _read_entry(name: str, value: Any, data_start: int, place: str) -> Entry:
    at = f"{place}[{quoted(name)}]"
    check_tensor_name(name, ARRAY_NAME_BYTES, ContainerError, at)
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise ContainerError(
            "not an array (expected exactly dtype, shape and data_offsets)", rule="R21", at=at
        )
    dtype = read_dtype(value["dtype"], ContainerError, f"{at}.dtype")
    shape = read_shape(value["shape"], dtype, ContainerError, f"{at}.shape")
    start, stop = _read_offsets(value["data_offsets"], f"{at}.data_offsets")
    if stop - start != nbytes(dtype, shape):
        raise ContainerError(
            f"another size than the shape's "
            f"(expected {nbytes(dtype, shape)} bytes, found {stop - start})",
            rule="R21",
            at=f"{at}.data_offsets",
        )
    return Entry(dtype, shape, data_start + start, data_start + stop)


def _read_offsets(value: Any, at: str) -> tuple[int, int]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or any(type(offset) is not int for offset in value)
        or not 0 <= value[0] <= value[1]
    ):
        raise ContainerError(
            "not a pair of offsets (expected [start, stop] with 0 <= start <= stop)",
            rule="R21",
            at=at,
        )
    return value[0], value[1]


def _check_contiguous(
    entries: Mapping[str, Entry], data_start: int, file_size: int, place: str
) -> None:
    end = data_start
    for name, entry in entries.items():
        if entry.start != end:
            fact = "leaves a hole" if entry.start > end else "overlaps the array before it"
            raise ContainerError(
                f"{fact} (expected to start at {end - data_start}, "
                f"found {entry.start - data_start})",
                rule="R21",
                at=f"{place}[{quoted(name)}].data_offsets",
            )
        end = entry.stop
    if end != file_size:
        fact = "cut short" if end > file_size else "bytes follow the last array"
        raise ContainerError(
            f"{fact} (expected {end} bytes, found {file_size})", rule="R21", at=place
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """What a writer needs: the bytes before the data, where each array goes, the file's size."""

    header: bytes
    entries: dict[str, Entry]
    size: int


def layout(
    arrays: Iterable[tuple[str, str, Sequence[int]]],
    metadata: Mapping[str, str] | None = None,
    reserve: int = 0,
) -> Layout:
    """The layout of (name, dtype, shape) arrays, stored in the order given.

    Data starts at a multiple of 8; an order of falling element sizes keeps every array on a
    multiple of its own. With `reserve` the header takes exactly that many bytes. To write data
    before all sizes are known, reserve `len(layout(largest).header)`, `largest` having the same
    names with the largest extents possible: smaller numbers never make the header longer.

    Raises ContainerError for a header over the limit (R20).
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    end = 0
    for name, dtype, shape in arrays:
        assert name not in offsets, f"{name} is laid out twice"
        start, end = end, end + nbytes(dtype, shape)
        offsets[name] = (dtype, tuple(shape), start, end)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = _header(json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode(), reserve)
    entries = {
        name: Entry(dtype, shape, len(header) + start, len(header) + stop)
        for name, (dtype, shape, start, stop) in offsets.items()
    }
    return Layout(header, entries, len(header) + end)


def _header(text: bytes, reserve: int) -> bytes:
    size = -(-(_PREFIX + len(text)) // _ALIGNMENT) * _ALIGNMENT
    if size - _PREFIX > LONGEST_HEADER:
        raise ContainerError(
            f"header too long (expected at most {LONGEST_HEADER} bytes, found {size - _PREFIX})",
            rule="R20",
            at="header",
            fix="choose a smaller --max-shard-size, so that each file holds fewer arrays",
        )
    assert reserve % _ALIGNMENT == 0, "the data must start at a multiple of 8"
    assert not reserve or size <= reserve, "the header outgrew its reserve"
    length = max(size, reserve) - _PREFIX
    return length.to_bytes(_PREFIX, "little") + text.ljust(length)


class MappedFile:
    """The arrays of a safetensors file through a read-only memory map.

    Raises what `read_header` raises. Arrays handed out stay valid after `close`.
    """

    def __init__(self, path: Path, place: str = "") -> None:
        self.header = read_header(path, place)
        with open_regular(path) as file, storage_errors(path):
            # Never empty: the header has been read. The map of another file put in its place
            # since then would be too short for frombuffer, or hold other bytes, which digests tell.
            self._map = mmap(file.fileno(), 0, access=ACCESS_READ)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """Array `name`, read-only, as a view of the file; bit patterns for types numpy lacks."""
        entry = self.header.entries[name]
        dtype = numpy_dtype(entry.dtype)
        count = entry.nbytes // dtype.itemsize
        if not count:
            empty: np.ndarray[Any, Any] = np.empty(entry.shape, dtype)
            empty.flags.writeable = False
            return empty
        return np.frombuffer(self._map, dtype, count, entry.start).reshape(entry.shape)

    def close(self) -> None:
        """Lets go of the file; the map itself goes with the last array."""
        with contextlib.suppress(BufferError):  # arrays are still in use
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
