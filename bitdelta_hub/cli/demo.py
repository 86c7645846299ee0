"""`bdhub demo`."""

from __future__ import annotations

import typer

from bitdelta_hub.cli.leaf import leaf
from bitdelta_hub.cli.output import Output


def add_to(app: typer.Typer) -> None:
    """Adds `demo` to `app`."""
    leaf(app, "bdhub demo", "bdhub demo --dir ./demo --seed 1")(demo)


def demo(output: Output) -> None:
    """Train, fine-tune, compress and rebuild a tiny model, offline."""
