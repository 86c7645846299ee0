"""The hot loops behind codecs and runtimes."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from threading import Thread
from types import ModuleType


@cache
def compiled() -> ModuleType | None:
    """The loops compiled by numba, or None where numba (extra `cpu`) is not installed."""
    try:
        return import_module("bitdelta_hub.kernels.native")
    except ImportError:
        return None


def preload() -> None:
    """Begins to load the compiled loops, 0.3 seconds' work, beside whatever else is going on."""
    if compiled.cache_info().currsize == 0:
        Thread(target=_load, name="preload").start()


def _load() -> None:
    native = compiled()
    if native:
        native.start()
