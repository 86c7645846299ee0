"""`bdhub verify`: what was checked, and status 4 for a flipped bit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from tests.cli.conftest import Bdhub

Pair = tuple[Path, Path]


def test_human(bdhub: Bdhub, pair: Pair, delta: Path) -> None:
    done = bdhub("verify", delta, "--base", pair[0])
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(
        f"✓ Verified {delta}: no fault found\n  level: weights\n  files: 3\n  tensors: 21\n"
    )


def test_against_the_fine_tune(bdhub: Bdhub, pair: Pair, delta: Path) -> None:
    base, tuned = pair
    done = bdhub("verify", delta, "--base", base, "--against", tuned)
    assert re.search(
        r"  fine-tune: 5 tensors identical, 16 approximate, "
        r"relative error of the diff: median 0\.\d+, worst 0\.\d+\n",
        done.out,
    )
    found = json.loads(bdhub("verify", delta, "--base", base, "--against", tuned, "--json").out)
    assert (found["error"]["exact_tensors"], found["error"]["lossy_tensors"]) == (5, 16)


def test_files_need_no_base(bdhub: Bdhub, delta: Path) -> None:
    done = bdhub("verify", delta, "--level", "files", "--json")
    found = json.loads(done.out)
    assert found.pop("seconds") > 0
    assert found.pop("bytes") > 0
    assert found == {
        "delta": str(delta),
        "level": "files",
        "checked_files": 3,
        "checked_tensors": 0,
        "error": None,
    }


def test_weights_need_the_base(bdhub: Bdhub, delta: Path) -> None:
    done = bdhub("verify", delta)
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        f"Error: {delta}: level weights needs the base (BDH200 usage)\n"
        "Fix: pass it with --base, or use --level files\n"
    )


def test_a_flipped_bit_is_status_4(bdhub: Bdhub, delta: Path, tmp_path: Path) -> None:
    shutil.copytree(delta, tmp_path / "d")
    shard = tmp_path / "d" / "delta.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    done = bdhub("verify", tmp_path / "d", "--level", "files", "--json")
    assert (done.status, done.out) == (4, "")
    assert json.loads(done.err)["error"]["code"] == "BDH401"
