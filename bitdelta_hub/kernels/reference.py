"""The kernels in plain torch, for any device: the oracle. Meaning and shapes stand in `ops`."""

from __future__ import annotations

import torch
from torch.nn.functional import pad


def _bits(values: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` lowest bits of each integer, lowest first, joined along the last axis."""
    places = torch.arange(count, device=values.device, dtype=torch.int32)
    return ((values.to(torch.int32).unsqueeze(-1) >> places) & 1).flatten(-2)


def _numbers(bits: torch.Tensor, count: int) -> torch.Tensor:
    """int32 numbers of `count` bits each, lowest first, from bits along the last axis."""
    places = torch.arange(count, device=bits.device, dtype=torch.int32)
    groups = bits.reshape(*bits.shape[:-1], bits.shape[-1] // count, count)
    return torch.sum(groups << places, -1, dtype=torch.int32)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    stream = _bits(codes, bits)
    return _numbers(pad(stream, (0, -stream.shape[-1] % 8)), 8).to(torch.uint8)


def unpack(packed: torch.Tensor, bits: int, start: int, stop: int) -> torch.Tensor:
    stream = _bits(packed, 8)[..., start * bits : stop * bits]
    return _numbers(stream, bits).to(torch.int32 if bits == 16 else torch.uint8)


def pack_signs(x: torch.Tensor) -> torch.Tensor:
    return pack((~(x < 0)).to(torch.uint8), 1)


def lookup(packed: torch.Tensor, bits: int, cols: int, table: torch.Tensor) -> torch.Tensor:
    return table[unpack(packed, bits, 0, cols).to(torch.int32)]


def take(table: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return table[indices]


def count(indices: torch.Tensor, size: int) -> torch.Tensor:
    return torch.bincount(indices.flatten(), minlength=size)


def odd_numbers(packed: torch.Tensor, bits: int, cols: int) -> torch.Tensor:
    codes = unpack(packed, bits, 0, cols).to(torch.int32)
    return torch.sub(2 * codes, 2**bits - 1).to(torch.float32)


def sign_values(packed: torch.Tensor, cols: int, scale: torch.Tensor) -> torch.Tensor:
    positive = unpack(packed, 1, 0, cols) == 1
    return torch.where(positive, scale, -scale)
