"""The plan of a whole delta: every tensor's terms and all bytes, before any work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch

from bitdelta_hub.carried import carried_files
from bitdelta_hub.checkpoint import open_checkpoint
from bitdelta_hub.codecs.lowrank import BudgetLowRankEncoder
from bitdelta_hub.errors import PairError, UsageError
from bitdelta_hub.pair import Note, Pair, check_base, match
from bitdelta_hub.planner import Options, PlannedTensor, plan_tensors
from bitdelta_hub.recipes import resolve
from bitdelta_hub.spool import SpooledPart, shard_size, shards_of
from bitdelta_hub.workers import Progress, Workers, pick_device, workers

EMBEDDINGS = ("auto", "exact", "sign", "base")
EFFORTS = ("default", "max")
SHARD_BYTES = 5_000_000_000
# A tensor whose parts depend on the data has no more of them than this, and the header of a shard
# no more than this many bytes for each beside the tensor's name.
UNKNOWN_PARTS, ENTRY_BYTES = 6, 160


class Choices(TypedDict, total=False):
    """What `plan` and `compress` can be told.

    recipe: a name of `recipe_names()`, `bitdelta` by default.
    embeddings: `auto` (as the recipe says, or exact where that is smaller), `exact`, `sign`
        (one bit, a scale a row), `base` (left at the base).
    keep, skip: globs over tensor names, kept exactly or left at the base.
    scale, estimator: axis and estimator of sign terms, instead of the recipe's.
    bits: bits per weight, for recipes with a budget.
    effort: `default` or `max`, for lossless terms.
    device: `auto`, `cpu`, `cuda` or `cuda:N`.
    max_memory: bytes; fewer tensors are worked on at once where they would not fit.
    allow_pickle: read `.bin` and `.pth` checkpoints, without running code from them.
    allow_distant_base: go on although the two do not look like base and fine-tune.
    max_shard_size: bytes.
    """

    recipe: str
    embeddings: str
    keep: Sequence[str]
    skip: Sequence[str]
    scale: str | None
    estimator: str | None
    bits: float | None
    effort: Literal["default", "max"]
    device: str
    max_memory: int | None
    allow_pickle: bool
    allow_distant_base: bool
    max_shard_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All planned tensors in the order of the rebuilt files.

    The bytes are those that `compress` writes. Only what shows while tensors are encoded comes on
    top: the elements that are not finite, or would not be once rebuilt, are stored one by one.
    """

    tuned: str
    base: str
    recipe: str
    tensors: tuple[PlannedTensor, ...]
    tuned_bytes: int
    carried_bytes: int
    shard_bytes: int
    upper_bound: bool
    notes: tuple[Note, ...] = field(default=())

    @property
    def predicted_bytes(self) -> int:
        """Bytes of the shards and the carried files; an upper bound where `upper_bound` says so."""
        return self.shard_bytes + self.carried_bytes

    def by_group(self) -> list[tuple[str, int, int, int]]:
        """(group, tensors, tuned bytes, delta bytes) for every group, in order of appearance."""
        rows: dict[str, list[int]] = {}
        for tensor in self.tensors:
            row = rows.setdefault(tensor.group, [0, 0, 0])
            row[0] += 1
            row[1] += tensor.view.nbytes
            row[2] += tensor.bound
        return [(group, *row) for group, row in rows.items()]  # type: ignore[misc]


