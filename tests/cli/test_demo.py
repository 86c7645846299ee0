"""`bdhub demo`: its table, and what it refuses before it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitdelta_hub.cli.demo import report
from bitdelta_hub.cli.output import Output
from bitdelta_hub.demo.run import DemoResult, Row
from tests.cli.conftest import Bdhub

RESULT = DemoResult(
    task="flip",
    problems=500,
    seconds=61.25,
    rows=(
        Row(model="base", bytes=2_700_000, exact_match=0.0),
        Row(model="row1", bytes=206_100, ratio=13.1, error=0.694, exact_match=0.998),
    ),
)


def test_human(capsys: pytest.CaptureFixture[str]) -> None:
    Output("human").show(report(RESULT))
    assert capsys.readouterr().out == (
        "✓ Exact match of 500 new problems of the task flip\n"
        "  time: 61.2 s\n"
        "\n"
        "MODEL     BYTES  RATIO  DIFF_ERROR  EXACT_MATCH\n"
        "base     2.7 MB      -           -         0.0%\n"
        "row1   206.1 kB  13.1x       0.694        99.8%\n"
    )


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output("json").show(report(RESULT))
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][1] == {
        "model": "row1",
        "bytes": 206_100,
        "ratio": 13.1,
        "error": 0.694,
        "exact_match": 0.998,
    }


def test_a_folder_that_exists_is_refused_before_training(bdhub: Bdhub, tmp_path: Path) -> None:
    done = bdhub("demo", "--dir", tmp_path)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"Error: {tmp_path}: already exists (BDH500 storage)\n")
