"""The operating system's refusals as StorageError, each with its place and a way on."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from bitdelta_hub.errors import PairError, StorageError

_FREE_SPACE = "free some space, or choose an --out on another disk"
_FACTS = {
    errno.ENOSPC: ("no space left on the disk", _FREE_SPACE),
    errno.EDQUOT: ("the disk quota is used up", _FREE_SPACE),
    errno.EFBIG: ("too large a file for this file system", "choose a smaller --max-shard-size"),
    errno.EACCES: ("permission denied", "check the owner and mode of the file and its folders"),
    errno.EPERM: ("operation not permitted", "check the owner and mode of the file"),
    errno.EROFS: ("the file system is read-only", "choose a folder on another disk"),
    errno.ENOENT: ("no such file or folder", "check the path"),
    errno.ENOTDIR: ("a part of the path is not a folder", "check the path"),
    errno.EISDIR: ("is a folder, not a file", "check the path"),
    errno.EEXIST: ("already exists", "choose another name"),
    errno.ENOTEMPTY: ("is not empty", "choose another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter name"),
    errno.ELOOP: ("symbolic links go round in a circle", "check the path"),
    errno.EXDEV: ("on another file system", "choose a folder that is no mount point"),
    errno.EBUSY: ("in use, or a mount point", "choose a folder inside it"),
    errno.EMFILE: ("too many open files", "raise the limit with: ulimit -n 4096"),
    errno.EIO: ("the disk reported an input/output error", "check the disk"),
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


def decimal_size(size: int) -> str:
    """`size` bytes in decimal units, as the Hub shows them: `1.2 GB`."""
    if size < 1000:
        return f"{size} bytes"
    value = float(size)
    for unit in ("kB", "MB", "GB", "TB"):  # noqa: B007 - used after the loop
        value /= 1000
        if value < 999.95:
            break
    return f"{value:.1f} {unit}"


@contextmanager
def storage_errors(place: Path | str, needed: int = 0) -> Iterator[None]:
    """Turns OSError inside the block into StorageError at `place`.

    `needed` bytes are named where the disk is full.
    """
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        fact, fix = _FACTS.get(number, (error.strerror or str(error), ""))
        if needed and number in _FULL:
            fact += f" (needed {decimal_size(needed)})"
        raise StorageError(f"{place}: {fact}", fix=fix) from error


def write_at(file: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset` of descriptor `file`."""
    left = memoryview(data)
    while left:  # one call may take less, as before the disk is full
        count = os.pwrite(file, left, offset)
        left, offset = left[count:], offset + count


def check_room(place: Path, folder: Path, needed: int) -> None:
    """Raises PairError BDH108 unless the disk of `folder` has `needed` bytes free for `place`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PairError(
            f"{place}: not enough disk (expected {needed:,} bytes, found {free:,} free)",
            code="BDH108",
            fix="free some space or choose another disk with --out",
        )


def open_regular(path: Path) -> BufferedReader:
    """`path` open for reading. Raises StorageError, also for a folder, pipe or device."""
    with storage_errors(path):
        mode = os.stat(path).st_mode  # before open, which would wait for a pipe's writer
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "")
        if not stat.S_ISREG(mode):
            raise StorageError(f"{path}: not a regular file", fix="check the path")
        return open(path, "rb")
