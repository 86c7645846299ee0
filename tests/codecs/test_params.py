"""Typed reading of params: whole messages (R24)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bitdelta_hub.codecs import codec_from
from bitdelta_hub.codecs.base import View
from bitdelta_hub.codecs.params import boolean, choice, integer, only_keys, shown
from bitdelta_hub.errors import CodecError, VersionError

AT = "tensors.w.terms[0].params"


def test_what_is_right_comes_back() -> None:
    params = {"a": 3, "b": False, "c": "row", "d": 4}
    only_keys(params, ("a", "b", "c", "d"), AT)
    assert integer(params, "a", 3, 3, AT) == 3
    assert boolean(params, "b", AT) is False
    assert choice(params, "c", ("tensor", "row"), AT) == "row"
    assert choice(params, "d", (2, 4), AT) == 4


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (
            lambda: only_keys({"a": 1, "z": 2}, ("a", "b"), AT),
            f'{AT}: wrong params (expected ["a", "b"], found ["a", "z"]) [R24]',
        ),
        (
            lambda: only_keys({"a": 1}, (), AT),
            f'{AT}: wrong params (expected [], found ["a"]) [R24]',
        ),
        (
            lambda: integer({"a": 9}, "a", 0, 8, AT),
            f"{AT}.a: wrong value (expected an integer from 0 to 8, found 9) [R24]",
        ),
        (
            lambda: integer({"a": True}, "a", 0, 8, AT),
            f"{AT}.a: wrong value (expected an integer from 0 to 8, found true) [R24]",
        ),
        (
            lambda: integer({"a": 1.0}, "a", 0, 8, AT),
            f"{AT}.a: wrong value (expected an integer from 0 to 8, found 1.0) [R24]",
        ),
        (
            lambda: boolean({"a": 1}, "a", AT),
            f"{AT}.a: wrong value (expected true or false, found 1) [R24]",
        ),
        (
            lambda: choice({"a": "up\n"}, "a", ("row", "col"), AT),
            f'{AT}.a: wrong value (expected one of "row", "col", found "up\\n") [R24]',
        ),
        (
            lambda: choice({"a": True}, "a", (1, 2), AT),
            f"{AT}.a: wrong value (expected one of 1, 2, found true) [R24]",
        ),
    ],
)
def test_what_is_wrong_is_named(read: Callable[[], Any], message: str) -> None:
    with pytest.raises(CodecError) as caught:
        read()
    assert str(caught.value) == message
    assert caught.value.rule == "R24"


def test_long_values_are_cut() -> None:
    assert shown("x" * 100) == '"' + "x" * 56 + "..."
    assert shown({"a": [1, None]}) == '{"a": [1, null]}'


def test_an_unknown_codec_is_refused_by_name() -> None:
    with pytest.raises(VersionError) as caught:
        codec_from("si\x1bgn", {}, View((2, 2), "BF16"), "tensors.w.terms[0]")
    known = "sign, int, codebook, lowrank, sparse, raw, rows, patch, steps"
    assert str(caught.value) == (
        f'tensors.w.terms[0]: unknown codec (expected one of {known}, found "si\\u001bgn") [R19]'
    )
