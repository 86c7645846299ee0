"""Strict JSON (R5) and typed reading of its objects, with the place in every refusal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from re import Pattern
from typing import Any, Final

from bitdelta_hub.errors import FormatError, ManifestError
from bitdelta_hub.format.digest import DIGEST, SHA256
from bitdelta_hub.format.dtypes import MOST
from bitdelta_hub.format.names import quoted

DEEPEST: Final = 16
_BOM = b"\xef\xbb\xbf"


class _Fault(ValueError):
    """What is wrong with a text, before it is known whose text it is."""


def parse_json(data: bytes, error: type[FormatError], rule: str, at: str) -> dict[str, Any]:
    """The one JSON object in `data`. Raises `error` with `rule` for all that R5 refuses."""
    try:
        return _parse(data)
    except _Fault as fault:
        raise error(str(fault), rule=rule, at=at) from None


def _parse(data: bytes) -> dict[str, Any]:
    if data.startswith(_BOM):
        raise _Fault("begins with a byte order mark")
    try:
        text = data.decode()
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise _Fault(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _Fault(f"not JSON at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _Fault(f"nested too deep (expected at most {DEEPEST})") from None
    if not isinstance(value, dict):
        raise _Fault(f"not a JSON object (found {shown(value)})")
    _check_depth(value)
    if "\\u" in text:  # only an escape can bring half a surrogate pair into UTF-8
        _check_surrogates(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Fault(f"the key {quoted(twice)} stands twice in one object")
    return value


def _integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MOST:
        raise _Fault(f"an integer beyond 2^53 (found {text[:24]})")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Fault(f"a number beyond all doubles (found {text[:24]})")
    return value


def _constant(text: str) -> None:
    raise _Fault(f"{text} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _check_depth(value: object) -> None:
    level, depth = [value], 1
    while level:
        if depth > DEEPEST:
            raise _Fault(f"nested too deep (expected at most {DEEPEST})")
        level = [
            item
            for node in level
            for item in (node.values() if isinstance(node, dict) else node)  # type: ignore[attr-defined]
            if isinstance(item, (dict, list))
        ]
        depth += 1


def _check_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _Fault("a string holds half a surrogate pair") from None


def shown(value: object) -> str:
    """A JSON value for a message: short, and safe to print."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


class Fields:
    """One object of the manifest at place `at`; `at` is empty for the whole document."""

    __slots__ = ("_value", "at")

    def __init__(self, value: object, at: str) -> None:
        if not isinstance(value, dict):
            raise ManifestError(f"not an object (found {shown(value)})", rule="R7", at=at)
        self._value = value
        self.at = at

    def only(self, required: Sequence[str], optional: Sequence[str] = ()) -> None:
        """Raises ManifestError for a missing or an unknown key (R7)."""
        for key in required:
            if key not in self._value:
                self._refuse(f"the key {quoted(key)} is missing")
        for key in self._value:
            if key not in required and key not in optional:
                self._refuse(f"unknown key {quoted(key)}")

    def _refuse(self, message: str) -> None:
        raise ManifestError(message, rule="R7", at=self.at or "bitdelta.json")

    def place(self, key: str) -> str:
        return f"{self.at}.{key}" if self.at else key

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def __getitem__(self, key: str) -> object:
        if key not in self._value:
            self._refuse(f"the key {quoted(key)} is missing")
        return self._value[key]

    def string(self, key: str) -> str:
        return string(self[key], self.place(key))

    def string_or_null(self, key: str) -> str | None:
        return None if self[key] is None else self.string(key)

    def choice(self, key: str, known: Sequence[str]) -> str:
        value = self[key]
        if value not in known:
            raise ManifestError(
                f"unknown {key} (expected one of {' '.join(known)}, found {shown(value)})",
                rule="R7",
                at=self.place(key),
            )
        return str(value)

    def integer(self, key: str, most: int = MOST) -> int:
        return integer(self[key], self.place(key), most)

    def digest(self, key: str) -> str:
        return self._matching(key, DIGEST, "not a digest (expected blake3: and 64 hex digits")

    def sha256(self, key: str) -> str:
        return self._matching(key, SHA256, "not a SHA-256 (expected 64 lower-case hex digits")

    def _matching(self, key: str, pattern: Pattern[str], message: str) -> str:
        value = self[key]
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ManifestError(f"{message}, found {shown(value)})", rule="R7", at=self.place(key))
        return value

    def elements(self, key: str, most: int) -> Iterator[tuple[str, Any]]:
        """(place, value) of each element of a list of at most `most`."""
        value, at = self[key], self.place(key)
        if not isinstance(value, list):
            raise ManifestError(f"not a list (found {shown(value)})", rule="R7", at=at)
        _check_count(value, most, at)
        return ((f"{at}[{i}]", item) for i, item in enumerate(value))

    def entries(self, key: str, most: int = MOST) -> Iterator[tuple[str, str, Any]]:
        """(key, place, value) of each entry of an object of at most `most`."""
        value, at = self[key], self.place(key)
        if not isinstance(value, dict):
            raise ManifestError(f"not an object (found {shown(value)})", rule="R7", at=at)
        _check_count(value, most, at)
        return ((name, f"{at}[{quoted(name)}]", item) for name, item in value.items())


def string(value: object, at: str) -> str:
    """`value` as a string. Raises ManifestError (R7)."""
    if not isinstance(value, str):
        raise ManifestError(f"not a string (found {shown(value)})", rule="R7", at=at)
    return value


def integer(value: object, at: str, most: int = MOST) -> int:
    """`value` as an integer from 0 to `most`, no boolean. Raises ManifestError (R8)."""
    if type(value) is not int or not 0 <= value <= most:
        raise ManifestError(
            f"not a size (expected an integer from 0 to {most}, found {shown(value)})",
            rule="R8",
            at=at,
        )
    return value


def _check_count(value: Sequence[object] | dict[str, object], most: int, at: str) -> None:
    if len(value) > most:
        raise ManifestError(
            f"too many (expected at most {most}, found {len(value)})", rule="R8", at=at
        )
