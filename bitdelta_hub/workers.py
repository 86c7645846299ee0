"""A pool of threads that each take whole tensors; torch and zstd release the interpreter lock."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from bitdelta_hub.errors import UsageError
from bitdelta_hub.kernels import preload

Item = TypeVar("Item")
Result = TypeVar("Result")

# progress(phase, done bytes, total bytes)
Progress = Callable[[str, int, int], None]


class Stopped(Exception):
    """Ends a worker's item early because the whole run ends; never reaches a caller."""


class Workers:
    """Runs a function over items in threads and counts the bytes that are done."""

    def __init__(
        self,
        count: int,
        progress: Progress | None = None,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    ) -> None:
        self.count = count
        self.device = device
        self._progress = progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._phase, self._done, self._total = "", 0, 0

    def run(
        self,
        phase: str,
        total: int,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        prefetch: Callable[[Item], None] | None = None,
    ) -> list[Result]:
        """The results in the items' order. The first error stops the others and is raised.

        `prefetch` is told of an item when the one `count` places before it is begun.
        """
        self._phase, self._done, self._total = phase, 0, total
        self.advance(0)
        with ThreadPoolExecutor(self.count, initializer=_set_up, initargs=(self.device,)) as pool:
            try:
                futures = [
                    pool.submit(self._one, function, item, prefetch, items[at : at + 1])
                    for at, item in enumerate(items, self.count)
                ]
                wait(futures, return_when=FIRST_EXCEPTION)
                failed = [f.exception() for f in futures if f.done() and not f.cancelled()]
                errors = [error for error in failed if error and not isinstance(error, Stopped)]
                if errors:
                    raise errors[0]
                return [future.result() for future in futures]
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _one(
        self,
        function: Callable[[Item], Result],
        item: Item,
        prefetch: Callable[[Item], None] | None,
        ahead: Sequence[Item],
    ) -> Result:
        self.advance(0)
        if prefetch:
            for later in ahead:
                prefetch(later)
        return function(item)

    def advance(self, done: int) -> None:
        """Counts `done` more bytes; raises Stopped in a worker whose run has ended."""
        if self._stop.is_set():
            raise Stopped
        if self._progress:
            with self._lock:
                self._done += done
                self._progress(self._phase, self._done, self._total)


def pick_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` stands for.

    Raises UsageError if it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device: no device {name!r}", fix="one of auto, cpu, cuda, cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device: no {name} here (found {torch.cuda.device_count()} CUDA devices)",
            fix="leave --device out, or use --device cpu",
        )
    return device


def _set_up(device: torch.device) -> None:
    # The pool already keeps every core busy; torch's own threads would only wait for one another.
    torch.set_num_threads(1)
    if device.type == "cuda":
        # A stream of its own lets one worker's copies overlap with another's arithmetic.
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


@contextmanager
def workers(
    device: torch.device, progress: Progress | None = None, count: int | None = None
) -> Iterator[Workers]:
    """Workers for `device`: one a core, with torch and BLAS single-threaded meanwhile."""
    if device.type == "cpu":
        preload()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield Workers(count or min(16, os.cpu_count() or 1), progress, device)
    finally:
        torch.set_num_threads(threads)
