"""Rules R12 to R16: how a tensor's operand, kind, dtype and terms must fit together."""

from __future__ import annotations

from collections.abc import Mapping

from bitdelta_hub.errors import ManifestError
from bitdelta_hub.format.entries import ADDITIVE, EXACT, BaseTensor, Piece, TensorEntry
from bitdelta_hub.format.names import quoted

_SUMMED = ("F16", "BF16", "F32")
_LAST = {"rows": 1, "patch": 2}  # after the additive terms, in this order, once each


def check_tensors(
    tensors: Mapping[str, TensorEntry], base_tensors: Mapping[str, BaseTensor]
) -> None:
    """Raises ManifestError at the first tensor that breaks one of R12 to R16."""
    for name, entry in tensors.items():
        at = f"tensors[{quoted(name)}]"
        if isinstance(entry.base, str):
            _check_whole(entry, base_tensors, f"{at}.base")
        elif entry.base is not None:
            _check_pieces(entry, entry.base, base_tensors, f"{at}.base")
        _check_dtypes(entry, base_tensors, at)
        if entry.tie is not None:
            _check_tie(entry, tensors, f"{at}.tie")
        elif entry.kind == "exact":
            _check_exact(entry, at)
        elif entry.kind == "sum":
            _check_sum(entry, f"{at}.terms")


def _base_tensor(name: str, base_tensors: Mapping[str, BaseTensor], at: str) -> BaseTensor:
    if name not in base_tensors:
        raise ManifestError(f"base.tensors has no {quoted(name)}", rule="R10", at=at)
    return base_tensors[name]


def _check_whole(entry: TensorEntry, base_tensors: Mapping[str, BaseTensor], at: str) -> None:
    assert isinstance(entry.base, str)
    found = _base_tensor(entry.base, base_tensors, at).shape
    if found != entry.shape:
        raise ManifestError(
            f"{quoted(entry.base)} has another shape "
            f"(expected {list(entry.shape)}, found {list(found)})",
            rule="R12",
            at=at,
        )


def _check_pieces(
    entry: TensorEntry, pieces: tuple[Piece, ...], base_tensors: Mapping[str, BaseTensor], at: str
) -> None:
    for i, piece in enumerate(pieces):
        numel = _base_tensor(piece.name, base_tensors, f"{at}[{i}]").numel
        if not piece.start < piece.stop <= numel:
            raise ManifestError(
                f"not a run of {quoted(piece.name)} (expected start < stop <= {numel}, "
                f"found {piece.start} and {piece.stop})",
                rule="R12",
                at=f"{at}[{i}]",
            )
    total = sum(piece.stop - piece.start for piece in pieces)
    if total > entry.numel:
        raise ManifestError(
            f"more elements than the tensor has (expected at most {entry.numel}, found {total})",
            rule="R12",
            at=at,
        )


def _check_dtypes(entry: TensorEntry, base_tensors: Mapping[str, BaseTensor], at: str) -> None:
    if entry.kind == "sum" and entry.dtype not in _SUMMED:
        raise ManifestError(
            f"no sum has this dtype (expected one of {' '.join(_SUMMED)}, found {entry.dtype})",
            rule="R13",
            at=f"{at}.dtype",
        )
    allowed: tuple[str, ...] = _SUMMED if entry.kind == "sum" else (entry.dtype,)
    for piece in entry.pieces:
        dtype = base_tensors[piece.name].dtype
        if dtype not in allowed:
            raise ManifestError(
                f"{quoted(piece.name)} has the wrong dtype for this operand "
                f"(expected {' or '.join(allowed)}, found {dtype})",
                rule="R13",
                at=f"{at}.base",
            )
        allowed = (dtype,)  # one dtype in all pieces


def _check_tie(entry: TensorEntry, tensors: Mapping[str, TensorEntry], at: str) -> None:
    assert entry.tie is not None
    other = tensors.get(entry.tie)
    if other is None:
        raise ManifestError(f"no tensor {quoted(entry.tie)}", rule="R14", at=at)
    if other.kind == "tie":
        raise ManifestError(f"{quoted(entry.tie)} is a tie itself", rule="R14", at=at)
    for key in ("dtype", "shape", "digest"):
        if getattr(entry, key) != getattr(other, key):
            raise ManifestError(f"{quoted(entry.tie)} has another {key}", rule="R14", at=at)


def _check_exact(entry: TensorEntry, at: str) -> None:
    codecs = [term.codec for term in entry.terms]
    if len(codecs) != 1 or codecs[0] not in EXACT:
        raise ManifestError(
            f"not one exact term (expected one of {' '.join(EXACT)}, "
            f"found {' '.join(codecs) or 'none'})",
            rule="R15",
            at=f"{at}.terms",
        )
    if (codecs[0] == "raw") != (entry.base is None):
        fact = "raw takes no operand" if codecs[0] == "raw" else f"{codecs[0]} needs an operand"
        raise ManifestError(fact, rule="R15", at=at)


def _check_sum(entry: TensorEntry, at: str) -> None:
    last = 0
    for i, term in enumerate(entry.terms):
        if term.codec not in ADDITIVE and term.codec not in _LAST:
            raise ManifestError(f"{term.codec} is no term of a sum", rule="R16", at=f"{at}[{i}]")
        rank = _LAST.get(term.codec, 0)
        if rank < last or rank == last > 0:
            raise ManifestError(
                f"{term.codec} comes too late (expected the additive terms, then at most one "
                "rows, then at most one patch)",
                rule="R16",
                at=f"{at}[{i}]",
            )
        last = rank
