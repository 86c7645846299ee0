"""One file of weights, read slice by slice: safetensors through a memory map, or torch's pickles.

A `WeightFile` over byte ranges of a remote file stands beside these two without a change elsewhere.
"""

from __future__ import annotations

import contextlib
import mmap
import pickle
import sys
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from bitdelta_hub.codecs.base import Array
from bitdelta_hub.errors import ContainerError, PairError, StorageError
from bitdelta_hub.format.container import Header, read_header
from bitdelta_hub.format.dtypes import ITEMSIZE
from bitdelta_hub.format.names import TENSOR_NAME_BYTES, check_tensor_name
from bitdelta_hub.format.storage import open_regular, storage_errors

# The generic value, for interpreters older than the constant. A copy-on-write map is not charged
# against free memory with it, so a file larger than the memory can be mapped.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

_POINTER = b"version https://git-lfs.github.com/spec/"

# Container dtype -> name of the torch dtype; some of them are missing in older torch.
TORCH = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip
_CONTAINER = {torch_name: name for name, torch_name in TORCH.items()}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor: container dtype, shape, file name, and its bytes' place in the file.

    Tensors of a pickle have places in their own storage only; `start` is 0 for them.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize


class WeightFile(Protocol):
    """Random access to the tensors of one file."""

    name: str
    size: int
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]

    def read(self, tensor: str, start: int, stop: int) -> Array:
        """Bytes start..stop of `tensor` as uint8; shares memory where it can, not to be written."""

    def prefetch(self, tensor: str) -> None:
        """Asks for the tensor's bytes ahead of time; returns at once."""

    def close(self) -> None:
        """Lets go of the file; arrays handed out stay valid."""


class SafetensorsFile:
    """A local safetensors file behind a private memory map.

    The map is copy-on-write: a stray write to an array that shares it can never reach the file.
    Raises ContainerError for a header that breaks a rule, PairError BDH110 for a dtype that the
    format does not know, StorageError where the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        header = _header(path)
        self.name = path.name
        self.size = header.size
        self.metadata = header.metadata
        self.tensors = {
            name: TensorInfo(entry.dtype, entry.shape, path.name, entry.start, entry.stop)
            for name, entry in header.entries.items()
        }
        self._map = _map(path)
        if len(self._map) < header.size:  # shortened since its header was read
            raise StorageError(
                f"{path}: shortened while it was opened "
                f"(expected {header.size} bytes, found {len(self._map)})",
                fix="wait until nothing writes to it any more, then run again",
            )

    def read(self, tensor: str, start: int, stop: int) -> Array:
        if start == stop:
            return np.empty(0, np.uint8)
        at = self.tensors[tensor].start + start
        return np.frombuffer(self._map, np.uint8, stop - start, at)

    def prefetch(self, tensor: str) -> None:
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        info = self.tensors[tensor]
        start = info.start - info.start % mmap.PAGESIZE
        if info.stop > start:
            with contextlib.suppress(OSError):  # advice may be refused
                self._map.madvise(mmap.MADV_WILLNEED, start, info.stop - start)

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # arrays still out keep the map until they go
            self._map.close()


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except ContainerError as error:
        if _is_pointer(path):
            raise StorageError(
                f"{path}: a Git LFS pointer, not the weights",
                fix="fetch them: git lfs pull, in that folder",
            ) from error
        if error.rule != "R9":
            error.fix = error.fix or f"fetch {path} again, or save it anew"
            raise
        raise PairError(
            str(error),
            code="BDH110",
            fix="give a copy of the checkpoint in a 16-bit type",
        ) from error


def _is_pointer(path: Path) -> bool:
    """Whether `path` is what a clone without Git LFS has in the place of a large file."""
    with open_regular(path) as file:
        return file.read(len(_POINTER)) == _POINTER


def _map(path: Path) -> mmap.mmap:
    with open_regular(path) as file, storage_errors(path):
        if not _NORESERVE:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        flags = mmap.MAP_PRIVATE | _NORESERVE
        return mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)


class PickleFile:
    """A `.bin` or `.pth` file of torch tensors, loaded without running code.

    Tied tensors that share one storage appear under each of their names. Raises PairError BDH107
    for a file that holds anything but named tensors.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with storage_errors(path):
            self.size = path.stat().st_size
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._bytes: dict[str, torch.Tensor] = {}
        for name, tensor in _load(path).items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise _not_weights(path, f"{name!r} is not a named tensor")
            check_tensor_name(name, TENSOR_NAME_BYTES, ContainerError, path.name)
            dtype = _CONTAINER.get(str(tensor.dtype).removeprefix("torch."))
            if dtype is None or tensor.layout != torch.strided:
                kind = f"{tensor.dtype}, {tensor.layout}".replace("torch.", "")
                raise _not_weights(path, f"{name} is of a kind that safetensors lacks ({kind})")
            flat = tensor.detach().resolve_neg().contiguous().view(-1)
            self._bytes[name] = flat.view(torch.uint8)
            self.tensors[name] = TensorInfo(dtype, tuple(tensor.shape), path.name, 0, flat.nbytes)

    def read(self, tensor: str, start: int, stop: int) -> Array:
        found: Array = self._bytes[tensor].numpy()[start:stop]
        return found

    def prefetch(self, tensor: str) -> None:
        """Nothing: torch gives no handle on the mapped file."""

    def close(self) -> None:
        self._bytes.clear()


def _load(path: Path) -> dict[object, object]:
    try:
        with storage_errors(path):
            # Files of before torch 1.6 are no archives, so there is nothing to map.
            archive = zipfile.is_zipfile(path)
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        raise _not_weights(path, "it holds other objects, or is no such file") from error
    except (StorageError, MemoryError):
        raise
    except Exception as error:  # the unpickler raises whatever damage makes of it
        raise _not_weights(path, "it is damaged") from error
    if not isinstance(found, dict):
        raise _not_weights(path, f"a {type(found).__name__} where a table of tensors is due")
    return found


def _not_weights(path: Path, fact: str) -> PairError:
    return PairError(
        f"{path.name}: not a file of tensors alone: {fact}",
        code="BDH107",
        fix="load the model with transformers and save it with save_pretrained, as safetensors",
    )
