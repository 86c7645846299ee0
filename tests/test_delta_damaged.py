"""Whatever bytes of a delta change: one clear error, or the change means nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitdelta_hub import verify
from bitdelta_hub.errors import BitDeltaError, StorageError

VECTORS = Path(__file__).parent / "vectors" / "1"
NAMES = (
    "copy", "fused", "exact-F16", "files-and-names", "int-3-group5", "lowrank-mixed", "many-terms",
    "sparse-4-elias-fano3", "steps-splits", "two-shards", "unaligned",
)  # fmt: skip
FILES = [(n, path.name) for n in NAMES for path in sorted((VECTORS / n / "delta").iterdir())]


@st.composite
def damage(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """(vector, file, its bytes with some flipped, cut off or put in)."""
    vector, file = draw(st.sampled_from(FILES))
    data = bytearray((VECTORS / vector / "delta" / file).read_bytes())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "byte", "cut", "insert", "swap"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if data:
                data[at] = draw(st.sampled_from(b'\0\xff09-"[]{},:eE.\\ '))
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=4))
            case "swap":
                other = draw(st.integers(0, max(0, len(data) - 1)))
                data[at : at + 8], data[other : other + 8] = (
                    data[other : other + 8],
                    data[at : at + 8],
                )
    return vector, file, bytes(data)


@pytest.fixture(scope="module")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deltas")
    for name in NAMES:
        shutil.copytree(VECTORS / name, folder / name)
    return folder


def refused(folder: Path) -> bool:
    """Whether a reader refuses the delta; any other exception than BitDeltaError passes through."""
    try:
        verify(folder / "delta", base=folder / "base")
    except BitDeltaError:
        return True
    return False


def meaning(manifest: dict[str, Any]) -> dict[str, Any]:
    """What of a manifest is not the writer's mere statement (SPEC section 11).

    The names of the rebuilt tensors and files, and who is in which file, are bound by nothing but
    the manifest itself; names of stored parts are bound by the shards.
    """
    tensors = manifest["tensors"]
    loose = {"file", "error", "tie"}
    return {
        "base": manifest["base"]["tensors"],
        "fingerprint": manifest["base"]["fingerprint"],
        "shards": manifest["shards"],
        "files": manifest["files"],
        "tensors": [{k: v for k, v in t.items() if k not in loose} for t in tensors.values()],
        "stored": [name for name, entry in tensors.items() if entry.get("terms")],
    }


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged=damage())
def test_damage_is_refused_or_means_nothing(deltas: Path, damaged: tuple[str, str, bytes]) -> None:
    vector, file, data = damaged
    path = deltas / vector / "delta" / file
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        done = refused(deltas / vector)
    finally:
        path.write_bytes(whole)
    if data == whole:
        assert not done
    elif file != "bitdelta.json":
        assert done, "every byte of shards and carried files is under a hash"
    elif not done:
        assert meaning(json.loads(data)) == meaning(json.loads(whole))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged=damage())
def test_damage_with_hashes_to_match_never_crashes(
    deltas: Path, damaged: tuple[str, str, bytes]
) -> None:
    vector, file, data = damaged
    delta = deltas / vector / "delta"
    before = {path: path.read_bytes() for path in (delta / file, delta / "bitdelta.json")}
    (delta / file).write_bytes(data)
    if file != "bitdelta.json":
        manifest = json.loads(before[delta / "bitdelta.json"])
        for entry in manifest["shards"] + manifest["files"]:
            if entry["file"] == file:
                entry["size"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        (delta / "bitdelta.json").write_text(json.dumps(manifest), "utf-8")
    try:
        refused(deltas / vector)
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def test_a_row_larger_than_memory_is_refused(tmp_path: Path) -> None:
    shutil.copytree(VECTORS / "sign-row", tmp_path / "v")
    path = tmp_path / "v" / "delta" / "bitdelta.json"
    manifest = json.loads(path.read_bytes())
    manifest["tensors"]["huge"] = {
        "dtype": "F16", "shape": [2**40], "file": 0, "kind": "sum",
        "digest": "blake3:" + 64 * "0", "terms": [], "error": None,
    }  # fmt: skip
    path.write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(
        StorageError, match=r'^tensors\["huge"\]: a row of 1,099,511,627,776 elements'
    ):
        verify(tmp_path / "v" / "delta", base=tmp_path / "v" / "base")
