from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from bitdelta_hub.errors import ManifestError, StorageError
from bitdelta_hub.format.manifest import (
    BaseRef,
    BaseTensor,
    FileRef,
    Manifest,
    Piece,
    TensorEntry,
    Term,
    TunedRef,
    fingerprint,
    read_manifest,
    stored_name,
)

A, B = f"blake3:{'a' * 64}", f"blake3:{'b' * 64}"
SHA = "0" * 64
W = BaseTensor(dtype="BF16", shape=(2, 8), digest=A)
SIGN = Term(codec="sign", params={"axis": "tensor"}, parts={"sign": 2, "scale": 4})
PATCH = Term(
    codec="patch",
    params={"count": 1, "positions": "bitmap", "low_bits": 0},
    parts={"bitmap": 2, "value": 2},
)


def entry(kind: str, **further: Any) -> TensorEntry:
    return TensorEntry(
        **{"dtype": "BF16", "shape": (2, 8), "file": 0, "digest": A} | further, kind=kind
    )


def manifest(
    tensors: dict[str, TensorEntry],
    base_tensors: dict[str, BaseTensor] | None = None,
    annotations: dict[str, str] | None = None,
) -> Manifest:
    base_tensors = base_tensors or {}
    return Manifest(
        base=BaseRef(
            repo="org/base",
            revision="0" * 40,
            fingerprint=fingerprint(base_tensors),
            files=(FileRef(file="model.safetensors", size=10, sha256=None),),
            tensors=base_tensors,
        ),
        tuned=TunedRef(repo=None, revision=None, bytes=20, files=("model.safetensors",)),
        shards=(FileRef(file="delta.safetensors", size=2000, sha256=SHA),),
        files=(FileRef(file="config.json", size=2, sha256=SHA),),
        tensors=tensors,
        annotations=annotations or {},
    )


EXAMPLE = manifest(
    {
        "lm_head.weight": entry("tie", tie="w"),
        "w": entry("sum", base="w", terms=(SIGN, SIGN, PATCH), error=0.0625),
        "joined": entry("copy", base=(Piece(name="w", start=0, stop=8),)),
    },
    {"w": W},
    {"note": "ü"},
)

TEXT = f"""\
{{
  "format": "bitdelta/1",
  "base": {{
    "repo": "org/base",
    "revision": "{"0" * 40}",
    "fingerprint": "{fingerprint({"w": W})}",
    "files": [
      {{"file": "model.safetensors", "size": 10, "sha256": null}}
    ],
    "tensors": {{
      "w": {{"dtype": "BF16", "shape": [2, 8], "digest": "{A}"}}
    }}
  }},
  "tuned": {{
    "repo": null,
    "revision": null,
    "bytes": 20,
    "files": [
      "model.safetensors"
    ]
  }},
  "shards": [
    {{"file": "delta.safetensors", "size": 2000, "sha256": "{SHA}"}}
  ],
  "files": [
    {{"file": "config.json", "size": 2, "sha256": "{SHA}"}}
  ],
  "tensors": {{
    "lm_head.weight": {{"dtype": "BF16", "shape": [2, 8], "file": 0, "kind": "tie", \
"digest": "{A}", "tie": "w"}},
    "w": {{"dtype": "BF16", "shape": [2, 8], "file": 0, "kind": "sum", "digest": "{A}", \
"base": "w", "terms": [\
{{"codec": "sign", "params": {{"axis": "tensor"}}, "parts": {{"sign": 2, "scale": 4}}}}, \
{{"codec": "sign", "params": {{"axis": "tensor"}}, "parts": {{"sign": 2, "scale": 4}}}}, \
{{"codec": "patch", "params": {{"count": 1, "positions": "bitmap", "low_bits": 0}}, \
"parts": {{"bitmap": 2, "value": 2}}}}], "error": 0.0625}},
    "joined": {{"dtype": "BF16", "shape": [2, 8], "file": 0, "kind": "copy", "digest": "{A}", \
"base": [["w", 0, 8]]}}
  }},
  "annotations": {{
    "note": "ü"
  }}
}}
"""


def test_the_text_is_this_one() -> None:
    assert EXAMPLE.serialize().decode() == TEXT


def test_parse_gives_back_what_was_serialized() -> None:
    parsed = Manifest.parse(TEXT.encode())
    assert parsed == EXAMPLE
    assert parsed.serialize().decode() == TEXT


def test_an_empty_delta_is_a_delta() -> None:
    empty = manifest({})
    assert b'  "tensors": {}\n' in empty.serialize()
    assert Manifest.parse(empty.serialize()) == empty