def plan(
    tuned: str | Path,
    base: str | Path,
    *,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> Plan:
    """What `compress` would store with the same arguments, tensor by tensor, and its bytes.

    Raises what `compress` raises before it writes.
    """
    with prepared(tuned, base, choices, progress) as job:
        return job.plan


@dataclass(frozen=True, slots=True)
class Job:
    """A pair with its plan, while its checkpoints are open and the workers at hand."""

    pair: Pair
    plan: Plan
    device: torch.device
    workers: Workers


@contextmanager
def prepared(
    tuned: str | Path, base: str | Path, choices: Choices, progress: Progress | None
) -> Iterator[Job]:
    """Opens both checkpoints, matches and checks them, and plans.

    Raises PairError where they do not pair, UsageError for choices that mean nothing, TypeError for
    one that does not exist.
    """
    if unknown := sorted(choices.keys() - Choices.__annotations__.keys()):
        known = ", ".join(Choices.__annotations__)
        raise TypeError(f"unknown argument {unknown[0]!r} (expected one of {known})")
    options = _options(choices)
    device = pick_device(choices.get("device", "auto"))
    allow_pickle = choices.get("allow_pickle", False)
    with (
        open_checkpoint(tuned, allow_pickle=allow_pickle) as opened,
        open_checkpoint(base, allow_pickle=allow_pickle) as against,
    ):
        pair = match(against, opened)
        found = check_base(pair, allow_distant=choices.get("allow_distant_base", False))
        notes = sorted((*pair.notes, *found.notes), key=lambda note: note.code)
        pair = replace(pair, notes=tuple(notes))
        count = _worker_count(pair, options, choices.get("max_memory"))
        with workers(device, progress, count) as pool:
            tensors = plan_tensors(pair, options, pool)
            largest = choices.get("max_shard_size", SHARD_BYTES)
            yield Job(pair, _assemble(pair, options, tensors, largest), device, pool)


def _options(choices: Choices) -> Options:
    embeddings = choices.get("embeddings", "auto")
    effort = choices.get("effort", "default")
    for flag, value, known in (
        ("--embeddings", embeddings, EMBEDDINGS),
        ("--effort", effort, EFFORTS),
    ):
        if value not in known:
            raise UsageError(
                f"{flag}: unknown value {value!r}", fix=f"use one of {', '.join(known)}"
            )
    return Options(
        recipe=resolve(
            choices.get("recipe", "bitdelta"),
            scale=choices.get("scale"),
            estimator=choices.get("estimator"),
            bits=choices.get("bits"),
        ),
        embeddings=embeddings,
        keep=_patterns(choices.get("keep", ())),
        skip=_patterns(choices.get("skip", ())),
        effort=effort,
    )


def _patterns(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _worker_count(pair: Pair, options: Options, max_memory: int | None) -> int:
    """One worker a core, fewer where the largest tensors would not fit side by side."""
    cores = min(16, os.cpu_count() or 1)
    if max_memory is None:
        return cores
    largest = max((info.nbytes for info in pair.tuned.tensors.values()), default=0)
    each = _worker_memory(options, largest)
    if each > max_memory:
        raise PairError(
            f"{pair.tuned.place}: not enough memory (expected {each:,} bytes for one tensor, "
            f"found a limit of {max_memory:,})",
            code="BDH108",
            fix="raise --max-memory"
            + (", or use a recipe without singular vectors" if _spectral(options) else ""),
        )
    return max(1, min(cores, max_memory // each))


def _worker_memory(options: Options, largest: int) -> int:
    """Bytes of memory that one worker needs for a tensor of `largest` bytes; an estimate."""
    return 64_000_000 + (12 * largest if _spectral(options) else largest // 8)


def _spectral(options: Options) -> bool:
    return any(isinstance(term, BudgetLowRankEncoder) for term in options.recipe.matrix)


def _assemble(pair: Pair, options: Options, tensors: Sequence[PlannedTensor], largest: int) -> Plan:
    """The plan of a whole delta in shards of at most `largest` bytes."""
    folder = pair.tuned.folder
    return Plan(
        tuned=pair.tuned.place,
        base=pair.base.place,
        recipe=options.recipe.name,
        tensors=tuple(tensors),
        tuned_bytes=pair.tuned.nbytes,
        carried_bytes=sum(path.stat().st_size for path in carried_files(folder)) if folder else 0,
        shard_bytes=_shard_bytes(tensors, largest),
        upper_bound=any(planned.parts is None for planned in tensors),
        notes=pair.notes,
    )


def _shard_bytes(tensors: Sequence[PlannedTensor], largest: int) -> int:
    """Bytes of the shards, headers included."""
    stored = [
        [
            SpooledPart(f"{planned.name}_{key}", part, 0)
            for key, part in (planned.parts or {}).items()
        ]
        for planned in tensors
    ]
    unknown = sum(
        planned.bound + UNKNOWN_PARTS * (ENTRY_BYTES + len(planned.name.encode()))
        for planned in tensors
        if planned.parts is None
    )
    return unknown + sum(shard_size(parts) for parts in shards_of(stored, largest))
