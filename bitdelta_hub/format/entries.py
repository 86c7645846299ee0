"""What a manifest lists: files, base tensors, tensors and their terms (SPEC section 4).

Each class reads itself from JSON with the rules that need nothing but itself, and gives itself
back as JSON with keys in the order of the specification.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, Final, NamedTuple

from bitdelta_hub.errors import ManifestError, VersionError
from bitdelta_hub.format.document import Fields, integer, shown, string
from bitdelta_hub.format.dtypes import nbytes, read_dtype, read_shape
from bitdelta_hub.format.names import (
    TENSOR_NAME_BYTES,
    check_file_name,
    check_tensor_name,
    quoted,
)

ADDITIVE: Final = ("sign", "int", "codebook", "lowrank", "sparse")
EXACT: Final = ("raw", "rows", "patch", "steps")
KINDS: Final = ("copy", "tie", "exact", "sum")

_MOST_TERMS = 16
_MOST_PIECES = 4096
_COMMON = ("dtype", "shape", "file", "kind", "digest")
_FURTHER: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # kind -> required, optional
    "copy": (("base",), ()),
    "tie": (("tie",), ()),
    "exact": (("terms",), ("base",)),
    "sum": (("terms", "error"), ("base",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file by name, size in bytes and SHA-256; the last is None only for a base's files."""

    file: str
    size: int
    sha256: str | None

    @classmethod
    def read(cls, value: object, at: str, *, hashed: bool = True) -> FileRef:
        fields = Fields(value, at)
        fields.only(("file", "size", "sha256"))
        file = fields.string("file")
        check_file_name(file, fields.place("file"))
        unknown = not hashed and fields["sha256"] is None
        return cls(
            file=file,
            size=fields.integer("size"),
            sha256=None if unknown else fields.sha256("sha256"),
        )

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseTensor:
    """A base tensor that some operand names, known by its content."""

    dtype: str
    shape: tuple[int, ...]
    digest: str

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @classmethod
    def read(cls, value: object, at: str) -> BaseTensor:
        fields = Fields(value, at)
        fields.only(("dtype", "shape", "digest"))
        dtype, shape = _dtype_and_shape(fields)
        return cls(dtype=dtype, shape=shape, digest=fields.digest("digest"))

    def to_json(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "shape": list(self.shape), "digest": self.digest}


class Piece(NamedTuple):
    """Elements `start` to `stop` of base tensor `name`, counted row-major."""

    name: str
    start: int
    stop: int

    @classmethod
    def read(cls, value: object, at: str) -> Piece:
        if not isinstance(value, list) or len(value) != 3:
            raise ManifestError("not a piece (expected [name, start, stop])", rule="R12", at=at)
        return cls(
            name=string(value[0], f"{at}[0]"),
            start=integer(value[1], f"{at}[1]"),
            stop=integer(value[2], f"{at}[2]"),
        )

    def to_json(self) -> list[Any]:
        return [self.name, self.start, self.stop]


Operand = str | tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One encoded summand: its codec, the codec's params, and bytes by part, all in order."""

    codec: str
    params: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(self.parts.values())

    @classmethod
    def read(cls, value: object, at: str) -> Term:
        fields = Fields(value, at)
        fields.only(("codec", "params", "parts"))
        codec = fields.string("codec")
        if codec not in ADDITIVE and codec not in EXACT:
            raise VersionError(
                f"unknown codec {quoted(codec)} (expected one of {' '.join(ADDITIVE + EXACT)})",
                rule="R19",
                at=fields.place("codec"),
                fix="a newer release may read this delta: pip install -U bitdelta-hub",
            )
        return cls(
            codec=codec,
            params={key: _plain(item, at) for key, at, item in fields.entries("params")},
            parts={part: integer(size, at) for part, at, size in fields.entries("parts")},
        )

    def to_json(self) -> dict[str, Any]:
        return {"codec": self.codec, "params": self.params, "parts": self.parts}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of the rebuilt checkpoint and how it comes about.

    `base` is a base tensor's name, which stands for the whole tensor, or pieces of base tensors.
    """

    dtype: str
    shape: tuple[int, ...]
    file: int
    kind: str
    digest: str
    base: Operand | None = None
    tie: str | None = None
    terms: tuple[Term, ...] = ()
    error: float | None = None

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return nbytes(self.dtype, self.shape)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The operand as pieces; none where there is no operand."""
        if not isinstance(self.base, str):
            return self.base or ()
        return (Piece(name=self.base, start=0, stop=self.numel),)

    @classmethod
    def read(cls, value: object, at: str) -> TensorEntry:
        fields = Fields(value, at)
        kind = fields.choice("kind", KINDS)
        required, optional = _FURTHER[kind]
        fields.only((*_COMMON, *required), optional)
        dtype, shape = _dtype_and_shape(fields)
        return cls(
            dtype=dtype,
            shape=shape,
            file=fields.integer("file"),
            kind=kind,
            digest=fields.digest("digest"),
            base=_operand(fields) if "base" in fields else None,
            tie=fields.string("tie") if "tie" in fields else None,
            terms=_terms(fields) if "terms" in fields else (),
            error=_error(fields) if "error" in fields else None,
        )

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "file": self.file,
            "kind": self.kind,
            "digest": self.digest,
        }
        if isinstance(self.base, str):
            entry["base"] = self.base
        elif self.base is not None:
            entry["base"] = [piece.to_json() for piece in self.base]
        if self.kind == "tie":
            entry["tie"] = self.tie
        if self.kind in ("exact", "sum"):
            entry["terms"] = [term.to_json() for term in self.terms]
        if self.kind == "sum":
            entry["error"] = self.error
        return entry


def _dtype_and_shape(fields: Fields) -> tuple[str, tuple[int, ...]]:
    dtype = read_dtype(fields["dtype"], ManifestError, fields.place("dtype"))
    return dtype, read_shape(fields["shape"], dtype, ManifestError, fields.place("shape"))


def _operand(fields: Fields) -> Operand:
    value, at = fields["base"], fields.place("base")
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not 1 <= len(value) <= _MOST_PIECES:
        raise ManifestError(
            f"not an operand (expected a name or a list of 1 to {_MOST_PIECES} pieces)",
            rule="R12",
            at=at,
        )
    return tuple(Piece.read(item, f"{at}[{i}]") for i, item in enumerate(value))


def _terms(fields: Fields) -> tuple[Term, ...]:
    return tuple(Term.read(item, at) for at, item in fields.elements("terms", _MOST_TERMS))


def _error(fields: Fields) -> float | None:
    value = fields["error"]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ManifestError(
            f"not an error (expected null or a number from 0 up, found {shown(value)})",
            rule="R18",
            at=fields.place("error"),
        )
    return float(value)


def _plain(value: Any, at: str) -> Any:
    """A param's value, if it is a scalar or a list of such. R24 is the codec's to check."""
    if isinstance(value, dict):
        raise ManifestError("a param is no object", rule="R19", at=at)
    if isinstance(value, list):
        return [_plain(item, f"{at}[{i}]") for i, item in enumerate(value)]
    return value


def read_named(fields: Fields, key: str, most: int) -> list[tuple[str, str, Any]]:
    """(tensor name, place, value) of each entry of a table of at most `most` tensors."""
    table = list(fields.entries(key, most))
    for name, at, _ in table:
        check_tensor_name(name, TENSOR_NAME_BYTES, ManifestError, at)
    return table
