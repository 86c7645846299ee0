"""What each tuned tensor starts from in the base (SPEC R12, R13), from names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any

from bitdelta_hub.checkpoint import Checkpoint
from bitdelta_hub.codecs.base import FLOATS
from bitdelta_hub.format.entries import Operand, Piece
from bitdelta_hub.layouts import (
    canonical,
    is_embedding,
    is_head,
    parts_of,
    same_tensors,
    unique,
    whole_of,
)

MOST_PIECES = 4096  # R12


class Operands:
    """Finds the operand of one tuned tensor after the other.

    `facts` gathers by outcome code what there was to note, `differences` why a tensor has no
    operand, `conflicts` counts those that the base has in another shape, `used` names the base
    tensors that were found.
    """

    def __init__(self, base: Checkpoint, tuned: Checkpoint) -> None:
        self.base = base
        self.tuned = tuned
        self.partners = same_tensors(tuned.tensors, base.tensors)
        self.facts: dict[str, list[str]] = {}
        self.differences: list[str] = []
        self.conflicts = 0
        self.used: set[str] = set()
        self._runs: dict[str, dict[str, Piece]] = {}
        self._base_names = unique(base.tensors)
        self._tuned_names = unique(tuned.tensors)
        self._base_rows = {base.tensors[name].shape[0] for name in token_tables(base)}
        self._tuned_rows = {tuned.tensors[name].shape[0] for name in token_tables(tuned)}

    def find(self, name: str) -> Operand | None:
        """The operand of tuned tensor `name`; None where it starts from nothing."""
        if partner := self.partners.get(name):
            if partner != name:
                self.note("BDH003", f"{name} (there {partner})")
            operand = self._of_partner(name, partner)
        else:
            operand = self._joined(name) or self._part(name) or self._tied(name)
            if operand is None:
                self.differences.append(f"{name} is not in the base")
        if operand is None or not self._usable(name, operand):
            return None
        self.used.update(_names(operand))
        return operand

    def note(self, code: str, fact: str) -> None:
        self.facts.setdefault(code, []).append(fact)

    def _of_partner(self, name: str, partner: str) -> Operand | None:
        ours, theirs = self.tuned.tensors[name].shape, self.base.tensors[partner].shape
        self.used.add(partner)
        if ours == theirs:
            return partner
        if self._resized(ours, theirs):
            self.note("BDH002", f"{name} has {ours[0]} rows (there {theirs[0]})")
            return (Piece(partner, 0, min(ours[0], theirs[0]) * prod(ours[1:])),)
        self.conflicts += 1
        self.differences.append(f"{name} is {list(ours)} (there {list(theirs)})")
        return None

    def _resized(self, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
        """Whether both shapes have a row a token; other axes must agree."""
        if not ours or not theirs or ours[1:] != theirs[1:] or 0 in (*ours, *theirs):
            return False
        return ours[0] in self._tuned_rows and theirs[0] in self._base_rows

    def _joined(self, name: str) -> Operand | None:
        """Whole base tensors that, one after the other, are this one."""
        shape = self.tuned.tensors[name].shape
        parts = _known(parts_of(canonical(name), shape), self._base_names)
        shapes = [self.base.tensors[part].shape for part in parts]
        if not 0 < len(parts) <= MOST_PIECES or not _stack_to(shapes, shape):
            return None
        self.note("BDH003", f"{name} (there {parts[0]} and others)")
        return tuple(Piece(part, 0, prod(size)) for part, size in zip(parts, shapes, strict=True))

    def _part(self, name: str) -> Operand | None:
        """The run of a base tensor that this one and its siblings were joined to."""
        whole = self._base_names.get(whole_of(canonical(name)) or "")
        if whole is None:
            return None
        if whole not in self._runs:
            self._runs[whole] = self._split(whole)
        if name not in self._runs[whole]:
            return None
        self.note("BDH003", f"{name} (there in {whole})")
        return (self._runs[whole][name],)

    def _split(self, whole: str) -> dict[str, Piece]:
        """Tuned tensor -> its run of base tensor `whole`, if together they are all of it."""
        shape = self.base.tensors[whole].shape
        parts = _known(parts_of(canonical(whole), shape), self._tuned_names)
        shapes = [self.tuned.tensors[part].shape for part in parts]
        if not _stack_to(shapes, shape):
            return {}
        ends = accumulate(map(prod, shapes))
        return {
            part: Piece(whole, end - prod(size), end)
            for part, size, end in zip(parts, shapes, ends, strict=True)
        }

    def _tied(self, name: str) -> Operand | None:
        """The base's only token table, for a head or embedding that it leaves out as tied."""
        tables = token_tables(self.base)
        # An embedding deep inside belongs to a part of its own, such as multi-token prediction.
        outer = is_head(name) or (is_embedding(name) and canonical(name).count(".") <= 2)
        if not outer or len(tables) != 1 or ties_tokens(self.base.config) is False:
            return None
        ours, theirs = self.tuned.tensors[name].shape, self.base.tensors[tables[0]].shape
        if ours != theirs and not self._resized(ours, theirs):
            return None
        self.note("BDH001", f"{name} is paired with {tables[0]}, to which the base ties it")
        return self._of_partner(name, tables[0])

    def _usable(self, name: str, operand: Operand) -> bool:
        """Whether a diff can be taken from an operand of its dtype (R13)."""
        dtypes = {self.base.tensors[part].dtype for part in _names(operand)}
        ours, theirs = self.tuned.tensors[name].dtype, min(dtypes)
        if dtypes == {ours}:
            return True
        self.note("BDH005", f"{name} is {ours} (there {theirs})")
        return len(dtypes) == 1 and ours in FLOATS and theirs in FLOATS


def is_token_table(name: str) -> bool:
    """Whether `name` is a matrix with a row a token: token embeddings or the head."""
    return is_embedding(name) or is_head(name)


def token_tables(checkpoint: Checkpoint) -> list[str]:
    """The matrices of `checkpoint` with a row a token, in file order."""
    found = checkpoint.tensors
    return [name for name in found if is_token_table(name) and len(found[name].shape) == 2]


def ties_tokens(config: dict[str, Any]) -> bool | None:
    """Whether `config` ties the head to the embeddings; None where it leaves it to the default."""
    for holder in (config, config.get("text_config")):
        if isinstance(holder, dict) and isinstance(holder.get("tie_word_embeddings"), bool):
            return bool(holder["tie_word_embeddings"])
    return None


def _names(operand: Operand) -> list[str]:
    return [operand] if isinstance(operand, str) else [piece.name for piece in operand]


def _known(forms: Sequence[str], names: dict[str, str]) -> list[str]:
    """The names of `forms`, or none if one of them is missing."""
    found = [names[form] for form in forms if form in names]
    return found if len(found) == len(forms) else []


def _stack_to(parts: Sequence[tuple[int, ...]], whole: tuple[int, ...]) -> bool:
    """Whether tensors of shapes `parts`, laid one below the other, have the shape `whole`.

    For a batch of matrices, whether each of its matrices is the same number of them.
    """
    batch, rows, rest = (
        (whole[0], whole[1], whole[2:]) if len(whole) > 2 else (1, whole[0], whole[1:])
    )
    each = len(parts) // batch if batch else 0
    return (
        each > 0
        and list(parts) == list(parts[:each]) * batch
        and all(shape[1:] == rest for shape in parts)
        and sum(shape[0] for shape in parts[:each]) == rows
    )
