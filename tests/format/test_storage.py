from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bitdelta_hub.errors import StorageError
from bitdelta_hub.format.storage import decimal_size, open_regular, storage_errors


@pytest.mark.parametrize(
    ("number", "needed", "message"),
    [
        (
            errno.ENOSPC,
            1_200_000_000,
            "out/x: no space left on the disk (needed 1.2 GB)",
        ),
        (errno.ENOSPC, 0, "out/x: no space left on the disk"),
        (errno.EACCES, 1_200_000_000, "out/x: permission denied"),
        (errno.EROFS, 0, "out/x: the file system is read-only"),
        (errno.ENOTDIR, 0, "out/x: a part of the path is not a folder"),
        (errno.EBUSY, 0, "out/x: in use, or a mount point"),
        (errno.ECONNRESET, 0, f"out/x: {os.strerror(errno.ECONNRESET)}"),
    ],
)
def test_message(number: int, needed: int, message: str) -> None:
    with pytest.raises(StorageError) as caught, storage_errors("out/x", needed):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == message
    assert isinstance(caught.value.__cause__, OSError)


def test_a_full_disk_tells_what_to_do() -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as file,
        pytest.raises(StorageError) as caught,
        storage_errors("out", 2000),
    ):
        file.write(b"x")
    assert str(caught.value) == "out: no space left on the disk (needed 2.0 kB)"
    assert caught.value.fix == "free some space, or choose an --out on another disk"


def test_other_exceptions_pass() -> None:
    with pytest.raises(KeyError), storage_errors("out"):
        raise KeyError("x")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (5_000_000_000, "5.0 GB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_decimal_size(size: int, text: str) -> None:
    assert decimal_size(size) == text


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for name, fact in (
        ("pipe", "not a regular file"),
        (".", "is a folder, not a file"),
        ("none", "no such file or folder"),
    ):
        with pytest.raises(StorageError) as caught:
            open_regular(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {fact}"
