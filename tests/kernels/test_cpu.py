"""The CPU kernels against the oracle, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitdelta_hub.kernels import cpu, reference
from bitdelta_hub.kernels.ops import WIDTHS


def codes_of(bits: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(bits)
    dtype = torch.int32 if bits == 16 else torch.uint8
    return torch.randint(0, 2**bits, shape, generator=generator).to(dtype)


def same(mine: object, oracle: torch.Tensor) -> bool:
    tensor = torch.as_tensor(mine)
    return tensor.dtype == oracle.dtype and torch.equal(tensor, oracle)


@pytest.mark.parametrize("bits", WIDTHS)
def test_pack_and_unpack_at_every_length(bits: int) -> None:
    for n in range(66):
        codes = codes_of(bits, 3, n)
        packed = reference.pack(codes, bits)
        assert same(cpu.pack(codes.numpy(), bits), packed)
        assert same(cpu.unpack(packed.numpy(), bits, 0, n), codes)


@given(st.sampled_from(WIDTHS), st.data())
def test_unpack_any_stretch(bits: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 130))
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    codes = codes_of(bits, 2, n)
    packed = reference.pack(codes, bits)
    assert same(cpu.unpack(packed.numpy(), bits, start, stop), codes[:, start:stop])
    assert torch.equal(reference.unpack(packed, bits, start, stop), codes[:, start:stop])


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (0,)])
def test_any_leading_axes(bits: int, shape: tuple[int, ...]) -> None:
    codes = codes_of(bits, *shape, 13)
    packed = cpu.pack(codes.numpy(), bits)
    assert packed.shape == (*shape, -(-13 * bits // 8))
    assert same(cpu.unpack(packed, bits, 2, 11), codes[..., 2:11])


@pytest.mark.parametrize("bits", WIDTHS)
def test_views_with_strides(bits: int) -> None:
    codes = codes_of(bits, 4, 60)[::2, 3:50]
    packed = reference.pack(codes, bits)
    assert same(cpu.pack(codes.numpy(), bits), packed)
    wide = torch.full((2, packed.shape[1] + 5), 0xAA, dtype=torch.uint8)
    wide[:, 2:-3] = packed
    assert same(cpu.unpack(wide[:, 2:-3].numpy(), bits, 0, 47), codes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_lookup_and_odd_numbers(bits: int) -> None:
    table = torch.randn(2**bits)
    for n in (0, 1, 7, 8, 9, 64, 65):
        packed = reference.pack(codes_of(bits, 3, n), bits)
        found = cpu.lookup(packed.numpy(), bits, n, table.numpy())
        assert same(found, reference.lookup(packed, bits, n, table))
        found = cpu.odd_numbers(packed.numpy(), bits, n)
        assert same(found, reference.odd_numbers(packed, bits, n))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40))
def test_signs(row: list[float]) -> None:
    x = torch.tensor([row, row[::-1]], dtype=torch.float32)
    assert same(cpu.pack_signs(x.numpy()), reference.pack_signs(x))
