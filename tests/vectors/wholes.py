"""Vectors of operands, sums, shards, files and names."""

from __future__ import annotations

import numpy as np

from bitdelta_hub.codecs.positions import Positions
from bitdelta_hub.format.dtypes import ITEMSIZE
from tests.vectors.build import Maker, Vector, bits_of, given, steps_term


def _copy() -> Vector:
    vector = Vector(
        "copy",
        {
            "a": ("BF16", np.arange(12, dtype="<u2").reshape(3, 4)),
            "n": bits_of("I64", np.arange(5)),
        },
    )
    vector.add("whole", "copy", "BF16", (3, 4), base="a")
    vector.add("numbers", "copy", "I64", (5,), base="n")
    vector.add("pieces", "copy", "BF16", (5, 2), base=[["a", 10, 12], ["a", 0, 5]])
    vector.add("transposed view", "copy", "BF16", (4, 3), base=[["a", 0, 12]])
    vector.add("tie", "tie", "BF16", (5, 2), tie="pieces")
    return vector


def _sum_without_terms() -> Vector:
    vector = Vector("sum-without-terms")
    make = vector.make
    for dtype in ("F16", "BF16", "F32"):
        vector.base[dtype] = make.tensor(dtype, 3, 7)
        for other in ("F16", "BF16", "F32"):
            vector.add(f"{dtype} to {other}", "sum", other, (3, 7), base=dtype)
        vector.add(f"zeros {dtype}", "sum", dtype, (2, 3))
    return vector


def _cast() -> Vector:
    vector = Vector(
        "cast", {"w": Maker("cast").tensor("F32", 6, 11), "v": Maker("cast").tensor("BF16", 6, 11)}
    )
    make = vector.make
    for dtype in ("F16", "BF16", "F32"):
        for base in ("w", "v"):
            term = make.term("sign", dtype, (6, 11), axis="row", row_exponent=-9)
            vector.add(f"{base} to {dtype}", "sum", dtype, (6, 11), term, base=base)
    return vector


def _rounding() -> Vector:
    vector = Vector("rounding")
    # Halves, ties to even, the subnormal range, the step to infinity, zeros of either sign.
    patterns = {
        "BF16": [0x3F80, 0x3F81, 0x7F7F, 0xFF7F, 0x0001, 0x8001, 0x0000, 0x8000, 0x0080, 0x4B00],
        "F16": [0x3C00, 0x3C01, 0x7BFF, 0xFBFF, 0x0001, 0x8001, 0x0000, 0x8000, 0x0400, 0x6400],
        "F32": [
            0x3F800000,
            0x3F800001,
            0x7F7FFFFF,
            0xFF7FFFFF,
            1,
            0x80000001,
            0,
            0x80000000,
            0x00800000,
            0x4B000000,
        ],
    }
    scales = [
        1.0,
        2.0**-9,
        2.0**-8,
        2.0**-12,
        2.0**-11,
        2.0**-24,
        2.0**-25,
        2.0**-126,
        2.0**-149,
        3e38,
        16.0,
        0.0,
        -0.0,
        -(2.0**-9),
        2.0**119,
        2.0**103,
    ]
    for dtype, row in patterns.items():
        base = dtype, np.tile(np.array(row, f"<u{ITEMSIZE[dtype]}"), (len(scales), 1, 1))
        vector.base[dtype] = base
        sign = vector.make.rng.integers(0, 256, (len(scales), 2), np.uint8) & [255, 3]
        parts = {"sign": sign.astype(np.uint8), "scale": np.array(scales, "<f4").view("<u4")}
        vector.add(
            dtype,
            "sum",
            dtype,
            base[1].shape,
            given("sign", dtype, base[1].shape, parts, axis="tensor"),
            base=dtype,
        )
    return vector


