"""Folders that appear under their name whole, or not at all (R31).

Work goes on in a hidden sibling, `.<name>.<8 hex>.bdhub`, and is renamed at the end. The sibling is
locked while its process lives: one that nobody holds is left over from a killed run and is
removed by the next run with the same target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bitdelta_hub.errors import StorageError
from bitdelta_hub.format.names import MANIFEST
from bitdelta_hub.format.storage import storage_errors

try:
    import fcntl
except ImportError:  # Windows locks no folders: there, leftovers stay
    fcntl = None  # type: ignore[assignment]

_STAGED = ".bdhub"  # being filled, or on its way out
_RETIRED = ".bdhub-old"  # the old target, between the two renames that replace it


@contextmanager
def stage_folder(
    target: Path,
    *,
    overwrite: bool = False,
    marker: Iterable[str] = (MANIFEST,),
    reading: Iterable[Path] = (),
    durable: bool = True,
) -> Iterator[Path]:
    """Gives an empty folder to fill, which becomes `target` if the block ends without error.

    With `overwrite` an existing `target` is replaced if it is an empty folder, or holds a file
    that is called as one of `marker` and none of the inputs `reading`; it stays until the new one
    is complete. `durable` waits until the disk has everything, so that not even a power cut can
    leave half of it. Raises StorageError.
    """
    place, target, marker = target, target.resolve(), tuple(marker)
    with ExitStack() as cleanup:
        with storage_errors(place):
            _clear_leftovers(target)
            _check_reading(place, target, reading)
            _check_target(place, target, overwrite, marker)
            cleanup.callback(_remove_empty, _missing(target.parent))
            if target.parent.is_file():  # of which mkdir would say that it exists
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            target.parent.mkdir(parents=True, exist_ok=True)
            staged = _staged_folder(target, cleanup)
        yield staged
        with storage_errors(place):
            if durable:
                _sync_tree(staged)
            _check_target(place, target, overwrite, marker)
            _swap(staged, target)
            if durable:
                _sync(target.parent)


def _check_reading(place: Path, target: Path, reading: Iterable[Path]) -> None:
    for source in reading:
        source = source.resolve()
        if target == source or target in source.parents:
            raise StorageError(
                f"{place}: holds an input of this run", fix="choose another output folder"
            )


def _check_target(place: Path, target: Path, overwrite: bool, marker: tuple[str, ...]) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise StorageError(
            f"{place}: already exists", fix="pass --overwrite or choose another folder"
        )
    if not target.is_dir():
        raise StorageError(f"{place}: not a folder", fix="choose another folder")
    if any(target.iterdir()) and not any((target / name).is_file() for name in marker):
        raise StorageError(
            f"{place}: not overwritten, for it holds other things than this program writes "
            f"(expected {' or '.join(marker)})",
            fix="choose another folder, or remove this one yourself",
        )


def _missing(folder: Path) -> list[Path]:
    """The folders that must be made for `folder` to exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_empty(folders: Iterable[Path]) -> None:
    with contextlib.suppress(OSError):  # not made after all, or in use
        for folder in folders:
            folder.rmdir()


def _staged_folder(target: Path, cleanup: ExitStack) -> Path:
    while True:
        staged = target.parent / f".{target.name}.{secrets.token_hex(4)}{_STAGED}"
        staged.mkdir()
        cleanup.callback(shutil.rmtree, staged, ignore_errors=True)
        lock = _lock(staged, wait=True)
        if lock is not None:
            cleanup.callback(os.close, lock)
        if staged.is_dir():  # else another run took it for a leftover before it was locked
            return staged


def _lock(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that holds `folder` until closed; None where it is held, or cannot be."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _clear_leftovers(target: Path) -> None:
    """Puts back a target whose replacement was cut off; removes what killed runs left."""
    if not target.parent.is_dir():
        return
    ours = re.compile(
        rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}({re.escape(_STAGED)}|{re.escape(_RETIRED)})"
    )
    for path in sorted(target.parent.iterdir()):
        match = ours.fullmatch(path.name)
        if match is None or path.is_symlink():
            continue
        lock = _lock(path, wait=False)
        if lock is None:
            continue
        if match[1] == _RETIRED and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _swap(staged: Path, target: Path) -> None:
    if not target.exists():
        staged.rename(target)
        return
    retired = staged.with_name(staged.name.removesuffix(_STAGED) + _RETIRED)
    try:
        target.rename(retired)
        staged.rename(target)
    except BaseException:
        if retired.exists() and not target.exists():
            retired.rename(target)
        raise
    retired.rename(staged)  # so that it is never put back once its removal has begun
    shutil.rmtree(staged, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
