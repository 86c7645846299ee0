"""Writes the valid vectors that are not there yet: `python -m tests.vectors.make` from the root.

A vector that exists is never written again: what is stored is what every release must read. Hand-made
ones take their digests from the second reader; those of `compress` keep the call beside them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bitdelta_hub import compress
from bitdelta_hub.codecs import codec_from, steps
from bitdelta_hub.codecs.base import Array, Codec, View
from bitdelta_hub.codecs.positions import Positions
from bitdelta_hub.codecs.stepcode import Split
from bitdelta_hub.format.container import layout
from bitdelta_hub.format.digest import digest_of
from bitdelta_hub.format.dtypes import ITEMSIZE, numpy_dtype
from bitdelta_hub.format.manifest import (
    BaseRef,
    BaseTensor,
    FileRef,
    Manifest,
    Piece,
    TensorEntry,
    Term,
    TunedRef,
    fingerprint,
    stored_name,
)
from tests.reader import read_safetensors, rebuild

HERE = Path(__file__).parent / "1"
UNKNOWN = "blake3:" + 64 * "0"
Tensor = tuple[str, Array]  # dtype, bit patterns or numbers of its width
Built = tuple[Term, dict[str, Array]]


def bits_of(dtype: str, values: Any) -> Tensor:
    """`values` as a tensor: floats are rounded to `dtype`, integers are bit patterns."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return dtype, values.astype(f"<u{ITEMSIZE[dtype]}")
    if dtype == "BF16":
        wide = values.astype("<f4").view("<u4")
        return dtype, ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype("<u2")
    return dtype, values.astype(numpy_dtype(dtype)).view(f"<u{ITEMSIZE[dtype]}")


class Maker:
    """Random content, always the same for the vector's name."""

    def __init__(self, name: str) -> None:
        self.rng = np.random.default_rng(list(name.encode()))

    def tensor(self, dtype: str, *shape: int, size: float = 0.02) -> Tensor:
        """Normal numbers for floats, random patterns for all else."""
        if dtype in ("F16", "BF16", "F32", "F64"):
            return bits_of(dtype, self.rng.normal(0, size, shape))
        patterns = self.rng.integers(0, 256, (*shape, ITEMSIZE[dtype]), np.uint8)
        return dtype, patterns.view(f"<u{ITEMSIZE[dtype]}").reshape(shape)

    def near(self, tensor: Tensor, share: float = 1.0, steps: int = 40) -> Tensor:
        """Bit patterns a few steps away from those of `tensor`, at a share of the elements."""
        moved = self.rng.integers(-steps, steps + 1, tensor[1].shape)
        moved *= self.rng.random(tensor[1].shape) < share
        return tensor[0], (tensor[1] + moved.astype(tensor[1].dtype)).astype(tensor[1].dtype)

    def term(self, codec: str, dtype: str, shape: Sequence[int], **params: Any) -> Built:
        """A term with random parts that keep every rule."""
        view = View(tuple(shape), dtype)
        built = codec_from(codec, params, view, codec)
        parts = dict(self._parts(built, view, params))
        return _term(built, view, parts), parts

    def _parts(
        self, codec: Codec, view: View, params: Mapping[str, Any]
    ) -> Iterator[tuple[str, Array]]:
        if "positions" in params:
            chosen = np.sort(self.rng.choice(view.numel, params["count"], replace=False))
            form = Positions(params["positions"], params["count"], params["low_bits"])
            yield from form.pack(chosen, view.numel).items()
        for name, part in codec.parts(view).items():
            if name == "index" and codec.name == "rows":
                chosen = self.rng.choice(view.total_rows, params["count"], replace=False)
                yield name, np.sort(chosen).astype("<u4")
            elif part.dtype == "U8" and name not in ("bitmap", "low", "high", "data", "value"):
                yield name, self._runs(part.shape, _used_bits(codec, name, view, params))
            elif (
                name in ("scale", "row_scale", "col_scale", "levels", "value")
                and codec.name != "patch"
            ):
                size = _scale_size(codec, params) if part.dtype == "F32" else 1
                yield name, self.tensor(part.dtype, *part.shape, size=size)[1]
            elif name not in ("bitmap", "low", "high"):
                yield name, self.tensor(part.dtype, *part.shape)[1]

    def _runs(self, shape: Sequence[int], used: int) -> Array:
        runs = self.rng.integers(0, 256, tuple(shape), np.uint8)
        if used % 8 and runs.size:
            runs[..., -1] &= (1 << used % 8) - 1
        return runs


