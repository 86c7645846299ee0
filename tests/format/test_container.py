# ruff: noqa: E501 (a row of the table is one fault with its whole message)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load, load_file, save, save_file

from bitdelta_hub.errors import ContainerError, StorageError
from bitdelta_hub.format.container import (
    Entry,
    Header,
    MappedFile,
    header_size,
    layout,
    parse_header,
    read_header,
)

Arrays = dict[str, np.ndarray[Any, Any]]
DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "F16": np.float16, "F32": np.float32}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}

tables = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8),
    st.sampled_from(list(DTYPES.values())).flatmap(
        lambda dtype: arrays(
            dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), fill=st.just(1)
        )
    ),
    max_size=5,
)


def described(table: Arrays) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, NAMES[array.dtype], array.shape) for name, array in table.items()]


def written(table: Arrays, **options: Any) -> bytes:
    header = layout(described(table), **options).header
    return header + b"".join(array.tobytes() for array in table.values())


@given(tables)
def test_the_layout_is_what_safetensors_reads(table: Arrays) -> None:
    found = load(written(table))
    assert found.keys() == table.keys()
    for name, array in table.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(tables)
def test_predicted_offsets_are_the_real_ones(table: Arrays) -> None:
    planned = layout(described(table), {"made": "here"})
    data = written(table, metadata={"made": "here"})
    header = parse_header(data, len(data), "x.safetensors")
    assert planned.size == header.size == len(data)
    assert planned.entries == header.entries
    assert header.metadata == {"made": "here"}
    assert header.data_start % 8 == 0
    for name, entry in header.entries.items():
        assert data[entry.start : entry.stop] == table[name].tobytes()


@given(tables)
def test_files_of_safetensors_are_read(table: Arrays) -> None:
    data = save(table, metadata={"format": "np"})
    header = parse_header(data, len(data), "x.safetensors")
    assert header.metadata == {"format": "np"}
    assert header.entries.keys() == table.keys()
    for name, entry in header.entries.items():
        assert (entry.dtype, entry.shape) == (NAMES[table[name].dtype], table[name].shape)
        assert data[entry.start : entry.stop] == table[name].tobytes()
    starts = [entry.start for entry in header.entries.values()]
    assert starts == sorted(starts)


@given(tables, tables)
def test_a_reserve_for_the_largest_holds_anything_smaller(small: Arrays, other: Arrays) -> None:
    largest = [(name, "F64", [10**6 + extent for extent in a.shape]) for name, a in small.items()]
    reserve = len(layout(largest).header)
    data = written(small, reserve=reserve)
    assert parse_header(data, len(data), "x").data_start == reserve
    assert load(data).keys() == small.keys()


def test_the_bytes_of_a_header() -> None:
    planned = layout([("é", "BF16", (2, 1)), ("b", "BOOL", ())], {"k": "v"}, reserve=160)
    text = (
        '{"__metadata__":{"k":"v"},"é":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]},'
        '"b":{"dtype":"BOOL","shape":[],"data_offsets":[4,5]}}'
    ).encode()
    assert planned.header == (152).to_bytes(8, "little") + text.ljust(152)
    assert planned.entries == {
        "é": Entry("BF16", (2, 1), 160, 164),
        "b": Entry("BOOL", (), 164, 165),
    }
    assert planned.size == 165


def test_an_empty_layout() -> None:
    planned = layout([])
    assert planned.header == (8).to_bytes(8, "little") + b"{}      "
    assert parse_header(planned.header, 16, "x") == Header({}, {}, 16, 16)


def test_a_header_over_the_limit_is_not_laid_out() -> None:
    with pytest.raises(ContainerError) as caught:
        layout([("x" * 300_000 + str(i), "U8", (1,)) for i in range(90)])
    assert caught.value.rule == "R20"
    assert "--max-shard-size" in caught.value.fix


