"""An opened delta: its manifest, its stored parts, and its tensors rebuilt block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch

from bitdelta_hub.checkpoint import Checkpoint
from bitdelta_hub.codecs import codec_from
from bitdelta_hub.codecs.base import (
    FLOATS,
    AdditiveCodec,
    Array,
    Codec,
    Decode,
    ExactCodec,
    Overwrite,
    Part,
    Parts,
    View,
    add_rows,
)
from bitdelta_hub.errors import (
    BaseMismatch,
    ContainerError,
    DigestMismatch,
    ManifestError,
    StorageError,
)
from bitdelta_hub.format.container import MappedFile
from bitdelta_hub.format.digest import Digest, sha256_file
from bitdelta_hub.format.entries import EXACT
from bitdelta_hub.format.manifest import (
    FileRef,
    Manifest,
    read_manifest,
    stored_name,
)
from bitdelta_hub.format.names import member, quoted
from bitdelta_hub.format.storage import decimal_size, storage_errors
from bitdelta_hub.source import OperandReader, as_bits, bits_dtype, blocks

# Operand, sum, one term and the rounded values of one element.
ROW_BYTES = 16


@dataclass(frozen=True, slots=True)
class StoredTerm:
    """One term of a tensor: its codec, its parts, and its place for error messages."""

    codec: Codec
    parts: Parts
    at: str


class Rebuilder:
    """Gives the rebuilt rows of one tensor (SPEC R17) from its operand and its terms."""

    def __init__(
        self, view: View, operand: OperandReader, terms: Sequence[StoredTerm], device: torch.device
    ) -> None:
        self.view = view
        self.operand = operand
        self.device = device
        self.sums: list[Decode] = []
        self.overwrites: list[Overwrite] = []
        self._total = self._rounded = torch.empty(0)
        for term in terms:
            if term.codec.name in EXACT:
                exact = cast(ExactCodec, term.codec)
                self.overwrites.append(exact.overwriter(term.parts, view, term.at))
            else:
                additive = cast(AdditiveCodec, term.codec)
                self.sums.append(additive.decoder(term.parts, view, device, term.at))

    def bits(self, start: int, stop: int) -> Array:
        """Bit patterns `[stop - start, cols]` of the rebuilt rows; valid until the next call, not
        to be written to."""
        if self.sums or self.operand.dtype != self.view.dtype:
            rows = as_bits(self.summed(start, stop).cpu(), self.view.dtype)
        else:
            rows = self.operand.bits(start, stop)
            if self.overwrites:
                rows = np.array(rows)
        for overwrite in self.overwrites:
            overwrite(start, stop, rows)
        return rows

    def summed(self, start: int, stop: int) -> torch.Tensor:
        """Those rows before anything is overwritten, in the tensor's dtype; valid until the next
        call."""
        total, rounded = self._buffers(stop - start)
        if self.operand.pieces:
            left = self.operand.values(start, stop).to(self.device)
        else:
            left = total.zero_()
        if not self.sums:
            return rounded.copy_(left)
        for decode in self.sums[:-1]:
            add_rows(decode, start, stop, left, total)
            left = total
        add_rows(self.sums[-1], start, stop, left, rounded)
        return rounded

    def _buffers(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 and rounded `[rows, cols]`, in memory that is used again for every block."""
        if len(self._total) < rows:
            shape = (rows, self.view.cols)
            self._total = torch.empty(shape, dtype=torch.float32, device=self.device)
            self._rounded = torch.empty(shape, dtype=FLOATS[self.view.dtype], device=self.device)
        return self._total[:rows], self._rounded[:rows]


