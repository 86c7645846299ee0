"""Deltas put together by hand, with random content that is always the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

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
        expect(folder, digests)

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


def expect(folder: Path, digests: Mapping[str, str], **more: Any) -> None:
    expected = {"expect": "ok", "tensors": digests} | more
    (folder / "expect.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
