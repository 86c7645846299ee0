"""`bdhub info`: bytes that add up, exact and approximate apart, hostile names defused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from bitdelta_hub.format.manifest import read_manifest
from tests.cli.conftest import Bdhub


def test_human(bdhub: Bdhub, delta: Path) -> None:
    done = bdhub("info", delta)
    assert (done.status, done.err) == (0, "")
    head, table = done.out.split("\n\n")
    lines = head.splitlines()
    assert lines[:2] == [
        f"{delta}: a bitdelta/1 delta of 21 tensors",
        "  tuned: a local checkpoint",
    ]
    assert lines[7] == "  exact: 5 tensors, bit for bit"
    assert lines[8].startswith("  approximate: 16 tensors, relative error of the diff: median 0.6")
    rows = [line.split()[:2] for line in table.splitlines()]
    assert rows[:4] == [
        ["CODEC", "PART"], ["sign", "sign"], ["sign", "row_scale"], ["sign", "scale"],
    ]  # fmt: skip
    assert rows[-1][0] == "total"


def test_bytes_add_up_to_the_files(bdhub: Bdhub, delta: Path) -> None:
    found = json.loads(bdhub("info", delta, "--json").out)
    on_disk = sum(path.stat().st_size for path in delta.iterdir())
    assert found["delta_bytes"] == sum(row["bytes"] for row in found["bytes"]) == on_disk
    assert all(isinstance(row["bytes"], int) for row in found["bytes"])
    assert found["error"]["measured"] == found["lossy_tensors"] == 16
    assert found["error"]["median"] <= found["error"]["worst"]
    assert "tensors" not in found


def test_tensors_are_listed_when_asked(bdhub: Bdhub, delta: Path) -> None:
    listed = json.loads(bdhub("info", delta, "--tensors", "--json").out)["tensors"]
    assert [tensor["name"] for tensor in listed] == list(read_manifest(delta).tensors)
    assert listed[3]["terms"] == ["sign"]
    rows = bdhub("info", delta, "--tensors").out.split("\n\n")[2].splitlines()
    assert rows[0].split() == ["TENSOR", "DTYPE", "SHAPE", "KIND", "TERMS", "BYTES", "ERROR"]
    assert len(rows) == 22


def test_torch_stays_out(delta: Path) -> None:
    code = """
import atexit, sys
heavy = {"torch", "transformers", "huggingface_hub"}
atexit.register(lambda: print(heavy & set(sys.modules), file=sys.stderr))
from bitdelta_hub.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "info", delta], capture_output=True, text=True, env=os.environ
    )
    assert (done.returncode, done.stderr) == (0, "set()\n")


def test_names_from_a_manifest_drive_no_terminal(bdhub: Bdhub, delta: Path, tmp_path: Path) -> None:
    shutil.copytree(delta, tmp_path / "d")
    manifest = read_manifest(delta)
    name = "w\u202ethgie\u200b[bold]"
    hostile = replace(
        manifest,
        base=replace(manifest.base, repo="org/\x1b]0;owned\x07", revision="\u2066main"),
        tensors={
            name if old == "model.norm.weight" else old: entry
            for old, entry in manifest.tensors.items()
        },
    )
    (tmp_path / "d" / "bitdelta.json").write_bytes(hostile.serialize())
    done = bdhub("info", tmp_path / "d", "--tensors")
    assert "  base: org/\\x1b]0;owned\\x07@\\u2066main\n" in done.out
    assert "w\\u202ethgie\\u200b[bold]" in done.out
    assert done.out.replace("\n", "").isprintable()
    agent = bdhub("info", tmp_path / "d", "--tensors", "--format", "agent").out
    assert agent.replace("\n", "").replace("\t", "").isprintable()


def test_a_missing_shard_is_named(bdhub: Bdhub, delta: Path, tmp_path: Path) -> None:
    shutil.copytree(delta, tmp_path / "d")
    (tmp_path / "d" / "delta.safetensors").unlink()
    done = bdhub("info", tmp_path / "d")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(
        f"Error: {tmp_path / 'd' / 'delta.safetensors'}: missing (BDH500 storage)\n"
    )
