"""`steps`: the tuned bit patterns as distances from base, losslessly and entropy-coded (SPEC 6.9).

The decoder knows base, and a diff has about one size throughout a tensor: in steps of the bit
pattern it is small where base is large and large where base is small. So the elements of a
chunk are sorted by base's exponent, which puts numbers of one distribution side by side.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from tempfile import SpooledTemporaryFile
from typing import Any, ClassVar, Literal, Self

import numpy as np

from bitdelta_hub.codecs.base import (
    Allocate,
    Array,
    Overwrite,
    Params,
    Part,
    Parts,
    Source,
    View,
)
from bitdelta_hub.codecs.frames import FrameWriter, read_frame
from bitdelta_hub.codecs.ordered import CONTEXTS, Ordered
from bitdelta_hub.codecs.params import integer, only_keys
from bitdelta_hub.codecs.stepcode import (
    ESCAPE,
    MAX_ANCHOR,
    Planes,
    SortedChunk,
    Split,
    arrange,
    below,
    deeper_than,
    dirty_plane,
    join_numbers,
    low_bytes,
)
from bitdelta_hub.codecs.steploops import Loops
from bitdelta_hub.errors import CodecError

MAX_BYTES = 2**53
# Elements of a chunk: as many whole rows as fit, but at least one.
CHUNK = 1 << 17
SAMPLE = 2048
# Fewer symbols than this are not worth entropy tables of their own.
PIECE = 2048
# Bytes of frames that a tensor may hold in memory, and that are copied at a time.
HELD, PIECES = 1 << 24, 1 << 20


@dataclass(frozen=True, slots=True)
class Steps:
    """Parts `chunk` and `data`: for every run of rows a head and three frames."""

    name: ClassVar[str] = "steps"

    nbytes: int

    def to_params(self) -> Params:
        """`bytes`."""
        return {"bytes": self.nbytes}

    @classmethod
    def from_params(cls, params: Mapping[str, Any], view: View, at: str) -> Self:
        """The codec; raises CodecError (R24) unless `bytes` is from 0 to 2^53."""
        only_keys(params, ("bytes",), at)
        return cls(integer(params, "bytes", 0, MAX_BYTES, at))

    def parts(self, view: View) -> dict[str, Part]:
        """`chunk` U32 `[chunks, 5]` and `data` U8 `[bytes]`."""
        chunks = -(-view.total_rows // self.row_step(view)) if view.numel else 0
        return {"chunk": Part("U32", (chunks, 5)), "data": Part("U8", (self.nbytes,))}

    def row_step(self, view: View) -> int:
        """Rows of a chunk, which is decoded as a whole."""
        return _chunk_rows(view)

    def overwriter(self, parts: Parts, view: View, at: str) -> Overwrite:
        """Turns base into tuned, chunk by chunk; raises CodecError (R33, then R25, R34)."""
        ordered = Ordered.of(view.dtype)
        chunks = _read_heads(parts, self.nbytes, ordered, at)
        step = self.row_step(view)

        def overwrite(start: int, stop: int, bits: Array) -> None:
            whole = start % step == 0 and (stop % step == 0 or stop == view.total_rows)
            assert whole, "a chunk needs all of its rows"
            for row in range(start, stop if chunks else start, step):
                index = row // step
                rows = bits[row - start : row - start + step]
                base = rows.reshape(-1)
                tuned = _decode(base, chunks[index], ordered, f"{at}.data: chunk {index}")
                if not np.may_share_memory(tuned, rows):
                    rows[...] = tuned.reshape(rows.shape)

        return overwrite


@dataclass(frozen=True, slots=True)
class StepsEncoder:
    """Stores every element.

    `effort` `max` takes some fifteen times as long, to be 0.1 % smaller where every element
    changed and a tenth where few did.
    """

    codec: ClassVar[str] = "steps"

    effort: Literal["default", "max"] = "default"

    def describe(self) -> str:
        """`steps`, with its effort where that is not the default."""
        return "steps" if self.effort == "default" else f"steps {self.effort}"

    def predict(self, view: View) -> None:
        """Nothing: the size depends on the data."""
        return

    def encode(self, source: Source, allocate: Allocate) -> Steps:
        """Codes chunk by chunk; frames wait, on disk where they are many, until all are sized."""
        view = source.view
        ordered = Ordered.of(view.dtype)
        writer = FrameWriter(self.effort)
        heads: list[tuple[int, ...]] = []
        with SpooledTemporaryFile(HELD, dir=getattr(allocate, "folder", None)) as frames:
            for base, tuned in _chunks(source):
                split, coded = _encode(base, tuned, ordered, writer, search=self.effort == "max")
                heads.append((*split, *map(len, coded)))
                frames.writelines(coded)
            codec = Steps(frames.tell())
            arrays = allocate(codec)
            if heads:
                arrays["chunk"][:] = heads
            frames.seek(0)
            at = 0
            while piece := frames.read(PIECES):
                arrays["data"][at : at + len(piece)] = np.frombuffer(piece, np.uint8)
                at += len(piece)
        return codec


def _chunk_rows(view: View) -> int:
    return max(1, CHUNK // max(1, view.cols))


def _chunks(source: Source) -> Iterator[tuple[Array, Array]]:
    """(base, tuned) of every chunk, flattened, whatever the source's blocks are."""
    rows = _chunk_rows(source.view)
    held: list[tuple[Array, Array]] = []
    count = 0
    for _, base, tuned in source.bits():
        at = 0
        while at < len(base):
            take = min(rows - count, len(base) - at)
            piece = base[at : at + take].reshape(-1), tuned[at : at + take].reshape(-1)
            at, count = at + take, count + take
            if count < rows:
                held.append((piece[0].copy(), piece[1].copy()))
                continue
            yield _joined([*held, piece])
            held, count = [], 0
    if held:
        yield _joined(held)


