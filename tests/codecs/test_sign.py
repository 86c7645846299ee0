"""`sign`: the contract, the closed form, the published rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bitdelta_hub.codecs.base import View
from bitdelta_hub.codecs.sign import Sign, SignEncoder
from bitdelta_hub.errors import CodecError
from tests.codecs import contract
from tests.codecs.contract import (
    AT,
    CPU,
    ArraySource,
    check_additive,
    decode,
    encode,
    relative_error,
    source_of,
)

AXES = ("tensor", "row", "col", "row_col")
ESTIMATORS = ("mean", "rms", "unbiased", 0.3)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", contract.SHAPES)
@pytest.mark.parametrize("axis", AXES)
def test_contract(axis: str, shape: tuple[int, ...]) -> None:
    base, tuned = contract.pair(shape)
    for estimator in ESTIMATORS:
        check_additive(SignEncoder(axis, estimator), base, tuned)
    check_additive(SignEncoder(axis, published=True), base, tuned)


@pytest.mark.parametrize("axis", AXES)
def test_values_are_the_scale_with_the_sign_of_the_diff(axis: str) -> None:
    diff = normal(2, 5, 11)
    source = source_of(diff)
    values = decode(*encode(SignEncoder(axis), source), source.view)
    assert torch.equal(torch.signbit(values), diff < 0)
    dims = {"tensor": (1, 2), "row": (2,), "col": (1,)}.get(axis)
    if dims:
        mean = diff.double().abs().mean(dims, keepdim=True).expand(diff.shape)
        tolerance = 2**-11 if axis != "tensor" else 1e-6
        assert torch.allclose(values.abs().double(), mean, rtol=tolerance, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators(estimator: str | float) -> None:
    diff = normal(64, 32).pow(3)
    power = {"mean": 0.0, "rms": 0.5, "unbiased": 1.0}.get(str(estimator), 0.3)
    _, parts = encode(SignEncoder("tensor", estimator), source_of(diff))
    first, second = diff.double().abs().mean(), diff.double().square().mean()
    expected = float(first * (second / first**2) ** power)
    assert float(parts["scale"][0]) == pytest.approx(expected, rel=2e-5)


def test_unbiased_keeps_the_length_along_the_diff() -> None:
    diff = normal(64, 48) * normal(64, 1, seed=1).exp() * normal(1, 48, seed=2).exp()
    for axis in AXES:
        source = source_of(diff)
        values = decode(*encode(SignEncoder(axis, "unbiased"), source), source.view)
        share = float((values.double() * diff).sum() / diff.double().square().sum())
        assert share == pytest.approx(1, abs=1e-3), axis


def test_error_law_on_gaussian_diffs() -> None:
    diff = normal(512, 512)
    for axis in AXES:
        assert relative_error(SignEncoder(axis), diff) == pytest.approx(0.6028, rel=0.01)
    rest = diff
    for expected in (0.6028, 0.361, 0.242, 0.182):
        source = source_of(rest)
        rest = rest - decode(*encode(SignEncoder(), source), source.view)
        assert float(rest.norm() / diff.norm()) == pytest.approx(expected, rel=0.02)


def test_row_and_column_scales_fit_a_product() -> None:
    outer = normal(96, 1, seed=1).exp() * normal(1, 80, seed=2).exp()
    signs = torch.where(normal(96, 80) < 0, -1.0, 1.0)
    assert relative_error(SignEncoder("row_col"), outer * signs) < 2e-3
    errors = {axis: relative_error(SignEncoder(axis), outer * normal(96, 80)) for axis in AXES}
    assert errors["row_col"] < min(errors["row"], errors["col"]) < errors["tensor"]


def test_published_rule() -> None:
    base, tuned = contract.pair((96, 64), torch.bfloat16)
    diff = tuned - base  # bf16, as the published code takes it
    source = ArraySource(base, tuned, 10)
    codec, parts = encode(SignEncoder(published=True), source)
    bits = np.unpackbits(parts["sign"], axis=1, bitorder="little")
    assert np.array_equal(bits, (~(diff < 0)).numpy())
    published = diff.float().abs().mean()
    assert float(parts["scale"][0]) == pytest.approx(float(published), rel=1e-6)
    rebuilt = (base.float() + decode(codec, parts, source.view)).bfloat16()
    scaled = torch.where(diff < 0, -published, published).bfloat16()
    merged = (base.float() + scaled.float()).bfloat16()
    steps = rebuilt.view(torch.int16).int() - merged.view(torch.int16).int()
    assert int(steps.abs().max()) <= 1


def test_zero_diffs_decode_to_zero() -> None:
    for axis in AXES:
        for estimator in ESTIMATORS:
            source = source_of(torch.zeros(3, 10))
            values = decode(*encode(SignEncoder(axis, estimator), source), source.view)
            assert not values.any()


@pytest.mark.parametrize("magnitude", [1e-30, 1e30, 3e38])
def test_any_magnitude(magnitude: float) -> None:
    diff = normal(32, 40).clamp(-1, 1)
    for axis in AXES:
        for estimator in ESTIMATORS:
            encoder = SignEncoder(axis, estimator)
            expected = relative_error(encoder, diff)
            assert relative_error(encoder, diff * magnitude) == pytest.approx(expected, rel=1e-2)


VIEW = View((2, 3), "BF16")


def test_params_in_the_spec_s_order() -> None:
    assert Sign("row_col", 1, 2).to_params() == {
        "axis": "row_col",
        "row_exponent": 1,
        "col_exponent": 2,
    }
    assert Sign("tensor").to_params() == {"axis": "tensor"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, f'{AT}: wrong params (expected ["axis"], found []) [R24]'),
        (
            {"axis": "row"},
            f'{AT}: wrong params (expected ["axis", "row_exponent"], found ["axis"]) [R24]',
        ),
        (
            {"axis": "rows"},
            f'{AT}.axis: wrong value (expected one of "tensor", "row", "col", "row_col", '
            'found "rows") [R24]',
        ),
        (
            {"axis": "col", "col_exponent": 113},
            f"{AT}.col_exponent: wrong value (expected an integer from -126 to 112, found 113) "
            "[R24]",
        ),
    ],
)
def test_wrong_params(params: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError) as caught:
        Sign.from_params(params, VIEW, AT)
    assert str(caught.value) == message


def test_wrong_content() -> None:
    parts = {"sign": np.zeros((2, 1), np.uint8), "row_scale": np.zeros(2, np.float16)}
    Sign("row").decoder(parts, VIEW, CPU, AT)
    parts["sign"][1] = 0b1000
    with pytest.raises(CodecError) as caught:
        Sign("row").decoder(parts, VIEW, CPU, AT)
    assert str(caught.value) == f"{AT}.sign: padding bits are not zero in run 1 [R25]"
    parts["sign"][1] = 0
    parts["row_scale"][0] = np.nan
    with pytest.raises(CodecError) as caught:
        Sign("row").decoder(parts, VIEW, CPU, AT)
    assert str(caught.value) == f"{AT}.row_scale: number 0 is not finite (found nan) [R26]"


def test_worked_example() -> None:
    """Two rows of three, scales 3·2^-1 and 0: a zero scale is negated as well."""
    parts = {
        "sign": np.array([[0b101], [0b010]], np.uint8),
        "row_scale": np.array([3, 0], np.float16),
    }
    values = decode(Sign("row", row_exponent=-1), parts, VIEW)
    assert values.tolist() == [[1.5, -1.5, 1.5], [0.0, 0.0, 0.0]]
    assert torch.signbit(values[1]).tolist() == [True, False, True]