def test_a_remote_reader_needs_two_ranges() -> None:
    data = written({"a": np.arange(100, dtype=np.uint8)})
    size = header_size(data[:8], len(data), "x")
    assert list(parse_header(data[:size], len(data), "x").entries) == ["a"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(
        {
            "a": np.arange(6, dtype=np.float32).reshape(2, 3),
            "b": np.array([1, 2, 3], np.int8),
            "none": np.zeros((0, 4), np.float16),
        },
        tmp_path / "x.safetensors",
    )
    return tmp_path / "x.safetensors"


def test_mapped_arrays(path: Path) -> None:
    with MappedFile(path) as file:
        for name, expected in load_file(path).items():
            found = file.array(name)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert not found.flags.writeable
            np.testing.assert_array_equal(found, expected)
        kept = file.array("a")
    assert kept.sum() == 15


def test_mapped_bit_patterns(tmp_path: Path) -> None:
    dtypes = {"BF16": np.uint16, "F8_E4M3": np.uint8, "BOOL": np.uint8, "I64": np.int64}
    planned = layout([(dtype, dtype, (1,)) for dtype in dtypes])
    (tmp_path / "x").write_bytes(planned.header + bytes(range(planned.size - len(planned.header))))
    with MappedFile(tmp_path / "x") as file:
        assert {name: file.array(name).dtype for name in dtypes} == dtypes
        assert file.array("BF16").tolist() == [0x0100]
        assert file.array("I64").tobytes() == bytes(range(4, 12))  # need not be aligned


def test_a_closed_file_is_closed(path: Path) -> None:
    file = MappedFile(path)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.array("a")


def test_a_read_header_names_the_file(path: Path) -> None:
    header = read_header(path)
    assert header.size == path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ContainerError) as caught:
        read_header(path)
    assert str(caught.value) == (
        f"x.safetensors: cut short (expected {header.size} bytes, found {header.size - 1}) [R21]"
    )


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        MappedFile(tmp_path / "x")
    assert str(caught.value) == f"{tmp_path / 'x'}: no such file or folder"


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(ContainerError) as caught:
        MappedFile(tmp_path / "x")
    assert str(caught.value) == (
        "x: too short for a safetensors file (expected at least 8 bytes, found 0) [R20]"
    )


def test_a_long_header_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.write((100_000_000).to_bytes(8, "little"))
        file.truncate(10**12)
    with pytest.raises(ContainerError) as caught:
        read_header(tmp_path / "x")
    assert str(caught.value) == (
        "x: header too long (expected at most 26214400 bytes, found 100000000) [R20]"
    )


def header_of(table: object, data: int = 0) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def array(start: int, stop: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]} | changes


DTYPE_LIST = (
    "BOOL U8 I8 U16 I16 U32 I32 U64 I64 F8_E4M3 F8_E5M2 F8_E8M0 F16 BF16 F32 F64"  # R9's order
)
OFFSETS = (
    'x["a"].data_offsets: not a pair of offsets '
    "(expected [start, stop] with 0 <= start <= stop) [R21]"
)
KEYS = 'x["a"]: not an array (expected exactly dtype, shape and data_offsets) [R21]'
EXTENT = 'x["a"].shape[0]: not an extent (expected an integer from 0 to 1099511627776) [R8]'

