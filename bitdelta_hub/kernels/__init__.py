"""The hot loops behind codecs and runtimes."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType


@cache
def compiled() -> ModuleType | None:
    """The loops compiled by numba, or None where numba (extra `cpu`) is not installed."""
    try:
        return import_module("bitdelta_hub.kernels.native")
    except ImportError:
        return None