def _signed_zeros() -> Vector:
    vector = Vector("signed-zeros")
    shape = (2, 2, 3)
    zeros = np.array([[0, 0x80, 0x3F], [0, 0x80, 0xBF]] * 2, "<u4").reshape(shape) << 24
    make = vector.make
    signs = {"sign": make.rng.integers(0, 8, (4, 1), np.uint8)}
    half = np.array([0, 0x8000, 0x3C00, 0xBC00], "<u2")
    single = np.array([0x3F800000, 0xBF800000], "<u4")
    ranks = {
        "u0": np.ones((2, 1, 1), np.uint8),
        "v0": np.ones((2, 1, 1), np.uint8),
        "gain0": np.zeros((2, 1), "<u2"),
        "scale": single[:, None],
    }
    spots = {"bitmap": np.array([0xA5, 0x05], np.uint8)}
    for dtype in ("F16", "BF16", "F32"):
        base = zeros if dtype == "F32" else (zeros >> 16).astype("<u2")
        vector.base[dtype] = dtype, base
        terms = {
            "sign tensor": given(
                "sign", dtype, shape,
                signs | {"scale": np.array([0, 0x80000000], "<u4")},
                axis="tensor",
            ),
            "sign row_col": given(
                "sign", dtype, shape,
                signs | {"row_scale": half, "col_scale": np.resize(half[:3], (2, 3))},
                axis="row_col", row_exponent=0, col_exponent=0,
            ),
            "int": given(
                "int", dtype, shape,
                {
                    "code": np.array([[0x17], [0x2B], [0x24], [0x06]], np.uint8),
                    "scale": half[:, None],
                    "zero": np.array([[1], [1], [-1], [3]], np.int8),
                },
                bits=2, group=0, exponent=0, zeros=True,
            ),
            "codebook": given(
                "codebook", dtype, shape,
                {"index": signs["sign"], "levels": half.reshape(2, 2)},
                bits=1, rows=0, exponent=0,
            ),
            "lowrank": given("lowrank", dtype, shape, ranks, groups=[[1, 2, 2]]),
            "sparse": given(
                "sparse", dtype, shape,
                spots | {"value": np.resize(half, 6)},
                count=6, positions="bitmap", low_bits=0, bits=16, exponent=0,
            ),
        }  # fmt: skip
        for name, term in terms.items():
            vector.add(f"{name} {dtype}", "sum", dtype, shape, term, base=dtype)
            vector.add(f"{name} alone {dtype}", "sum", dtype, shape, term)
            vector.add(f"{name} twice {dtype}", "sum", dtype, shape, term, term, base=dtype)
    return vector


def _extremes() -> Vector:
    vector = Vector("extremes")
    shape = (4, 6)
    vector.base["w"] = bits_of("F32", vector.make.rng.normal(0, 1e-38, shape))
    half = np.array([0x0001, 0x7BFF, 0x8001, 0x03FF], "<u2")
    for exponent in (-126, 112):
        code = vector.make._runs((4, 6), 48)
        parts = {"code": code, "scale": half[:, None]}
        term = given("int", "F32", shape, parts, bits=8, group=0, exponent=exponent, zeros=False)
        vector.add(f"int {exponent}", "sum", "F32", shape, term, base="w")
        signs = {
            "sign": vector.make._runs((4, 1), 6),
            "row_scale": half,
            "col_scale": np.resize(half, (1, 6)),
        }
        term = given(
            "sign", "F32", shape, signs, axis="row_col", row_exponent=exponent, col_exponent=0
        )
        vector.add(f"sign {exponent}", "sum", "F32", shape, term, base="w")
    return vector


def _nonfinite() -> Vector:
    vector = Vector("nonfinite")
    base = vector.make.tensor("BF16", 6, 10)
    base[1][1, 2:6] = [0x7FC0, 0x7F80, 0xFF80, 0xFFC1]
    base[1][4] = 0x7F81
    vector.base["w"] = base
    flat = np.array([12, 13, 14, 15, 33], np.int64)
    form = Positions("elias-fano", 5, 3)
    values = np.array([0x7F81, 0x7F80, 0x0000, 0xFFFF, 0xFF80], "<u2")
    terms = [
        vector.make.term("sign", "BF16", (6, 10), axis="row", row_exponent=-9),
        given(
            "rows",
            "BF16",
            (6, 10),
            {"index": np.array([4], "<u4"), "data": vector.make.tensor("BF16", 1, 10)[1]},
            count=1,
        ),
        given(
            "patch", "BF16", (6, 10), form.pack(flat, 60) | {"value": values}, **form.to_params()
        ),
    ]
    vector.add("w", "sum", "BF16", (6, 10), *terms, base="w", error=0.5)
    return vector