names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
digests = st.integers(0, 16**64 - 1).map(lambda n: f"blake3:{n:064x}")
sizes = st.integers(0, 100)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
terms = st.builds(
    Term,
    codec=st.sampled_from(["sign", "int", "codebook", "lowrank", "sparse"]),
    params=st.dictionaries(
        names, st.recursive(st.none() | st.booleans() | sizes | names, st.lists, max_leaves=4)
    ),
    parts=st.dictionaries(names, sizes, max_size=3),
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    tensors, base_tensors = {}, {}
    for name in draw(st.lists(names, unique=True, max_size=5)):
        dtype, shape = draw(st.sampled_from(["F16", "BF16", "F32"])), draw(shapes)
        base = draw(st.none() | names.filter(lambda name: name not in base_tensors))
        if base is not None:
            base_tensors[base] = BaseTensor(dtype=dtype, shape=shape, digest=draw(digests))
        tensors[name] = TensorEntry(
            dtype=dtype,
            shape=shape,
            file=0,
            kind="sum",
            digest=draw(digests),
            base=base,
            terms=tuple(draw(st.lists(terms, max_size=3))),
            error=draw(st.none() | st.floats(0, 1e300)),
        )
    annotations = draw(st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"]))))
    return manifest(tensors, base_tensors, annotations)


@given(manifests())
def test_round_trip(written: Manifest) -> None:
    data = written.serialize()
    parsed = Manifest.parse(data)
    assert parsed == written
    assert parsed.serialize() == data
    assert not any(line.endswith(b" ") for line in data.splitlines())


def test_fingerprint_follows_the_rule() -> None:
    tensors = {
        "é": BaseTensor(dtype="F32", shape=(), digest=B),
        "b": W,
        "\U00010000": BaseTensor(dtype="U8", shape=(0,), digest=A),
        "\uffee": BaseTensor(dtype="U8", shape=(7,), digest=A),
    }
    lines = f"b\0BF16\x002,8\0{A}\né\0F32\0\0{B}\n\uffee\0U8\x007\0{A}\n\U00010000\0U8\x000\0{A}\n"
    assert fingerprint(tensors) == f"blake3:{blake3(lines.encode()).hexdigest()}"


def test_fingerprint_ignores_the_order_of_its_tensors() -> None:
    other = BaseTensor(dtype="F16", shape=(3,), digest=B)
    assert fingerprint({"a": W, "b": other}) == fingerprint({"b": other, "a": W})


@pytest.mark.parametrize(
    ("tensor", "exact"),
    [
        (entry("copy", base="w"), True),
        (entry("exact", base="w", terms=(PATCH,)), True),
        (entry("sum", base="w", terms=(SIGN,), error=0.0), True),
        (entry("sum", base="w", terms=(SIGN,), error=1e-4), False),
        (entry("sum", base="w", terms=(SIGN,), error=None), False),
    ],
    ids=["copy", "exact", "error 0", "error", "error unknown"],
)
def test_exact(tensor: TensorEntry, exact: bool) -> None:
    found = manifest({"a": tensor, "b": entry("tie", tie="a")}, {"w": W})
    assert found.exact("a") is exact
    assert found.exact("b") is exact


def test_bytes() -> None:
    assert EXAMPLE.delta_bytes == 2000 + len(TEXT.encode())
    assert EXAMPLE.bytes_by_part() == {
        "sign": {"sign": 4, "scale": 8},
        "patch": {"bitmap": 2, "value": 2},
    }


def test_stored_arrays() -> None:
    assert list(EXAMPLE.stored()) == [
        ("w_0_sign", "w", 0, "sign", 2),
        ("w_0_scale", "w", 0, "scale", 4),
        ("w_1_sign", "w", 1, "sign", 2),
        ("w_1_scale", "w", 1, "scale", 4),
        ("w_2_bitmap", "w", 2, "bitmap", 2),
        ("w_2_value", "w", 2, "value", 2),
    ]
    assert stored_name("w", 0, "sign") == "w_0_sign"


def test_a_whole_operand_is_one_piece() -> None:
    assert entry("copy", base="w").pieces == (Piece(name="w", start=0, stop=16),)
    assert entry("sum", terms=(SIGN,)).pieces == ()


def test_read_manifest(tmp_path: Path) -> None:
    (tmp_path / "bitdelta.json").write_bytes(EXAMPLE.serialize())
    assert read_manifest(tmp_path) == EXAMPLE


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        read_manifest(tmp_path / "none")
    assert str(caught.value) == f"{tmp_path / 'none'}: no such folder"
    assert caught.value.fix == "give the folder of a delta, which holds bitdelta.json"


def test_a_folder_that_is_no_delta(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(StorageError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == f"{tmp_path}: not a delta, bitdelta.json is missing"
    assert caught.value.fix == "to make one: bdhub compress TUNED --base BASE --out DELTA"


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "bitdelta.json").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == (
        "bitdelta.json: too large (expected at most 67108864 bytes, found 1000000000000) [R5]"
    )


def test_a_manifest_linked_from_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "delta"
    folder.mkdir()
    (tmp_path / "bitdelta.json").write_bytes(EXAMPLE.serialize())
    (folder / "bitdelta.json").symlink_to("../bitdelta.json")
    with pytest.raises(ManifestError) as caught:
        read_manifest(folder)
    assert str(caught.value) == "bitdelta.json: a symbolic link out of the folder [R2]"


def test_a_manifest_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "bitdelta.json")
    with pytest.raises(StorageError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'bitdelta.json'}: not a regular file"
