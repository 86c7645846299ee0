"""The scratch file of parts and the shards that are written from it."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bitdelta_hub.codecs.base import NUMPY, Part, View
from bitdelta_hub.codecs.raw import Raw
from bitdelta_hub.codecs.sign import Sign
from bitdelta_hub.spool import (
    SMALL,
    Region,
    Spool,
    SpooledPart,
    shard_name,
    shard_size,
    shards_of,
    stored_order,
    write_shard,
)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "parts")


def part(name: str, dtype: str, *shape: int) -> SpooledPart:
    return SpooledPart(name, Part(dtype, shape), 0)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL + 7])
def test_parts_come_out_as_they_went_in(size: int, spool: Spool, tmp_path: Path) -> None:
    """Below and above the size from which a part lies in the file from the beginning."""
    region = spool.region(Raw(), View((size,), "U8"))
    assert not region.arrays["data"].any()
    content = np.arange(size, dtype=np.uint8)
    region.arrays["data"][:] = content
    parts = region.close("t_0_")
    ref = write_shard(spool, parts, tmp_path / "shard.safetensors")
    assert np.array_equal(load_file(tmp_path / "shard.safetensors")["t_0_data"], content)
    data = (tmp_path / "shard.safetensors").read_bytes()
    assert (ref.file, ref.size) == ("shard.safetensors", len(data))
    assert ref.sha256 == hashlib.sha256(data).hexdigest()
    assert ref.size == shard_size(parts)


def test_arrays_have_the_dtypes_and_shapes_of_the_codec(spool: Spool) -> None:
    view = View((3, 40, 20), "BF16")
    for axis in ("tensor", "row", "col", "row_col"):
        codec = Sign(axis)
        region = spool.region(codec, view)
        for name, wanted in codec.parts(view).items():
            array = region.arrays[name]
            assert (array.dtype, array.shape) == (np.dtype(NUMPY[wanted.dtype]), wanted.shape)
            assert array.flags.aligned
            assert array.flags.writeable


def test_regions_of_many_threads_do_not_overlap(spool: Spool, tmp_path: Path) -> None:
    placed: list[tuple[int, list[SpooledPart]]] = []

    def work(number: int) -> None:
        for size in (10, SMALL + 5):
            region = Region(spool, {"data": Part("U8", (size,))})
            region.arrays["data"][:] = number
            placed.append((number, region.close(f"{number}_{size}_")))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parts = [item for _, found in placed for item in found]
    write_shard(spool, parts, tmp_path / "shard.safetensors")
    for name, array in load_file(tmp_path / "shard.safetensors").items():
        assert (array == int(name.split("_")[0])).all()


def test_the_scratch_file_goes_with_the_spool(spool: Spool) -> None:
    assert spool.path.exists()
    spool.close()
    assert not spool.path.exists()


def test_wide_elements_come_first_so_that_all_are_aligned() -> None:
    parts = [part("a", "U8", 3), part("b", "F16", 5), part("c", "F32", 1), part("d", "U8", 2)]
    assert [item.name for item in stored_order(parts)] == ["c", "b", "a", "d"]


@pytest.mark.parametrize(
    ("sizes", "largest", "expected"),
    [
        ([], 100, [0]),
        ([0, 0], 100, [2]),
        ([40, 40, 40], 100, [2, 1]),
        ([100, 1], 100, [1, 1]),
        ([500, 1, 1], 100, [1, 2]),
        ([1, 500, 1], 100, [1, 1, 1]),
        ([40, 40, 40], 1, [1, 1, 1]),
    ],
)
def test_shards_take_consecutive_tensors(
    sizes: list[int], largest: int, expected: list[int]
) -> None:
    tensors = [[part(f"{i}", "U8", size)] for i, size in enumerate(sizes)]
    shards = shards_of(tensors, largest)
    assert [len(shard) for shard in shards] == expected
    assert [int(item.name) for shard in shards for item in shard] == list(range(len(sizes)))


def test_the_parts_of_a_tensor_stay_together() -> None:
    tensors = [[part(f"{i}_{j}", "U8", 60) for j in range(2)] for i in range(3)]
    assert [[item.name for item in shard] for shard in shards_of(tensors, 100)] == [
        ["0_0", "0_1"],
        ["1_0", "1_1"],
        ["2_0", "2_1"],
    ]


def test_shard_names() -> None:
    assert shard_name(0, 1) == "delta.safetensors"
    assert shard_name(2, 12) == "delta-00003-of-00012.safetensors"


def test_a_shard_is_never_written_over_a_file(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "shard.safetensors").write_text("mine")
    with pytest.raises(FileExistsError):
        write_shard(spool, [], tmp_path / "shard.safetensors")
    assert (tmp_path / "shard.safetensors").read_text() == "mine"