def _many_terms() -> Vector:
    vector = Vector("many-terms")
    shape = (2, 9, 12)
    vector.base["w"] = vector.make.tensor("BF16", *shape)
    term = lambda codec, **params: vector.make.term(codec, "BF16", shape, **params)  # noqa: E731
    terms = [
        term("sign", axis="row", row_exponent=-9),
        term("lowrank", groups=[[2, 4, 4]]),
        term("int", bits=3, group=5, exponent=-12, zeros=True),
        term("codebook", bits=2, rows=4, exponent=-9),
        term("sparse", count=9, positions="elias-fano", low_bits=4, bits=8),
        term("sign", axis="tensor"),
        term("rows", count=3),
        term("patch", count=4, positions="bitmap", low_bits=0),
    ]
    vector.add("w", "sum", "BF16", shape, *terms, base="w", error=0.9876)
    return vector


def _no_operand() -> Vector:
    vector = Vector("no-operand")
    for dtype in ("F16", "BF16", "F32"):
        terms = [
            vector.make.term("sign", dtype, (3, 5), axis="tensor"),
            vector.make.term("patch", dtype, (3, 5), count=2, positions="bitmap", low_bits=0),
        ]
        vector.add(dtype, "sum", dtype, (3, 5), *terms)
        vector.add(f"{dtype} patched", "sum", dtype, (3, 5), terms[1])
    return vector


def _resized() -> Vector:
    vector = Vector("resized", {"embed": Maker("resized").tensor("BF16", 6, 9)})
    grown = given(
        "rows",
        "BF16",
        (8, 9),
        {"index": np.array([6, 7], "<u4"), "data": vector.make.tensor("BF16", 2, 9)[1]},
        count=2,
    )
    vector.add(
        "grown",
        "sum",
        "BF16",
        (8, 9),
        vector.make.term("sign", "BF16", (8, 9), axis="row", row_exponent=-9),
        grown,
        base=[["embed", 0, 54]],
    )
    vector.add(
        "shrunk",
        "sum",
        "BF16",
        (4, 9),
        vector.make.term("sign", "BF16", (4, 9), axis="row", row_exponent=-9),
        base=[["embed", 0, 36]],
    )
    vector.add("padded", "copy", "BF16", (7, 9), base=[["embed", 0, 54]])
    vector.add("grown exactly", "exact", "BF16", (8, 9), grown, base=[["embed", 0, 54]])
    partial = vector.make.term("patch", "BF16", (8, 9), count=20, positions="bitmap", low_bits=0)
    vector.add("within a row", "exact", "BF16", (8, 9), partial, base=[["embed", 5, 50]])
    return vector


