"""The hot loops behind codecs and runtimes."""

from __future__ import annotations

from functools import cache
from types import ModuleType


@cache
def compiled() -> ModuleType | None:
    """The loops compiled by numba, or None where numba (extra `cpu`) is not installed."""
    try:
        from bitdelta_hub.kernels import native
    except ImportError:
        return None
    return native
