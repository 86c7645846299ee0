"""`bdhub info`: what a delta says of itself, from its manifest and the sizes of its files."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from bitdelta_hub.cli.leaf import leaf
from bitdelta_hub.cli.options import DeltaFolder
from bitdelta_hub.cli.output import Output, Report, Table
from bitdelta_hub.cli.values import Bytes, Ratio, Share, Value, shape_text
from bitdelta_hub.errors import StorageError
from bitdelta_hub.format.manifest import FORMAT, Manifest, read_manifest
from bitdelta_hub.format.names import MANIFEST, member
from bitdelta_hub.format.storage import storage_errors

Tensors = Annotated[bool, typer.Option("--tensors", help="List every tensor.")]
Row = tuple[str, str, int]  # codec, part, bytes


def add_to(app: typer.Typer) -> None:
    """Adds `info` to `app`."""
    leaf(app, "bdhub info ./delta", "bdhub info ./delta --tensors --json")(info)


def info(output: Output, delta: DeltaFolder, tensors: Tensors = False) -> None:
    """Show what the delta DIR holds, without reading weights."""
    manifest = read_manifest(delta)
    output.show(report(delta, manifest, measured(delta, manifest), tensors))


def measured(delta: Path, manifest: Manifest) -> list[Row]:
    """(codec, part, bytes) for all bytes of the delta's files, which they add up to.

    Bytes of no codec are those of headers, the manifest and carried files.
    """
    rows = [
        (codec, part, nbytes)
        for codec, parts in manifest.bytes_by_part().items()
        for part, nbytes in parts.items()
    ]
    shards = sum(_size(delta, shard.file) for shard in manifest.shards)
    carried = sum(_size(delta, file.file) for file in manifest.files)
    return [
        *rows,
        ("", "headers", shards - sum(nbytes for *_, nbytes in rows)),
        ("", MANIFEST, _size(delta, MANIFEST)),
        ("", "carried files", carried),
    ]


def _size(delta: Path, name: str) -> int:
    path = member(delta, name)
    if not path.is_file():
        raise StorageError(f"{path}: missing", fix="fetch the delta again, or compress again")
    with storage_errors(path):
        return path.stat().st_size


def report(delta: Path, manifest: Manifest, rows: list[Row], tensors: bool) -> Report:
    """What `info` prints; `tensors` adds the table of tensors."""
    total = sum(nbytes for *_, nbytes in rows)
    ratio = Ratio(manifest.tuned.bytes / max(1, total))
    exact = sum(manifest.exact(name) for name in manifest.tensors)
    lossy = len(manifest.tensors) - exact
    errors = _errors(manifest)
    return Report(
        headline=f"{delta}: a {FORMAT} delta of {len(manifest.tensors)} tensors",
        fields={
            "tuned": _named(manifest.tuned.repo, manifest.tuned.revision),
            "tuned size": Bytes(manifest.tuned.bytes),
            "base": _named(manifest.base.repo, manifest.base.revision),
            "base fingerprint": manifest.base.fingerprint,
            "size": Bytes(total),
            "ratio": ratio,
            "exact": f"{exact} tensors, bit for bit",
            "approximate": f"{lossy} tensors{_error_text(lossy, errors)}",
        },
        tables=(_bytes_table(rows, total), *([_tensor_table(manifest)] if tensors else [])),
        document={
            "delta": str(delta),
            "format": FORMAT,
            "base": {
                "repo": manifest.base.repo,
                "revision": manifest.base.revision,
                "fingerprint": manifest.base.fingerprint,
            },
            "tuned": {"repo": manifest.tuned.repo, "revision": manifest.tuned.revision},
            "tuned_bytes": manifest.tuned.bytes,
            "delta_bytes": total,
            "ratio": round(ratio, 3),
            "exact_tensors": exact,
            "lossy_tensors": lossy,
            "error": errors,
            "bytes": [{"codec": c or None, "part": part, "bytes": n} for c, part, n in rows],
            "annotations": manifest.annotations,
            **({"tensors": _tensor_list(manifest)} if tensors else {}),
        },
        quiet=(str(delta),),
        done=False,
    )


def _named(repo: str | None, revision: str | None) -> str:
    if repo is None:
        return "a local checkpoint"
    return f"{repo}@{revision}" if revision else repo


def _errors(manifest: Manifest) -> dict[str, Any] | None:
    """Median and worst recorded relative error of the approximate tensors; None without any."""
    found = {n: e.error for n, e in manifest.tensors.items() if e.error and not manifest.exact(n)}
    if not found:
        return None
    worst = max(found, key=lambda name: found[name])
    return {
        "measured": len(found),
        "median": median(found.values()),
        "worst": found[worst],
        "worst_tensor": worst,
    }


def _error_text(lossy: int, errors: dict[str, Any] | None) -> str:
    if not lossy:
        return ""
    if errors is None:
        return ", error not measured"
    partly = "" if errors["measured"] == lossy else f" ({errors['measured']} measured)"
    worst = f"worst {errors['worst']:.3g} ({errors['worst_tensor']})"
    return f"{partly}, relative error of the diff: median {errors['median']:.3g}, {worst}"


def _bytes_table(rows: list[Row], total: int) -> Table:
    cells: list[tuple[Value, ...]] = [
        (codec or None, part, Bytes(nbytes), Share(nbytes / max(1, total)))
        for codec, part, nbytes in rows
        if nbytes
    ]
    return Table(
        ("CODEC", "PART", "BYTES", "SHARE"), [*cells, ("total", "", Bytes(total), Share(1))]
    )


def _tensor_list(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "kind": entry.kind,
            "terms": [term.codec for term in entry.terms],
            "bytes": sum(term.nbytes for term in entry.terms),
            "exact": manifest.exact(name),
            "error": entry.error,
        }
        for name, entry in manifest.tensors.items()
    ]


def _tensor_table(manifest: Manifest) -> Table:
    rows = [
        (
            row["name"],
            row["dtype"],
            shape_text(row["shape"]),
            row["kind"],
            " + ".join(row["terms"]),
            Bytes(row["bytes"]),
            0 if row["exact"] else row["error"],
        )
        for row in _tensor_list(manifest)
    ]
    return Table(("TENSOR", "DTYPE", "SHAPE", "KIND", "TERMS", "BYTES", "ERROR"), rows)
