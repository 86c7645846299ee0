"""What tests run in processes of their own: runs to be killed, to be starved, to be reported on.

Processes come from a server that has imported the library once, so that each starts in moments.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from bitdelta_hub.errors import BitDeltaError

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["bitdelta_hub.compress", "bitdelta_hub.rebuild", "tests.child"])


def start(function: Callable[..., Any], *args: Any, **options: Any) -> ForkServerProcess:
    """A process that runs `function` and exits with 0, or 1 where it raises."""
    process = _context.Process(target=_run, args=(function, args, options), daemon=True)
    process.start()
    return process


def _run(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    try:
        function(*args, **options)
    except (BitDeltaError, KeyboardInterrupt) as error:
        raise SystemExit(1) from error  # the traceback of an expected error says nothing


def report(place: Path, function: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Writes class, code, message and fix of the error of `function` to the file `place`."""
    try:
        function(*args, **options)
    except BitDeltaError as error:
        found = [type(error).__name__, error.code, str(error), error.fix]
        place.write_text(json.dumps(found))
        raise


def with_file_limit(size: int, function: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Runs `function` where no file may grow beyond `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    function(*args, **options)


def truncating(
    file: Path, phase: str, function: Callable[..., Any], *args: Any, **options: Any
) -> None:
    """Runs `function` and cuts `file` off behind its first page when `phase` begins."""

    def progress(name: str, done: int, total: int) -> None:
        if name == phase and not done:
            with file.open("rb+") as opened:
                opened.truncate(4096)

    function(*args, progress=progress, **options)
