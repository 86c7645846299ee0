"""Makes a command out of a function, with the flags and manners that all commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

import typer

from bitdelta_hub.cli.failures import failures
from bitdelta_hub.cli.options import OutputOptions
from bitdelta_hub.cli.output import Output

Body = Callable[..., None]


def leaf(app: typer.Typer, *examples: str) -> Callable[[Body], Body]:
    """Adds the decorated function to `app` as the command of its name.

    Its parameter `output` is the sink that the command line asks for. A parameter whose type is a
    dataclass stands for the flags that are its fields. `examples` end the help.
    """

    def register(body: Body) -> Body:
        hints = get_type_hints(body, include_extras=True)
        groups = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
        groups = {name: kind for name, kind in groups.items() if kind is not Output}

        def command(**given: Any) -> None:
            output = _output(_taken(OutputOptions, given))
            for name, kind in groups.items():
                given[name] = _taken(kind, given)
            with failures(output.mode, given.get("out")):
                body(output, **given)

        parameters = _parameters(body, hints, groups)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = body.__doc__
        lines = "".join(f"\n  {example}" for example in examples)
        app.command(body.__name__, epilog=f"\b\nExamples:{lines}")(command)
        return body

    return register


def _parameters(
    body: Body, hints: dict[str, Any], groups: dict[str, Any]
) -> list[inspect.Parameter]:
    parameters = []
    for parameter in inspect.signature(body).parameters.values():
        if parameter.name in groups:
            parameters += _flags(groups[parameter.name])
        elif hints[parameter.name] is not Output:
            parameters.append(_keyword(parameter.name, hints[parameter.name], parameter.default))
    return parameters + _flags(OutputOptions)


def _flags(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        _keyword(
            f.name, hints[f.name], inspect.Parameter.empty if f.default is MISSING else f.default
        )
        for f in fields(group)
    ]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


def _taken(group: Any, given: dict[str, Any]) -> Any:
    """An instance of `group` from the arguments of its names, which leave `given`."""
    return group(**{f.name: given.pop(f.name) for f in fields(group)})


def _output(options: OutputOptions) -> Output:
    return Output.chosen(options.format, options.json, options.quiet, options.no_truncate)
