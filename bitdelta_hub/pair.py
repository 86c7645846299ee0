"""Base and tuned matched tensor by tensor, or the coded reason why they cannot be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitdelta_hub.checkpoint import Checkpoint
from bitdelta_hub.errors import PairError
from bitdelta_hub.format.entries import Operand, Piece
from bitdelta_hub.layouts import is_head
from bitdelta_hub.operands import Operands, is_token_table, token_tables
from bitdelta_hub.outcomes import OUTCOMES, Note
from bitdelta_hub.quantised import quantised
from bitdelta_hub.sample import FAR, Sample, sample

__all__ = ["OUTCOMES", "Match", "Note", "Operand", "Pair", "Piece", "Sample", "check_base", "match"]

# A few tensors of another shape are new heads; more than these and than a tenth, another model.
FEW = 4
# Less of the fine-tune than this found in the base: another architecture.
LITTLE = 0.1
_COMPARED = 1 << 20


@dataclass(frozen=True, slots=True)
class Match:
    """What one tuned tensor starts from: a base operand, another tuned tensor, or nothing."""

    operand: Operand | None = None
    tie: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two checkpoints and the match of every tuned tensor, in the tuned checkpoint's order."""

    base: Checkpoint
    tuned: Checkpoint
    matches: dict[str, Match]
    notes: tuple[Note, ...] = ()


def match(base: Checkpoint, tuned: Checkpoint) -> Pair:
    """Every tuned tensor with what it starts from (SPEC R12 to R14).

    Raises PairError BDH103 (tuned saved quantised), BDH110 (quantised storage that cannot be
    used) or BDH105 (another architecture).
    """
    _refuse_quantised(base, tuned)
    operands = Operands(base, tuned)
    ties = _ties(tuned, operands)
    matches = {
        name: Match(tie=ties[name]) if name in ties else Match(operands.find(name))
        for name in tuned.tensors
    }
    _refuse_strangers(operands, matches)
    return Pair(base, tuned, matches, _notes(operands))


def check_base(pair: Pair, *, allow_distant: bool = False) -> Sample:
    """How far base and tuned are apart, from a few megabytes of their largest matrices.

    Raises PairError BDH104 where most of them are unrelated, unless `allow_distant`.
    """
    operands = {n: m.operand for n, m in pair.matches.items() if m.operand is not None}
    # Embeddings move otherwise than the model: rows may be new, or of rare tokens and unchanged.
    inner = {n: operand for n, operand in operands.items() if "embed" not in n}
    inner = {n: operand for n, operand in inner.items() if not is_token_table(n)}
    found = sample(pair.base, pair.tuned, inner or operands)
    far = sorted(distance for distance in found.distances.values() if distance > FAR)
    if 2 * len(far) > len(found.distances) and not allow_distant:
        raise PairError(
            f"base and fine-tune do not match: {pair.base.place} vs {pair.tuned.place}: "
            f"‖Δ‖/‖W‖ is {far[len(far) // 2]:.2f} on {len(far)} of {len(found.distances)} sampled "
            "tensors (a real fine-tune is below 0.3)",
            code="BDH104",
            fix="name the base that the fine-tune was made from; if this is it, pass "
            "--allow-distant-base",
        )
    return found


def _refuse_quantised(base: Checkpoint, tuned: Checkpoint) -> None:
    ours, theirs = quantised(tuned), quantised(base)
    if ours and ours.packed and ours.method != "mxfp4":
        raise PairError(
            f"{tuned.place}: saved quantised by {ours.method} ({ours.tensor})",
            code="BDH103",
            fix="give the 16-bit checkpoint that it was made from",
        )
    if ours and not ours.known:
        raise PairError(
            f"{tuned.place}: quantised storage that is not understood "
            f"({ours.tensor} is {ours.dtype}, quant_method {ours.method or 'not named'})",
            code="BDH110",
            fix="give a copy of the fine-tune in a 16-bit type",
        )
    if ours and not theirs:
        raise PairError(
            f"{tuned.place}: saved quantised by {ours.method} ({ours.tensor}), "
            "which the base is not",
            code="BDH103",
            fix="give the 16-bit checkpoint that it was made from",
        )
    if theirs and not ours:
        raise PairError(
            f"{base.place}: the base is quantised and the fine-tune is not "
            f"({theirs.tensor} is {theirs.dtype}, quant_method {theirs.method or 'not named'})",
            code="BDH110",
            fix="give a bf16 copy of the base as --base",
        )


