"""`bdhub compress`."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

import typer

import bitdelta_hub
from bitdelta_hub.cli.leaf import leaf
from bitdelta_hub.cli.options import Base, Out, Overwrite, PairOptions, Tuned
from bitdelta_hub.cli.output import Output, Report
from bitdelta_hub.cli.progress import progress
from bitdelta_hub.cli.values import Bytes, Ratio, Seconds, pace
from bitdelta_hub.format.storage import decimal_size

if TYPE_CHECKING:
    from bitdelta_hub.compress import CompressResult


def add_to(app: typer.Typer) -> None:
    """Adds `compress` to `app`."""
    leaf(
        app,
        "bdhub compress ./tuned --base ./base --out ./delta",
        "bdhub compress ./tuned --base ./base --out ./delta --recipe delta-come",
        "bdhub compress ./tuned --base ./base --out ./delta --recipe exact --effort max",
        "bdhub compress ./tuned --base ./base --out ./delta --keep '*.layers.0.*' --json",
    )(compress)


def compress(
    output: Output,
    tuned: Tuned,
    base: Base,
    out: Out,
    options: PairOptions,
    overwrite: Overwrite = False,
) -> None:
    """Store the fine-tune FT as its difference from BASE."""
    with progress(output) as watch:
        result = bitdelta_hub.compress(
            tuned, base, out, overwrite=overwrite, progress=watch, **options.arguments()
        )
    output.remarks(result.notes)
    output.show(report(result, options.recipe))
    output.hint(f"check it with: bdhub verify {quote(str(out))} --base {quote(str(base))}")


def report(result: CompressResult, recipe: str) -> Report:
    """What `compress` says of its result."""
    return Report(
        headline=f"Compressed to {result.out}",
        fields={
            "size": f"{decimal_size(result.delta_bytes)} "
            f"(was {decimal_size(result.tuned_bytes)}, {result.ratio:.1f}x)",
            "recipe": recipe,
            "tensors": f"{result.exact_tensors} exact, {result.lossy_tensors} approximate",
            **pace(result.tuned_bytes, result.seconds),
        },
        document={
            "out": str(result.out),
            "recipe": recipe,
            "tuned_bytes": Bytes(result.tuned_bytes),
            "delta_bytes": Bytes(result.delta_bytes),
            "ratio": Ratio(round(result.ratio, 3)),
            "exact_tensors": result.exact_tensors,
            "lossy_tensors": result.lossy_tensors,
            "fingerprint": result.manifest.base.fingerprint,
            "seconds": Seconds(round(result.seconds, 3)),
            "notes": [
                {"code": note.code, "name": note.name, "message": note.message}
                for note in result.notes
            ],
        },
        quiet=(str(result.out),),
    )