def _joined(pieces: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate([p[0] for p in pieces]), np.concatenate([p[1] for p in pieces])


def _encode(
    base: Array, tuned: Array, ordered: Ordered, writer: FrameWriter, *, search: bool
) -> tuple[Split, list[bytes]]:
    """The split and the three frames of one chunk."""
    loops = Loops.of(ordered, len(base))
    chunk = loops.sort(base, tuned) if loops else SortedChunk(ordered, base, tuned)
    split = chunk.choose_split(-(-len(base) // SAMPLE))

    def size_of(split: Split) -> int:
        planes = chunk.planes(split)
        pieces = _pieces(planes.symbols, chunk.ends)
        return sum(len(writer.quick(p)) for p in (pieces, [planes.low], [planes.escapes]))

    if search:
        split = min(_around(split, ordered), key=size_of)
    planes = chunk.planes(split)
    quick = (writer.quick([plane]) for plane in (planes.low, planes.escapes))
    return split, [writer.best(_pieces(planes.symbols, chunk.ends)), *quick]


def _around(split: Split, ordered: Ordered) -> list[Split]:
    last = 0 if ordered.mantissa is None else CONTEXTS
    return [
        Split(direct, anchor)
        for direct in range(max(0, split.direct - 1), min(last, split.direct + 1) + 1)
        for anchor in range(max(0, split.anchor - 2), min(MAX_ANCHOR, split.anchor + 2) + 1)
    ]


def _pieces(symbols: Array, ends: Array) -> list[Array]:
    """`symbols`, as bytes, cut between contexts wherever both sides are long enough."""
    octets = symbols.view(np.uint8)
    borders = ends.tolist()
    cuts = [0]
    while cuts[-1] + 2 * PIECE <= len(octets):
        end = borders[bisect_left(borders, cuts[-1] + PIECE)]
        if end + PIECE > len(octets):
            break
        cuts.append(end)
    return [octets[start:stop] for start, stop in pairwise([*cuts, len(octets)])]


@dataclass(frozen=True, slots=True)
class _Stored:
    """One chunk as it lies in the parts."""

    split: Split
    symbols: Array
    low: Array
    escapes: Array


def _read_heads(parts: Parts, nbytes: int, ordered: Ordered, at: str) -> list[_Stored]:
    """The chunks' heads and frames, checked against R33."""
    heads = parts["chunk"].astype(np.int64)
    limits = (0 if ordered.mantissa is None else CONTEXTS, MAX_ANCHOR)
    for column, (key, limit) in enumerate(zip(("direct", "anchor"), limits, strict=True)):
        bad = np.flatnonzero(heads[:, column] > limit)
        if bad.size:
            fact = f"chunk {bad[0]}: {key} {heads[bad[0], column]} (expected at most {limit})"
            raise CodecError(fact, rule="R33", at=f"{at}.chunk")
    total = int(heads[:, 2:].sum())
    if total != nbytes:
        fact = f"wrong sum of frame sizes (expected {nbytes}, found {total})"
        raise CodecError(fact, rule="R33", at=f"{at}.chunk")
    ends = np.cumsum(heads[:, 2:].reshape(-1)).tolist()
    data = parts["data"]
    frames = [data[start:stop] for start, stop in pairwise([0, *ends])]
    return [
        _Stored(Split(*head), *frames[3 * index : 3 * index + 3])
        for index, head in enumerate(heads[:, :2].tolist())
    ]


def _decode(base: Array, chunk: _Stored, ordered: Ordered, at: str) -> Array:
    """The tuned bit patterns of one chunk, in an array of their own or in `base`."""
    loops = Loops.of(ordered, len(base))
    if loops:
        ends = loops.count(base)
    else:
        order, ends = arrange(ordered.contexts(base))
    deeper = deeper_than(ends, chunk.split, ordered.max_shift)
    symbols = read_frame(chunk.symbols, len(base), f"{at}, symbols").view(np.int8)
    low = read_frame(chunk.low, low_bytes(deeper), f"{at}, low")
    dirty = dirty_plane(low, deeper)
    if dirty is not None:
        raise CodecError(f"padding bits are not zero in plane {dirty}", rule="R25", at=f"{at}, low")
    far = int(np.count_nonzero(symbols == ESCAPE))
    escapes = read_frame(chunk.escapes, far * ordered.width // 8, f"{at}, escapes")
    planes = Planes(symbols, low, escapes)
    if loops:
        return loops.join(planes, chunk.split, deeper, base)
    numbers = join_numbers(planes, deeper, ordered.width)
    direct = below(ends, chunk.split.direct)
    numbers[direct:] += ordered.origin(base)[order[direct:]]
    values = np.empty_like(numbers)
    values[order] = numbers
    return ordered.unfold(base, values)
