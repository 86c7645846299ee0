"""Dispatch, and the kernels that are built from others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitdelta_hub.kernels import ops, reference

CPU = torch.device("cpu")


def test_to_tensor_shares_writable_memory_and_copies_the_rest() -> None:
    array = np.zeros(3, np.float32)
    ops.to_tensor(array, CPU)[0] = 1
    assert array[0] == 1
    array.flags.writeable = False
    ops.to_tensor(array, CPU)[1] = 1
    assert array[1] == 0


@pytest.mark.parametrize("shape", [(5, 1), (1, 13), (1, 1), (5, 13)])
@pytest.mark.parametrize("zero", [False, True])
def test_sign_values_are_scales_negated_where_the_bit_is_0(
    shape: tuple[int, int], zero: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    packed = ops.pack_signs(torch.randn((5, 13), generator=generator))
    scale = torch.zeros(shape) if zero else torch.randn(shape, generator=generator)
    values = ops.sign_values(packed, 13, scale).contiguous()
    oracle = reference.sign_values(packed, 13, scale).contiguous()
    assert torch.equal(values.view(torch.int32), oracle.view(torch.int32))


def test_count() -> None:
    indices = torch.tensor([[3, 0], [3, 3]], dtype=torch.int32)
    assert ops.count(indices, 5).tolist() == [1, 0, 0, 3, 0]
    assert torch.equal(ops.count(indices, 5), reference.count(indices, 5))


def test_take() -> None:
    table = torch.arange(10, dtype=torch.uint8)
    indices = torch.tensor([[9, 0], [3, 3]], dtype=torch.int32)
    assert torch.equal(ops.take(table, indices), reference.take(table, indices))
