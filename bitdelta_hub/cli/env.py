"""`bdhub env`: what a report of a fault should say about the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import typer

from bitdelta_hub import __version__
from bitdelta_hub.cli.leaf import leaf
from bitdelta_hub.cli.output import Output, Report
from bitdelta_hub.cli.values import Bytes, Value

PACKAGES = (
    "torch", "transformers", "safetensors", "numpy", "huggingface-hub", "zstandard", "blake3",
    "numba", "typer", "rich",
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Adds `env` to `app`."""
    leaf(app, "bdhub env", "bdhub env --json")(env)


def env(output: Output) -> None:
    """Print versions and hardware, for a bug report."""
    found = environment()
    output.show(
        Report(
            headline=f"bitdelta-hub {__version__}",
            document=found,
            fields={key: value for key, value in found.items() if key != "bitdelta-hub"},
            quiet=(__version__,),
            done=False,
        )
    )


def environment() -> dict[str, Value]:
    """Versions, devices, processors and memory of this machine."""
    return {
        "bitdelta-hub": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: installed_version(name) for name in PACKAGES},
        "cuda": _cuda(),
        "cpus": os.cpu_count(),
        "memory": _memory(),
    }


def installed_version(package: str) -> str:
    """The version of `package`, or `not installed`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cuda() -> str:
    try:
        import torch
    except ImportError:
        return "unknown without torch"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names) or "none"


def _memory() -> Bytes | None:
    try:
        return Bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
