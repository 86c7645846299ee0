"""`int`: the contract, groups, error laws, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bitdelta_hub.codecs.base import View
from bitdelta_hub.codecs.int import Int, IntEncoder
from bitdelta_hub.errors import CodecError
from tests.codecs import contract
from tests.codecs.contract import AT, CPU, check_additive, decode, encode, relative_error, source_of

WIDTHS = (2, 3, 4, 8)
# Squared-error optimal uniform mid-rise quantisers of a Gaussian.
LAW = {2: 0.3447, 3: 0.1935, 4: 0.1073}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", contract.SHAPES)
@pytest.mark.parametrize("bits", WIDTHS)
def test_contract(bits: int, shape: tuple[int, ...]) -> None:
    base, tuned = contract.pair(shape)
    for group in (0, 4, 5, 64):
        check_additive(IntEncoder(bits, group), base, tuned)
        check_additive(IntEncoder(bits, group, zeros=True), base, tuned)
    check_additive(IntEncoder(bits, 5, clip="max"), base, tuned)


@pytest.mark.parametrize("bits", list(LAW))
def test_error_law_on_gaussian_diffs(bits: int) -> None:
    assert relative_error(IntEncoder(bits), normal(32, 4096)) == pytest.approx(LAW[bits], rel=0.015)


def test_groups_follow_the_columns() -> None:
    diff = normal(16, 130) * torch.cat([torch.ones(64), 100 * torch.ones(64), torch.ones(2)])
    assert relative_error(IntEncoder(4, 64), diff) < 0.1
    source = source_of(diff)
    rebuilt = decode(*encode(IntEncoder(4, 64), source), source.view)
    for columns in (slice(0, 64), slice(64, 128), slice(128, 130)):
        wrong = (rebuilt - diff)[:, columns].norm() / diff[:, columns].norm()
        assert wrong < 0.12


def test_max_reaches_the_largest_element() -> None:
    diff = normal(8, 100)
    source = source_of(diff)
    values = decode(*encode(IntEncoder(8, clip="max"), source), source.view)
    assert torch.allclose(values.abs().amax(1), diff.abs().amax(1), rtol=2**-10)


@pytest.mark.parametrize("magnitude", [1e-30, 1e30, 3e37])
def test_any_magnitude(magnitude: float) -> None:
    diff = normal(32, 40).clamp(-1, 1)
    for encoder in (IntEncoder(4), IntEncoder(3, 16, zeros=True), IntEncoder(2, clip="max")):
        expected = relative_error(encoder, diff)
        assert relative_error(encoder, diff * magnitude) == pytest.approx(expected, rel=1e-2)


def test_zero_diffs_decode_to_zero() -> None:
    for zeros in (False, True):
        source = source_of(torch.zeros(3, 10))
        assert not decode(*encode(IntEncoder(3, 4, zeros), source), source.view).any()


def test_worked_example() -> None:
    """Codes 0, 1, 2, 3 stand for -3, -1, 1, 3; zeros 1 and -1; scales 1.5 and 2 times 2^1."""
    parts = {
        "code": np.array([[0b11100100, 0b00000010]], np.uint8),
        "scale": np.array([[1.5, 2]], np.float16),
        "zero": np.array([[1, -1]], np.int8),
    }
    codec = Int(bits=2, group=3, exponent=1, zeros=True)
    view = View((5,), "BF16")
    assert codec.parts(view)["scale"].shape == (1, 2)
    assert decode(codec, parts, view).tolist() == [-6.0, 0.0, 6.0, 8.0, 0.0]


def test_params_in_the_spec_s_order() -> None:
    params = Int(3, 128, -4, True).to_params()
    assert list(params.items()) == [
        ("bits", 3),
        ("group", 128),
        ("exponent", -4),
        ("zeros", True),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 5}, "bits: wrong value (expected one of 2, 3, 4, 8, found 5)"),
        (
            {"group": -1},
            "group: wrong value (expected an integer from 0 to 1048576, found -1)",
        ),
        (
            {"exponent": -127},
            "exponent: wrong value (expected an integer from -126 to 112, found -127)",
        ),
        ({"zeros": 0}, "zeros: wrong value (expected true or false, found 0)"),
    ],
)
def test_wrong_params(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError) as caught:
        Int.from_params(Int(2).to_params() | change, View((2, 3), "BF16"), AT)
    assert str(caught.value) == f"{AT}.{message} [R24]"


def test_wrong_content() -> None:
    view = View((2, 3), "BF16")
    parts = {"code": np.zeros((2, 1), np.uint8), "scale": np.zeros((2, 1), np.float16)}
    parts["code"][0] = 0b01000000
    with pytest.raises(CodecError) as caught:
        Int(2).decoder(parts, view, CPU, AT)
    assert str(caught.value) == f"{AT}.code: padding bits are not zero in run 0 [R25]"
    parts["code"][0] = 0
    parts["scale"][1] = -np.inf
    with pytest.raises(CodecError) as caught:
        Int(2).decoder(parts, view, CPU, AT)
    assert str(caught.value) == f"{AT}.scale: number 1 is not finite (found -inf) [R26]"
