"""Fine-tuned models as small, verified differences from their base."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitdelta_hub.compress import compress
    from bitdelta_hub.delta import open_delta
    from bitdelta_hub.errors import BitDeltaError
    from bitdelta_hub.format.manifest import Manifest
    from bitdelta_hub.plan import plan
    from bitdelta_hub.rebuild import rebuild
    from bitdelta_hub.verify import verify

__version__ = "0.1.0"
__all__ = [
    "BitDeltaError",
    "Manifest",
    "__version__",
    "compress",
    "open_delta",
    "plan",
    "rebuild",
    "verify",
]

# Where each public name is defined. They are resolved on first use: importing torch takes seconds.
_HOMES = {
    "BitDeltaError": "errors",
    "Manifest": "format.manifest",
    "compress": "compress",
    "open_delta": "delta",
    "plan": "plan",
    "rebuild": "rebuild",
    "verify": "verify",
}


class _Package(ModuleType):
    """Keeps `bitdelta_hub.compress` the function: importing the file of that name, whoever does
    it, would bind the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