def _fused() -> Vector:
    make = Maker("fused")
    vector = Vector(
        "fused",
        {
            "q": make.tensor("BF16", 4, 5),
            "k": make.tensor("BF16", 2, 5),
            "v": make.tensor("BF16", 2, 5),
            "qkv": make.tensor("F32", 8, 5),
        },
    )
    vector.add(
        "qkv",
        "sum",
        "BF16",
        (8, 5),
        vector.make.term("sign", "BF16", (8, 5), axis="row_col", row_exponent=-9, col_exponent=0),
        base=[["q", 0, 20], ["k", 0, 10], ["v", 0, 10]],
    )
    for name, start, stop in (("q", 0, 20), ("k", 20, 30), ("v", 30, 40)):
        shape = ((stop - start) // 5, 5)
        vector.add(
            name,
            "sum",
            "F32",
            shape,
            vector.make.term("int", "F32", shape, bits=4, group=0, exponent=-12, zeros=False),
            base=[["qkv", start, stop]],
        )
    vector.add("experts", "copy", "BF16", (2, 2, 5), base=[["v", 0, 10], ["k", 0, 10]])
    return vector


def _empty() -> Vector:
    vector = Vector("empty")
    for shape in ((0,), (0, 5), (5, 0), (2, 0, 3), (0, 0)):
        name = "x".join(map(str, shape))
        vector.base[name] = vector.make.tensor("BF16", *shape)
        vector.add(f"copy {name}", "copy", "BF16", shape, base=name)
        for codec, params in (
            ("sign", {"axis": "row", "row_exponent": 0}),
            ("sign", {"axis": "row_col", "row_exponent": 0, "col_exponent": 0}),
            ("int", {"bits": 3, "group": 2, "exponent": 0, "zeros": True}),
            ("codebook", {"bits": 2, "rows": 2, "exponent": 0}),
            ("lowrank", {"groups": [[2, 3, 3]]}),
            ("sparse", {"count": 0, "positions": "elias-fano", "low_bits": 2, "bits": 4}),
        ):
            term = vector.make.term(codec, "BF16", shape, **params)
            vector.add(
                f"{codec} {params.get('axis', '')} {name}", "sum", "BF16", shape, term, base=name
            )
        vector.add(
            f"rows {name}",
            "exact",
            "BF16",
            shape,
            vector.make.term("rows", "BF16", shape, count=0),
            base=name,
        )
        vector.add(f"zeros {name}", "sum", "BF16", shape)
    return vector


def _nothing() -> Vector:
    return Vector("nothing")


def _two_shards() -> Vector:
    vector = Vector("two-shards")
    for i in range(3):
        vector.sum(
            "sign",
            "BF16",
            5,
            9,
            name=f"layers.{i}.w",
            axis="row_col",
            row_exponent=-9,
            col_exponent=0,
        )
        vector.sum("sign", "F32", 4, 3, name=f"layers.{i}.b", axis="tensor")
    vector.shard_of = lambda key: int(key.endswith("scale"))
    return vector


def _unaligned() -> Vector:
    vector = Vector("unaligned")
    for i, dtype in enumerate(("F32", "BF16", "F16")):
        vector.sum("sign", dtype, 3, 5, name=f"s{i}", axis="tensor")
        vector.sum("int", dtype, 3, 5, name=f"i{i}", bits=3, group=2, exponent=-9, zeros=True)
        vector.sum("lowrank", dtype, 3, 5, name=f"l{i}", groups=[[1, 3, 3]])
        vector.sum(
            "sparse", dtype, 3, 5, name=f"p{i}", count=3, positions="bitmap", low_bits=0, bits=4
        )
        vector.add(
            f"raw{i}",
            "exact",
            dtype,
            (3,),
            given("raw", dtype, (3,), {"data": vector.make.tensor(dtype, 3)[1]}),
        )
        for codec, params in (
            ("rows", {"count": 2}),
            ("patch", {"count": 2, "positions": "bitmap", "low_bits": 0}),
        ):
            vector.add(
                f"{codec}{i}",
                "exact",
                dtype,
                (3, 5),
                vector.make.term(codec, dtype, (3, 5), **params),
                base=f"s{i}",
            )
        tuned = vector.make.near(vector.base[f"s{i}"])
        vector.add(
            f"steps{i}",
            "exact",
            dtype,
            (3, 5),
            steps_term(vector.base[f"s{i}"], tuned),
            base=f"s{i}",
        )
    vector.order = lambda keys: sorted(keys, key=lambda key: (not key.startswith("l0_0_u"), key))
    vector.metadata = {"format": "pt", "é": "\N{SNOWMAN}"}
    return vector


def _files_and_names() -> Vector:
    vector = Vector("files-and-names")
    vector.files = (
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    )
    for i, name in enumerate(
        ("model.é.\N{SNOWMAN}", 'quote"back\\slash/..', "a_0_sign", "a", "n" * 512)
    ):
        vector.base[name] = vector.make.tensor("BF16", 2, 3)
        term = vector.make.term("sign", "BF16", (2, 3), axis="tensor")
        vector.add(name, "sum", "BF16", (2, 3), term, base=name, file=(0, 0, 0, 2, 2)[i])
    vector.carried = {
        "config.json": b'{"quantization_config": {"quant_method": "bitdelta-hub", "format": '
        b'"bitdelta/1", "base_model": null, "base_revision": null, "tuned": {"bits": 4}}}\n',
        "LICENSE": b"Do as you like.\n",
    }
    vector.annotations = {"command": "bdhub compress", "fidelity": "not measured", "é": ""}
    return vector


CASES = (
    _copy,
    _sum_without_terms,
    _cast,
    _rounding,
    _signed_zeros,
    _extremes,
    _nonfinite,
    _many_terms,
    _no_operand,
    _resized,
    _fused,
    _empty,
    _nothing,
    _two_shards,
    _unaligned,
    _files_and_names,
)
