"""Compress: two checkpoints in, one delta folder out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from bitdelta_hub.carried import carry
from bitdelta_hub.delta import checkpoint_digest
from bitdelta_hub.encode import EncodedTensor, encode_tensor
from bitdelta_hub.format.manifest import (
    BaseRef,
    BaseTensor,
    FileRef,
    Manifest,
    Operand,
    TensorEntry,
    TunedRef,
    fingerprint,
)
from bitdelta_hub.format.names import MANIFEST
from bitdelta_hub.format.staging import stage_folder
from bitdelta_hub.format.storage import check_room, storage_errors
from bitdelta_hub.locate import hub_origin
from bitdelta_hub.pair import Note
from bitdelta_hub.plan import SHARD_BYTES, Choices, Job, prepared
from bitdelta_hub.planner import PlannedTensor
from bitdelta_hub.source import DiffSource, OperandReader
from bitdelta_hub.spool import Spool, shard_name, shards_of, write_shard
from bitdelta_hub.workers import Progress

# Room for the manifest and for what other processes write meanwhile.
SPARE_BYTES = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressResult:
    """A delta as written; bytes are those of every file in the folder."""

    out: Path
    manifest: Manifest
    tuned_bytes: int
    delta_bytes: int
    seconds: float
    notes: tuple[Note, ...]
    exact_tensors: int
    lossy_tensors: int

    @property
    def ratio(self) -> float:
        """Tuned bytes over delta bytes."""
        return self.tuned_bytes / max(1, self.delta_bytes)


def compress(
    tuned: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    annotations: dict[str, str] | None = None,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> CompressResult:
    """Writes the delta of `tuned` against `base` to the folder `out`; `Choices` says how.

    The folder appears under its name when it is complete. `annotations` are free strings for
    the manifest.

    Raises PairError where the two do not pair, UsageError for arguments that mean nothing,
    StorageError for files and disks, FormatError where the format has no room for what the
    checkpoint holds (such as names that are too long).
    """
    began = time.perf_counter()
    out = Path(out)
    largest = choices.get("max_shard_size", SHARD_BYTES)
    with (
        prepared(tuned, base, choices, progress) as job,
        storage_errors(str(out)),
        stage_folder(
            out, overwrite=overwrite, marker=(MANIFEST,), reading=(Path(tuned), Path(base))
        ) as stage,
    ):
        # Every part lies in the scratch file and in its shard for a while.
        needed = 2 * job.plan.shard_bytes + job.plan.carried_bytes + SPARE_BYTES
        check_room(out, stage, needed)
        manifest = _write(job, stage, largest, annotations or {})
        written = sum(path.stat().st_size for path in stage.iterdir())
    exact = sum(manifest.exact(name) for name in manifest.tensors)
    return CompressResult(
        out=out,
        manifest=manifest,
        tuned_bytes=manifest.tuned.bytes,
        delta_bytes=written,
        seconds=time.perf_counter() - began,
        notes=job.plan.notes,
        exact_tensors=exact,
        lossy_tensors=len(manifest.tensors) - exact,
    )


def _write(job: Job, stage: Path, largest: int, annotations: dict[str, str]) -> Manifest:
    with _spool(stage) as spool:
        encoded = _encode_all(job, spool)
        shards = _write_shards(spool, list(encoded.values()), stage, largest)
    entries = {name: tensor.entry for name, tensor in encoded.items()}
    base = _base_ref(job, entries)
    tuned = job.pair.tuned
    files = carry(tuned.folder, stage, base) if tuned.folder else ()
    repo, revision = hub_origin(tuned.folder)
    manifest = Manifest(
        base=base,
        tuned=TunedRef(
            repo=repo,
            revision=revision,
            bytes=tuned.nbytes,
            files=tuple(rebuilt_name(file.name) for file in tuned.files),
        ),
        shards=shards,
        files=files,
        tensors=entries,
        annotations=annotations,
    )
    text = manifest.serialize()
    Manifest.parse(text)  # what a reader would refuse is refused here
    (stage / MANIFEST).write_bytes(text)
    return manifest


def _encode_all(job: Job, spool: Spool) -> dict[str, EncodedTensor]:
    """Every tensor but ties encoded, ties pointed at what they are tied to; in plan order."""
    pair, device = job.pair, job.device
    tensors = job.plan.tensors
    stored = [planned for planned in tensors if planned.kind != "tie"]

    def one(planned: PlannedTensor) -> EncodedTensor:
        reader = OperandReader(planned.operand, pair.base, planned.view)
        source = DiffSource(planned.name, pair.tuned, reader, device)
        return encode_tensor(planned, source, spool, job.workers)

    def prefetch(planned: PlannedTensor) -> None:
        pair.tuned.prefetch(planned.name)
        for name in operand_names(planned.operand):
            pair.base.prefetch(name)

    total = sum(planned.view.nbytes for planned in stored)
    largest_first = sorted(stored, key=lambda planned: -planned.view.nbytes)
    done = job.workers.run("compress", total, one, largest_first, prefetch)
    by_name = {planned.name: result for planned, result in zip(largest_first, done, strict=True)}
    for planned in tensors:
        if planned.tie:
            by_name[planned.name] = _tied(planned, by_name[planned.tie].entry)
    return {planned.name: by_name[planned.name] for planned in tensors}


def _tied(planned: PlannedTensor, target: TensorEntry) -> EncodedTensor:
    entry = TensorEntry(
        dtype=planned.dtype,
        shape=planned.shape,
        file=planned.file,
        kind="tie",
        digest=target.digest,
        tie=planned.tie,
    )
    return EncodedTensor(entry, [])


def _base_ref(job: Job, entries: dict[str, TensorEntry]) -> BaseRef:
    base = job.pair.base
    names = sorted({name for entry in entries.values() for name in operand_names(entry.base)})

    def one(name: str) -> BaseTensor:
        info = base.tensors[name]
        digest = checkpoint_digest(base, name)
        job.workers.advance(info.nbytes)
        return BaseTensor(dtype=info.dtype, shape=tuple(info.shape), digest=digest)

    total = sum(base.tensors[name].nbytes for name in names)
    found = job.workers.run("digest base", total, one, names, base.prefetch)
    tensors = dict(zip(names, found, strict=True))
    repo, revision = hub_origin(base.folder)
    return BaseRef(
        repo=repo,
        revision=revision,
        fingerprint=fingerprint(tensors),
        files=tuple(FileRef(file=file.name, size=file.size, sha256=None) for file in base.files),
        tensors=tensors,
    )


def operand_names(operand: Operand | None) -> set[str]:
    """The base tensors that an operand names."""
    if operand is None:
        return set()
    return {operand} if isinstance(operand, str) else {piece[0] for piece in operand}


def _write_shards(
    spool: Spool, encoded: list[EncodedTensor], stage: Path, largest: int
) -> tuple[FileRef, ...]:
    shards = shards_of([tensor.parts for tensor in encoded], largest)
    return tuple(
        write_shard(spool, parts, stage / shard_name(index, len(shards)))
        for index, parts in enumerate(shards)
    )


@contextmanager
def _spool(stage: Path) -> Iterator[Spool]:
    spool = Spool(stage / ".parts")
    try:
        yield spool
    finally:
        spool.close()


def rebuilt_name(file: str) -> str:
    """The name under which the rebuilt checkpoint has what tuned had in `file`."""
    if file.endswith(".safetensors"):
        return file
    return file.replace("pytorch_model", "model").rsplit(".", 1)[0] + ".safetensors"