def _scale_size(codec: Codec, params: Mapping[str, Any]) -> float:
    """What brings random values near the size of the base."""
    if codec.name == "lowrank":
        return min(0.02 / (rank * 2.0 ** (15 + u + v)) for rank, u, v in params["groups"])
    return 0.02 / 2 ** params["bits"] if codec.name == "sparse" else 0.02


def _used_bits(codec: Codec, part: str, view: View, params: Mapping[str, Any]) -> int:
    if codec.name == "lowrank":
        group = params["groups"][int(part[1:])]
        return view.rows * group[1] if part[0] == "u" else view.cols * group[2]
    each = params.get("bits", 1)
    return (params["count"] if codec.name == "sparse" else view.cols) * each


def _term(codec: Codec, view: View, parts: Mapping[str, Array]) -> Term:
    wanted = codec.parts(view)
    assert list(parts) == list(wanted)
    for name, part in wanted.items():
        assert parts[name].shape == part.shape, (name, parts[name].shape, part.shape)
        assert parts[name].nbytes == part.nbytes
    sizes = {name: part.nbytes for name, part in wanted.items()}
    return Term(codec=codec.name, params=codec.to_params(), parts=sizes)


def given(
    codec: str, dtype: str, shape: Sequence[int], parts: dict[str, Array], **params: Any
) -> Built:
    """A term with the parts that are given."""
    view = View(tuple(shape), dtype)
    return _term(codec_from(codec, params, view, codec), view, parts), parts


class _Bits:
    """The source that an exact encoder reads."""

    def __init__(self, base: Tensor, tuned: Tensor) -> None:
        self.view = View(base[1].shape, base[0])
        self._rows = [t[1].reshape(self.view.total_rows, self.view.cols) for t in (base, tuned)]

    def bits(self) -> Iterator[tuple[int, Array, Array]]:
        if self.view.numel:
            yield 0, self._rows[0], self._rows[1]


def steps_term(base: Tensor, tuned: Tensor, split: tuple[int, int] | None = None) -> Built:
    """A `steps` term from `base` to `tuned`, with `split` instead of the encoder's choice."""
    parts: dict[str, Array] = {}

    def allocate(codec: Codec) -> dict[str, Array]:
        for name, part in codec.parts(source.view).items():
            parts[name] = np.zeros(part.shape, numpy_dtype(part.dtype))
        return parts

    source = _Bits(base, tuned)
    chosen = steps.choose_split
    try:
        if split:
            steps.choose_split = lambda *_: Split(*split)
        codec = steps.StepsEncoder().encode(source, allocate)  # type: ignore[arg-type]
    finally:
        steps.choose_split = chosen
    return _term(codec, source.view, parts), parts


def write_safetensors(path: Path, arrays: Mapping[str, Tensor], **options: Any) -> FileRef:
    planned = layout([(k, d, a.shape) for k, (d, a) in arrays.items()], **options)
    path.write_bytes(planned.header + b"".join(a.tobytes() for _, a in arrays.values()))
    return described(path)


