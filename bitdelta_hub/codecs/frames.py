"""Zstandard frames of known size: written without matches, read without trust."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import zstandard

from bitdelta_hub.codecs.base import Array
from bitdelta_hub.errors import CodecError

_kept = threading.local()

MAGIC = b"\x28\xb5\x2f\xfd"


class FrameWriter:
    """Compresses arrays of bytes; for one thread at a time."""

    def __init__(self, effort: str) -> None:
        self._entropy = zstandard.ZstdCompressor(compression_params=_entropy_only())
        self._deep = zstandard.ZstdCompressor(level=19) if effort == "max" else None

    def quick(self, pieces: Sequence[Array]) -> bytes:
        """One frame of all `pieces`, each with entropy tables of its own."""
        return _frame(self._entropy, pieces)

    def best(self, pieces: Sequence[Array]) -> bytes:
        """The smallest frame of all `pieces` that the effort allows for."""
        quick = self.quick(pieces)
        return min(quick, _frame(self._deep, pieces), key=len) if self._deep else quick


def read_frame(frame: Array, size: int, at: str) -> Array:
    """The `size` bytes that `frame`, uint8, holds; allocates no more than these.

    Raises CodecError (R34) unless `frame` is one Zstandard frame that states and has this size
    and needs no dictionary; it is empty if `size` is 0.
    """
    if size == 0 or len(frame) == 0:
        if size == len(frame):
            return frame
        raise _refused(f"a frame of {len(frame)} bytes for {size} bytes", at)
    data = frame.tobytes()
    if data[:4] != MAGIC:
        raise _refused("not a Zstandard frame", at)
    try:
        stated = zstandard.get_frame_parameters(data)
        if stated.dict_id:
            raise _refused(f"needs a dictionary (found {stated.dict_id})", at)
        if stated.content_size != size:
            found = stated.content_size
            known = "no size" if found == zstandard.CONTENTSIZE_UNKNOWN else f"{found} bytes"
            raise _refused(f"another size stated (expected {size} bytes, found {known})", at)
        out = _decompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _refused("damaged Zstandard frame", at) from error
    if len(out) != size:
        raise _refused(f"another size (expected {size} bytes, found {len(out)})", at)
    return np.frombuffer(out, np.uint8)


def _decompressor() -> zstandard.ZstdDecompressor:
    """This thread's own."""
    kept: zstandard.ZstdDecompressor | None = getattr(_kept, "decompressor", None)
    if kept is None:
        kept = _kept.decompressor = zstandard.ZstdDecompressor()
    return kept


def _refused(fact: str, at: str) -> CodecError:
    return CodecError(fact, rule="R34", at=at)


def _entropy_only() -> zstandard.ZstdCompressionParameters:
    """Huffman coding of literals and next to no search: matches in noise only cost."""
    return zstandard.ZstdCompressionParameters.from_level(
        3, strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, target_length=0
    )


def _frame(way: zstandard.ZstdCompressor, pieces: Sequence[Array]) -> bytes:
    """A frame whose blocks end where the pieces do; nothing for no bytes."""
    size = sum(len(piece) for piece in pieces)
    if size == 0:
        return b""
    if len(pieces) == 1:
        return way.compress(pieces[0].data)
    stream = way.compressobj(size=size)
    out = []
    for piece in pieces:
        out.append(stream.compress(piece.data))
        out.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    out.append(stream.flush())
    return b"".join(out)
