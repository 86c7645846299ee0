"""Runs one operation in this process and prints its wall time and peak anonymous memory as JSON.

    python benchmarks/measure.py OPERATION BASE TUNED DELTA OUT

Anonymous memory (RssAnon) is what a process really holds: pages of mapped files, which the system
can drop at will, do not count. The peak is taken above what the imports hold. Linux only.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

Operation = Callable[[], object]


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status")


@contextlib.contextmanager
def sampled_peak(seconds: float = 0.005) -> Iterator[Callable[[], int]]:
    """Samples anonymous memory in a thread; the yielded function gives the peak so far."""
    peak = anonymous_bytes()
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(seconds):
            peak = max(peak, anonymous_bytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: max(peak, anonymous_bytes())
    finally:
        done.set()
        thread.join()


def prepare(name: str, base: Path, tuned: Path, delta: Path, out: Path) -> Operation:
    """The operation `name`, with everything imported that it needs.

    Names: `plain compress`, `plain rebuild`, `deltatensors STRATEGY`, `deltatensors load`,
    `compress RECIPE [DEVICE]`, `rebuild`, `verify`.
    """
    program, *words = name.split()
    if program == "plain":
        import plain

        if words == ["compress"]:
            return partial(plain.compress, tuned, base, delta)
        return partial(plain.rebuild, delta, base, out)
    if program == "deltatensors":
        import deltatensors

        for module in ("torch", "safetensors"):  # imports on first use are no part of its time
            import_module(module)
        file = delta / "tuned.wdelta"
        if words == ["load"]:
            return partial(deltatensors.load_delta_from_paths, file, base)
        return partial(
            deltatensors.save_delta_from_paths, file, tuned, base, strategy=words[0], use_gpu=False
        )

    import bitdelta_hub
    from bitdelta_hub.kernels import compiled

    native = compiled()  # an import on first use as well
    if native:
        native.start()
    if program == "compress":
        recipe, device = (*words, "cpu")[:2]
        return partial(bitdelta_hub.compress, tuned, base, delta, recipe=recipe, device=device)
    if program == "rebuild":
        return partial(bitdelta_hub.rebuild, delta, out, base=base, device=(*words, "cpu")[0])
    return partial(bitdelta_hub.verify, delta, level="weights", base=base)


def main() -> None:
    name, *paths = sys.argv[1:]
    operation = prepare(name, *map(Path, paths))
    before = anonymous_bytes()
    with sampled_peak() as peak, contextlib.redirect_stdout(sys.stderr):
        start = time.perf_counter()
        operation()
        seconds = time.perf_counter() - start
        held = peak() - before
    print(json.dumps({"seconds": seconds, "anonymous_bytes": held}))


if __name__ == "__main__":
    main()
