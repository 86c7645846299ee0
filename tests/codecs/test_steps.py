"""`steps`: lossless for every bit pattern, small on real tunes, chunk by chunk, safe to read."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from safetensors import safe_open

from bitdelta_hub.codecs.base import NUMPY, Array, Parts, View
from bitdelta_hub.codecs.ordered import MANTISSA, Ordered
from bitdelta_hub.codecs.steps import CHUNK, Steps, StepsEncoder
from bitdelta_hub.errors import CodecError
from tests.codecs.exact import AT, BitsSource, check_exact, encode, random_bits, rebuild, sources


@given(sources())
def test_any_tensor_comes_back(source: BitsSource) -> None:
    check_exact(StepsEncoder(), source)


@given(sources())
def test_any_tensor_comes_back_at_most_effort(source: BitsSource) -> None:
    check_exact(StepsEncoder(effort="max"), source)


@pytest.mark.parametrize("dtype", list(NUMPY))
def test_every_dtype_over_several_chunks(dtype: str) -> None:
    rng = np.random.default_rng(1)
    base = random_bits(rng, (3, 500, 199), dtype)
    tuned = base + rng.integers(-40, 41, base.shape).astype(base.dtype)
    source = BitsSource(base, tuned.astype(base.dtype), dtype)
    codec, parts = check_exact(StepsEncoder(), source)
    assert codec.row_step(source.view) == CHUNK // 199
    assert parts["chunk"].shape == (3, 5)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_pattern_against_special_ones(dtype: str) -> None:
    exponents = {"F16": 0x7C00, "BF16": 0x7F80}[dtype]
    special = [0, 1, 0x8000, 0x8001, exponents, exponents | 0x8000, exponents + 1, 0xFFFF, 0x7FFF]
    base = np.repeat(np.array(special, np.uint16), 1 << 16)
    tuned = np.tile(np.arange(1 << 16, dtype=np.uint16), len(special))
    source = BitsSource(base.reshape(-1, 256), tuned.reshape(-1, 256), dtype)
    codec, parts = encode(StepsEncoder(), source)
    assert np.array_equal(rebuild(codec, parts, source, 1), source.tuned)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "BOOL", "I8"])
def test_every_pair_of_bytes(dtype: str) -> None:
    base, tuned = (grid.astype(np.uint8) for grid in np.mgrid[:256, :256])
    check_exact(StepsEncoder(), BitsSource(base, tuned, dtype))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F16", "BF16", "F32", "F64"])
def test_neighbouring_values_are_one_step_apart(dtype: str) -> None:
    floats = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    ordered = Ordered.of(dtype)
    kind = np.dtype(f"u{ordered.width // 8}")
    for sign in (0, 1 << (ordered.width - 1)):
        base = np.array([1 << ordered.mantissa], kind) | kind.type(sign)  # type: ignore[operator]
        up, down = base + kind.type(1), base - kind.type(1)
        origin = ordered.origin(base)
        assert (ordered.fold(base, up) - origin).tolist() == [1]
        assert (ordered.fold(base, down) - origin).tolist() == [-1]
        if dtype in floats:
            assert abs(up.view(floats[dtype])[0]) > abs(base.view(floats[dtype])[0])


def test_contexts_are_the_exponents() -> None:
    values = np.array([1.0, -2.0, 0.75, 0.0])
    expected = [127, 128, 126, 0]
    bits32 = values.astype(np.float32).view(np.uint32)
    assert Ordered.of("F32").contexts(bits32).tolist() == expected
    assert Ordered.of("BF16").contexts((bits32 >> 16).astype(np.uint16)).tolist() == expected
    assert Ordered.of("F64").contexts(values.view(np.uint64)).tolist() == expected
    assert Ordered.of("F16").contexts(values.astype(np.float16).view(np.uint16)).tolist() == [
        15, 16, 14, 0,
    ]  # fmt: skip
    assert set(MANTISSA) <= set(NUMPY)


EXAMPLE = {
    "base": np.array([[0x3F80, 0xBF00, 0x3C10, 0x3F7F, 0x8000]], np.uint16),
    "tuned": np.array([[0x3F83, 0xBEFF, 0xBC40, 0x4100, 0x0000]], np.uint16),
}
CONTENT = [bytes.fromhex(text) for text in ("ff87ff8003", "0f030303030301", "c000")]


def stored(
    frames: list[bytes], direct: int = 121, anchor: int = 127
) -> tuple[Steps, dict[str, Array]]:
    data = np.frombuffer(b"".join(frames), np.uint8)
    head = np.array([[direct, anchor, *map(len, frames)]], np.uint32)
    return Steps(len(data)), {"chunk": head, "data": data}


def compressed(content: list[bytes]) -> list[bytes]:
    return [zstandard.compress(plane) if plane else b"" for plane in content]


def apply(codec: Steps, parts: Parts) -> Array:
    bits = EXAMPLE["base"].copy()
    codec.overwriter(parts, View((5,), "BF16"), AT)(0, 1, bits)
    return bits


@pytest.mark.parametrize("level", [-5, 1, 22])
@pytest.mark.parametrize("checksum", [False, True])
def test_the_worked_example_of_the_specification(level: int, checksum: bool) -> None:
    writer = zstandard.ZstdCompressor(level=level, write_checksum=checksum)
    codec, parts = stored([writer.compress(plane) for plane in CONTENT])
    assert np.array_equal(apply(codec, parts), EXAMPLE["tuned"])


def refusal(act: Callable[[], object], message: str) -> CodecError:
    with pytest.raises(CodecError, match=f"^{re.escape(message)}$") as caught:
        act()
    return caught.value


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, f'{AT}: wrong params (expected ["bytes"], found []) [R24]'),
        (
            {"bytes": -1},
            f"{AT}.bytes: wrong value "
            "(expected an integer from 0 to 9007199254740992, found -1) [R24]",
        ),
        (
            {"bytes": 1.0},
            f"{AT}.bytes: wrong value "
            "(expected an integer from 0 to 9007199254740992, found 1.0) [R24]",
        ),
    ],
)
def test_params_are_strict(params: dict[str, Any], message: str) -> None:
    refusal(lambda: Steps.from_params(params, View((5000, 1000), "BF16"), AT), message)


def test_one_row_may_be_longer_than_a_chunk() -> None:
    base = np.arange(CHUNK + 5, dtype=np.uint32)
    check_exact(StepsEncoder(), BitsSource(base, base ^ 1, "F32"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 257, f"{AT}.chunk: chunk 0: direct 257 (expected at most 256) [R33]"),
        (1, 512, f"{AT}.chunk: chunk 0: anchor 512 (expected at most 511) [R33]"),
        (
            2,
            2**32 - 1,
            f"{AT}.chunk: wrong sum of frame sizes (expected 41, found 4294967322) [R33]",
        ),
    ],
)
def test_heads_are_checked(column: int, value: int, message: str) -> None:
    codec, parts = stored(compressed(CONTENT))
    parts["chunk"][0, column] = value
    refusal(lambda: codec.overwriter(parts, View((5,), "BF16"), AT), message)


def test_integers_have_no_direct_elements() -> None:
    codec, parts = stored(compressed([bytes(5), bytes(8), b""]), direct=1)
    message = f"{AT}.chunk: chunk 0: direct 1 (expected at most 0) [R33]"
    refusal(lambda: codec.overwriter(parts, View((5,), "I16"), AT), message)


def read_as_specified(source: BitsSource, parts: Parts) -> list[int]:
    """The tuned bits, decoded element by element as SPEC 6.9 says it, with Python's integers."""
    view = source.view
    width = 8 * source.base.itemsize
    mantissa = MANTISSA.get(view.dtype)
    top = width - 8 if mantissa is None else min(mantissa, width - 8)
    sign, modulus = 1 << (width - 1), 1 << width

    def context(b: int) -> int:
        if mantissa is None:
            return 0
        field = (b % sign) >> mantissa
        return min(max(field - 896, 0), 255) if view.dtype == "F64" else field

    out: list[int] = []
    at = 0
    rows = max(1, 2**17 // view.cols) if view.cols else 1
    for chunk, (direct, anchor, *sizes) in enumerate(parts["chunk"].tolist()):
        base = source.base[chunk * rows : (chunk + 1) * rows].reshape(-1).tolist()
        planes = []
        for size in sizes:
            frame = parts["data"][at : at + size].tobytes()
            planes.append(zstandard.decompress(frame) if frame else b"")
            at += size
        symbols, low, escapes = planes
        contexts = [context(b) for b in base]
        order = sorted(range(len(base)), key=lambda i: contexts[i])
        shift = [
            top if contexts[i] < direct else min(top, max(0, anchor - contexts[i])) for i in order
        ]
        numbers = [s - 256 if s > 127 else s for s in symbols]
        escaped = [place for place, s in enumerate(symbols) if s == 0x80]
        for index, place in enumerate(escaped):
            octets = escapes[index :: len(escaped)]
            numbers[place] = int.from_bytes(octets, "little", signed=True)
        numbers = [h << k for h, k in zip(numbers, shift, strict=True)]
        begin = 0
        for bit in range(top):
            members = [place for place, k in enumerate(shift) if k > bit]
            for index, place in enumerate(members):
                numbers[place] += (low[begin + index // 8] >> index % 8 & 1) << bit
            begin += -(-len(members) // 8)
        assert begin == len(low)
        tuned = [0] * len(base)
        for place, i in enumerate(order):
            b = base[i]
            origin = b if mantissa is None else b % sign
            v = (numbers[place] + (0 if contexts[i] < direct else origin)) % modulus
            if mantissa is not None:
                v = v ^ (sign - 1) if v & sign else v
                v ^= b & sign
            tuned[i] = v
        out += tuned
    return out


@given(sources())
def test_the_specification_says_what_the_codec_does(source: BitsSource) -> None:
    _, parts = encode(StepsEncoder(), source)
    assert read_as_specified(source, parts) == source.tuned.reshape(-1).tolist()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_the_specification_on_values_like_weights(dtype: str) -> None:
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": np.float32}
    rng = np.random.default_rng(3)
    values = rng.normal(0, 0.04, (50, 60))
    moved = values + rng.laplace(0, 0.004, values.shape)
    base, tuned = (
        x.astype(kinds[dtype]).view(f"u{np.dtype(kinds[dtype]).itemsize}") for x in (values, moved)
    )
    if dtype == "BF16":
        base, tuned = ((x >> 16).astype(np.uint16) for x in (base, tuned))
    source = BitsSource(base, tuned, dtype)
    _, parts = check_exact(StepsEncoder(), source)
    direct, anchor, *sizes = parts["chunk"][0].tolist()
    assert anchor > direct
    assert all(sizes)
    assert (direct == 0) == (dtype == "F64")
    assert read_as_specified(source, parts) == source.tuned.reshape(-1).tolist()


def frame(content: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


SYMBOLS, LOW, ESCAPES = compressed(CONTENT)
SKIPPABLE = bytes.fromhex("502a4d18 05000000") + bytes(5)
WITH_DICTIONARY = frame(
    CONTENT[0],
    dict_data=zstandard.train_dictionary(256, [bytes([i, i % 7, 3] * 9) for i in range(99)]),
)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([b"", LOW, ESCAPES], "symbols: a frame of 0 bytes for 5 bytes [R34]"),
        ([bytes(9), LOW, ESCAPES], "symbols: not a Zstandard frame [R34]"),
        ([SKIPPABLE, LOW, ESCAPES], "symbols: not a Zstandard frame [R34]"),
        ([SYMBOLS[:5], LOW, ESCAPES], "symbols: damaged Zstandard frame [R34]"),
        ([SYMBOLS[:-1], LOW, ESCAPES], "symbols: damaged Zstandard frame [R34]"),
        ([SYMBOLS + b"!", LOW, ESCAPES], "symbols: damaged Zstandard frame [R34]"),
        ([SYMBOLS * 2, LOW, ESCAPES], "symbols: damaged Zstandard frame [R34]"),
        (
            [frame(bytes(4)), LOW, ESCAPES],
            "symbols: another size stated (expected 5 bytes, found 4 bytes) [R34]",
        ),
        (
            [frame(bytes(1 << 20)), LOW, ESCAPES],
            "symbols: another size stated (expected 5 bytes, found 1048576 bytes) [R34]",
        ),
        (
            [frame(CONTENT[0], write_content_size=False), LOW, ESCAPES],
            "symbols: another size stated (expected 5 bytes, found no size) [R34]",
        ),
        (
            [SYMBOLS, frame(bytes(8)), ESCAPES],
            "low: another size stated (expected 7 bytes, found 8 bytes) [R34]",
        ),
        (
            [SYMBOLS, frame(b"\xff" + CONTENT[1][1:]), ESCAPES],
            "low: padding bits are not zero in plane 0 [R25]",
        ),
        (
            [SYMBOLS, LOW, frame(bytes(4))],
            "escapes: another size stated (expected 2 bytes, found 4 bytes) [R34]",
        ),
        (
            [frame(bytes(5)), LOW, ESCAPES],
            f"escapes: a frame of {len(ESCAPES)} bytes for 0 bytes [R34]",
        ),
    ],
)
def test_frames_are_checked(frames: list[bytes], message: str) -> None:
    codec, parts = stored(frames)
    refusal(lambda: apply(codec, parts), f"{AT}.data: chunk 0, {message}")


def test_a_dictionary_is_refused() -> None:
    codec, parts = stored([WITH_DICTIONARY, LOW, ESCAPES])
    with pytest.raises(CodecError, match=r"symbols: needs a dictionary \(found \d+\) \[R34\]$"):
        apply(codec, parts)


def test_a_frame_cannot_make_the_reader_allocate() -> None:
    bomb = frame(bytes(1 << 26))
    codec, parts = stored([bomb, LOW, ESCAPES])
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="another size stated"):
            apply(codec, parts)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_damage_is_an_error_or_other_bits_but_nothing_else() -> None:
    rng = np.random.default_rng(5)
    base = random_bits(rng, (8, 64), "BF16")
    source = BitsSource(base, base + rng.integers(0, 9, base.shape).astype(np.uint16), "BF16")
    codec, parts = encode(StepsEncoder(), source)
    for _ in range(300):
        damaged = {name: array.copy() for name, array in parts.items()}
        octets = damaged["data"]
        octets[rng.integers(len(octets))] ^= np.uint8(1 << rng.integers(8))
        try:
            rebuild(codec, damaged, source)
        except CodecError as error:
            assert error.rule in {"R25", "R34"}  # noqa: PT017


def test_effort_max_is_no_larger() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(0, 0.04, (64, 512)).astype(np.float32)
    moved = values + rng.laplace(0, 0.004, values.shape).astype(np.float32)
    base, tuned = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (values, moved))
    source = BitsSource(base, tuned, "BF16")
    default, best = (
        encode(StepsEncoder(effort=effort), source)[0].to_params()["bytes"]
        for effort in ("default", "max")
    )
    assert best <= default < 0.52 * source.view.nbytes
    assert StepsEncoder().describe() == "steps"
    assert StepsEncoder(effort="max").describe() == "steps max"
    assert StepsEncoder().predict(source.view) is None


def bits_of(path: Path, name: str) -> Array:
    with safe_open(path / "model.safetensors", framework="pt") as file:
        return file.get_tensor(name).view(dtype=torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("tune", ["ft-math", "ft-json"])
@pytest.mark.parametrize(
    ("name", "bits"), [("model.layers.3.mlp.up_proj.weight", 8.0), ("lm_head.weight", 8.6)]
)
def test_real_tunes_are_halved(zoo: Path, tune: str, name: str, bits: float) -> None:
    base, tuned = (bits_of(zoo / "models" / model, name) for model in ("base", tune))
    source = BitsSource(base, tuned, "BF16", block_rows=100)
    codec, parts = encode(StepsEncoder(), source)
    assert 8 * sum(part.nbytes for part in parts.values()) < bits * tuned.size
    assert np.array_equal(rebuild(codec, parts, source, 1), source.tuned)