def described(path: Path) -> FileRef:
    data = path.read_bytes()
    return FileRef(file=path.name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


class Vector:
    """A delta put together by hand."""

    def __init__(self, name: str, base: Mapping[str, Tensor] | None = None) -> None:
        self.name = name
        self.make = Maker(name)
        self.base = dict(base or {})
        self.entries: dict[str, TensorEntry] = {}
        self.parts: dict[str, Tensor] = {}
        self.files = ("model.safetensors",)
        self.carried: dict[str, bytes] = {}
        self.annotations: dict[str, str] = {}
        self.shard_of: Callable[[str], int] = lambda key: 0
        self.order: Callable[[list[str]], list[str]] = list
        self.metadata: dict[str, str] | None = None

    def add(
        self,
        name: str,
        kind: str,
        dtype: str,
        shape: Sequence[int],
        *terms: Built,
        base: Any = None,
        tie: str | None = None,
        file: int = 0,
        error: float | None = None,
    ) -> None:
        """Adds a tensor with its terms."""
        if isinstance(base, list):
            base = tuple(Piece(*piece) for piece in base)
        self.entries[name] = TensorEntry(
            dtype=dtype, shape=tuple(shape), file=file, kind=kind, digest=UNKNOWN, base=base,
            tie=tie, terms=tuple(term for term, _ in terms), error=error,
        )  # fmt: skip
        for i, (term, parts) in enumerate(terms):
            dtypes = codec_from(term.codec, term.params, View(tuple(shape), dtype), name).parts(
                View(tuple(shape), dtype)
            )
            for part, array in parts.items():
                self.parts[stored_name(name, i, part)] = dtypes[part].dtype, array

    def sum(self, codec: str, dtype: str, *shape: int, name: str = "w", **params: Any) -> None:
        """Adds a base tensor and a sum of it and one random term."""
        self.base[name] = self.make.tensor(dtype, *shape)
        term = self.make.term(codec, dtype, shape, **params)
        self.add(name, "sum", dtype, shape, term, base=name)

    def write(self) -> None:
        folder = HERE / self.name
        if folder.exists():
            return
        try:
            self._write(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _write(self, folder: Path) -> None:
        (folder / "base").mkdir(parents=True)
        delta = folder / "delta"
        delta.mkdir()
        write_safetensors(folder / "base" / "model.safetensors", self.base)
        count = 1 + max(map(self.shard_of, self.parts), default=0)
        names = (
            ["delta.safetensors"]
            if count == 1
            else [f"delta-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        )
        shards = []
        for i, name in enumerate(names):
            keys = self.order([key for key in self.parts if self.shard_of(key) == i])
            arrays = {key: self.parts[key] for key in keys}
            shards.append(write_safetensors(delta / name, arrays, metadata=self.metadata))
        for name, data in self.carried.items():
            (delta / name).write_bytes(data)
        named = sorted({piece.name for entry in self.entries.values() for piece in entry.pieces})
        tensors = {
            k: BaseTensor(
                dtype=self.base[k][0],
                shape=self.base[k][1].shape,
                digest=digest_of(self.base[k][1]),
            )
            for k in named
        }
        file = described(folder / "base" / "model.safetensors")
        manifest = Manifest(
            base=BaseRef(
                repo="org/base",
                revision=None,
                fingerprint=fingerprint(tensors),
                files=(file,),
                tensors=tensors,
            ),
            tuned=TunedRef(
                repo=None,
                revision=None,
                bytes=sum(e.nbytes for e in self.entries.values()),
                files=self.files,
            ),
            shards=tuple(shards),
            files=tuple(described(delta / name) for name in self.carried),
            tensors=self.entries,
            annotations=self.annotations,
        )
        digests = self._digests(manifest, folder)
        entries = {k: replace(entry, digest=digests[k]) for k, entry in self.entries.items()}
        (delta / "bitdelta.json").write_bytes(replace(manifest, tensors=entries).serialize())
        _expect(folder, digests)

    def _digests(self, manifest: Manifest, folder: Path) -> dict[str, str]:
        known = {}
        for shard in manifest.shards:
            known |= read_safetensors(folder / "delta" / shard.file)
        base = read_safetensors(folder / "base" / "model.safetensors")
        tensors = json.loads(manifest.serialize())["tensors"]
        return {
            name: digest_of(
                rebuild(
                    tensors[name].get("tie", name),
                    tensors[tensors[name].get("tie", name)],
                    known,
                    base,
                )
            )
            for name in tensors
        }


def _expect(folder: Path, digests: Mapping[str, str], **more: Any) -> None:
    expected = {"expect": "ok", "tensors": digests} | more
    (folder / "expect.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


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


def kinds() -> Iterator[Vector]:
    """Operands, ties and sums of every make."""
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
    yield vector

    vector = Vector("sum-without-terms")
    make = vector.make
    for dtype in ("F16", "BF16", "F32"):
        vector.base[dtype] = make.tensor(dtype, 3, 7)
        for other in ("F16", "BF16", "F32"):
            vector.add(f"{dtype} to {other}", "sum", other, (3, 7), base=dtype)
        vector.add(f"zeros {dtype}", "sum", dtype, (2, 3))
    yield vector

    vector = Vector(
        "cast", {"w": Maker("cast").tensor("F32", 6, 11), "v": Maker("cast").tensor("BF16", 6, 11)}
    )
    make = vector.make
    for dtype in ("F16", "BF16", "F32"):
        for base in ("w", "v"):
            term = make.term("sign", dtype, (6, 11), axis="row", row_exponent=-9)
            vector.add(f"{base} to {dtype}", "sum", dtype, (6, 11), term, base=base)
    yield vector

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
    yield vector

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
            "sign tensor": given("sign", dtype, shape, signs | {"scale": np.array([0, 0x80000000], "<u4")}, axis="tensor"),
            "sign row_col": given("sign", dtype, shape, signs | {"row_scale": half, "col_scale": np.array([[0, 0x8000, 0x3C00]] * 2, "<u2")}, axis="row_col", row_exponent=0, col_exponent=0),
            "int": given("int", dtype, shape, {"code": np.array([[0x17], [0x2B], [0x24], [0x06]], np.uint8), "scale": half[:, None], "zero": np.array([[1], [1], [-1], [3]], np.int8)}, bits=2, group=0, exponent=0, zeros=True),
            "codebook": given("codebook", dtype, shape, {"index": signs["sign"], "levels": half.reshape(2, 2)}, bits=1, rows=0, exponent=0),
            "lowrank": given("lowrank", dtype, shape, ranks, groups=[[1, 2, 2]]),
            "sparse": given("sparse", dtype, shape, spots | {"value": np.resize(half, 6)}, count=6, positions="bitmap", low_bits=0, bits=16, exponent=0),
        }  # fmt: skip
        for name, term in terms.items():
            vector.add(f"{name} {dtype}", "sum", dtype, shape, term, base=dtype)
            vector.add(f"{name} alone {dtype}", "sum", dtype, shape, term)
            vector.add(f"{name} twice {dtype}", "sum", dtype, shape, term, term, base=dtype)
    yield vector

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
    yield vector

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
    yield vector

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
    yield vector

    vector = Vector("no-operand")
    for dtype in ("F16", "BF16", "F32"):
        terms = [
            vector.make.term("sign", dtype, (3, 5), axis="tensor"),
            vector.make.term("patch", dtype, (3, 5), count=2, positions="bitmap", low_bits=0),
        ]
        vector.add(dtype, "sum", dtype, (3, 5), *terms)
        vector.add(f"{dtype} patched", "sum", dtype, (3, 5), terms[1])
    yield vector

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
    yield vector

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
    yield vector

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
    yield vector

    vector = Vector("nothing")
    yield vector


def files() -> Iterator[Vector]:
    """Shards, rebuilt files, carried files, names, annotations."""
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
    yield vector

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
    yield vector

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
        "config.json": b'{"quantization_config": {"quant_method": "bitdelta-hub", "format": "bitdelta/1", "base_model": null, "base_revision": null, "tuned": {"bits": 4}}}\n',
        "LICENSE": b"Do as you like.\n",
    }
    vector.annotations = {"command": "bdhub compress", "fidelity": "not measured", "é": ""}
    yield vector


CALLS: dict[str, dict[str, Any]] = {
    "bitdelta": {"recipe": "bitdelta"},
    "bitdelta-col": {"recipe": "bitdelta", "scale": "col"},
    "bitdelta-row_col": {"recipe": "bitdelta", "scale": "row_col", "estimator": "rms"},
    "bitdelta-3": {"recipe": "bitdelta-3"},
    "row1": {"recipe": "row1"},
    "magnitude-3": {"recipe": "magnitude-3"},
    "int2": {"recipe": "int2"},
    "int4": {"recipe": "int4"},
    "dare": {"recipe": "dare"},
    "topk": {"recipe": "topk"},
    "embeddings-exact": {
        "recipe": "row1",
        "embeddings": "exact",
        "keep": ["*down*"],
        "skip": ["*up*"],
    },
    "two-shards": {"recipe": "int4", "max_shard_size": 2000},
    "exact": {"recipe": "exact"},
    "delta-come": {"recipe": "delta-come", "bits": 3.0},
}
# Zstandard and singular values come from libraries whose bytes may change.
FREE = ("exact", "delta-come")


def pair(folder: Path) -> None:
    """A base and a fine-tune of it with everything that a plan tells apart, in `folder`."""
    make = Maker("pair")
    base = {
        "embed_tokens.weight": make.tensor("BF16", 40, 16),
        "up.weight": make.tensor("BF16", 32, 19),
        "down.weight": make.tensor("BF16", 19, 32),
        "experts": make.tensor("BF16", 2, 16, 24),
        "wide.weight": make.tensor("F32", 17, 20),
        "norm.weight": make.tensor("BF16", 16),
        "frozen.weight": make.tensor("BF16", 16, 16),
        "rare.weight": make.tensor("BF16", 32, 32),
        "steps": bits_of("I64", np.arange(3)),
    }
    tuned = dict(base)
    for name in (
        "embed_tokens.weight",
        "up.weight",
        "down.weight",
        "experts",
        "wide.weight",
        "norm.weight",
    ):
        dtype, bits = base[name]
        wide = (bits.astype("<u4") << 16 if dtype == "BF16" else bits).view("<f4")
        tuned[name] = bits_of(dtype, wide + make.rng.normal(0, 0.002, wide.shape).astype("<f4"))
    dtype, bits = base["embed_tokens.weight"]
    grown = np.concatenate([tuned["embed_tokens.weight"][1], make.tensor(dtype, 2, 16)[1]])
    tuned["embed_tokens.weight"] = dtype, grown
    up = base["up.weight"][1].copy(), tuned["up.weight"][1]
    up[0][3, 4], up[1][5, 6] = 0x7FC0, 0xFF80
    base["up.weight"] = "BF16", up[0]
    tuned["rare.weight"] = make.near(base["rare.weight"], 0.01)
    tuned["lm_head.weight"] = tuned["embed_tokens.weight"]
    for side, tensors in (("base", base), ("tuned", tuned)):
        (folder / side).mkdir(parents=True)
        write_safetensors(folder / side / "model.safetensors", tensors)
        rows = tensors["embed_tokens.weight"][1].shape[0]
        config = {"model_type": "none", "vocab_size": rows, "tie_word_embeddings": False}
        (folder / side / "config.json").write_text(json.dumps(config))


def compressed() -> None:
    """Deltas of one pair by `compress`, and the calls that made them."""
    source = HERE / "pair"
    if not source.exists():
        pair(source)
    for name, call in CALLS.items():
        folder = HERE / f"compress-{name}"
        if folder.exists():
            continue
        made = compress(source / "tuned", source / "base", folder / "delta", **call)
        digests = {key: entry.digest for key, entry in made.manifest.tensors.items()}
        _expect(
            folder,
            digests,
            base="../pair/base",
            tuned="../pair/tuned",
            compress=call,
            same_bytes=name not in FREE,
        )


def main() -> None:
    for vectors in (codecs, exact, kinds, files):
        for vector in vectors():
            vector.write()
    compressed()


if __name__ == "__main__":
    main()
