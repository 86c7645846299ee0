"""Typed reading of a term's params (SPEC R24)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from bitdelta_hub.errors import CodecError

T = TypeVar("T", int, str)

LONGEST_SHOWN = 60


def only_keys(params: Mapping[str, Any], keys: tuple[str, ...], at: str) -> None:
    """Returns if `params` has exactly `keys`; raises CodecError (R24) at `at` otherwise."""
    if set(params) == set(keys):
        return
    expected = shown(list(keys))
    found = shown(sorted(params))
    raise CodecError(f"wrong params (expected {expected}, found {found})", rule="R24", at=at)


def integer(params: Mapping[str, Any], key: str, low: int, high: int, at: str) -> int:
    """The integer under `key`, from `low` to `high`; raises CodecError (R24) at `at.key` otherwise.

    A boolean is not an integer.
    """
    value = params[key]
    if type(value) is int and low <= value <= high:
        return value
    raise _wrong(key, value, f"an integer from {low} to {high}", at)


def boolean(params: Mapping[str, Any], key: str, at: str) -> bool:
    """The boolean under `key`; raises CodecError (R24) at `at.key` otherwise."""
    value = params[key]
    if type(value) is bool:
        return value
    raise _wrong(key, value, "true or false", at)


def choice(params: Mapping[str, Any], key: str, values: tuple[T, ...], at: str) -> T:
    """The one of `values` under `key`; raises CodecError (R24) at `at.key` otherwise."""
    value = params[key]
    for known in values:
        if type(value) is type(known) and value == known:
            return known
    raise _wrong(key, value, "one of " + ", ".join(map(json.dumps, values)), at)


def _wrong(key: str, value: object, expected: str, at: str) -> CodecError:
    found = shown(value)
    return CodecError(
        f"wrong value (expected {expected}, found {found})", rule="R24", at=f"{at}.{key}"
    )


def shown(value: object) -> str:
    """`value` as JSON, cut to a length that fits a message."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
