"""Rebuild: base and delta in, an ordinary checkpoint out."""

from __future__ import annotations

import json
import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from bitdelta_hub.carried import restore
from bitdelta_hub.checkpoint import Checkpoint, open_checkpoint
from bitdelta_hub.delta import Delta, open_delta
from bitdelta_hub.errors import UsageError
from bitdelta_hub.format.container import Layout, layout
from bitdelta_hub.format.staging import stage_folder
from bitdelta_hub.format.storage import check_room, storage_errors, write_at
from bitdelta_hub.workers import Progress, Workers, pick_device, workers

# A folder with one of these is a checkpoint and may be replaced when the user says so.
CHECKPOINT = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildResult:
    """A checkpoint as written; every tensor had its recorded digest."""

    out: Path
    bytes: int
    tensors: int
    seconds: float


def rebuild(
    delta: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    device: str = "auto",
    max_memory: int | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RebuildResult:
    """Writes the checkpoint that `delta` stands for to the folder `out`, with tuned's file names.

    Every rebuilt tensor and every carried file is checked against its recorded digest; the folder
    appears under its name only if all agree. `max_memory` is accepted for symmetry: a rebuild
    holds a few blocks, whatever the size of the model.

    Raises BaseMismatch where `base` is not the base, DigestMismatch where a tensor comes out
    otherwise, FormatError where the delta breaks a rule, StorageError for files and disks.
    """
    began = time.perf_counter()
    out = Path(out)
    if base is None:
        raise UsageError(
            f"{delta}: no base given",
            fix="pass the checkpoint that the delta was made from with --base",
        )
    where = pick_device(device)
    with (
        open_delta(delta) as opened,
        open_checkpoint(base, allow_pickle=allow_pickle) as against,
        stage_folder(
            out,
            overwrite=overwrite,
            marker=CHECKPOINT,
            reading=(Path(delta), Path(base)),
            durable=False,
        ) as stage,
        storage_errors(str(out)),
        workers(where, progress) as pool,
    ):
        opened.check_base(against)
        check_sample(opened, against)
        written = _write(opened, against, out, stage, where, pool)
        for index, file in enumerate(opened.manifest.files):
            opened.check_file(f"files[{index}]", file)
        restore(opened.folder, opened.manifest.files, stage)
    return RebuildResult(
        out=out,
        bytes=written,
        tensors=len(opened.manifest.tensors),
        seconds=time.perf_counter() - began,
    )


def check_sample(delta: Delta, base: Checkpoint) -> None:
    """Raises BaseMismatch if one of the smallest or the median base tensor is another one.

    So a wrong base is refused in milliseconds; what is left shows in the rebuilt digests.
    """
    names = sorted(delta.manifest.base.tensors, key=lambda name: base.tensors[name].nbytes)
    for name in {*names[:4], *names[len(names) // 2 : len(names) // 2 + 1]}:
        delta.check_base_tensor(base, name)


@dataclass(slots=True)
class _Target:
    """An output file being filled, and where each of its tensors begins."""

    file: int
    layout: Layout


def _write(
    delta: Delta, base: Checkpoint, out: Path, stage: Path, device: torch.device, pool: Workers
) -> int:
    targets = _open_targets(delta, out, stage)
    try:
        names = list(delta.manifest.tensors)
        total = sum(delta.view(name).nbytes for name in names)

        def one(name: str) -> None:
            entry = delta.manifest.tensors[name]
            target = targets[entry.file]
            view = delta.view(name)
            width = view.nbytes // max(1, view.total_rows)
            begin = target.layout.entries[name].start
            for row, bits in delta.rebuilt(name, base, device):
                write_at(target.file, bits.data.cast("B"), begin + row * width)
                pool.advance(bits.nbytes)

        def prefetch(name: str) -> None:
            for needed in delta.base_tensors(name):
                base.prefetch(needed)

        pool.run("rebuild", total, one, names, prefetch)
    finally:
        _close(targets)
    _write_index(delta, stage)
    return sum((stage / name).stat().st_size for name in delta.manifest.tuned.files)


def _open_targets(delta: Delta, out: Path, stage: Path) -> list[_Target]:
    manifest = delta.manifest
    members: dict[int, list[tuple[str, str, tuple[int, ...]]]] = defaultdict(list)
    for name, entry in manifest.tensors.items():
        members[entry.file].append((name, entry.dtype, entry.shape))
    layouts = [
        layout(members[index], metadata={"format": "pt"})
        for index in range(len(manifest.tuned.files))
    ]
    check_room(out, stage, sum(planned.size for planned in layouts))
    targets: list[_Target] = []
    try:
        for name, planned in zip(manifest.tuned.files, layouts, strict=True):
            file = os.open(stage / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            targets.append(_Target(file, planned))
            write_at(file, planned.header, 0)
    except BaseException:
        _close(targets)
        raise
    return targets


def _close(targets: list[_Target]) -> None:
    for target in targets:
        os.close(target.file)


def _write_index(delta: Delta, stage: Path) -> None:
    """Writes the index without which loaders do not find numbered files."""
    files = delta.manifest.tuned.files
    entries = delta.manifest.tensors
    numbered = re.fullmatch(r"(.+)-\d{5}-of-\d{5}\.safetensors", files[0]) if files else None
    if len(files) < 2 and not numbered:
        return
    stem = numbered[1] if numbered else "model"
    index = {
        "metadata": {"total_size": sum(delta.view(name).nbytes for name in entries)},
        "weight_map": {name: files[entry.file] for name, entry in entries.items()},
    }
    text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    (stage / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")
