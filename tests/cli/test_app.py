"""Around every command: help, usage errors, exit statuses, pipes, interrupts, bugs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import bitdelta_hub
from bitdelta_hub import verify
from tests.cli.conftest import Bdhub
from tests.models import checkpoints

COMMANDS = ("compress", "plan", "rebuild", "verify", "info", "demo", "env", "version")
BDHUB = "from bitdelta_hub.cli import main; main()"


def program(
    *arguments: str, code: str = BDHUB, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_no_arguments_print_the_help(bdhub: Bdhub) -> None:
    done = bdhub()
    assert (done.status, done.err) == (0, "")
    assert done == bdhub("--help") == bdhub("-h")
    assert [line.split()[0] for line in done.out.split("Commands:\n")[1].splitlines()[:8]] == list(
        COMMANDS
    )
    assert "4 verification failed, 130 interrupted" in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_examples(bdhub: Bdhub, command: str) -> None:
    done = bdhub(command, "-h")
    assert done.status == 0
    examples = done.out.split("  Examples:\n")[1].splitlines()
    assert examples
    assert all(line.startswith(f"    bdhub {command}") for line in examples)
    for flag in ("--format", "--json", "-q, --quiet", "--no-truncate", "-h, --help"):
        assert flag in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_line_of_help_fits_a_terminal(bdhub: Bdhub, command: str) -> None:
    too_long = [line for line in bdhub(command, "-h").out.splitlines() if len(line) > 88]
    assert too_long == []


def test_help_starts_quickly_and_without_the_heavy_libraries() -> None:
    code = """
import sys, time
began = time.process_time()
sys.argv = ["bdhub", "--help"]
from bitdelta_hub.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "huggingface_hub", "numba"} & set(sys.modules)
    print(time.process_time() - began, sorted(heavy), file=sys.stderr)
"""
    seconds, heavy = program(code=code).stderr.split(" ", 1)
    assert heavy == "[]\n"
    assert float(seconds) < 0.5


@pytest.mark.parametrize("arguments", [("version",), ("--version",), ("-v",)])
def test_version(bdhub: Bdhub, arguments: tuple[str, ...]) -> None:
    assert bdhub(*arguments).out == f"{bitdelta_hub.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "err"),
    [
        (
            ["compres"],
            "Error: No such command 'compres'. Did you mean 'compress'? (BDH200 usage)\n"
            "Fix: bdhub --help shows what it takes\n",
        ),
        (
            ["rebuild"],
            "Error: Missing argument 'DIR' (BDH200 usage)\n"
            "Fix: bdhub rebuild --help shows what it takes\n",
        ),
        (
            ["compress", "ft", "--out", "d"],
            "Error: Missing option '--base' (BDH200 usage)\n"
            "Fix: bdhub compress --help shows what it takes\n",
        ),
        (
            ["env", "--json", "--quiet"],
            "Error: output modes json and quiet exclude each other (BDH200 usage)\n"
            "Fix: choose one of them\n",
        ),
        (
            ["plan", "ft", "--base", "b", "--max-memory", "much"],
            "Error: --max-memory: not a size (expected such as 8GB or 500MB, found 'much') "
            "(BDH200 usage)\nFix: for example --max-memory 8GB\n",
        ),
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2(bdhub: Bdhub, arguments: list[str], err: str) -> None:
    done = bdhub(*arguments)
    if arguments[-2:] == ["--json", "--quiet"]:
        assert json.loads(done.err)["error"]["message"] in err
    else:
        assert done.err == err
    assert (done.status, done.out) == (2, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "ft", "--json"],
        ["plan", "--format", "json", "ft"],
        ["verify", "d", "--levle", "files", "--format=json"],
        ["demo", "--seed", "x", "--json"],
        ["info", "nowhere", "--json"],
    ],
)
def test_errors_are_json_where_json_was_asked_for(bdhub: Bdhub, arguments: list[str]) -> None:
    done = bdhub(*arguments)
    assert done.status == (1 if arguments[0] == "info" else 2)
    assert done.out == ""
    assert set(json.loads(done.err)["error"]) == {"code", "name", "message", "fix"}


@pytest.mark.parametrize("arguments", [["compress", "--help"], ["version"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_met_with_silence(arguments: list[str], unbuffered: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BDHUB, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_standard_output_is_said(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", BDHUB, "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert (done.returncode, done.stderr) == (
        1,
        "Error: standard output: No space left on device (BDH500 storage)\n"
        "Fix: send it to another disk\n",
    )


def test_closed_streams_are_made_up_for(tmp_path: Path) -> None:
    def bdhub(closed: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        line = shlex.join([sys.executable, "-c", BDHUB, *arguments])
        return subprocess.run(["sh", "-c", f"{line} {closed}"], capture_output=True, text=True)

    done = bdhub(">&-", "version")
    assert (done.returncode, done.stderr) == (
        1,
        "Error: standard output: Bad file descriptor (BDH500 storage)\n"
        "Fix: send it to another disk\n",
    )
    done = bdhub("<&- 2>&-", "version")
    assert (done.returncode, done.stdout) == (0, f"{bitdelta_hub.__version__}\n")
    assert bdhub("2>&-", "versoin").returncode == 2
    base, tuned = checkpoints("llama", tmp_path)
    out = tmp_path / "delta"
    done = bdhub("<&- >&- 2>&-", "compress", str(tuned), "--base", str(base), "--out", str(out))
    assert done.returncode == 1
    assert verify(out, base=base).checked_tensors == 21


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_talk_that_is_not_taken_fails_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def status(*arguments: str | Path) -> int:
        with open("/dev/full", "w") as full:
            line = [sys.executable, "-c", BDHUB, *map(str, arguments)]
            return subprocess.run(line, stdout=subprocess.DEVNULL, stderr=full).returncode

    assert status("compress", pair[1], "--base", pair[0], "--out", tmp_path / "delta") == 0
    assert status("versoin") == 2


def test_ctrl_c_at_the_end_changes_nothing() -> None:
    code = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    done = program("version", code=code + BDHUB)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bug_shows_its_traceback() -> None:
    code = (
        "import bitdelta_hub.cli.env as env\nenv.environment = lambda: 1 // 0\n"
        "import sys; sys.argv = ['bdhub', 'env']\n" + BDHUB
    )
    done = program(code=code)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("ZeroDivisionError: integer division or modulo by zero\n")


def test_an_output_that_cannot_say_it_gets_an_escape() -> None:
    done = program("info", "größe", PYTHONIOENCODING="ascii")
    assert done.stderr.startswith("Error: gr\\xf6\\xdfe: no such folder (BDH500 storage)\n")


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    base, tuned = checkpoints("llama", tmp_path)
    out = tmp_path / "delta"
    code = f"""
import os, signal
from importlib import import_module
from pathlib import Path
from bitdelta_hub.cli import main
compress = import_module("bitdelta_hub.compress")
encode = compress.encode_tensor
def interrupted(*arguments):
    assert any(Path({str(tmp_path)!r}).glob(".delta.*")), "work has begun"
    os.kill(os.getpid(), signal.SIGINT)
    return encode(*arguments)
compress.encode_tensor = interrupted
main()
"""
    done = program("compress", str(tuned), "--base", str(base), "--out", str(out), code=code)
    line = f"Interrupted: nothing was written under {out}; run the same command again\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "", line)
    assert sorted(path.name for path in tmp_path.iterdir()) == [base.parent.name]
