"""`bdhub plan`: the table, and bytes that compress then writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Bdhub

Pair = tuple[Path, Path]


def test_human(bdhub: Bdhub, pair: Pair) -> None:
    base, tuned = pair
    done = bdhub("plan", tuned, "--base", base)
    assert (done.status, done.err) == (0, "")
    head, tensors, groups = done.out.split("\n\n")
    assert head.splitlines()[0] == f"Plan for {tuned} against {base}"
    assert head.splitlines()[2:] == ["  recipe: bitdelta", "  tensors: 21"]
    rows = tensors.splitlines()
    assert rows[0].split() == ["TENSOR", "DTYPE", "SHAPE", "KIND", "TERMS", "BYTES", "NOTE"]
    assert len(rows) == 22
    name = "model.layers.0.mlp.down_proj.weight"
    assert " ".join(rows[4].split()) == f"{name} BF16 [32,56] sum sign tensor mean 228 bytes"
    assert [row.split()[:2] for row in groups.splitlines()] == [
        ["GROUP", "TENSORS"],
        ["embeddings", "2"],
        ["other", "5"],
        ["matrices", "14"],
    ]


@pytest.mark.parametrize("recipe", ["bitdelta", "row1", "int2", "exact"])
def test_predicted_bytes(bdhub: Bdhub, pair: Pair, tmp_path: Path, recipe: str) -> None:
    base, tuned = pair
    flags = ("--base", base, "--recipe", recipe, "--json")
    found = json.loads(bdhub("plan", tuned, *flags).out)
    assert list(found) == [
        "tuned", "base", "recipe", "tuned_bytes", "predicted_bytes", "upper_bound", "ratio",
        "groups", "tensors", "notes",
    ]  # fmt: skip
    assert len(found["tensors"]) == sum(group["tensors"] for group in found["groups"]) == 21
    assert bdhub("compress", tuned, *flags, "--out", tmp_path / "d").status == 0
    written = sum(
        path.stat().st_size for path in (tmp_path / "d").iterdir() if path.suffix == ".safetensors"
    )
    stored = found["predicted_bytes"] - sum(
        (tuned / name).stat().st_size for name in ("config.json", "generation_config.json")
    )
    assert found["upper_bound"] == (recipe == "exact")
    assert written <= stored if found["upper_bound"] else written == stored


def test_quiet_is_the_number_of_bytes(bdhub: Bdhub, pair: Pair) -> None:
    base, tuned = pair
    found = json.loads(bdhub("plan", tuned, "--base", base, "--json").out)
    assert bdhub("plan", tuned, "--base", base, "-q").out == f"{found['predicted_bytes']}\n"
