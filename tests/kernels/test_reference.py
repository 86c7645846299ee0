"""The oracle against SPEC section 1, bit by bit."""

from __future__ import annotations

import pytest
import torch

from bitdelta_hub.kernels import reference
from bitdelta_hub.kernels.ops import WIDTHS


def run_of(codes: list[int], bits: int) -> bytes:
    """Bit j of code i is bit i·bits + j of the run."""
    stream = sum(code << (i * bits) for i, code in enumerate(codes))
    return stream.to_bytes(-(-len(codes) * bits // 8), "little")


@pytest.mark.parametrize("bits", WIDTHS)
def test_pack_is_the_spec_s_bit_stream(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    for n in range(66):
        codes = torch.randint(0, 2**bits, (n,), generator=generator, dtype=torch.int32)
        packed = reference.pack(codes, bits)
        assert packed.dtype == torch.uint8
        assert bytes(packed.tolist()) == run_of(codes.tolist(), bits)
        assert torch.equal(reference.unpack(packed, bits, 0, n).to(torch.int32), codes)


def test_signs_worked_example() -> None:
    x = torch.tensor([[1.0, -1.0, 0.0, -0.0, -2.0, 3.0, -1e-45, 1e-45, 5.0]])
    assert reference.pack_signs(x).tolist() == [[0b10101101, 0b00000001]]


def test_a_zero_scale_is_negated_too() -> None:
    values = reference.sign_values(torch.tensor([[0b01]], dtype=torch.uint8), 2, torch.zeros(1, 1))
    assert torch.signbit(values).tolist() == [[False, True]]


def test_odd_numbers_worked_example() -> None:
    packed = reference.pack(torch.tensor([[0, 1, 2, 3]]), 2)
    assert reference.odd_numbers(packed, 2, 4).tolist() == [[-3.0, -1.0, 1.0, 3.0]]
