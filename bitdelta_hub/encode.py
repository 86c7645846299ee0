"""One planned tensor: encoded, rebuilt from what was stored, compared, digested (R18, R32)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch

from bitdelta_hub.codecs.base import (
    AdditiveCodec,
    Array,
    Codec,
    Decode,
    Encoder,
    Source,
    View,
)
from bitdelta_hub.codecs.patch import PatchEncoder
from bitdelta_hub.codecs.raw import RawEncoder
from bitdelta_hub.codecs.sums import energies, total
from bitdelta_hub.delta import Rebuilder, StoredTerm
from bitdelta_hub.format.digest import Digest
from bitdelta_hub.format.entries import EXACT
from bitdelta_hub.format.manifest import TensorEntry, Term
from bitdelta_hub.planner import PlannedTensor
from bitdelta_hub.source import (
    DiffSource,
    blocks,
    compare,
    residual,
    run_rows,
    subtract,
)
from bitdelta_hub.spool import Region, Spool, SpooledPart
from bitdelta_hub.workers import Workers


@dataclass(slots=True)
class EncodedTensor:
    """What the manifest says of a tensor, and where its parts wait."""

    entry: TensorEntry
    parts: list[SpooledPart]


@dataclass(slots=True)
class _Stored:
    """A term whose parts are filled, still in its region."""

    codec: Codec
    region: Region

    def term(self, at: str) -> StoredTerm:
        return StoredTerm(self.codec, self.region.arrays, at)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.region.parts.values())


def encode_tensor(
    planned: PlannedTensor, source: DiffSource, spool: Spool, workers: Workers
) -> EncodedTensor:
    """Encodes every term of `planned`, then rebuilds the tensor from the stored parts.

    The digest and the error are those of the rebuilt tensor, not of what the encoder meant.
    """
    if planned.kind == "exact":
        stored = [_smallest(planned.encoders, source, spool)]
    else:
        stored = _encode_sum(planned.encoders, source, spool)
    terms = [term.term(planned.name) for term in stored]
    rebuilder = Rebuilder(planned.view, source.operand, terms, source.device)
    check = _compare(planned.kind, rebuilder, source, workers)
    if planned.kind == "exact":
        assert check.identical, f"{planned.name}: an exact codec changed the tensor"
    elif check.positions:
        stored.append(_patch(check, source, spool))
    parts: list[SpooledPart] = []
    for index, term in enumerate(stored):
        parts += term.region.close(f"{planned.name}_{index}_")
    return EncodedTensor(_entry(planned, stored, check, source), parts)


def _entry(
    planned: PlannedTensor, stored: Sequence[_Stored], check: _Comparison, source: DiffSource
) -> TensorEntry:
    exact = planned.kind == "exact"
    return TensorEntry(
        dtype=planned.dtype,
        shape=planned.shape,
        file=planned.file,
        kind=planned.kind,
        digest=check.digest.text(),
        base=None if exact and stored[0].codec.name == "raw" else planned.operand,
        terms=tuple(
            Term(
                codec=term.codec.name,
                params=term.codec.to_params(),
                parts={name: part.nbytes for name, part in term.region.parts.items()},
            )
            for term in stored
        ),
        error=check.error(source) if planned.kind == "sum" else None,
    )


class _Allocator:
    """Gives the one term that is being encoded its region."""

    def __init__(self, spool: Spool, view: View) -> None:
        self.folder = spool.path.parent
        self._spool = spool
        self._view = view
        self.region: Region | None = None

    def __call__(self, codec: Codec) -> dict[str, Array]:
        assert self.region is None, "a term is allocated once"
        self.region = self._spool.region(codec, self._view)
        return self.region.arrays


def _encode(encoder: Encoder, source: Source, view: View, spool: Spool) -> _Stored:
    allocate = _Allocator(spool, view)
    codec = encoder.encode(source, allocate)
    assert allocate.region is not None
    return _Stored(codec, allocate.region)


def _encode_sum(encoders: Sequence[Encoder], source: DiffSource, spool: Spool) -> list[_Stored]:
    stored: list[_Stored] = []
    decoded: list[Decode] = []
    for encoder in encoders:
        term = _encode(encoder, residual(source, decoded), source.view, spool)
        stored.append(term)
        if term.codec.name not in EXACT:
            additive = cast(AdditiveCodec, term.codec)
            arrays = term.region.arrays
            decoded.append(additive.decoder(arrays, source.view, source.device, source.name))
    return stored


def _smallest(encoders: Sequence[Encoder], source: DiffSource, spool: Spool) -> _Stored:
    """The smallest of the alternatives, and the tensor itself if nothing is smaller."""
    tried = [_encode(encoder, source, source.view, spool) for encoder in encoders]
    best = min(tried, key=lambda term: term.nbytes)
    if best.nbytes > source.view.nbytes:
        return _encode(RawEncoder(), source, source.view, spool)
    return best


def _patch(check: _Comparison, source: DiffSource, spool: Spool) -> _Stored:
    positions = np.concatenate(check.positions)
    return _encode(PatchEncoder(positions=positions), source, source.view, spool)


@dataclass(slots=True)
class _Comparison:
    """Rebuilt against tuned, gathered block by block."""

    digest: Digest = field(default_factory=Digest)
    identical: bool = True
    positions: list[Array] = field(default_factory=list)
    missed: list[torch.Tensor] = field(default_factory=list)

    def error(self, source: DiffSource) -> float | None:
        """Relative error over the finite elements (R18), 4 significant digits."""
        if self.identical:
            return 0.0
        missed, moved = total(torch.cat(self.missed).tolist()), source.energy()
        # 0 is for identical tensors alone: what differs in signs of zeros has no error to state.
        if not (missed > 0 and moved > 0 and math.isfinite(missed) and math.isfinite(moved)):
            return None
        return float(f"{math.sqrt(missed / moved):.4g}")


def _compare(kind: str, rebuilder: Rebuilder, source: DiffSource, workers: Workers) -> _Comparison:
    check = _Comparison()
    for start, stop in blocks(source.view, source.device):
        rows = np.ascontiguousarray(rebuilder.bits(start, stop))
        tuned = source.tuned_bits(start, stop)
        if kind == "sum":
            rows = _take_sum(check, source, rows, tuned, start)
        else:
            check.identical = check.identical and np.array_equal(rows, tuned)
        check.digest.update(rows)
        workers.advance(rows.nbytes)
    return check


def _take_sum(
    check: _Comparison, source: DiffSource, rows: Array, tuned: Array, start: int
) -> Array:
    """Takes a block of a sum into account; gives it with its non-finite elements as tuned.

    What is not finite is patched even where it came out right: on other hardware the arithmetic
    of a sum may give a NaN another payload.
    """
    dtype, run = source.view.dtype, run_rows(source.view)
    same, gaps = compare(rows, tuned, dtype, run, source.device)
    if not bool(torch.isfinite(gaps).all()):
        missed = torch.empty(rows.shape, dtype=torch.float32, device=source.device)
        subtract(rows, tuned, (dtype, dtype), missed)
        bad = ~torch.isfinite(missed)
        gaps = energies(missed.masked_fill_(bad, 0), run).cpu()
        mask = bad.cpu().numpy()
        if mask.any():
            rows = np.where(mask, tuned, rows)
            check.positions.append(np.flatnonzero(mask) + start * source.view.cols)
            same = bool(np.array_equal(rows, tuned))
    check.identical = check.identical and same
    check.missed.append(gaps)
    return rows
