"""Four renderings of one report; data and talk on their own streams."""

from __future__ import annotations

import io
import json
import sys

import pytest

from bitdelta_hub.cli.output import Output, Report, Table, paint, tick
from bitdelta_hub.cli.values import Bytes, Ratio
from bitdelta_hub.errors import UsageError
from bitdelta_hub.outcomes import Note

REPORT = Report(
    headline="Compressed to a\x1b[2Jb",
    document={
        "out": "a\x1b[2J\x7fb",
        "note": "",
        "name": "two words",
        "delta_bytes": Bytes(1_500_000),
        "ratio": Ratio(2.5),
        "error": None,
        "tensors": [{"name": "x"}],
    },
    fields={"size": Bytes(1_500_000), "repo": "org/\u202ename"},
    tables=(
        Table(
            ("TENSOR", "BYTES"),
            [("layers.0.weight\n", Bytes(1000)), ("norm", None), ("head", Bytes(25))],
        ),
    ),
    quiet=("a\x1b[2Jb",),
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Both streams of the test that calls this; a fixture's would be replaced by pytest's."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_human(capsys: pytest.CaptureFixture[str]) -> None:
    Output("human").show(REPORT)
    assert capsys.readouterr() == (
        "✓ Compressed to a\\x1b[2Jb\n"
        "  size: 1.5 MB\n"
        "  repo: org/\\u202ename\n"
        "\n"
        "TENSOR                  BYTES\n"
        "layers.0.weight\\x0a    1.0 kB\n"
        "norm                        -\n"
        "head                 25 bytes\n",
        "",
    )


def test_agent(capsys: pytest.CaptureFixture[str]) -> None:
    Output("agent").show(REPORT)
    assert capsys.readouterr().out == (
        'out=a\\x1b[2J\\x7fb note="" name="two words" delta_bytes=1500000 ratio=2.5 error=""\n'
        "TENSOR\tBYTES\n"
        "layers.0.weight\\x0a\t1000\n"
        "norm\t\n"
        "head\t25\n"
    )


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output("json").show(REPORT)
    out = capsys.readouterr().out
    assert json.loads(out) == REPORT.document
    assert '"delta_bytes": 1500000' in out
    assert out.replace("\n", "").isprintable()
    assert out.isascii()


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    Output("quiet").show(REPORT)
    assert capsys.readouterr() == ("a\\x1b[2Jb\n", "")


@pytest.mark.parametrize(("mode", "talks"), [("human", 1), ("agent", 1), ("json", 0), ("quiet", 0)])
def test_talk_goes_to_standard_error(
    mode: str, talks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Output(mode)
    output.say("training")
    output.hint("look\n")
    output.remarks([Note("BDH001", "tied"), Note("BDH005", "fp16 \x1b[1m")])
    expected = (
        "training\n"
        "Hint: look\\x0a\n"
        "Note: tied (BDH001 tied-head)\n"
        "Warning: fp16 \\x1b[1m (BDH005 other-dtype)\n"
    )
    assert capsys.readouterr() == ("", expected * talks)


def test_a_terminal_gets_colour_and_narrow_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "24")
    Output("human").show(REPORT)
    lines = terminal.getvalue().splitlines()
    assert lines[0].startswith("\x1b[32m✓\x1b[0m")
    assert lines[4:] == [
        "TENSOR             BYTES",
        "layers.0.weig…    1.0 kB",
        "norm                   -",
        "head            25 bytes",
    ]
    assert all(len(line) <= 24 for line in lines[4:])


def test_no_truncate_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = at_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "24")
    Output("human", truncate=False).show(REPORT)
    assert "layers.0.weight\\x0a    1.0 kB\n" in terminal.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_can_be_declined(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    terminal = at_a_terminal(monkeypatch)
    assert paint(terminal, "x", fg="red") == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv(name, value)
    assert paint(terminal, "x", fg="red") == "x"


def test_a_stream_without_a_check_mark_gets_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert tick() == "[OK]"


def test_bars_are_for_people_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    at_a_terminal(monkeypatch)
    modes = ("human", "agent", "json", "quiet")
    assert [mode for mode in modes if Output(mode).animates] == ["human"]


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        (("auto", False, False), "human"),
        (("agent", False, False), "agent"),
        (("auto", True, False), "json"),
        (("json", True, False), "json"),
        (("auto", False, True), "quiet"),
    ],
)
def test_flags_choose_the_mode(flags: tuple[str, bool, bool], mode: str) -> None:
    assert Output.chosen(*flags, no_truncate=True) == Output(mode, truncate=False)


def test_two_modes_at_once_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        Output.chosen("auto", True, True, False)
    assert caught.value.message == "output modes json and quiet exclude each other"
