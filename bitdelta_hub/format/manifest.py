"""`bitdelta.json`: the whole manifest, and the rules that hold between its entries."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bitdelta_hub.errors import ManifestError, StorageError, VersionError
from bitdelta_hub.format.digest import digest_of
from bitdelta_hub.format.document import Fields, parse_json, shown, string
from bitdelta_hub.format.entries import (
    BaseTensor,
    FileRef,
    Operand,
    Piece,
    TensorEntry,
    Term,
    read_named,
)
from bitdelta_hub.format.names import MANIFEST, check_file_name, check_not_weights, member, quoted
from bitdelta_hub.format.storage import open_regular, storage_errors
from bitdelta_hub.format.tensor_rules import check_tensors

__all__ = [
    "FORMAT",
    "BaseRef",
    "BaseTensor",
    "FileRef",
    "Manifest",
    "Operand",
    "Piece",
    "TensorEntry",
    "Term",
    "TunedRef",
    "fingerprint",
    "read_manifest",
    "stored_name",
]

FORMAT: Final = "bitdelta/1"
_LARGEST = 64 * 2**20
_MOST_TENSORS = 1_000_000
_MOST_FILES = 10_000
_KEYS = ("format", "base", "tuned", "shards", "files", "tensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRef:
    """The base: where it was found, and what identifies it."""

    repo: str | None
    revision: str | None
    fingerprint: str
    files: tuple[FileRef, ...]
    tensors: dict[str, BaseTensor]

    @classmethod
    def read(cls, value: object) -> BaseRef:
        fields = Fields(value, "base")
        fields.only(("repo", "revision", "fingerprint", "files", "tensors"))
        return cls(
            repo=fields.string_or_null("repo"),
            revision=fields.string_or_null("revision"),
            fingerprint=fields.digest("fingerprint"),
            files=tuple(
                FileRef.read(item, at, hashed=False)
                for at, item in fields.elements("files", _MOST_FILES)
            ),
            tensors={
                name: BaseTensor.read(item, at)
                for name, at, item in read_named(fields, "tensors", _MOST_TENSORS)
            },
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "repo": self.repo,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "files": [ref.to_json() for ref in self.files],
            "tensors": {name: self.tensors[name].to_json() for name in sorted(self.tensors)},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedRef:
    """The tuned checkpoint: where it was found, its bytes, and the files to rebuild."""

    repo: str | None
    revision: str | None
    bytes: int
    files: tuple[str, ...]

    @classmethod
    def read(cls, value: object) -> TunedRef:
        fields = Fields(value, "tuned")
        fields.only(("repo", "revision", "bytes", "files"))
        return cls(
            repo=fields.string_or_null("repo"),
            revision=fields.string_or_null("revision"),
            bytes=fields.integer("bytes"),
            files=tuple(
                _rebuilt_file(item, at) for at, item in fields.elements("files", _MOST_FILES)
            ),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "repo": self.repo,
            "revision": self.revision,
            "bytes": self.bytes,
            "files": list(self.files),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a delta says of itself. `parse` gives only manifests that keep every rule here."""

    base: BaseRef
    tuned: TunedRef
    shards: tuple[FileRef, ...]
    files: tuple[FileRef, ...]
    tensors: dict[str, TensorEntry]
    annotations: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """The manifest in `data`, refused in the order of SPEC section 7.

        Raises VersionError for another format or an unknown codec, else ManifestError.
        """
        if len(data) > _LARGEST:
            raise _too_large(len(data))
        value = parse_json(data, ManifestError, "R5", MANIFEST)
        _check_format(value)  # R6
        manifest = cls._read(Fields(value, ""))  # R2, R3, R7 to R9
        manifest._check_fingerprint()  # R10
        manifest._check_files()  # R11
        check_tensors(manifest.tensors, manifest.base.tensors)  # R12 to R16
        manifest._check_room()  # R22
        return manifest

    @classmethod
    def _read(cls, fields: Fields) -> Manifest:
        fields.only(_KEYS, ("annotations",))
        return cls(
            base=BaseRef.read(fields["base"]),
            tuned=TunedRef.read(fields["tuned"]),
            shards=_file_refs(fields, "shards"),
            files=_file_refs(fields, "files"),
            tensors={
                name: TensorEntry.read(item, at)
                for name, at, item in read_named(fields, "tensors", _MOST_TENSORS)
            },
            annotations={
                key: string(item, at)
                for key, at, item in (
                    fields.entries("annotations") if "annotations" in fields else ()
                )
            },
        )

    def _check_fingerprint(self) -> None:
        named = {piece.name for entry in self.tensors.values() for piece in entry.pieces}
        for name in self.base.tensors:
            if name not in named:
                raise ManifestError(
                    "no operand names this tensor", rule="R10", at=f"base.tensors[{quoted(name)}]"
                )
        expected = fingerprint(self.base.tensors)
        if self.base.fingerprint != expected:
            raise ManifestError(
                "not the fingerprint of base.tensors "
                f"(expected {expected}, found {self.base.fingerprint})",
                rule="R10",
                at="base.fingerprint",
            )

    def _check_files(self) -> None:
        shards = [ref.file for ref in self.shards]
        carried = [ref.file for ref in self.files]
        _check_distinct([ref.file for ref in self.base.files], "base.files")
        _check_distinct(self.tuned.files, "tuned.files")
        _check_distinct(shards, "shards")
        _check_distinct([*shards, *carried], "files")
        _check_distinct([*self.tuned.files, *carried], "files")
        last = 0
        for name, entry in self.tensors.items():
            if not last <= entry.file < len(self.tuned.files):
                raise ManifestError(
                    "not the next file of tuned.files "
                    f"(expected {last} to {len(self.tuned.files) - 1}, found {entry.file})",
                    rule="R11",
                    at=f"tensors[{quoted(name)}].file",
                )
            last = entry.file

    def _check_room(self) -> None:
        needed = sum(nbytes for *_, nbytes in self.stored()) + 10 * len(self.shards)
        found = sum(ref.size for ref in self.shards)
        if needed > found:
            raise ManifestError(
                f"the parts do not fit (expected at least {needed} bytes, found {found})",
                rule="R22",
                at="shards",
            )

    def serialize(self) -> bytes:
        """The canonical text, UTF-8: keys in the order of the specification, a tensor a line."""
        value = {
            "format": FORMAT,
            "base": self.base.to_json(),
            "tuned": self.tuned.to_json(),
            "shards": [ref.to_json() for ref in self.shards],
            "files": [ref.to_json() for ref in self.files],
            "tensors": {name: entry.to_json() for name, entry in self.tensors.items()},
        }
        if self.annotations:
            value["annotations"] = {key: self.annotations[key] for key in sorted(self.annotations)}
        return (_lines(value, ()) + "\n").encode()

    def exact(self, name: str) -> bool:
        """Whether tensor `name` is rebuilt bit for bit, as the writer states it."""
        entry = self.tensors[name]
        if entry.tie is not None:
            return self.exact(entry.tie)
        return entry.kind != "sum" or entry.error == 0

    def stored(self) -> Iterator[tuple[str, str, int, str, int]]:
        """(stored name, tensor, term index, part, bytes) of each stored array, in order (R22)."""
        for name, entry in self.tensors.items():
            for i, term in enumerate(entry.terms):
                for part, nbytes in term.parts.items():
                    yield stored_name(name, i, part), name, i, part, nbytes

    @property
    def delta_bytes(self) -> int:
        """Bytes of the shards and of this manifest; carried files lie in the tuned repo too."""
        return sum(ref.size for ref in self.shards) + len(self.serialize())

    def bytes_by_part(self) -> dict[str, dict[str, int]]:
        """Stored bytes: codec -> part -> bytes, both in order of first use."""
        table: dict[str, dict[str, int]] = {}
        for _, name, i, part, nbytes in self.stored():
            row = table.setdefault(self.tensors[name].terms[i].codec, {})
            row[part] = row.get(part, 0) + nbytes
        return table


