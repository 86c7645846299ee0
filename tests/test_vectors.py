"""The conformance vectors: valid ones decode, others are refused by rule, class and place."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3 as blake3_package

from bitdelta_hub import compress, errors, rebuild, verify
from bitdelta_hub.checkpoint import open_checkpoint
from bitdelta_hub.delta import open_delta
from bitdelta_hub.errors import FormatError, VerificationError
from bitdelta_hub.format.digest import Digest, digest_of
from bitdelta_hub.format.manifest import Manifest
from bitdelta_hub.kernels import ops, reference
from tests.hashing import blake3
from tests.reader import read_delta

HERE = Path(__file__).parent / "vectors" / "1"
SPEC = Path(__file__).parents[1] / "bitdelta_hub" / "format" / "SPEC.md"
VALID = sorted(path.parent.name for path in HERE.glob("*/expect.json"))
REFUSALS = json.loads((HERE / "refusals.json").read_text("utf-8"))
# Rules that bind writers alone: a file cannot show that they were broken.
WRITERS = {"R17", "R30", "R31", "R32", "R35"}


def expected(name: str) -> dict[str, Any]:
    return json.loads((HERE / name / "expect.json").read_text("utf-8"))


def base_of(name: str) -> Path:
    return HERE / name / expected(name).get("base", "base")


def test_vectors_are_small() -> None:
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 2_000_000


# The hash of the second reader.


def test_numpy_hash_is_blake3() -> None:
    sizes = [0, 1, 2, 3, 63, 64, 65, 127, 1023, 1024, 1025, 2048, 2049, 3073, 5120, 8193, 31744]
    # The inputs of the published test vectors: bytes 0 to 250, over and over.
    inputs = [bytes(i % 251 for i in range(size)) for size in sizes]
    assert blake3(inputs) == [blake3_package(data).hexdigest() for data in inputs]
    assert blake3([b""]) == ["af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"]


# Valid vectors.


class TorchKernels:
    """The plain torch kernels under the signatures of the numpy ones."""

    def __getattr__(self, name: str) -> Callable[..., np.ndarray[Any, Any]]:
        def kernel(*args: Any) -> np.ndarray[Any, Any]:
            torched = (torch.tensor(a) if isinstance(a, np.ndarray) else a for a in args)
            return getattr(reference, name)(*torched).numpy()

        return kernel


KERNELS = ["compiled", "numpy", "torch", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=KERNELS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if request.param == "compiled" and ops.compiled() is None:
        pytest.skip("numba is not installed")
    if request.param in ("numpy", "torch"):
        monkeypatch.setattr(ops, "compiled", lambda: None)
    if request.param == "torch":
        monkeypatch.setattr(ops, "cpu", TorchKernels())
    return torch.device("cuda" if request.param == "cuda" else "cpu")


@pytest.mark.parametrize("name", VALID)
def test_the_package_rebuilds(name: str, device: torch.device) -> None:
    digests = {}
    with open_delta(HERE / name / "delta") as delta, open_checkpoint(base_of(name)) as base:
        for tensor in delta.manifest.tensors:
            digest = Digest()
            for _, bits in delta.rebuilt(tensor, base, device):
                digest.update(bits)
            digests[tensor] = digest.text()
    assert digests == expected(name)["tensors"]


@pytest.mark.parametrize("name", VALID)
def test_the_second_reader_rebuilds(name: str) -> None:
    found = read_delta(HERE / name / "delta", base_of(name))
    digests = {tensor: digest_of(data) for tensor, data in found.items()}
    assert digests == expected(name)["tensors"]


@pytest.mark.parametrize("name", VALID)
def test_the_manifest_comes_back(name: str) -> None:
    text = (HERE / name / "delta" / "bitdelta.json").read_bytes()
    assert Manifest.parse(text).serialize() == text


@pytest.mark.parametrize("name", [name for name in VALID if expected(name).get("same_bytes")])
def test_compressing_again_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    call = expected(name)["compress"]
    compress(HERE / name / expected(name)["tuned"], base_of(name), tmp_path / "delta", **call)
    for path in sorted((HERE / name / "delta").iterdir()):
        assert (tmp_path / "delta" / path.name).read_bytes() == path.read_bytes(), path.name


# Refusals.


def changed(case: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """(delta, base): copies in `folder` of the vector that `case` names, with its one change."""
    shutil.copytree(HERE / case["of"] / "delta", folder / "delta")
    shutil.copytree(base_of(case["of"]), folder / "base")
    path = folder / "delta" / case["file"]
    change = case["change"]
    if "remove" in change:
        path.unlink()
    elif "link" in change:
        path.rename(folder / "elsewhere")
        path.symlink_to(change["link"])
    elif "extend" in change:
        os.truncate(path, change["extend"])
    else:
        path.write_bytes(CHANGES[next(iter(change))](path.read_bytes(), change))
    if not case.get("unrecorded") and case["file"] != "bitdelta.json":
        record(folder / "delta", case["file"])
    return folder / "delta", folder / "base"


def record(delta: Path, file: str) -> None:
    """Puts the size and hash that `file` has now into the manifest, if that lists it."""
    manifest = json.loads((delta / "bitdelta.json").read_bytes())
    for entry in manifest["shards"] + manifest["files"]:
        if entry["file"] == file and (delta / file).exists():
            data = (delta / file).read_bytes()
            entry["size"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    (delta / "bitdelta.json").write_text(json.dumps(manifest, ensure_ascii=False), "utf-8")


def set_in(document: Any, change: dict[str, Any]) -> None:
    *way, last = change["path"]
    for key in way:
        document = document[key]
    if "times" in change:
        document[last] = [change["set"]] * change["times"]
    elif "set" in change:
        document[last] = change["set"]
    elif "rename" in change:
        document[change["rename"]] = document.pop(last)
    else:
        del document[last]


def json_changed(data: bytes, change: dict[str, Any]) -> bytes:
    """A value of a JSON document set, deleted, or moved to another key."""
    document = json.loads(data)
    set_in(document, change)
    return json.dumps(document, ensure_ascii=False).encode()


def header_changed(data: bytes, change: dict[str, Any]) -> bytes:
    """The same for a safetensors header, or `text` for all of it."""
    end = 8 + int.from_bytes(data[:8], "little")
    new = change["header"]
    text = new.encode() if isinstance(new, str) else json_changed(data[8:end], new)
    return len(text).to_bytes(8, "little") + text + data[end:]


def text_changed(data: bytes, change: dict[str, Any]) -> bytes:
    """The first of a piece of text, or of hex bytes, replaced."""
    old, new = (item.encode("utf-8", "surrogatepass") for item in change["replace"])
    assert old in data
    return data.replace(old, new, 1)


def bytes_changed(data: bytes, change: dict[str, Any]) -> bytes:
    """Bytes written over those from an offset on, in the whole file or in one array of it."""
    at = change.get("at", 0)
    if "array" in change:
        length = int.from_bytes(data[:8], "little")
        at += 8 + length + json.loads(data[8 : 8 + length])[change["array"]]["data_offsets"][0]
    new = bytes.fromhex(change["bytes"])
    return data[:at] + new + data[at + len(new) :]


CHANGES: dict[str, Callable[[bytes, dict[str, Any]], bytes]] = {
    "path": json_changed,
    "header": header_changed,
    "replace": text_changed,
    "bytes": bytes_changed,
    "append": lambda data, change: data + bytes.fromhex(change["append"]),
    "prepend": lambda data, change: bytes.fromhex(change["prepend"]) + data,
    "cut": lambda data, change: data[: change["cut"]],
    "content": lambda data, change: change["content"].encode() * change.get("times", 1),
}


def read_whole(delta: Path, base: Path, out: Path) -> None:
    """All that a reader does with a delta."""
    with open_delta(delta):
        pass
    verify(delta, base=base)
    rebuild(delta, out, base=base)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is imported or cached on first use."""
    name = "files-and-names"
    read_whole(HERE / name / "delta", base_of(name), tmp_path_factory.mktemp("warm") / "out")


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case['rule']}-{case['name']}")
def test_refusal(case: dict[str, Any], tmp_path: Path) -> None:
    delta, base = changed(case, tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(errors.BitDeltaError) as caught:
            read_whole(delta, base, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    error = caught.value
    assert type(error).__name__ == case["error"], error
    if isinstance(error, FormatError):
        assert error.rule == case["rule"], error
    if isinstance(error, FormatError | VerificationError):
        assert error.at == case["at"], error
    assert peak < 8_000_000
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def rules() -> dict[str, str]:
    """Every rule of the specification and its text."""
    text = SPEC.read_text("utf-8")
    parts = re.split(r"\*\*(R\d+)\*\*", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_rule_that_a_file_can_break_has_a_refusal() -> None:
    refused = {case["rule"] for case in REFUSALS}
    assert set(rules()) - refused == WRITERS


def test_refusals_have_names_of_their_own() -> None:
    names = [(case["rule"], case["name"]) for case in REFUSALS]
    assert len(set(names)) == len(names) >= 60
