"""`bdhub`: the application, and what happens around every command."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import typer

from bitdelta_hub import __version__
from bitdelta_hub.cli import compress, demo, env, info, plan, rebuild, verify, version
from bitdelta_hub.cli.failures import INTERRUPTED, show, show_interrupt
from bitdelta_hub.cli.output import silence, whole_output
from bitdelta_hub.errors import BitDeltaError, StorageError, UsageError

# Typer exports this leaf of its usage errors; their common root is its parent.
TyperUsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExit status: 0 done, 1 failed, 2 wrong usage, 3 the pair is not supported,\n"
    "4 verification failed, 130 interrupted. BDHUB_DEBUG=1 shows tracebacks.",
)
for module in (compress, plan, rebuild, verify, info, demo, env, version):
    module.add_to(app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def bdhub(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-v", hidden=True, is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Store fine-tuned models as small, verified differences from their base."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and leaves with its exit status; never returns."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    status = _flushed(_run(arguments))
    # All is done and said; the interpreter's own end must not turn it into something else.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def _open_streams() -> None:
    """Makes the standard streams take any text, and makes up for those that are closed.

    A file opened later would get the number of a closed stream, and with it what libraries print.
    """
    # A result that has nowhere to go is a failure; talk that nobody hears is none.
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open
        reconfigure: Any = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")


def _flushed(status: int) -> int:
    """`status`, or 1 where standard output did not take everything: silently if its reader left."""
    try:
        with whole_output():
            sys.stdout.flush()
        return status
    except StorageError as error:
        show(error, "human")
    except BrokenPipeError:
        pass
    silence(sys.stdout)
    return 1


def _run(arguments: list[str]) -> int:
    known: BitDeltaError
    try:
        status = app(arguments, prog_name="bdhub", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except TyperUsageError as error:
        known = _usage_error(error)
    except BitDeltaError as error:
        known = error
    except (KeyboardInterrupt, typer.Abort):
        show_interrupt(None)
        return INTERRUPTED
    show(known, "json" if _wants_json(arguments) else "human")
    return known.exit_status


def _usage_error(error: Any) -> UsageError:
    path = error.ctx.command_path if error.ctx else "bdhub"
    return UsageError(error.format_message().rstrip("."), fix=f"{path} --help shows what it takes")


def _wants_json(arguments: list[str]) -> bool:
    """Whether JSON was asked for, as far as a line that does not parse can tell."""
    asked = {"--json", "--format=json", ("--format", "json")}
    return not asked.isdisjoint([*arguments, *pairwise(arguments)])
