"""`bdhub compress` on a real pair: what it prints, what it leaves, how it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bitdelta_hub.format.manifest import read_manifest
from tests.cli.conftest import Bdhub

Pair = tuple[Path, Path]


def test_human(bdhub: Bdhub, pair: Pair, tmp_path: Path) -> None:
    base, tuned = pair
    out = tmp_path / "delta of mine"
    done = bdhub("compress", tuned, "--base", base, "--out", out)
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0] == f"✓ Compressed to {out}"
    assert re.fullmatch(r"  size: \d+\.\d kB \(was \d+\.\d kB, \d\.\dx\)", lines[1])
    assert lines[2:4] == ["  recipe: bitdelta", "  tensors: 5 exact, 16 approximate"]
    assert done.err == f"Hint: check it with: bdhub verify '{out}' --base {base}\n"


def test_json_bytes_are_those_on_disk(bdhub: Bdhub, pair: Pair, tmp_path: Path) -> None:
    base, tuned = pair
    done = bdhub("compress", tuned, "--base", base, "--out", tmp_path / "d", "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert found.pop("seconds") > 0
    size = sum(path.stat().st_size for path in (tmp_path / "d").iterdir())
    tuned_bytes = (tuned / "model.safetensors").stat().st_size
    assert found == {
        "out": str(tmp_path / "d"),
        "recipe": "bitdelta",
        "tuned_bytes": tuned_bytes,
        "delta_bytes": size,
        "ratio": round(tuned_bytes / size, 3),
        "exact_tensors": 5,
        "lossy_tensors": 16,
        "fingerprint": read_manifest(tmp_path / "d").base.fingerprint,
        "notes": [],
    }


def test_flags_reach_the_library(bdhub: Bdhub, pair: Pair, tmp_path: Path) -> None:
    base, tuned = pair
    done = bdhub(
        "compress", tuned, "--base", base, "--out", tmp_path / "d", "--recipe", "row1",
        "--embeddings", "exact", "--keep", "*.q_proj.*", "--keep", "*.k_proj.*",
        "--skip", "*.v_proj.*", "--scale", "col", "--estimator", "rms", "--effort", "max",
        "--device", "cpu", "--max-memory", "1GB", "--max-shard-size", "5KB", "-q",
    )  # fmt: skip
    assert (done.status, done.out, done.err) == (0, f"{tmp_path / 'd'}\n", "")
    manifest = read_manifest(tmp_path / "d")
    assert len(manifest.shards) > 1
    layer = "model.layers.0.self_attn."
    terms = {name: [term.codec for term in e.terms] for name, e in manifest.tensors.items()}
    assert manifest.tensors[f"{layer}q_proj.weight"].kind == "exact"
    assert manifest.tensors[f"{layer}k_proj.weight"].kind == "exact"
    assert manifest.tensors["model.embed_tokens.weight"].kind == "exact"
    assert terms[f"{layer}v_proj.weight"] == []
    assert terms[f"{layer}o_proj.weight"] == ["sign"]
    assert manifest.tensors[f"{layer}o_proj.weight"].terms[0].params["axis"] == "col"


def test_nothing_is_overwritten_unless_asked(bdhub: Bdhub, pair: Pair, tmp_path: Path) -> None:
    base, tuned = pair
    out = tmp_path / "d"
    assert bdhub("compress", tuned, "--base", base, "--out", out, "-q").status == 0
    before = (out / "bitdelta.json").read_bytes()
    again = bdhub("compress", tuned, "--base", base, "--out", out, "--recipe", "int4")
    assert (again.status, again.out) == (1, "")
    assert again.err == (
        f"Error: {out}: already exists (BDH500 storage)\n"
        "Fix: pass --overwrite or choose another folder\n"
    )
    assert (out / "bitdelta.json").read_bytes() == before
    done = bdhub("compress", tuned, "--base", base, "--out", out, "--recipe", "int4", "--overwrite")
    assert done.status == 0
    assert (out / "bitdelta.json").read_bytes() != before


@pytest.mark.parametrize(
    ("flags", "message", "status"),
    [
        (("--recipe", "zip"), "--recipe: no recipe 'zip'", 2),
        (("--keep", "nope"), "--keep: 'nope' matches no tensor", 2),
        (("--device", "abacus"), "--device: no device 'abacus'", 2),
    ],
)
def test_what_cannot_be_meant_is_refused(
    bdhub: Bdhub, pair: Pair, tmp_path: Path, flags: tuple[str, str], message: str, status: int
) -> None:
    base, tuned = pair
    done = bdhub("compress", tuned, "--base", base, "--out", tmp_path / "d", *flags)
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith(f"Error: {message}")
    assert "\nFix: " in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_pair_that_does_not_fit_is_status_3(bdhub: Bdhub, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    done = bdhub(
        "compress", tmp_path / "adapter", "--base", pair[0], "--out", tmp_path / "d", "--json"
    )
    assert (done.status, done.out) == (3, "")
    error = json.loads(done.err)["error"]
    assert (error["code"], error["name"]) == ("BDH102", "adapter")
