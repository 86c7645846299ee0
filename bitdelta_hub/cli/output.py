"""The one sink: data on standard output, talk on standard error, in one of four modes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

import typer

from bitdelta_hub.cli.printable import printable
from bitdelta_hub.cli.values import Value, for_people, for_programs
from bitdelta_hub.errors import StorageError, UsageError
from bitdelta_hub.outcomes import Note


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under SCREAMING_SNAKE titles; columns of numbers are set to the right."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Value]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a command found. `document` is the whole of it for JSON, `fields` and `tables` are the
    same for the eye, `quiet` are the lines that alone remain in quiet mode."""

    headline: str
    document: dict[str, Any]
    fields: dict[str, Value] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    quiet: tuple[Value, ...] = ()
    done: bool = True


@dataclass(frozen=True, slots=True)
class Output:
    """Renders reports and talk in `mode`: `human`, `agent`, `json` or `quiet`."""

    mode: str = "human"
    truncate: bool = True

    @classmethod
    def chosen(cls, mode: str, as_json: bool, quiet: bool, no_truncate: bool) -> Output:
        """The sink that the flags ask for. Raises UsageError where they exclude each other."""
        asked = {mode} - {"auto"} | ({"json"} if as_json else set())
        asked |= {"quiet"} if quiet else set()
        if len(asked) > 1:
            names = " and ".join(sorted(asked))
            raise UsageError(f"output modes {names} exclude each other", fix="choose one of them")
        return cls(asked.pop() if asked else "human", not no_truncate)

    @property
    def talks(self) -> bool:
        """Whether anyone reads what is said besides the result."""
        return self.mode in ("human", "agent")

    @property
    def animates(self) -> bool:
        """Whether progress bars may be drawn on standard error."""
        return self.mode == "human" and sys.stderr.isatty()

    def show(self, report: Report) -> None:
        """Prints a command's result."""
        match self.mode:
            case "json":
                _print([_json(report.document)])
            case "quiet":
                _print(for_programs(value) for value in report.quiet)
            case "agent":
                _print(_agent(report))
            case _:
                _print(self._human(report))

    def say(self, text: str) -> None:
        """Prints a line of talk."""
        if self.talks:
            tell(printable(text))

    def hint(self, text: str) -> None:
        """Prints what to do next."""
        if self.talks:
            tell(paint(sys.stderr, f"Hint: {printable(text)}", fg="bright_black"))

    def remarks(self, notes: Iterable[Note]) -> None:
        """Prints the notes and warnings about a pair."""
        if not self.talks:
            return
        for note in notes:
            colour = "yellow" if note.severity == "warning" else "cyan"
            label = paint(sys.stderr, f"{note.severity.capitalize()}:", fg=colour)
            tell(f"{label} {printable(note.message)} ({note.code} {note.name})")

    def _human(self, report: Report) -> Iterable[str]:
        mark = f"{paint(sys.stdout, tick(), fg='green')} " if report.done else ""
        yield mark + printable(report.headline)
        for key, value in report.fields.items():
            yield f"  {printable(key)}: {for_people(value)}"
        width = None
        if self.truncate and sys.stdout.isatty():
            width = shutil.get_terminal_size().columns
        for table in report.tables:
            yield ""
            yield from _padded(table, width)


def paint(stream: TextIO, text: str, **style: Any) -> str:
    """`text` in colour if `stream` is a terminal that wants it."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else typer.style(text, **style)


def tick() -> str:
    """A check mark, or `[OK]` where standard output cannot show one."""
    return "✓" if _encodes("✓") else "[OK]"


def _encodes(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _print(lines: Iterable[str]) -> None:
    with whole_output():
        sys.stdout.writelines(f"{line}\n" for line in lines)


@contextmanager
def whole_output() -> Iterator[None]:
    """Raises StorageError where standard output does not take what is written inside.

    A reader that leaves early is another matter, for BrokenPipeError passes.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(
            f"standard output: {error.strerror}", fix="send it to another disk"
        ) from error


def tell(line: str) -> None:
    """Prints a line of talk; where standard error takes none, the work goes on without."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Sends what `stream` still holds nowhere: Python flushes once more on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _json(document: Any) -> str:
    # Escaping to ASCII leaves only DEL as a control character; it stands in strings alone.
    return json.dumps(document, indent=2, allow_nan=False).replace("\x7f", "\\u007f")


def _agent(report: Report) -> Iterable[str]:
    pairs = [(k, v) for k, v in report.document.items() if not isinstance(v, dict | list | tuple)]
    yield " ".join(f"{key}={_token(for_programs(value))}" for key, value in pairs)
    for table in report.tables:
        yield "\t".join(table.columns)
        for row in table.rows:
            yield "\t".join(for_programs(value) for value in row)


def _token(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(" \"'=") else text


def _padded(table: Table, width: int | None) -> Iterable[str]:
    rows = [list(table.columns), *([for_people(value) for value in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    if width is not None:
        _narrow(widths, width)
    right = [_numbers(table.rows, i) for i in range(len(widths))]
    for row in rows:
        cells = [
            cell.rjust(size) if to_right else cell.ljust(size)
            for cell, size, to_right in zip(map(_cut, row, widths), widths, right, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def _narrow(widths: list[int], width: int) -> None:
    """Takes what is too wide for a line of `width` off the widest column."""
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    widest = max(range(len(widths)), key=widths.__getitem__)
    widths[widest] = max(8, widths[widest] - max(0, excess))


def _cut(cell: str, width: int) -> str:
    if len(cell) <= width:
        return cell
    return f"{cell[: width - 1]}…" if _encodes("…") else f"{cell[: width - 3]}..."


def _numbers(rows: Sequence[Sequence[Value]], column: int) -> bool:
    cells = [row[column] for row in rows if row[column] is not None]
    return bool(cells) and all(isinstance(cell, int | float) for cell in cells)