def _ties(tuned: Checkpoint, operands: Operands) -> dict[str, str]:
    """Token table -> the one whose bytes it holds, of the base's names and embeddings first."""
    tables = token_tables(tuned)
    tables.sort(key=lambda name: (name not in operands.partners, is_head(name)))
    ties: dict[str, str] = {}
    for index, name in enumerate(tables):
        for other in tables[:index]:
            if other not in ties and same_bytes(tuned, name, other):
                ties[name] = other
                operands.note("BDH001", f"{name} holds the bytes of {other}")
                operands.used.add(operands.partners.get(name, other))
                break
    return ties


def same_bytes(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors agree in dtype, shape and bytes; reads no further than it must."""
    ours, theirs = checkpoint.tensors[one], checkpoint.tensors[other]
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return False
    starts = range(0, ours.numel, _COMPARED)
    windows = ((start, min(start + _COMPARED, ours.numel)) for start in starts)
    return all(
        np.array_equal(checkpoint.read_bits(one, *window), checkpoint.read_bits(other, *window))
        for window in windows
    )


def _refuse_strangers(operands: Operands, matches: dict[str, Match]) -> None:
    base, tuned = operands.base, operands.tuned
    # Token tables say little: two models of one width and vocabulary are strangers still.
    sizes = {n: info.nbytes for n, info in tuned.tensors.items() if not is_token_table(n)}
    found = sum(size for name, size in sizes.items() if matches[name] != Match())
    many = operands.conflicts > max(FEW, len(operands.partners) // 10)
    if not many and found >= LITTLE * sum(sizes.values()):
        return
    ours, theirs = tuned.config.get("model_type"), base.config.get("model_type")
    types = f" ({tuned.place} is a {ours}, {base.place} a {theirs})" if ours != theirs else ""
    raise PairError(
        f"base and fine-tune do not match{types}: {len(operands.differences)} of "
        f"{len(tuned.tensors)} tensors have no counterpart: {'; '.join(operands.differences[:3])}",
        code="BDH105",
        fix="name the base that the fine-tune was made from",
    )


def _notes(operands: Operands) -> tuple[Note, ...]:
    base, tuned = operands.base, operands.tuned
    facts = dict(operands.facts)
    left = [name for name in base.tensors if name not in operands.used]
    for name in [name for name in left if is_token_table(name)]:
        if any(other != name and same_bytes(base, name, other) for other in token_tables(base)):
            left.remove(name)
            facts.setdefault("BDH001", []).append(f"the base also writes {name}, which it ties")
    notes = [Note("BDH001", "; ".join(facts.pop("BDH001")))] if "BDH001" in facts else []
    said = {
        "BDH002": "for another number of tokens; the common rows are paired",
        "BDH003": "under another name or layout in the base; the fine-tune's are kept",
        "BDH005": "of another dtype in the base; differences are taken in fp32",
    }
    for code, meaning in said.items():
        if code in facts:
            notes.append(Note(code, f"{_tensors(facts[code])} {meaning}: {_some(facts[code])}"))
    if left:
        notes.append(Note("BDH004", f"{_tensors(left)} of the base left out: {_some(left)}"))
    if "auto_map" in tuned.config:
        notes.append(
            Note("BDH109", "config.json names code of its own (auto_map); it is never run")
        )
    return tuple(sorted(notes, key=lambda note: note.code))


def _tensors(facts: list[str]) -> str:
    return "1 tensor" if len(facts) == 1 else f"{len(facts)} tensors"


def _some(facts: list[str]) -> str:
    return "; ".join(facts[:2]) + ("; ..." if len(facts) > 2 else "")
