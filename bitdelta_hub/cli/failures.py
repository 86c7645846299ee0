"""How failures are shown: one line and a way on for what a user can mend, never a traceback."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from bitdelta_hub.cli.output import paint, tell
from bitdelta_hub.cli.printable import printable
from bitdelta_hub.errors import BitDeltaError
from bitdelta_hub.outcomes import OUTCOMES

INTERRUPTED = 130


@contextmanager
def failures(mode: str, out: Path | None = None) -> Iterator[None]:
    """Ends the program with the exit status of a known error raised inside, after showing it.

    `out` is what the command would have written. Other exceptions are our own mistakes and pass.
    """
    try:
        yield
    except KeyboardInterrupt:
        show_interrupt(out)
        raise typer.Exit(INTERRUPTED) from None
    except BitDeltaError as error:
        show(error, mode)
        raise typer.Exit(error.exit_status) from None


def show(error: BitDeltaError, mode: str) -> None:
    """Prints `error` to standard error; with BDHUB_DEBUG=1 the traceback comes first."""
    if os.environ.get("BDHUB_DEBUG") == "1":
        traceback.print_exception(error)
    name = OUTCOMES[error.code].name if error.code in OUTCOMES else error.name
    if mode == "json":
        body = {"code": error.code, "name": name, "message": error.message, "fix": error.fix}
        tell(json.dumps({"error": body}))
        return
    label = paint(sys.stderr, "Error:", fg="red", bold=True)
    tell(f"{label} {printable(error.message)} ({error.code} {name})")
    if error.fix:
        tell(f"Fix: {printable(error.fix)}")


def show_interrupt(out: Path | None) -> None:
    """Prints the one line that follows Ctrl-C."""
    where = f" under {printable(str(out))}" if out else ""
    tell(f"Interrupted: nothing was written{where}; run the same command again")
