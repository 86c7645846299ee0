"""Progress bars: seen on a terminal, absent everywhere else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bitdelta_hub.cli.output import Output
from bitdelta_hub.cli.progress import progress

pty = pytest.importorskip("pty", reason="no pseudo-terminals here")

CODE = """
import time
from bitdelta_hub.cli.output import Output
from bitdelta_hub.cli.progress import progress
with progress(Output({mode!r})) as watch:
    if watch:
        for phase in ("plan", "compress"):
            for done in range(0, 2_000_001, 500_000):
                watch(phase, done, 2_000_000)
                time.sleep(0.12)
print("result")
"""


def at_a_terminal(mode: str) -> tuple[str, str]:
    """(standard output, standard error) of CODE, the latter a terminal."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    with subprocess.Popen(
        [sys.executable, "-c", CODE.format(mode=mode)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=environment | {"TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not chunk:
                break
            seen += chunk
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, seen
    return out, seen.decode()


def test_a_bar_per_phase_with_rate_and_remaining_time() -> None:
    out, err = at_a_terminal("human")
    assert out == "result\n"
    assert "plan" in err
    assert "compress" in err
    assert "2.0/2.0 MB" in err
    assert "MB/s" in err
    assert "0:00:00" in err


@pytest.mark.parametrize("mode", ["agent", "json", "quiet"])
def test_programs_see_no_bar(mode: str) -> None:
    assert at_a_terminal(mode) == ("result\n", "")


def test_a_pipe_gets_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(Output("human")) as watch:
        assert watch is None
    assert capsys.readouterr() == ("", "")
