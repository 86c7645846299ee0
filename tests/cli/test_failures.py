"""Every error of the tree: its line, its way on, its exit status; never a traceback by default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from bitdelta_hub.cli.failures import failures, show
from bitdelta_hub.errors import (
    BaseMismatch,
    BitDeltaError,
    ManifestError,
    PairError,
    StorageError,
    UsageError,
)

ERRORS = [
    (BitDeltaError("odd"), 1, "odd (BDH000 error)", ""),
    (UsageError("--bits: two", fix="say once"), 2, "--bits: two (BDH200 usage)", "say once"),
    (
        PairError("norms: 1.4", code="BDH104", fix="try x"),
        3,
        "norms: 1.4 (BDH104 wrong-base)",
        "try x",
    ),
    (
        ManifestError("not a list", rule="R7", at="shards"),
        1,
        "shards: not a list [R7] (BDH301 manifest)",
        "",
    ),
    (
        BaseMismatch("another", at="base", fix="a\nb"),
        4,
        "base: another (BDH402 base-mismatch)",
        "a\\x0ab",
    ),
    (
        StorageError("\x1b[2J: gone \u202e"),
        1,
        "\\x1b[2J: gone \\u202e (BDH500 storage)",
        "",
    ),
]


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BDHUB_DEBUG", raising=False)


@pytest.mark.parametrize(("error", "status", "line", "fix"), ERRORS)
def test_line_fix_and_status(
    error: BitDeltaError, status: int, line: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, failures("human"):
        raise error
    assert ended.value.exit_code == status
    expected = f"Error: {line}\n" + (f"Fix: {fix}\n" if fix else "")
    assert capsys.readouterr() == ("", expected)


def test_json_keeps_standard_output_empty(capsys: pytest.CaptureFixture[str]) -> None:
    show(PairError("norms: 1.4", code="BDH104", fix="try x"), "json")
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {
        "error": {
            "code": "BDH104",
            "name": "wrong-base",
            "message": "norms: 1.4",
            "fix": "try x",
        }
    }


def test_debugging_shows_the_traceback_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BDHUB_DEBUG", "1")
    with pytest.raises(typer.Exit), failures("human"):
        raise StorageError("d: gone")
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("\nError: d: gone (BDH500 storage)\n")


@pytest.mark.parametrize(
    ("out", "line"),
    [
        (Path("delta"), "Interrupted: nothing was written under delta; run the same command again"),
        (None, "Interrupted: nothing was written; run the same command again"),
    ],
)
def test_an_interrupt_is_one_line(
    out: Path | None, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, failures("human", out):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert capsys.readouterr() == ("", f"{line}\n")


def test_our_own_mistakes_pass() -> None:
    with pytest.raises(ZeroDivisionError), failures("human"):
        _ = 1 // 0