class Delta:
    """A delta folder, checked against every static rule (SPEC section 7, 1 to 5)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._shards: list[MappedFile] = []
        try:
            self._codecs = self._read_terms()
            self._where = self._map_shards()
            self._check_parts()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmaps the shards."""
        for shard in self._shards:
            shard.close()
        self._shards = []

    def view(self, name: str) -> View:
        """The tensor as a batch of matrices."""
        entry = self.manifest.tensors[name]
        return View(entry.shape, entry.dtype)

    def resolve(self, name: str) -> str:
        """The tensor whose terms stand for `name`: itself, or what it is tied to."""
        return self.manifest.tensors[name].tie or name

    def base_tensors(self, name: str) -> set[str]:
        """The base tensors that tensor `name` is rebuilt from."""
        entry = self.manifest.tensors[self.resolve(name)]
        return {piece.name for piece in entry.pieces}

    def terms(self, name: str) -> list[StoredTerm]:
        """The terms of tensor `name` with their parts, in order."""
        stored = []
        for index, codec in enumerate(self._codecs[name]):
            keys = {part: stored_name(name, index, part) for part in codec.parts(self.view(name))}
            parts = {part: self._where[key].array(key) for part, key in keys.items()}
            stored.append(StoredTerm(codec, parts, _place(name, index)))
        return stored

    def rebuilder(self, name: str, base: Checkpoint | None, device: torch.device) -> Rebuilder:
        """Rebuilds tensor `name` from `base`, which must be the base (`check_base`).

        Raises StorageError where a single row is more than this machine's memory can hold.
        """
        target = self.resolve(name)
        entry = self.manifest.tensors[target]
        view = self.view(target)
        _check_row(view, name)
        return Rebuilder(view, OperandReader(entry.base, base, view), self.terms(target), device)

    def rebuilt(
        self, name: str, base: Checkpoint | None, device: torch.device
    ) -> Iterator[tuple[int, Array]]:
        """(first row, bit patterns) of tensor `name`, block by block, each valid until the next.

        Raises DigestMismatch after the last block if the tensor is not the recorded one.
        """
        rebuilder = self.rebuilder(name, base, device)
        digest = Digest()
        for start, stop in blocks(rebuilder.view, device):
            rows = np.ascontiguousarray(rebuilder.bits(start, stop))
            digest.update(rows)
            yield start, rows
        recorded = self.manifest.tensors[name].digest
        if digest.text() != recorded:
            raise DigestMismatch(
                f"rebuilt tensor differs (expected {recorded}, found {digest.text()})",
                at=f"tensors[{quoted(name)}]",
                fix="`bdhub verify DELTA --base BASE` tells whether the base or the delta changed",
            )

    def check_file(self, at: str, file: FileRef) -> None:
        """Raises DigestMismatch unless a shard or carried file, listed `at`, is as recorded (R23),
        StorageError if it is missing."""
        path = member(self.folder, file.file)
        at = f"{at}: {file.file}"
        if not path.is_file():
            raise StorageError(f"{path}: missing", fix="fetch the delta again, or compress again")
        again = "the file is incomplete or altered; fetch or compress it again"
        size = path.stat().st_size
        if size != file.size:
            raise DigestMismatch(
                f"another size (expected {file.size}, found {size})", at=at, fix=again
            )
        found = sha256_file(path)
        if found != file.sha256:
            raise DigestMismatch(
                f"another content (expected sha256 {file.sha256}, found {found})", at=at, fix=again
            )

    def check_base(self, base: Checkpoint) -> None:
        """Raises BaseMismatch unless `base` has every base tensor by name, dtype and shape."""
        for name, wanted in self.manifest.base.tensors.items():
            at = f"base.tensors[{quoted(name)}]"
            found = base.tensors.get(name)
            if found is None:
                raise self._another_base("not in the base", at)
            if (found.dtype, tuple(found.shape)) != (wanted.dtype, wanted.shape):
                expected = f"{wanted.dtype} {list(wanted.shape)}"
                raise self._another_base(
                    f"another tensor (expected {expected}, "
                    f"found {found.dtype} {list(found.shape)})",
                    at,
                )

    def check_base_tensor(self, base: Checkpoint, name: str) -> None:
        """Raises BaseMismatch unless base tensor `name` has its recorded digest."""
        wanted = self.manifest.base.tensors[name]
        found = checkpoint_digest(base, name)
        if found != wanted.digest:
            raise self._another_base(
                f"another content (expected {wanted.digest}, found {found})",
                f"base.tensors[{quoted(name)}]",
            )

    def _another_base(self, message: str, at: str) -> BaseMismatch:
        base = self.manifest.base
        revision = f" at revision {base.revision}" if base.revision else ""
        named = f"{base.repo}{revision}" if base.repo else "the checkpoint that it was made from"
        return BaseMismatch(
            message,
            at=at,
            fix=f"pass the base of this delta with --base: {named}, fingerprint {base.fingerprint}",
        )

    def _map_shards(self) -> dict[str, MappedFile]:
        where: dict[str, MappedFile] = {}
        for index, shard in enumerate(self.manifest.shards):
            path = member(self.folder, shard.file)
            with storage_errors(path):
                size = path.stat().st_size
            if size != shard.size:
                raise ContainerError(
                    f"another size (expected {shard.size}, found {size})",
                    rule="R23",
                    at=f"shards[{index}]: {shard.file}",
                    fix="the file is incomplete or altered; fetch or compress it again",
                )
            mapped = MappedFile(path)
            self._shards.append(mapped)
            for key in mapped.header.entries:
                if key in where:
                    at = f"{shard.file}[{quoted(key)}]"
                    raise ContainerError("stored twice", rule="R22", at=at)
                where[key] = mapped
        return where

    def _read_terms(self) -> dict[str, list[Codec]]:
        """The codecs of every tensor's terms (R24, R19)."""
        codecs: dict[str, list[Codec]] = {}
        for name, entry in self.manifest.tensors.items():
            codecs[name] = []
            for index, term in enumerate(entry.terms):
                at = _place(name, index)
                codec = codec_from(term.codec, term.params, self.view(name), at)
                computed = {
                    part: spec.nbytes for part, spec in codec.parts(self.view(name)).items()
                }
                if list(term.parts.items()) != list(computed.items()):
                    raise ManifestError(
                        f"another list of parts (expected {computed}, found {term.parts})",
                        rule="R19",
                        at=f"{at}.parts",
                    )
                codecs[name].append(codec)
        return codecs

    def _check_parts(self) -> None:
        """Every part is stored as the codecs have it, and nothing else is (R22)."""
        unused = set(self._where)
        for name, codecs in self._codecs.items():
            for index, codec in enumerate(codecs):
                for part, wanted in codec.parts(self.view(name)).items():
                    key = stored_name(name, index, part)
                    self._check_part(key, wanted)
                    unused.remove(key)
        if unused:
            key = min(unused)
            raise ContainerError("belongs to no term", rule="R22", at=f"shards[{quoted(key)}]")

    def _check_part(self, key: str, wanted: Part) -> None:
        at = f"shards[{quoted(key)}]"
        if key not in self._where:
            raise ContainerError("missing", rule="R22", at=at)
        found = self._where[key].header.entries[key]
        if (found.dtype, tuple(found.shape)) != (wanted.dtype, wanted.shape):
            raise ContainerError(
                f"another array (expected {wanted.dtype} {list(wanted.shape)}, "
                f"found {found.dtype} {list(found.shape)})",
                rule="R22",
                at=at,
            )


