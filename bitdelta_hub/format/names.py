"""Names that a delta may hold (R2, R3, R8) and the way from a file name to a path (R2)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final

from bitdelta_hub.errors import FormatError, ManifestError

MANIFEST: Final = "bitdelta.json"
TENSOR_NAME_BYTES: Final = 512

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NOT_BARE = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")
_WEIGHTS = re.compile(
    r"model.*\.safetensors|pytorch_model.*\.bin|(pytorch_)?model.*\.index.*\.json", re.I
)
_SHOWN = 160


def quoted(name: str) -> str:
    """`name` in double quotes, cut to a line's length, safe to print on a terminal."""
    return json.dumps(name if len(name) <= _SHOWN else name[:_SHOWN] + "...")


def check_file_name(name: str, at: str) -> None:
    """Raises ManifestError unless `name` is a bare file name (R2)."""
    if not 1 <= len(name.encode()) <= 255:
        raise ManifestError("not a file name (expected 1 to 255 bytes)", rule="R2", at=at)
    if name in (".", "..") or _NOT_BARE.search(name):
        raise ManifestError(
            f"not a bare file name (found {quoted(name)})",
            rule="R2",
            at=at,
            fix="do not use this delta; its file names point elsewhere",
        )
    if name.casefold() == MANIFEST:
        raise ManifestError(f"{MANIFEST} names the manifest itself", rule="R2", at=at)


def check_not_weights(name: str, at: str) -> None:
    """Raises ManifestError if other loaders would read the file `name` as weights (R3)."""
    if _WEIGHTS.fullmatch(name):
        raise ManifestError(
            f"other loaders would read {quoted(name)} as a model's weights", rule="R3", at=at
        )


def check_tensor_name(name: str, most: int, error: type[FormatError], at: str) -> None:
    """Raises `error` unless `name` is 1 to `most` bytes without control characters (R8)."""
    if not 1 <= len(name.encode()) <= most:
        raise error(
            f"not a tensor name (expected 1 to {most} bytes, found {len(name.encode())})",
            rule="R8",
            at=at,
        )
    if _CONTROL.search(name):
        raise error("a tensor name holds a control character", rule="R8", at=at)


def member(folder: Path, name: str) -> Path:
    """The path of file `name` of a delta's folder, which need not exist.

    Raises ManifestError if it is a symbolic link out of the folder (R2). Links of a Hub cache,
    from `snapshots/<commit>` to `blobs` of the same repo, count as inside.
    """
    path = folder / name
    if not path.is_symlink():
        return path
    home = folder.resolve()
    target = Path(os.path.realpath(path))  # unlike resolve, no error where links go in a circle
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if home in target.parents or target.parent == blobs:
        return path
    raise ManifestError(
        "a symbolic link out of the folder",
        rule="R2",
        at=name,
        fix="copy the file itself into the folder, if you trust it",
    )
