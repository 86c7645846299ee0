"""Numbers for people, numbers for programs, and sizes as people write them."""

from __future__ import annotations

import json

import pytest

from bitdelta_hub.cli.values import (
    Bytes,
    Rate,
    Ratio,
    Seconds,
    Share,
    Value,
    for_people,
    for_programs,
    pace,
    parse_size,
    shape_text,
)
from bitdelta_hub.errors import UsageError


@pytest.mark.parametrize(
    ("value", "people", "programs"),
    [
        (Bytes(884_300_000), "884.3 MB", "884300000"),
        (Bytes(12), "12 bytes", "12"),
        (Rate(1_500_000_000), "1.5 GB/s", "1500000000"),
        (Ratio(18.51), "18.5x", "18.51"),
        (Seconds(1.25), "1.2 s", "1.25"),
        (Share(0.125), "12.5%", "0.125"),
        (12345, "12,345", "12345"),
        (0.612345, "0.6123", "0.612345"),
        (True, "yes", "true"),
        (None, "-", ""),
        ("a\x1bb", "a\\x1bb", "a\\x1bb"),
    ],
)
def test_one_value_two_readers(value: Value, people: str, programs: str) -> None:
    assert for_people(value) == people
    assert for_programs(value) == programs


def test_json_holds_plain_numbers() -> None:
    assert json.dumps([Bytes(5), Ratio(1.5), Share(1), Seconds(2)]) == "[5, 1.5, 1.0, 2.0]"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8_000_000_000),
        ("8gb", 8_000_000_000),
        ("500 MB", 500_000_000),
        ("1.5TB", 1_500_000_000_000),
        ("2GiB", 2 << 30),
        ("1KiB", 1024),
        ("4096", 4096),
        ("4096B", 4096),
        (None, None),
    ],
)
def test_sizes_are_decimal_unless_they_say_otherwise(text: str | None, size: int | None) -> None:
    assert parse_size(text, "--max-memory") == size


@pytest.mark.parametrize("text", ["", "lots", "-1GB", "1e9", "8 parsecs", "0", "0.1B", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text, "--max-memory")
    assert (
        caught.value.message
        == f"--max-memory: not a size (expected such as 8GB or 500MB, found {text!r})"
    )
    assert caught.value.fix == "for example --max-memory 8GB"


def test_shapes_have_no_spaces() -> None:
    assert [shape_text(shape) for shape in [(), (3,), (2, 3)]] == ["[]", "[3]", "[2,3]"]


def test_a_rate_is_given_for_runs_that_take_a_while() -> None:
    assert set(pace(10**9, 0.4)) == {"time"}
    assert for_people(pace(10**9, 2.0)["rate"]) == "500.0 MB/s"