def fingerprint(base_tensors: Mapping[str, BaseTensor]) -> str:
    """The digest that identifies a base by the content of these tensors (R10)."""
    lines = [
        f"{name}\0{tensor.dtype}\0{','.join(map(str, tensor.shape))}\0{tensor.digest}\n"
        for name, tensor in sorted(base_tensors.items())  # code points sort as UTF-8 bytes do
    ]
    return digest_of("".join(lines).encode())


def stored_name(tensor: str, term: int, part: str) -> str:
    """The name under which a part lies in a shard (R22)."""
    return f"{tensor}_{term}_{part}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the delta in `folder`.

    Raises StorageError where there is none to read, else what `Manifest.parse` raises.
    """
    if not folder.is_dir():
        raise StorageError(
            f"{folder}: no such folder", fix=f"give the folder of a delta, which holds {MANIFEST}"
        )
    path = member(folder, MANIFEST)
    if not path.exists():
        raise StorageError(
            f"{folder}: not a delta, {MANIFEST} is missing",
            fix="to make one: bdhub compress TUNED --base BASE --out DELTA",
        )
    with open_regular(path) as file, storage_errors(path):
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST:
            raise _too_large(size)
        data = file.read(size)
    return Manifest.parse(data)


def _too_large(size: int) -> ManifestError:
    return ManifestError(
        f"too large (expected at most {_LARGEST} bytes, found {size})", rule="R5", at=MANIFEST
    )


def _check_format(value: Mapping[str, Any]) -> None:
    found = value.get("format")
    if found != FORMAT:
        raise VersionError(
            f"another format (expected {quoted(FORMAT)}, "
            f"found {shown(found) if 'format' in value else 'none'})",
            rule="R6",
            at="format",
            fix="a newer release may read this delta: pip install -U bitdelta-hub",
        )


def _rebuilt_file(value: object, at: str) -> str:
    name = string(value, at)
    check_file_name(name, at)
    if not name.endswith(".safetensors"):
        raise ManifestError(f"not a .safetensors file (found {quoted(name)})", rule="R11", at=at)
    return name


def _file_refs(fields: Fields, key: str) -> tuple[FileRef, ...]:
    refs = []
    for at, item in fields.elements(key, _MOST_FILES):
        ref = FileRef.read(item, at)
        check_not_weights(ref.file, f"{at}.file")
        refs.append(ref)
    return tuple(refs)


def _check_distinct(names: Sequence[str], at: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:  # the same file where a file system ignores case
            raise ManifestError(f"the file {quoted(name)} is named twice", rule="R11", at=at)
        seen.add(name.casefold())


# The containers that are laid out one element a line; all others stand on one line.
_SPREAD = {
    (), ("base",), ("base", "files"), ("base", "tensors"), ("tuned",), ("tuned", "files"),
    ("shards",), ("files",), ("tensors",), ("annotations",),
}  # fmt: skip
_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _lines(value: Any, path: tuple[str, ...]) -> str:
    if path not in _SPREAD or not value:
        return _compact(value)
    if isinstance(value, dict):
        brackets = "{}"
        items = [f"{_compact(key)}: {_lines(item, (*path, key))}" for key, item in value.items()]
    else:
        brackets = "[]"
        items = [_compact(item) for item in value]
    indent = "  " * len(path)
    body = f",\n{indent}  ".join(items)
    return f"{brackets[0]}\n{indent}  {body}\n{indent}{brackets[1]}"
