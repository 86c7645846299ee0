"""The contract between one tensor's diff and its stored parts.

A codec instance is the wire form of one term: its name and params go to the manifest, `parts`
gives dtype and shape of every stored array, a decoder gives back values for any run of rows.
An encoder is what a plan holds: it reads a `Source` and fills the parts. Codecs never hear of
files: arrays come from an `Allocate` callback, which may hand out windows of a file.

Every tensor is seen as `[batch, rows, cols]`: the last axis is `cols`, the one before `rows`,
all others are a batch of matrices. A block is some consecutive rows out of `batch * rows`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch

from bitdelta_hub.kernels.ops import add

Array = np.ndarray[Any, Any]
Params = dict[str, Any]
Parts = Mapping[str, Array]

# Container dtype -> numpy dtype of the stored array. Types that numpy lacks are bit patterns.
NUMPY: dict[str, Any] = {
    "BOOL": np.uint8, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
    "U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64,
    "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "F8_E8M0": np.uint8,
    "F16": np.float16, "BF16": np.uint16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip
# The dtypes that a diff can be taken in.
FLOATS: dict[str, torch.dtype] = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}


def itemsize(dtype: str) -> int:
    """Bytes of one element of container dtype `dtype`."""
    return int(np.dtype(NUMPY[dtype]).itemsize)


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as a batch of matrices."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def cols(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def batch(self) -> int:
        return prod(self.shape[:-2])

    @property
    def total_rows(self) -> int:
        return self.batch * self.rows

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * itemsize(self.dtype)

    def matrices(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(matrix, first row, last row + 1) of each matrix that has rows in start..stop."""
        while start < stop:
            matrix = start // self.rows
            last = min(stop, (matrix + 1) * self.rows)
            yield matrix, start, last
            start = last


@dataclass(frozen=True, slots=True)
class Part:
    """Container dtype and shape of one stored array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * itemsize(self.dtype)


class Source(Protocol):
    """What an encoder may read. All iterators start at row 0, cover every row once, in order,
    and can be asked for again; a yielded block may be overwritten by its receiver and is valid
    until the next one is asked for."""

    view: View
    device: torch.device

    def diff(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, fp32 `[n, cols]` of what is left to encode); finite everywhere."""

    def matrix(self, index: int) -> torch.Tensor:
        """fp32 `[rows, cols]` of what is left to encode in matrix `index` of the batch."""

    def bits(self) -> Iterator[tuple[int, Array, Array]]:
        """(first row, base, tuned) as unsigned bit patterns `[n, cols]` of the tuned dtype's
        width; only where the base operand has the tuned dtype. Read-only."""


class Allocate(Protocol):
    """Gives one zeroed, writable array per part of `codec`, in `codec.parts(view)`'s order.

    Only `codec.parts(view)` is used: params on which no part depends may still be unknown.
    An allocator may have a `folder` for scratch files, a Path.
    """

    def __call__(self, codec: Codec) -> dict[str, Array]: ...


# decode(start, stop) -> fp32 [stop - start, cols] of this term, on the decoder's device; valid
# until the next call, so a decoder serves one thread
Decode = Callable[[int, int], torch.Tensor]


class Adder(ABC):
    """A `Decode` that can add its rows in one pass, without showing them."""

    @abstractmethod
    def __call__(self, start: int, stop: int) -> torch.Tensor: ...

    @abstractmethod
    def add(
        self, start: int, stop: int, left: torch.Tensor, out: torch.Tensor, negate: bool
    ) -> None:
        """What `add_rows` says."""


def add_rows(
    decode: Decode,
    start: int,
    stop: int,
    left: torch.Tensor,
    out: torch.Tensor,
    negate: bool = False,
) -> None:
    """out = left + the term's rows, or less them with `negate`: added in fp32, rounded once to
    the dtype of `out`, which may be `left` itself where that is fp32 (SPEC R17)."""
    if isinstance(decode, Adder):
        decode.add(start, stop, left, out, negate)
        return
    values = decode(start, stop)
    add(left, -values if negate else values, out)


# patch(start, stop, bits) writes this term's bit patterns into the bits [stop - start, cols]
Overwrite = Callable[[int, int, Array], None]


class Codec(Protocol):
    """The wire form of one term. Its bytes never change under its name."""

    name: ClassVar[str]

    def to_params(self) -> Params:
        """JSON-able params, keys in the spec's order."""

    @classmethod
    def from_params(cls, params: Mapping[str, Any], view: View, at: str) -> Self:
        """The codec that `params` describe for a tensor seen as `view`.

        Raises CodecError with the rule's number and place `at` for anything else than exactly
        the keys, types and ranges of the spec. Never allocates by what it is told.
        """

    def parts(self, view: View) -> dict[str, Part]:
        """dtype and shape of every stored part, in stored order."""


class AdditiveCodec(Codec, Protocol):
    """A codec whose term is added in fp32: sign, int, codebook, lowrank, sparse."""

    def decoder(self, parts: Parts, view: View, device: torch.device, at: str) -> Decode:
        """Prepares `parts` once. Raises CodecError where their content breaks a rule.

        The returned function gives the same bits for every row range, device and thread count.
        """


class ExactCodec(Codec, Protocol):
    """A codec whose term sets bit patterns: raw, rows, patch, steps."""

    def row_step(self, view: View) -> int:
        """How rows are grouped: a range given to the overwriter starts at a multiple of this
        and ends at one or at the last row."""

    def overwriter(self, parts: Parts, view: View, at: str) -> Overwrite:
        """Prepares `parts` once. `bits` come in holding the base operand (or the rounded sum)
        and leave holding the rebuilt tensor. Raises CodecError as `decoder` does."""


class Encoder(Protocol):
    """A codec with its choices made but its data not yet seen; what a plan holds."""

    codec: ClassVar[str]

    def describe(self) -> str:
        """A few words for the plan's table, e.g. `sign row unbiased`."""

    def predict(self, view: View) -> dict[str, Part] | None:
        """The parts, exactly as they will be stored; None where they depend on the data."""

    def encode(self, source: Source, allocate: Allocate) -> Codec:
        """Reads `source`, calls `allocate` once, fills the arrays, returns the codec.

        The returned codec has the parts of the one given to `allocate`, and the final params.
        The same source gives the same bytes whatever the block sizes and the number of threads;
        for element-wise codecs also whatever the device.
        """
