"""Numbers that know how people read them: integers of bytes in JSON, `1.2 GB` for the eye."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bitdelta_hub.cli.printable import printable
from bitdelta_hub.errors import UsageError
from bitdelta_hub.format.storage import decimal_size

_UNITS = {"": 1, "B": 1} | {
    prefix + end: base**power
    for base, end in ((1000, "B"), (1024, "IB"))
    for power, prefix in enumerate("KMGT", 1)
}

Value = str | int | float | bool | None


class Bytes(int):
    """A number of bytes."""


class Ratio(float):
    """How many times smaller."""


class Seconds(float):
    """A duration."""


class Share(float):
    """A part of one."""


class Rate(int):
    """Bytes a second."""


def pace(nbytes: int, seconds: float) -> dict[str, Value]:
    """Fields `time` and `rate`; runs under a second mostly start up, so they have no rate."""
    fields: dict[str, Value] = {"time": Seconds(seconds)}
    return fields | {"rate": Rate(nbytes / seconds)} if seconds >= 1 else fields


def for_people(value: Value) -> str:
    """`value` as human output shows it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case Bytes():
            return decimal_size(value)
        case Rate():
            return f"{decimal_size(value)}/s"
        case Ratio():
            return f"{value:.1f}x"
        case Seconds():
            return f"{value:.1f} s"
        case Share():
            return f"{value:.1%}"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case _:
            return printable(value)


def for_programs(value: Value) -> str:
    """`value` as agent and quiet output show it: nothing rounded, no units."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return float.__repr__(value)
        case int():
            return int.__repr__(value)
        case _:
            return printable(value)


def shape_text(shape: Sequence[int]) -> str:
    """`[2, 3]` as it stands in tables, without spaces."""
    return f"[{','.join(map(str, shape))}]"


def parse_size(text: str | None, flag: str) -> int | None:
    """The bytes that `text` stands for: `8GB` is 8·10^9, `8GiB` is 8·2^30, no unit is bytes.

    Raises UsageError naming `flag`.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip(), re.I)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not (size := int(float(match[1]) * unit)):
        raise UsageError(
            f"{flag}: not a size (expected such as 8GB or 500MB, found {text!r})",
            fix=f"for example {flag} 8GB",
        )
    return size
