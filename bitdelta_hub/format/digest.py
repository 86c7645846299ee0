"""BLAKE3 digests of tensors and SHA-256 of files (SPEC section 1, Digests)."""

from __future__ import annotations

import hashlib
import re
from mmap import mmap
from pathlib import Path
from typing import Any, Final

import numpy as np
from blake3 import blake3

from bitdelta_hub.format.storage import open_regular, storage_errors

# Every one of them a buffer; the type of that name comes with Python 3.12.
Contents = bytes | bytearray | memoryview | mmap | np.ndarray[Any, Any]

DIGEST: Final = re.compile(r"blake3:[0-9a-f]{64}")
SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Digest:
    """BLAKE3 over bytes that come in pieces."""

    __slots__ = ("_hash",)

    def __init__(self) -> None:
        self._hash = blake3()

    def update(self, contents: Contents) -> None:
        """Adds the bytes of a C-contiguous buffer, of any element type and shape."""
        view = memoryview(contents)  # type: ignore[arg-type]
        if view.nbytes:  # a view without elements cannot be cast
            self._hash.update(view.cast("B"))

    def text(self) -> str:
        """`blake3:` and 64 hex digits for the bytes so far."""
        return f"blake3:{self._hash.hexdigest()}"


def digest_of(contents: Contents) -> str:
    """`blake3:` and 64 hex digits for the bytes of a C-contiguous buffer."""
    digest = Digest()
    digest.update(contents)
    return digest.text()


def sha256_file(path: Path) -> str:
    """64 hex digits for a file's bytes, read in pieces. Raises StorageError."""
    with open_regular(path) as file, storage_errors(path):
        return hashlib.file_digest(file, "sha256").hexdigest()
