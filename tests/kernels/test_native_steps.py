"""The loops of `steps` store the bytes of numpy, and refuse and rebuild what numpy does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given

from bitdelta_hub.codecs import steploops
from bitdelta_hub.codecs.base import NUMPY, Array, Codec
from bitdelta_hub.codecs.ordered import MANTISSA, Ordered
from bitdelta_hub.codecs.stepcode import Planes, SortedChunk, Split, deeper_than
from bitdelta_hub.codecs.steps import CHUNK, Steps, StepsEncoder
from bitdelta_hub.errors import CodecError
from tests.codecs.exact import AT, BitsSource, encode, random_bits, rebuild, sources

pytest.importorskip("numba", reason="the extra `cpu` is not installed")

COMPILED = ["F16", "BF16", "F32"]
SHAPES = [(1, 1), (1, 7), (9, 1), (33, 1), (1, 64), (2047, 3), (300, 701), (1, CHUNK + 13)]
KINDS = ["weights", "near", "sparse", "equal", "unrelated", "special", "one exponent"]


@contextmanager
def plain() -> Iterator[None]:
    """Runs as where numba is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steploops, "compiled", lambda: None)
        yield


def weights(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> tuple[Array, Array]:
    """Values of the size of weights, and the same a little moved."""
    values = rng.normal(0, 0.04, shape).astype(np.float32)
    pair = values, values + rng.laplace(0, 0.004, shape).astype(np.float32)
    if dtype == "F16":
        return pair[0].astype(np.float16).view(np.uint16), pair[1].astype(np.float16).view(
            np.uint16
        )
    bits = pair[0].view(np.uint32), pair[1].view(np.uint32)
    if dtype == "F32":
        return bits
    return (bits[0] >> 16).astype(np.uint16), (bits[1] >> 16).astype(np.uint16)


def pair_of(kind: str, shape: tuple[int, ...], dtype: str) -> tuple[Array, Array]:
    rng = np.random.default_rng([len(kind), *shape])
    if kind == "weights":
        return weights(rng, shape, dtype)
    base, tuned = (random_bits(rng, shape, dtype) for _ in range(2))
    ordered = Ordered.of(dtype)
    assert ordered.mantissa is not None
    top, one = 1 << (ordered.width - 1), 1 << ordered.mantissa
    if kind == "special":
        infinite = top - one
        special = [0, 1, top, top | 1, infinite, infinite | top, infinite | 1, 2 * top - 1, top - 1]
        base, tuned = (rng.choice(np.array(special, base.dtype), shape) for _ in range(2))
    elif kind == "one exponent":
        base = (base & base.dtype.type(top | (one - 1))) | base.dtype.type(9 * one)
    elif kind != "unrelated":
        step = rng.integers(-3, 4, shape) if kind == "near" else rng.random(shape) < 0.01
        tuned = base + np.asarray(step).astype(base.dtype) * base.dtype.type(kind != "equal")
    return base, tuned


def check(source: BitsSource, encoder: StepsEncoder) -> tuple[Codec, dict[str, Array]]:
    """Stores and rebuilds the same with and without loops."""
    codec, parts = encode(encoder, source)
    with plain():
        expected, others = encode(encoder, source)
        assert np.array_equal(rebuild(codec, parts, source, 1), source.tuned)
    assert codec == expected
    assert {k: a.tobytes() for k, a in parts.items()} == {k: a.tobytes() for k, a in others.items()}
    assert np.array_equal(rebuild(codec, parts, source, 1), source.tuned)
    return codec, parts


def test_the_loops_are_used_where_they_should_be() -> None:
    used = {dtype for dtype in NUMPY if steploops.Loops.of(Ordered.of(dtype), 5)}
    assert used == set(COMPILED) < set(MANTISSA)
    with plain():
        assert steploops.Loops.of(Ordered.of("BF16"), 5) is None


@pytest.mark.parametrize("dtype", COMPILED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_those_of_numpy(dtype: str, kind: str, shape: tuple[int, int]) -> None:
    check(BitsSource(*pair_of(kind, shape, dtype), dtype), StepsEncoder())


@pytest.mark.parametrize("dtype", COMPILED)
@pytest.mark.parametrize("kind", ["weights", "unrelated"])
def test_bytes_are_those_of_numpy_at_most_effort(dtype: str, kind: str) -> None:
    check(BitsSource(*pair_of(kind, (60, 51), dtype), dtype), StepsEncoder(effort="max"))


@given(sources())
def test_any_tensor_is_stored_as_by_numpy(source: BitsSource) -> None:
    check(source, StepsEncoder())


@pytest.mark.parametrize("dtype", COMPILED)
def test_damage_has_the_outcome_it_has_in_numpy(dtype: str) -> None:
    rng = np.random.default_rng(7)
    source = BitsSource(*pair_of("weights", (12, 171), dtype), dtype)
    codec, parts = encode(StepsEncoder(), source)

    def outcome(parts: dict[str, Array]) -> str | bytes:
        try:
            return rebuild(codec, parts, source).tobytes()
        except CodecError as error:
            return str(error)

    refused = 0
    for trial in range(200):
        damaged = {name: array.copy() for name, array in parts.items()}
        if trial % 4:
            octets = damaged["data"]
            octets[rng.integers(len(octets))] ^= np.uint8(1 << rng.integers(8))
        else:
            damaged["chunk"][0, :2] = rng.integers(0, [257, 512])
        found = outcome(damaged)
        refused += isinstance(found, str)
        with plain():
            assert outcome(damaged) == found
    assert 0 < refused < 200


@pytest.mark.parametrize("dtype", COMPILED)
def test_every_split_is_decoded_as_by_numpy(dtype: str) -> None:
    ordered, n = Ordered.of(dtype), 203
    base, _ = pair_of("unrelated", (n,), dtype)
    loops = steploops.Loops.of(ordered, n)
    assert loops
    for direct in (0, 1, 30, 31, 32, 127, 255, 256):
        for anchor in (0, 1, 100, 255, 256, 270, 511):
            split = Split(direct, anchor)
            tuned = random_bits(np.random.default_rng(anchor), (n,), dtype)
            fast = loops.sort(base, tuned).planes(split)
            slow = SortedChunk(ordered, base, tuned).planes(split)
            assert [plane.tobytes() for plane in fast] == [plane.tobytes() for plane in slow]
            deeper = deeper_than(loops.count(base), split, ordered.max_shift)
            planes = Planes(*(plane.copy() for plane in fast))
            assert np.array_equal(loops.join(planes, split, deeper, base.copy()), tuned)


@pytest.mark.parametrize("dtype", COMPILED)
def test_bits_at_an_odd_address(dtype: str) -> None:
    base, tuned = pair_of("weights", (40, 50), dtype)
    source = BitsSource(base, tuned, dtype)
    codec, parts = check(source, StepsEncoder())
    memory = np.empty(base.nbytes + 1, np.uint8)
    odd = memory[1:].view(base.dtype).reshape(base.shape)
    odd[...] = base
    loops = steploops.Loops.of(Ordered.of(dtype), base.size)
    assert loops
    assert not odd.flags.aligned
    assert isinstance(codec, Steps)
    codec.overwriter(parts, source.view, AT)(0, len(odd), odd)
    assert np.array_equal(odd, tuned)


def test_threads_do_not_share_memory() -> None:
    cases = [BitsSource(*pair_of("weights", (64, 1000 + k), "BF16"), "BF16") for k in range(8)]

    def stored(source: BitsSource) -> bytes:
        codec, parts = encode(StepsEncoder(), source)
        assert np.array_equal(rebuild(codec, parts, source), source.tuned)
        return parts["data"].tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(stored, cases)) == [stored(source) for source in cases]


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_base_that_changes_meanwhile_leads_nowhere_else(dtype: str) -> None:
    native = pytest.importorskip("bitdelta_hub.kernels.native")
    width, mantissa, n = Ordered.of(dtype).width, MANTISSA[dtype], 1001
    places, ends = np.empty(1024, np.int64), np.empty(256, np.int64)
    guarded = np.full(2 * n + 100, 77, f"u{width // 4}")
    for before, after in ((0, 255), (255, 0), (7, 254)):
        base = np.full(n, before << mantissa, f"u{width // 8}")
        getattr(native, f"count_{width}")(base, mantissa, places, ends)
        base[:] = after << mantissa
        getattr(native, f"sort_{width}")(base, base, mantissa, places, guarded[: 2 * n])
        assert places.max() <= 2 * n
    assert (guarded[2 * n :] == 77).all()
