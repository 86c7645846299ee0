"""Base and tuned matched tensor by tensor, from names, shapes, dtypes and configs alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np

from bitdelta_hub.checkpoint import Checkpoint
from bitdelta_hub.codecs.base import FLOATS
from bitdelta_hub.errors import PairError
from bitdelta_hub.format.entries import Operand, Piece
from bitdelta_hub.layouts import (
    canonical,
    common_prefix,
    is_embedding,
    is_head,
    parts_of,
    unique,
    whole_of,
)
from bitdelta_hub.outcomes import OUTCOMES, Note
from bitdelta_hub.weightfile import TensorInfo

__all__ = ["OUTCOMES", "Match", "Note", "Operand", "Pair", "Piece", "check_base", "match"]


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
    """Every tuned tensor with the base tensor of its name and shape."""
    matches = {
        name: Match(
            name if name in base.tensors and base.tensors[name].shape == info.shape else None
        )
        for name, info in tuned.tensors.items()
    }
    return Pair(base, tuned, matches)


def check_base(pair: Pair) -> None:
    """Raises PairError BDH104 where the tuned checkpoint does not come from this base."""
