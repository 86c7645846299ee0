"""Vectors of every codec, with the params that matter, over odd shapes and dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bitdelta_hub.format.dtypes import ITEMSIZE
from tests.vectors.build import Vector, given, steps_term


def codecs() -> Iterator[Vector]:
    """Every additive codec with params that matter, over odd shapes and batches."""
    for axis in ("tensor", "row", "col", "row_col"):
        vector = Vector(f"sign-{axis}")
        exponents: dict[str, int] = {}
        if "row" in axis:
            exponents["row_exponent"] = -9
        if "col" in axis:
            exponents["col_exponent"] = -7 if axis == "col" else 0
        vector.sum("sign", "BF16", 5, 13, axis=axis, **exponents)
        vector.sum("sign", "F16", 3, 4, 9, name="experts", axis=axis, **exponents)
        vector.sum("sign", "F32", 11, name="bias", axis=axis, **exponents)
        vector.sum("sign", "BF16", name="scalar", axis=axis, **exponents)
        yield vector
    for bits, group, zeros in (
        (2, 0, False),
        (2, 4, True),
        (3, 5, False),
        (3, 0, True),
        (4, 16, True),
        (4, 3, False),
        (8, 0, True),
        (8, 7, False),
    ):
        vector = Vector(f"int-{bits}-group{group}{'-zeros' if zeros else ''}")
        params: dict[str, Any] = {"bits": bits, "group": group, "exponent": -12, "zeros": zeros}
        vector.sum("int", "BF16", 6, 19, **params)
        vector.sum("int", "F32", 2, 3, 8, name="experts", **params)
        vector.sum("int", "F16", 5, name="bias", **params)
        yield vector
    for bits in range(1, 9):
        vector = Vector(f"codebook-{bits}-matrix")
        vector.sum("codebook", "BF16", 2, 7, 13, bits=bits, rows=0, exponent=-8)
        yield vector
    for bits, rows in ((1, 2), (3, 3), (4, 1), (5, 100)):
        vector = Vector(f"codebook-{bits}-rows{rows}")
        vector.sum("codebook", "F16", 3, 7, 9, bits=bits, rows=rows, exponent=-6)
        vector.sum("codebook", "F32", 11, name="bias", bits=bits, rows=rows, exponent=-3)
        yield vector
    for name, groups in {
        "mixed": [[1, 8, 8], [3, 3, 3], [4, 2, 2]],
        "asymmetric": [[2, 16, 4], [2, 3, 8]],
        "wide": [[1, 16, 16]],
        "deep": [[40, 2, 3]],
    }.items():
        vector = Vector(f"lowrank-{name}")
        vector.sum("lowrank", "BF16", 9, 7, groups=groups)
        vector.sum("lowrank", "F32", 2, 3, 10, name="experts", groups=groups)
        yield vector
    # The gains are the largest whose sum R27 allows for vectors of 16 bits.
    vector = Vector("lowrank-limit")
    vector.sum("lowrank", "F32", 2, 3, groups=[[33, 16, 16]])
    vector.parts["w_0_gain0"] = "U16", np.array([[65535] * 32 + [96]], "<u2")
    yield vector
    for bits in (16, 8, 4):
        for form, low in (("bitmap", 0), ("elias-fano", 0), ("elias-fano", 3)):
            vector = Vector(f"sparse-{bits}-{form}{low or ''}")
            params = {"positions": form, "low_bits": low, "bits": bits} | (
                {"exponent": -9} if bits == 16 else {}
            )
            vector.sum("sparse", "BF16", 3, 5, 7, count=13, **params)
            vector.sum("sparse", "F32", 9, name="none", count=0, **params)
            vector.sum("sparse", "F16", 2, 4, name="all", count=8, **params)
            yield vector


DTYPES = tuple(ITEMSIZE)


def exact() -> Iterator[Vector]:
    """raw, rows, patch and steps in every dtype."""
    vector = Vector("raw")
    for dtype in DTYPES:
        for shape in ((2, 3, 5), (7,), (), (0,), (4, 0, 3)):
            name = f"{dtype}.{'x'.join(map(str, shape)) or 'scalar'}"
            data = vector.make.tensor(dtype, *shape)[1]
            vector.add(name, "exact", dtype, shape, given("raw", dtype, shape, {"data": data}))
    yield vector
    for dtype in DTYPES:
        vector = Vector(f"exact-{dtype}")
        make = vector.make
        for shape in ((3, 4, 5), (23,)):
            base = make.tensor(dtype, *shape)
            name = "x".join(map(str, shape))
            for codec, params in (
                ("rows", {"count": 1}),
                ("patch", {"count": 5, "positions": "bitmap", "low_bits": 0}),
                ("patch", {"count": 3, "positions": "elias-fano", "low_bits": 2}),
            ):
                key = f"{codec}{params.get('low_bits', '')}.{name}"
                vector.base[key] = base
                vector.add(
                    key, "exact", dtype, shape, make.term(codec, dtype, shape, **params), base=key
                )
            for key, tuned in (
                (f"steps.{name}", make.near(base)),
                (f"steps-far.{name}", make.tensor(dtype, *shape, size=3)),
            ):
                vector.base[key] = base
                vector.add(key, "exact", dtype, shape, steps_term(base, tuned), base=key)
        yield vector
    vector = Vector("steps-splits")
    for dtype, split in (
        ("BF16", (121, 127)),
        ("F16", (9, 15)),
        ("F32", (118, 140)),
        ("F64", (256, 511)),
        ("F8_E4M3", (7, 9)),
        ("I32", (0, 24)),
        ("U8", (0, 511)),
        ("I16", (0, 3)),
    ):
        base = vector.make.tensor(dtype, 4, 33)
        vector.base[dtype] = base
        vector.add(
            dtype,
            "exact",
            dtype,
            (4, 33),
            steps_term(base, vector.make.near(base, steps=900), split),
            base=dtype,
        )
    yield vector
    # The example of the specification, its frames uncompressed.
    vector = Vector("steps-stored")
    frames = [
        _stored_frame(bytes.fromhex(text)) for text in ("FF87FF8003", "0F030303030301", "C000")
    ]
    data = np.frombuffer(b"".join(frames), np.uint8)
    parts = {"chunk": np.array([[121, 127, *map(len, frames)]], "<u4"), "data": data}
    vector.base["w"] = "BF16", np.array([0x3F80, 0xBF00, 0x3C10, 0x3F7F, 0x8000], "<u2")
    vector.add(
        "w", "exact", "BF16", (5,), given("steps", "BF16", (5,), parts, bytes=len(data)), base="w"
    )
    yield vector
    vector = Vector("steps-chunks")
    base = "U8", np.tile(np.arange(250, dtype=np.uint8), (3, 262))
    vector.base["w"] = base
    vector.add(
        "w", "exact", "U8", base[1].shape, steps_term(base, vector.make.near(base, 0.01)), base="w"
    )
    empty = vector.make.tensor("BF16", 0, 4)
    vector.base["empty"] = empty
    vector.add("empty", "exact", "BF16", (0, 4), steps_term(empty, empty), base="empty")
    yield vector


def _stored_frame(content: bytes) -> bytes:
    """A Zstandard frame of one uncompressed block."""
    head = b"\x28\xb5\x2f\xfd\x20" + bytes([len(content)])
    return head + (8 * len(content) + 1).to_bytes(3, "little") + content
