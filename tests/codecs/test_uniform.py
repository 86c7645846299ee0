"""Scales of least squared error, no worse than a search over 33 clipping ratios."""

from __future__ import annotations

import pytest
import torch

from bitdelta_hub.codecs.uniform import Uniform, quantise


def rows(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    normal = torch.randn((64, 512), generator=generator)
    uniform = torch.rand((64, 512), generator=generator)
    if kind == "uniform":
        return 2 * uniform - 1
    if kind == "laplace":
        return normal.sign() * -uniform.clamp(min=1e-6).log()
    if kind == "outliers":
        return normal * torch.where(uniform < 0.002, 30.0, 1.0)
    return normal


def values(coded: Uniform, bits: int) -> torch.Tensor:
    number = 2 * coded.codes.double() - (2**bits - 1)
    zero, scale = torch.from_numpy(coded.zero)[:, None], torch.from_numpy(coded.scale)[:, None]
    return scale * (number + zero)


def error(x: torch.Tensor, coded: Uniform, bits: int) -> float:
    return float((values(coded, bits) - x.double()).norm() / x.double().norm())


def best_of_33(x: torch.Tensor, bits: int) -> float:
    """Each row at the best of 33 clipping ratios from 0.2 to 1."""
    least = torch.full((len(x),), float("inf"), dtype=torch.float64)
    for ratio in torch.linspace(0.2, 1, 33):
        scale = (ratio * x.abs().amax(1, keepdim=True) / 2**bits).double()
        code = ((x / scale + 2**bits) / 2).floor().clamp(0, 2**bits - 1)
        wrong = scale * (2 * code - (2**bits - 1)) - x
        least = torch.minimum(least, wrong.square().sum(1))
    return float((least.sum() / x.double().square().sum()).sqrt())


@pytest.mark.parametrize("kind", ["normal", "uniform", "laplace", "outliers"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_worse_than_a_fine_search(kind: str, bits: int) -> None:
    x = rows(kind)
    assert error(x, quantise(x, bits), bits) <= 1.02 * best_of_33(x, bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_without_search_nothing_is_clipped(bits: int, zeros: bool) -> None:
    x = rows("laplace")
    coded = quantise(x, bits, zeros, search=False)
    scale = torch.from_numpy(coded.scale)[:, None]
    slack = 2.0**-10 * (2**bits + 127 * zeros) + zeros
    assert ((values(coded, bits) - x).abs() <= scale * (1 + slack)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zeros_pay_on_one_sided_rows(bits: int) -> None:
    x = rows("uniform").abs()
    with_zeros = error(x, quantise(x, bits, zeros=True), bits)
    assert with_zeros <= 1.01 * error(x, quantise(x, bits), bits)
    if bits < 8:
        assert with_zeros < 0.6 * error(x, quantise(x, bits), bits)


def test_zero_rows_have_scale_zero() -> None:
    coded = quantise(torch.zeros(2, 9), 4, zeros=True)
    assert coded.scale.tolist() == [0, 0]
    assert coded.zero.tolist() == [0, 0]
    assert coded.codes.unique().tolist() == [8]


@pytest.mark.parametrize("power", [-100, -30, 30, 100])
def test_powers_of_two_change_the_scale_alone(power: int) -> None:
    x = rows("normal")[:8]
    coded, larger = quantise(x, 3), quantise(x * 2.0**power, 3)
    assert torch.equal(coded.codes, larger.codes)
    assert (coded.scale * 2.0**power).tolist() == larger.scale.tolist()