FAULTS = {
    # R20: length and text of the header
    "7 bytes": (b"\0" * 7, "x: too short for a safetensors file (expected at least 8 bytes, found 7) [R20]"),
    "length of 2^64": (b"\xff" * 8 + b"{}", "x: header too long (expected at most 26214400 bytes, found 18446744073709551615) [R20]"),
    "length past the end": (b"\x03" + b"\0" * 7 + b"{}", "x: cut short within the header (expected at least 11 bytes, found 10) [R20]"),
    "no header": (header_of(b""), "x: the header does not start with { [R20]"),
    "leading space": (header_of(b" {}"), "x: the header does not start with { [R20]"),
    "list": (header_of([]), "x: the header does not start with { [R20]"),
    "mark": (header_of(b"\xef\xbb\xbf{}"), "x: the header does not start with { [R20]"),
    "cut JSON": (header_of(b'{"a"'), "x: not JSON at line 1, column 5 [R20]"),
    "zero bytes behind": (header_of(b"{}\0\0"), "x: not JSON at line 1, column 3 [R20]"),
    "not UTF-8": (header_of(b'{"\xff"'), "x: not UTF-8 at byte 2 [R20]"),
    "twice": (header_of(b'{"a": 1, "a": 2}'), 'x: the key "a" stands twice in one object [R20]'),
    "NaN": (header_of(b'{"a": NaN}'), "x: NaN is not JSON [R20]"),
    "beyond 2^53": (header_of(b'{"a": 18446744073709551615}'), "x: an integer beyond 2^53 (found 18446744073709551615) [R20]"),
    "deep": (header_of(b'{"a":' * 100_000), "x: nested too deep (expected at most 16) [R20]"),
    "surrogate": (header_of(b'{"\\ud800": 1}'), "x: a string holds half a surrogate pair [R20]"),
    # R21 with R8 and R9: entries
    "metadata": (header_of({"__metadata__": {"a": 1}}), 'x["__metadata__"]: not an object of strings [R21]'),
    "metadata list": (header_of({"__metadata__": []}), 'x["__metadata__"]: not an object of strings [R21]'),
    "no object": (header_of({"a": 1}), KEYS),
    "missing key": (header_of({"a": {"dtype": "U8", "shape": []}}), KEYS),
    "extra key": (header_of({"a": array(0, 0, note="")}), KEYS),
    "no name": (header_of({"": array(0, 0)}), 'x[""]: not a tensor name (expected 1 to 576 bytes, found 0) [R8]'),
    "long name": (header_of({"a" * 577: array(0, 0)}), f'x["{"a" * 160}..."]: not a tensor name (expected 1 to 576 bytes, found 577) [R8]'),
    "control character": (header_of({"a\x85": array(0, 0)}), 'x["a\\u0085"]: a tensor name holds a control character [R8]'),
    "C64": (header_of({"a": array(0, 8, dtype="C64")}, 8), f'x["a"].dtype: unknown dtype (expected one of {DTYPE_LIST}, found "C64") [R9]'),
    "F4": (header_of({"a": array(0, 8, dtype="F4")}, 8), f'x["a"].dtype: unknown dtype (expected one of {DTYPE_LIST}, found "F4") [R9]'),
    "dtype list": (header_of({"a": array(0, 8, dtype=[])}, 8), f'x["a"].dtype: unknown dtype (expected one of {DTYPE_LIST}, found no string) [R9]'),
    "shape": (header_of({"a": array(0, 8, shape=8)}, 8), 'x["a"].shape: not a shape (expected a list of at most 8) [R8]'),
    "9 axes": (header_of({"a": array(0, 1, shape=[1] * 9)}, 1), 'x["a"].shape: not a shape (expected a list of at most 8) [R8]'),
    "boolean extent": (header_of({"a": array(0, 1, shape=[True])}, 1), EXTENT),
    "negative extent": (header_of({"a": array(0, 1, shape=[-1, -1])}, 1), EXTENT),
    "fraction": (header_of({"a": array(0, 1, shape=[1.0])}, 1), EXTENT),
    "huge extent": (header_of({"a": array(0, 1, shape=[2**41])}, 1), EXTENT),
    "huge product": (header_of({"a": array(0, 1, shape=[2**32, 2**32])}, 1), 'x["a"].shape: too large (expected at most 9007199254740992 bytes) [R8]'),
    "one offset": (header_of({"a": array(0, 1, data_offsets=[0])}, 1), OFFSETS),
    "three offsets": (header_of({"a": array(0, 1, data_offsets=[0, 1, 2])}, 1), OFFSETS),
    "backwards": (header_of({"a": array(0, 1, data_offsets=[1, 0])}, 1), OFFSETS),
    "negative offset": (header_of({"a": array(0, 1, data_offsets=[-1, 0])}, 1), OFFSETS),
    "boolean offset": (header_of({"a": array(0, 1, data_offsets=[False, True])}, 1), OFFSETS),
    "text offset": (header_of({"a": array(0, 1, data_offsets=["0", "1"])}, 1), OFFSETS),
    "size": (header_of({"a": array(0, 3, dtype="U16")}, 3), 'x["a"].data_offsets: another size than the shape\'s (expected 6 bytes, found 3) [R21]'),
    # R21: no hole, no overlap, nothing behind
    "late start": (header_of({"a": array(1, 2)}, 2), 'x["a"].data_offsets: leaves a hole (expected to start at 0, found 1) [R21]'),
    "hole": (header_of({"b": array(0, 2), "a": array(3, 4)}, 4), 'x["a"].data_offsets: leaves a hole (expected to start at 2, found 3) [R21]'),
    "overlap": (header_of({"b": array(1, 3), "a": array(0, 2)}, 3), 'x["b"].data_offsets: overlaps the array before it (expected to start at 2, found 1) [R21]'),
    "same bytes twice": (header_of({"a": array(0, 2), "b": array(0, 2)}, 2), 'x["b"].data_offsets: overlaps the array before it (expected to start at 2, found 0) [R21]'),
    "empty array inside another": (header_of({"a": array(0, 2), "b": array(1, 1)}, 2), 'x["b"].data_offsets: overlaps the array before it (expected to start at 2, found 1) [R21]'),
    "cut data": (header_of({"a": array(0, 2)}, 1), "x: cut short (expected 70 bytes, found 69) [R21]"),
    "bytes behind": (header_of({"a": array(0, 2)}, 9), "x: bytes follow the last array (expected 70 bytes, found 77) [R21]"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(fault: str) -> None:
    data, message = FAULTS[fault]
    with pytest.raises(ContainerError) as caught:
        parse_header(data, len(data), "x")
    assert str(caught.value) == message


@given(st.binary(max_size=64), st.integers(0, 200))
def test_what_we_accept_safetensors_accepts(tail: bytes, position: int) -> None:
    data = bytearray(written({"a": np.ones(3, np.uint16), "b": np.ones((2, 2), np.float32)}))
    data[position : position + len(tail)] = tail
    try:
        header = parse_header(bytes(data), len(data), "x")
    except ContainerError:
        return
    assert {name for name, _ in safetensors.deserialize(bytes(data))} == header.entries.keys()
