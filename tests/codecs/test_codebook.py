"""`codebook`: the contract, error laws, tables by rows, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bitdelta_hub.codecs.base import View
from bitdelta_hub.codecs.codebook import Codebook, CodebookEncoder
from bitdelta_hub.errors import CodecError
from tests.codecs import contract
from tests.codecs.contract import AT, CPU, check_additive, decode, encode, relative_error, source_of

BLOCKS = {1: 0.6028, 2: 0.373, 4: 0.235, 8: 0.149, 16: 0.096}
LLOYD = {1: 0.6028, 2: 0.3428, 3: 0.1859, 4: 0.0975}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", contract.SHAPES)
@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_contract(bits: int, shape: tuple[int, ...]) -> None:
    base, tuned = contract.pair(shape)
    for rows in (0, 3, 64):
        check_additive(CodebookEncoder(bits, rows=rows), base, tuned)
    check_additive(CodebookEncoder(bits, "magnitude"), base, tuned)


@pytest.mark.parametrize(("blocks", "expected"), BLOCKS.items())
def test_error_law_of_magnitude_blocks(blocks: int, expected: float) -> None:
    encoder = CodebookEncoder(1 + (blocks - 1).bit_length(), "magnitude", blocks=blocks)
    assert relative_error(encoder, normal(512, 512)) == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize(("bits", "expected"), LLOYD.items())
def test_error_law_of_lloyd_max(bits: int, expected: float) -> None:
    assert relative_error(CodebookEncoder(bits), normal(512, 512)) == pytest.approx(
        expected, rel=0.01
    )


def test_blocks_that_are_no_power_of_two() -> None:
    source = source_of(normal(40, 50))
    codec, parts = encode(CodebookEncoder(3, "magnitude", blocks=3), source)
    assert parts["levels"][0, 6:].tolist() == [0, 0]
    assert len(decode(codec, parts, source.view).unique()) == 6


def test_tables_by_rows_follow_the_rows() -> None:
    scale = torch.tensor([1.0, 1, 1, 100, 100]).repeat(2)[:, None]
    diff = (normal(10, 400) * scale).view(2, 5, 400)
    source = source_of(diff)
    codec, parts = encode(CodebookEncoder(2, rows=3), source)
    assert parts["levels"].shape == (4, 4)
    wrong = decode(codec, parts, source.view) - diff
    assert (wrong.norm(dim=2) / diff.norm(dim=2) < 0.45).all()


@pytest.mark.parametrize("magnitude", [1e-30, 1e30, 3e38])
def test_any_magnitude(magnitude: float) -> None:
    diff = normal(32, 40).clamp(-1, 1)
    for encoder in (CodebookEncoder(3), CodebookEncoder(3, "magnitude")):
        expected = relative_error(encoder, diff)
        assert relative_error(encoder, diff * magnitude) == pytest.approx(expected, rel=2e-2)


def test_zero_diffs_decode_to_zero() -> None:
    for fit in ("lloyd", "magnitude"):
        source = source_of(torch.zeros(3, 10))
        assert not decode(*encode(CodebookEncoder(3, fit), source), source.view).any()


def test_worked_example() -> None:
    """Rows of three 3-bit indices; a table for two rows, another for the third."""
    parts = {
        "index": np.array([[0b10001000, 0], [0b11111000, 1], [0b00001000, 0]], np.uint8),
        "levels": np.array([range(8), range(0, 80, 10)], np.float16),
    }
    codec = Codebook(bits=3, rows=2, exponent=-1)
    view = View((3, 3), "BF16")
    assert {name: part.shape for name, part in codec.parts(view).items()} == {
        "index": (3, 2),
        "levels": (2, 8),
    }
    assert decode(codec, parts, view).tolist() == [[0, 0.5, 1], [0, 3.5, 3.5], [0, 5, 0]]


def test_params_in_the_spec_s_order() -> None:
    params = Codebook(3, 2, -4).to_params()
    assert list(params.items()) == [("bits", 3), ("rows", 2), ("exponent", -4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, "bits: wrong value (expected an integer from 1 to 8, found 9)"),
        ({"rows": True}, "rows: wrong value (expected an integer from 0 to 1048576, found true)"),
        (
            {"exponent": None},
            "exponent: wrong value (expected an integer from -126 to 112, found null)",
        ),
    ],
)
def test_wrong_params(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError) as caught:
        Codebook.from_params(Codebook(2).to_params() | change, View((2, 3), "BF16"), AT)
    assert str(caught.value) == f"{AT}.{message} [R24]"


def test_wrong_content() -> None:
    view = View((2, 3), "BF16")
    parts = {"index": np.zeros((2, 1), np.uint8), "levels": np.zeros((1, 4), np.float16)}
    parts["index"][1] = 0b11000000
    with pytest.raises(CodecError) as caught:
        Codebook(2).decoder(parts, view, CPU, AT)
    assert str(caught.value) == f"{AT}.index: padding bits are not zero in run 1 [R25]"
    parts["index"][1] = 0
    parts["levels"][0, 3] = np.nan
    with pytest.raises(CodecError) as caught:
        Codebook(2).decoder(parts, view, CPU, AT)
    assert str(caught.value) == f"{AT}.levels: number 3 is not finite (found nan) [R26]"
