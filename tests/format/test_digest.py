from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from bitdelta_hub.errors import StorageError
from bitdelta_hub.format.digest import Digest, digest_of, sha256_file

EMPTY = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_text_of_nothing() -> None:
    assert Digest().text() == digest_of(b"") == EMPTY


@given(st.lists(st.binary(max_size=40)))
def test_pieces_digest_as_their_concatenation(pieces: list[bytes]) -> None:
    digest = Digest()
    for piece in pieces:
        digest.update(piece)
    assert digest.text() == f"blake3:{blake3(b''.join(pieces)).hexdigest()}"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float16).reshape(3, 4),
        np.arange(12, dtype=np.uint16)[3:],
        np.array([True, False]),
        np.array(2.5),
        np.zeros((0, 3), np.float32),
        np.frombuffer(b"\0" * 9, np.int64, 1, 1),  # not aligned
    ],
    ids=["2-D", "slice", "bool", "scalar", "empty", "unaligned"],
)
def test_an_array_digests_as_its_bytes(array: np.ndarray) -> None:
    assert digest_of(array) == digest_of(array.tobytes()) == digest_of(memoryview(array.tobytes()))


def test_a_strided_array_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="C-contiguous"):
        digest_of(np.zeros((4, 4))[:, 1:])


def test_sha256_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 1_000_000)
    assert sha256_file(path) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_sha256_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        sha256_file(tmp_path / "x")
    assert str(caught.value) == f"{tmp_path / 'x'}: no such file or folder"
