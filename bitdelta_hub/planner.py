"""Which terms store which tensor, with the bytes that they will take, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import torch

from bitdelta_hub.changes import Changes, count_changes, equal_when_cast
from bitdelta_hub.codecs.base import FLOATS, Encoder, Part, View
from bitdelta_hub.codecs.patch import PatchEncoder
from bitdelta_hub.codecs.raw import RawEncoder
from bitdelta_hub.codecs.rows import RowsEncoder
from bitdelta_hub.codecs.steps import StepsEncoder
from bitdelta_hub.errors import UsageError
from bitdelta_hub.pair import Operand, Pair
from bitdelta_hub.recipes import ROW, Recipe
from bitdelta_hub.source import DiffSource, OperandReader
from bitdelta_hub.workers import Workers

# Leaf modules that hold one row per token; the head shares their fate.
EMBEDDING_NAMES = (
    "embed_tokens", "embed_tokens_per_layer", "word_embeddings", "token_embedding", "wte", "wpe",
    "shared", "lm_head", "embed_out", "embed_in", "position_embeddings", "embed_positions",
)  # fmt: skip
# Small matrices that steer which experts run: an error there costs more than their bytes.
ROUTER_NAMES = ("router", "gate", "shared_expert_gate")
# A side below this holds too few elements per scale (convolution kernels, state-space tensors).
SMALLEST_SIDE = 16
# Entropy coding has nothing to gain in tensors below this.
SMALL_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user chose for a whole delta."""

    recipe: Recipe
    embeddings: str = "auto"
    keep: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    effort: Literal["default", "max"] = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
    """One tensor of the rebuilt checkpoint and how it will be stored.

    `encoders` are the terms of `kind` `sum` or `exact`; for `exact` the first is used unless an
    alternative proves smaller. `parts` (by term index and part name) are those that will be
    stored, None while they depend on the data; `bound` is their bytes, or at most so many.
    """

    name: str
    view: View
    file: int
    kind: str
    group: str
    operand: Operand | None = None
    tie: str | None = None
    encoders: tuple[Encoder, ...] = ()
    uncovered: range = range(0)
    parts: dict[str, Part] | None = field(default_factory=dict)
    bound: int = 0
    note: str = ""

    @property
    def dtype(self) -> str:
        return self.view.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape

    @property
    def bytes(self) -> int | None:
        """Bytes of the parts, None while they depend on the data."""
        return self.bound if self.parts is not None else None

    @property
    def terms(self) -> str:
        """The terms in a few words, for tables."""
        if self.kind == "tie":
            return f"tie {self.tie}"
        words = [encoder.describe() for encoder in self.encoders]
        if not words:
            return self.kind if self.kind == "copy" else "base"
        return (" or " if self.kind == "exact" else " + ").join(words)


def plan_tensors(pair: Pair, options: Options, workers: Workers) -> list[PlannedTensor]:
    """Every tensor of the tuned checkpoint with its terms, in file order.

    Reads samples of both sides, and whole tensors where an exact codec may be the smaller one.
    Raises UsageError for a pattern of `keep` or `skip` that matches nothing.
    """
    names = list(pair.tuned.tensors)
    _check_patterns(options, names)
    planner = _Planner(pair, options)
    total = sum(info.nbytes for info in pair.tuned.tensors.values())

    def one(name: str) -> PlannedTensor:
        planned = planner.plan(name)
        workers.advance(planned.view.nbytes)
        return planned

    return workers.run("plan", total, one, names)


