"""How a loop is compiled, and the types of what it is given.

Numba's cache sees that the file of a loop has changed, but not that one of a piece that it inlines
has: after a change here, empty the `__pycache__` beside this file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from numba import njit, types

Loop = Callable[..., Any]

# Vectors and matrices in C order, read-only ("IN") or written to.
U8_IN, U16_IN, F32_IN = (
    types.Array(kind, 1, "C", readonly=True) for kind in (types.uint8, types.uint16, types.float32)
)
U8, U16, I64, F32, F64 = (
    kind[::1] for kind in (types.uint8, types.uint16, types.int64, types.float32, types.float64)
)
U8_ROWS_IN = types.Array(types.uint8, 2, "C", readonly=True)
U8_ROWS, I8_ROWS, F32_ROWS, F64_ROWS = (
    kind[:, ::1] for kind in (types.uint8, types.int8, types.float32, types.float64)
)
# error_model: divisions by zero are infinite, as in numpy, and so need no branch.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_compiling = threading.Lock()
BOOL, INT, FLOAT, NOTHING = types.boolean, types.int64, types.float32, types.void


def loop(result: Any, *arguments: Any) -> Callable[[Loop], Loop]:
    """Compiles a function for these types when it is first called, or takes it from numba's cache.

    Without a folder that the cache can be written to, every process compiles what it uses.
    """

    def decorate(function: Loop) -> Loop:
        compiled: Loop | None = None

        def call(*given: Any) -> Any:
            nonlocal compiled
            if compiled is None:
                with _compiling:
                    compiled = compiled or _compile(function, result(*arguments))
            return compiled(*given)

        return wraps(function)(call)

    return decorate


def _compile(function: Loop, signature: Any) -> Loop:
    compiled: Loop
    try:
        compiled = njit(signature, **OPTIONS, cache=True)(function)
    except (RuntimeError, OSError):  # no folder for the cache, or no room in it
        compiled = njit(signature, **OPTIONS)(function)
    return compiled


def inline(function: Loop) -> Loop:
    """A piece of the loops that call it; never called from Python."""
    inlined: Loop = njit(**OPTIONS)(function)
    return inlined


@loop(NOTHING)
def start() -> None:  # pragma: no cover
    """Does nothing; the first loop of a process is the one that has to wait for the compiler."""
