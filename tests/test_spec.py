"""The specification's examples, run through the package and through the second reader."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitdelta_hub import verify
from bitdelta_hub.checkpoint import open_checkpoint
from bitdelta_hub.codecs import CODECS, codec_from
from bitdelta_hub.codecs.base import View
from bitdelta_hub.delta import Rebuilder, StoredTerm
from bitdelta_hub.format import dtypes, manifest
from bitdelta_hub.format.container import layout
from bitdelta_hub.format.dtypes import ITEMSIZE, numpy_dtype
from bitdelta_hub.format.entries import EXACT
from bitdelta_hub.format.manifest import Manifest
from bitdelta_hub.source import OperandReader
from tests import reader

SPEC = Path(__file__).parents[1] / "bitdelta_hub" / "format" / "SPEC.md"
CPU = torch.device("cpu")


def blocks(kind: str) -> list[Any]:
    found = re.findall(rf"^```json {kind}\n(.*?)^```$", SPEC.read_text("utf-8"), re.M | re.S)
    return [json.loads(text) for text in found]


EXAMPLES = blocks("example")
IDS = [f"{example['codec']}-{i}" for i, example in enumerate(EXAMPLES)]


def patterns(text: str, width: int) -> np.ndarray[Any, Any]:
    return np.array([int(word, 16) for word in text.split()], f"<u{width}")


class Worked:
    """One example of the text as arrays."""

    def __init__(self, example: dict[str, Any]) -> None:
        self.codec, self.params = example["codec"], example["params"]
        self.view = View(tuple(example["shape"]), example["dtype"])
        width = ITEMSIZE[self.view.dtype]
        self.rebuilt = patterns(example["rebuilt"], width)
        self.operand = patterns(example["operand"], width) if "operand" in example else None
        self.value = patterns(example["value"], 4) if "value" in example else None
        self.stored = {part: bytes.fromhex(text) for part, text in example["parts"].items()}

    def parts(self, kind: str) -> dict[str, np.ndarray[Any, Any]]:
        """The parts in the package's element types, or (`u`) as the second reader has them."""
        found = {}
        specs = codec_from(self.codec, self.params, self.view, "w").parts(self.view)
        assert list(specs) == list(self.stored)
        for part, spec in specs.items():
            assert len(self.stored[part]) == spec.nbytes
            unsigned = np.dtype(f"<u{ITEMSIZE[spec.dtype]}")
            dtype = unsigned if kind == "u" else numpy_dtype(spec.dtype)
            found[part] = np.frombuffer(self.stored[part], dtype).reshape(spec.shape)
        return found


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_the_package_decodes_the_example(example: dict[str, Any], tmp_path: Path) -> None:
    worked = Worked(example)
    codec = codec_from(worked.codec, worked.params, worked.view, "w")
    assert list(codec.to_params().items()) == list(worked.params.items())
    parts = worked.parts("stored")
    if worked.value is not None:
        decoded = codec.decoder(parts, worked.view, CPU, "w")(0, worked.view.total_rows)
        assert decoded.numpy().view("<u4").reshape(-1).tolist() == worked.value.tolist()
    if worked.operand is not None:
        write_base(tmp_path, worked)
    with open_checkpoint(tmp_path) if worked.operand is not None else none() as base:
        reader = OperandReader("w" if base else None, base, worked.view)
        terms = [StoredTerm(codec, parts, "w")]
        rebuilt = Rebuilder(worked.view, reader, terms, CPU).bits(0, worked.view.total_rows)
        assert rebuilt.reshape(-1).tolist() == worked.rebuilt.tolist()


def none() -> Any:
    from contextlib import nullcontext

    return nullcontext(None)


def write_base(folder: Path, worked: Worked) -> None:
    assert worked.operand is not None
    header = layout([("w", worked.view.dtype, worked.view.shape)]).header
    (folder / "model.safetensors").write_bytes(header + worked.operand.tobytes())


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_the_second_reader_decodes_the_example(example: dict[str, Any]) -> None:
    worked = Worked(example)
    entry = {
        "dtype": worked.view.dtype,
        "shape": list(worked.view.shape),
        "kind": "exact" if worked.codec in EXACT else "sum",
        "terms": [{"codec": worked.codec, "params": worked.params, "parts": worked.stored}],
    }
    bases = {}
    if worked.operand is not None:
        entry["base"] = "w"
        shaped = worked.operand.reshape(worked.view.shape)
        bases["w"] = worked.view.dtype, entry["shape"], shaped
    shards = {f"w_0_{part}": ("", [], array) for part, array in worked.parts("u").items()}
    assert reader.rebuild("w", entry, shards, bases).tolist() == worked.rebuilt.tolist()
    if worked.value is not None:
        value = np.full(worked.view.numel, -0.0, np.float32)
        view = worked.view.batch, worked.view.rows, worked.view.cols
        reader.ADDED[worked.codec](value, worked.params, worked.parts("u"), *view)
        assert value.view("<u4").tolist() == worked.value.tolist()


def test_every_codec_has_an_example() -> None:
    assert {example["codec"] for example in EXAMPLES} == set(CODECS)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The delta of the text with its base, beside each other."""
    (shard,), (document,) = blocks("shard"), blocks("manifest")
    worked = Worked(EXAMPLES[0])
    for name in ("base", "delta"):
        (tmp_path / name).mkdir()
    write_base(tmp_path / "base", worked)
    stored = (
        bytes.fromhex(shard["length"]) + shard["header"].encode() + bytes.fromhex(shard["data"])
    )
    (tmp_path / "delta" / "delta.safetensors").write_bytes(stored)
    assert document["shards"][0]["sha256"] == hashlib.sha256(stored).hexdigest()
    text = json.dumps(document, ensure_ascii=False)
    (tmp_path / "delta" / "bitdelta.json").write_text(text, "utf-8")
    return tmp_path


def test_the_delta_of_the_text_is_whole(whole: Path) -> None:
    assert verify(whole / "delta", base=whole / "base").checked_tensors == 1
    rebuilt = dict(reader.read_delta(whole / "delta", whole / "base"))
    assert rebuilt["w"] == Worked(EXAMPLES[0]).rebuilt.tobytes()


def test_the_manifest_of_the_text_is_in_the_writers_order() -> None:
    (document,) = blocks("manifest")
    again = json.loads(Manifest.parse(json.dumps(document).encode()).serialize())
    assert json.dumps(again) == json.dumps(document)


def test_limits_of_the_text_are_those_of_the_code() -> None:
    table = SPEC.read_text("utf-8").partition("## 10. Limits")[2].partition("## 11.")[0]
    for limit in (manifest._LARGEST, manifest._MOST_TENSORS, manifest._MOST_FILES):
        assert f"{limit:,}" in table
    assert dtypes.MOST == 2**53