def open_delta(folder: str | Path) -> Delta:
    """The delta in `folder`, to be closed or used in a `with` block.

    Raises StorageError where files are missing, FormatError where one breaks a rule of the spec.
    """
    return Delta(Path(folder))


def checkpoint_digest(checkpoint: Checkpoint, name: str) -> str:
    """The digest of one tensor of a checkpoint."""
    info = checkpoint.tensors[name]
    digest = Digest()
    total = View(tuple(info.shape), info.dtype).numel
    step = (1 << 18) // bits_dtype(info.dtype).itemsize
    for start in range(0, total, step):
        digest.update(checkpoint.read_bits(name, start, min(start + step, total)))
    return digest.text()


def _check_row(view: View, name: str) -> None:
    """A row is worked on as a whole, and a delta without a byte of data may state a huge one."""
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = ROW_BYTES * view.cols if view.numel else 0
    if needed > memory:
        raise StorageError(
            f"tensors[{quoted(name)}]: a row of {view.cols:,} elements does not fit into memory "
            f"(needed {decimal_size(needed)}, found {decimal_size(memory)})",
            fix="do not use this delta if you do not know who made it; or use a larger machine",
        )


def _place(name: str, index: int) -> str:
    return f"tensors[{quoted(name)}].terms[{index}]"
