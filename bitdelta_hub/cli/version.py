"""`bdhub version`."""

from __future__ import annotations

import typer

from bitdelta_hub import __version__
from bitdelta_hub.cli.leaf import leaf
from bitdelta_hub.cli.output import Output, Report


def add_to(app: typer.Typer) -> None:
    """Adds `version` to `app`."""
    leaf(app, "bdhub version")(version)


def version(output: Output) -> None:
    """Print the version of bitdelta-hub."""
    document = {"version": __version__}
    output.show(Report(headline=__version__, document=document, quiet=(__version__,), done=False))