def _check_patterns(options: Options, names: Sequence[str]) -> None:
    for flag, patterns in (("--keep", options.keep), ("--skip", options.skip)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                first = f" (the first is {names[0]!r})" if names else ""
                raise UsageError(
                    f"{flag}: {pattern!r} matches no tensor{first}",
                    fix="`bdhub plan FT --base BASE` lists the names",
                )


class _Planner:
    def __init__(self, pair: Pair, options: Options) -> None:
        self.pair = pair
        self.options = options
        files = [name for name, _ in pair.tuned.files]
        self.files = {name: index for index, name in enumerate(files)}
        self.vocabulary = _vocabulary(pair.tuned.config)

    def plan(self, name: str) -> PlannedTensor:
        info = self.pair.tuned.tensors[name]
        view = View(tuple(info.shape), info.dtype)
        match = self.pair.matches[name]
        planned = PlannedTensor(
            name=name, view=view, file=self.files[info.file], kind="exact",
            group=self._group(name, view), operand=match.operand,
        )  # fmt: skip
        if match.tie:
            return replace(planned, kind="tie", tie=match.tie, operand=None)
        if match.operand is None or view.numel == 0:
            return _raw(planned)
        reader = OperandReader(match.operand, self.pair.base, view)
        source = DiffSource(name, self.pair.tuned, reader, torch.device("cpu"))
        planned = replace(planned, uncovered=source.uncovered)
        if reader.dtype != view.dtype:
            return self._other_dtype(planned, source)
        changes = count_changes(source)
        if changes.elements == 0:
            return replace(planned, kind="copy")
        if self._skipped(planned):
            if planned.dtype in FLOATS:
                return _sum(replace(planned, note="left at the base, as asked"), ())
            planned = replace(planned, note="kept, for only floats can be left at the base")
        terms = self._terms(planned)
        if terms is None:
            return self._exact(planned, changes)
        lossy = _sum(planned, terms)
        cheap = _cheap_exact(planned, changes)
        if cheap and cheap.bound <= lossy.bound:
            return cheap
        return self._exact(planned, changes) if _outgrown(lossy) else lossy

    def _other_dtype(self, planned: PlannedTensor, source: DiffSource) -> PlannedTensor:
        floats = source.operand.dtype in FLOATS and planned.dtype in FLOATS
        if floats and equal_when_cast(source):
            return replace(_sum(planned, ()), note="the base, cast")
        if floats and self._skipped(planned):
            return _sum(replace(planned, note="left at the base, as asked"), ())
        terms = self._terms(planned) if floats else None
        if terms is None:
            return _raw(planned)
        lossy = _sum(planned, terms)
        return _raw(planned) if _outgrown(lossy) else lossy

    def _terms(self, planned: PlannedTensor) -> tuple[Encoder, ...] | None:
        """The lossy terms for a changed tensor; None where it is kept exactly."""
        recipe, embeddings = self.options.recipe, self.options.embeddings
        kept = any(fnmatchcase(planned.name, pattern) for pattern in self.options.keep)
        if kept or recipe.exact or planned.group == "other":
            return None
        if planned.group == "embeddings" and embeddings != "auto":
            return (ROW,) if embeddings == "sign" else None
        return recipe.embedding if planned.group == "embeddings" else recipe.matrix

    def _skipped(self, planned: PlannedTensor) -> bool:
        if any(fnmatchcase(planned.name, pattern) for pattern in self.options.keep):
            return False
        if any(fnmatchcase(planned.name, pattern) for pattern in self.options.skip):
            return True
        return planned.group == "embeddings" and self.options.embeddings == "base"

    def _exact(self, planned: PlannedTensor, changes: Changes) -> PlannedTensor:
        cheap = _cheap_exact(planned, changes)
        if cheap and cheap.bound * 16 < planned.view.nbytes:
            return cheap
        if planned.view.nbytes < SMALL_BYTES:
            return cheap or _raw(planned)
        steps = StepsEncoder(effort=self.options.effort)
        planned = replace(planned, kind="exact", parts=None, bound=planned.view.nbytes)
        if cheap:
            return replace(planned, encoders=(steps, *cheap.encoders), bound=cheap.bound)
        return replace(planned, encoders=(steps,))

    def _group(self, name: str, view: View) -> str:
        modules = name.split(".")
        leaf = modules[-2] if len(modules) > 1 else name
        # Two dimensions are a matrix, three a batch of them (experts), four a convolution.
        if view.dtype not in FLOATS or not 2 <= len(view.shape) <= 3:
            return "other"
        if len(view.shape) == 2 and (
            leaf in EMBEDDING_NAMES or (self.vocabulary and abs(view.rows - self.vocabulary) < 256)
        ):
            return "embeddings"
        if leaf in ROUTER_NAMES:
            return "other"
        return "matrices" if min(view.rows, view.cols) >= SMALLEST_SIDE else "other"


def _vocabulary(config: dict[str, object]) -> int:
    size = config.get("vocab_size")
    text = config.get("text_config")
    if size is None and isinstance(text, dict):
        size = text.get("vocab_size")
    return size if isinstance(size, int) and size >= 1024 else 0


def _raw(planned: PlannedTensor) -> PlannedTensor:
    return _predicted(replace(planned, kind="exact", operand=None, encoders=(RawEncoder(),)))


def _sum(planned: PlannedTensor, terms: Sequence[Encoder]) -> PlannedTensor:
    """A sum of `terms`, with the rows that the base does not have."""
    encoders = tuple(terms)
    if planned.uncovered:
        encoders += (RowsEncoder(rows=np.asarray(planned.uncovered, dtype=np.int64)),)
    return _predicted(replace(planned, kind="sum", encoders=encoders))


def _predicted(planned: PlannedTensor) -> PlannedTensor:
    """`planned` with its parts and bytes, or with the tensor's own bytes as their bound."""
    parts: dict[str, Part] = {}
    for index, encoder in enumerate(planned.encoders):
        predicted = encoder.predict(planned.view)
        if predicted is None:
            return replace(planned, parts=None, bound=planned.view.nbytes)
        parts |= {f"{index}_{name}": part for name, part in predicted.items()}
    return replace(planned, parts=parts, bound=sum(part.nbytes for part in parts.values()))


def _outgrown(lossy: PlannedTensor) -> bool:
    """Whether the terms are known to take no fewer bytes than the tensor itself."""
    return lossy.parts is not None and lossy.bound >= lossy.view.nbytes


def _cheap_exact(planned: PlannedTensor, changes: Changes) -> PlannedTensor | None:
    """The smaller of `rows` and `patch` where all changes were counted; None if neither is
    smaller than the tensor."""
    if not changes.counted:
        return None
    encoders = (RowsEncoder(count=changes.rows), PatchEncoder(count=changes.elements))
    choices = [_predicted(replace(planned, kind="exact", encoders=(one,))) for one in encoders]
    best = min(choices, key=lambda choice: choice.bound)
    return best if best.bound < planned.view.nbytes else None
