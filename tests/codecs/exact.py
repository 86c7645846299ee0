"""What every codec that sets bit patterns owes, checked in one call, and sources for it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import torch
from hypothesis import strategies as st

from bitdelta_hub.codecs import codec_from
from bitdelta_hub.codecs.base import NUMPY, Array, Codec, Encoder, Parts, View

AT = "tensors.w.terms[0]"
SHAPES = [(), (1,), (17,), (0,), (3, 0), (0, 3), (5, 1), (1, 9), (6, 11), (2, 3, 7), (2, 0, 3)]


class BitsSource:
    """A source over two arrays of unsigned bit patterns, in blocks of `block_rows` rows."""

    device = torch.device("cpu")

    def __init__(self, base: Array, tuned: Array, dtype: str, block_rows: int = 0) -> None:
        self.view = View(tuned.shape, dtype)
        self.base = base.reshape(self.view.total_rows, self.view.cols)
        self.tuned = tuned.reshape(self.view.total_rows, self.view.cols)
        self.block_rows = block_rows or max(1, self.view.total_rows)

    def bits(self) -> Iterator[tuple[int, Array, Array]]:
        for start in range(0, self.view.total_rows if self.view.numel else 0, self.block_rows):
            stop = start + self.block_rows
            yield start, self.base[start:stop].copy(), self.tuned[start:stop].copy()


def width_of(dtype: str) -> str:
    return f"u{np.dtype(NUMPY[dtype]).itemsize}"


@st.composite
def sources(draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(NUMPY)) -> BitsSource:
    """Any bit patterns of any dtype and shape; tuned unrelated, near, or mostly unchanged."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    base, tuned = (random_bits(rng, shape, dtype) for _ in range(2))
    kind = draw(st.sampled_from(["unrelated", "near", "sparse", "equal"]))
    if kind != "unrelated":
        step = rng.integers(-3, 4, shape) if kind == "near" else rng.random(shape) < 0.1
        tuned = base + np.asarray(step).astype(base.dtype) * (kind != "equal")
        tuned = np.asarray(tuned, dtype=base.dtype)
    return BitsSource(base, tuned, dtype)


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    kind = np.dtype(width_of(dtype))
    size = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(rng.bytes(size * kind.itemsize), kind).reshape(shape).copy()


def encode(encoder: Encoder, source: BitsSource) -> tuple[Codec, dict[str, Array]]:
    """(codec, parts); `allocate` may be called once."""
    given: list[dict[str, Array]] = []

    def allocate(codec: Codec) -> dict[str, Array]:
        assert not given
        parts = codec.parts(source.view)
        given.append({k: np.zeros(p.shape, NUMPY[p.dtype]) for k, p in parts.items()})
        return given[0]

    codec = encoder.encode(source, allocate)  # type: ignore[arg-type]
    return codec, given[0]


def rebuild(codec: Codec, parts: Parts, source: BitsSource, groups: int = 0) -> Array:
    """The rebuilt bit patterns `[rows, cols]`, `groups` groups of rows at a time (0: all)."""
    step = groups * codec.row_step(source.view) if groups else max(1, source.view.total_rows)
    overwrite = codec.overwriter(parts, source.view, AT)
    out = source.base.copy()
    for start in range(0, len(out), step):
        stop = min(start + step, len(out))
        overwrite(start, stop, out[start:stop])
    return out


def check_exact(encoder: Encoder, source: BitsSource) -> tuple[Codec, dict[str, Array]]:
    """The contract of exact codecs, on one pair of tensors; the codec and its parts."""
    view = source.view
    codec, parts = encode(encoder, source)
    expected = codec.parts(view)
    predicted = encoder.predict(view)
    assert encoder.codec == codec.name
    assert predicted is None or predicted == expected
    described = {name: (np.dtype(NUMPY[p.dtype]), p.shape) for name, p in expected.items()}
    assert {name: (array.dtype, array.shape) for name, array in parts.items()} == described

    params = codec.to_params()
    read = json.loads(json.dumps(params))
    assert list(read) == list(params)
    assert codec_from(codec.name, read, view, AT) == codec

    for array in parts.values():
        array.flags.writeable = False
    for groups in (0, 1, 3):
        assert np.array_equal(rebuild(codec, parts, source, groups), source.tuned)

    tuned = source.tuned.reshape(view.shape)
    smaller = BitsSource(source.base.reshape(view.shape), tuned, view.dtype, block_rows=2)
    again, others = encode(encoder, smaller)
    assert again == codec
    assert {k: a.tobytes() for k, a in parts.items()} == {k: a.tobytes() for k, a in others.items()}
    return codec, parts
