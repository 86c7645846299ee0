"""`bdhub demo`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from bitdelta_hub.cli.leaf import leaf
from bitdelta_hub.cli.options import Overwrite
from bitdelta_hub.cli.output import Output, Report, Table
from bitdelta_hub.cli.values import Bytes, Ratio, Seconds, Share

if TYPE_CHECKING:
    from bitdelta_hub.demo.run import DemoResult

Dir = Annotated[
    Path | None,
    typer.Option("--dir", metavar="OUT", help="Folder to keep the files in; else removed."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights and data.")]


def add_to(app: typer.Typer) -> None:
    """Adds `demo` to `app`."""
    leaf(app, "bdhub demo", "bdhub demo --dir ./demo --seed 1")(demo)


def demo(output: Output, out: Dir = None, seed: Seed = 0, overwrite: Overwrite = False) -> None:
    """Train, fine-tune, compress and rebuild a tiny model, offline."""
    # Read when torch is loaded. Threads that spin while they wait cost a busy machine a factor of
    # ten, and an idle one nothing that can be measured.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from bitdelta_hub.demo.run import run_demo

    result = run_demo(out, seed=seed, say=output.say, overwrite=overwrite)
    output.show(report(result))
    if out:
        output.hint(f"look at a delta with: bdhub info {quote(str(out / 'delta-bitdelta'))}")


def report(result: DemoResult) -> Report:
    """The table of all models."""
    rows = [
        (
            row.model,
            Bytes(row.bytes),
            None if row.ratio is None else Ratio(row.ratio),
            row.error,
            Share(row.exact_match),
        )
        for row in result.rows
    ]
    return Report(
        headline=f"Exact match of {result.problems} new problems of the task {result.task}",
        fields={"time": Seconds(result.seconds)},
        tables=(Table(("MODEL", "BYTES", "RATIO", "DIFF_ERROR", "EXACT_MATCH"), rows),),
        document=asdict(result),
        quiet=tuple(row.exact_match for row in result.rows),
    )
