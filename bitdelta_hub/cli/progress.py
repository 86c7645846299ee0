"""Progress bars for people, fed by the library's `progress(phase, done, total)`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bitdelta_hub.cli.output import Output

# Workers wait while a bar is drawn, so it is not drawn for every block.
_PERIOD = 0.05


@contextmanager
def progress(output: Output) -> Iterator[Callable[[str, int, int], None] | None]:
    """Gives the callable that draws a bar a phase, or None where nobody watches."""
    if not output.animates:
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Feed(bars.add_task, bars.update, bars.remove_task)


class _Feed:
    """Shows one bar at a time: that of the phase now under way."""

    def __init__(
        self,
        add: Callable[..., int],
        update: Callable[..., None],
        remove: Callable[..., None],
    ) -> None:
        self._add, self._update, self._remove = add, update, remove
        self._phase = ""
        self._task: int | None = None
        self._drawn = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if phase != self._phase:
            if self._task is not None:
                self._remove(self._task)
            self._phase, self._task = phase, self._add(phase, total=total, completed=done)
        elif now - self._drawn >= _PERIOD or done >= total:
            self._update(self._task, completed=done)
        else:
            return
        self._drawn = now
