"""`bdhub verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import bitdelta_hub
from bitdelta_hub.cli.leaf import leaf
from bitdelta_hub.cli.options import AllowPickle, DeltaFolder, Device
from bitdelta_hub.cli.output import Output, Report
from bitdelta_hub.cli.progress import progress
from bitdelta_hub.cli.values import Bytes, Seconds, Value, pace

if TYPE_CHECKING:
    from bitdelta_hub.verify import VerifyResult

Level = Annotated[
    Literal["files", "base", "weights"],
    typer.Option(
        help="files: every rule and file; base: also every base tensor; weights: also every "
        "rebuilt tensor."
    ),
]
MaybeBase = Annotated[
    Path | None, typer.Option(metavar="BASE", help="Folder of the base checkpoint.")
]
Against = Annotated[
    Path | None, typer.Option(metavar="FT", help="Compare with this fine-tune as well.")
]


def add_to(app: typer.Typer) -> None:
    """Adds `verify` to `app`."""
    leaf(
        app,
        "bdhub verify ./delta --level files",
        "bdhub verify ./delta --base ./base",
        "bdhub verify ./delta --base ./base --against ./tuned",
    )(verify)


def verify(
    output: Output,
    delta: DeltaFolder,
    level: Level = "weights",
    base: MaybeBase = None,
    against: Against = None,
    device: Device = "auto",
    allow_pickle: AllowPickle = False,
) -> None:
    """Look for faults in the delta DIR and change nothing."""
    with progress(output) as watch:
        result = bitdelta_hub.verify(
            delta,
            level=level,
            base=base,
            against=against,
            device=device,
            allow_pickle=allow_pickle,
            progress=watch,
        )
    output.show(report(result, delta))


def report(result: VerifyResult, delta: Path) -> Report:
    """What `verify` says of its result."""
    fields: dict[str, Value] = {
        "level": result.level,
        "files": result.checked_files,
        "tensors": result.checked_tensors,
        "read": Bytes(result.bytes),
        **pace(result.bytes, result.seconds),
    }
    if result.error is not None:
        fields["fine-tune"] = _compared(**result.error)
    return Report(
        headline=f"Verified {delta}: no fault found",
        fields=fields,
        document={
            "delta": str(delta),
            "level": result.level,
            "checked_files": result.checked_files,
            "checked_tensors": result.checked_tensors,
            "bytes": Bytes(result.bytes),
            "seconds": Seconds(round(result.seconds, 3)),
            "error": result.error,
        },
        quiet=(str(delta),),
    )


def _compared(exact_tensors: float, lossy_tensors: float, median: float, worst: float) -> str:
    same = f"{exact_tensors} tensors identical"
    if not lossy_tensors:
        return same
    return (
        f"{same}, {lossy_tensors} approximate, "
        f"relative error of the diff: median {median:.3g}, worst {worst:.3g}"
    )
