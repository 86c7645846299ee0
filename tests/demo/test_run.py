"""The demonstration: briefly, to see that everything is there; at length, to see that it learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitdelta_hub.demo.run import RECIPES, run_demo
from bitdelta_hub.errors import StorageError
from bitdelta_hub.verify import verify


def test_every_file_is_kept_where_asked(tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "demo"
    result = run_demo(folder, seed=0, say=said.append, base_steps=1, tuned_steps=1)
    assert [row.model for row in result.rows] == ["base", "tuned", *RECIPES]
    for row, recipe in zip(result.rows[2:], RECIPES, strict=True):
        delta = folder / f"delta-{recipe}"
        assert row.bytes == sum(path.stat().st_size for path in delta.iterdir())
        assert row.ratio == result.rows[1].bytes / row.bytes
        assert verify(delta, base=folder / "base").checked_tensors == 30
        assert (folder / f"rebuilt-{recipe}" / "tokenizer.json").is_file()
    assert json.loads((folder / "demo.json").read_text())["task"] == "flip"
    assert said[0] == "Training a base of 1,339,584 parameters on: copy, next, turn, swap"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    with pytest.raises(StorageError, match="already exists"):
        run_demo(folder, seed=0, say=said.append)


@pytest.mark.slow
def test_the_fine_tune_learns_and_its_deltas_keep_it(tmp_path: Path) -> None:
    code = "from bitdelta_hub.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["model"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["base"]["exact_match"] < 0.05
    assert rows["tuned"]["exact_match"] > 0.9
    assert rows["row1"]["exact_match"] > 0.8
    assert rows["delta-come"]["exact_match"] > 0.8
    assert all(rows[recipe]["ratio"] > 10 for recipe in RECIPES)
    assert list(tmp_path.iterdir()) == []
