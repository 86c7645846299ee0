"""The command line: every command parses, makes one library call, and prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and leaves with its exit status; never returns."""
    try:  # imported here, for Ctrl-C may come as early as this
        from bitdelta_hub.cli import app

        app.main(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
