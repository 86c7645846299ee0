"""The hot loops behind codecs and runtimes: what each means, for any device.

A *run* is SPEC section 1's bit stream of codes: bit j of code i is bit i·bits + j of the run, bit k
of the run is bit k mod 8 (0 = least significant) of its byte k div 8, and the rest of the last byte
is zero. Packed arrays are uint8 with one run along the last axis; leading axes are free.

On the CPU numpy loops run, elsewhere the plain torch of `reference`, with the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bitdelta_hub.kernels import compiled, cpu, reference

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16)


def to_tensor(
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], device: torch.device
) -> torch.Tensor:
    """`array` as a tensor on `device`; shares memory where it is writable and already there."""
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Runs uint8 `[..., ceil(n·bits/8)]` of `codes` `[..., n]`, integers below 2^bits.

    for i, j: bit i·bits + j of run = bit j of codes[..., i]
    `bits` is 1 to 8 (codes uint8) or 16 (codes int32).
    """
    if codes.device.type == "cpu":
        return torch.from_numpy(cpu.pack(codes.numpy(), bits))
    return reference.pack(codes, bits)


def unpack(packed: torch.Tensor, bits: int, start: int, stop: int) -> torch.Tensor:
    """Codes start..stop of each run, `[..., stop - start]`: uint8, or int32 for 16 bits.

    for i in start..stop, j: bit j of codes[..., i - start] = bit i·bits + j of run
    Of 8 bits the codes may share memory with `packed`.
    """
    native = compiled() if _are_runs(packed) and bits < 8 and start == 0 else None
    if native:
        codes = np.empty((len(packed), stop), np.uint8)
        native.unpack(packed.numpy(), bits, codes)
        return torch.from_numpy(codes)
    if packed.device.type == "cpu":
        return torch.from_numpy(cpu.unpack(packed.numpy(), bits, start, stop))
    return reference.unpack(packed, bits, start, stop)


def pack_signs(x: torch.Tensor) -> torch.Tensor:
    """Runs uint8 `[r, ceil(c/8)]` of the signs of finite fp32 `x` `[r, c]`.

    bit j of run i = not x[i, j] < 0
    """
    if x.device.type == "cpu":
        return torch.from_numpy(cpu.pack_signs(x.numpy()))
    return reference.pack_signs(x)


def add(left: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> None:
    """Fills `out` from `left`, both of a float dtype, and fp32 `values`, all of one shape.

    out[i] = fp32(left[i]) + values[i], rounded to fp32 and then to the dtype of `out`
    `out` may be `left` where that is fp32.
    """
    native = compiled() if is_compilable(values) and _are_bits(left, out) else None
    if native:
        native.add(values.view(-1).numpy(), *_bits(left), *_bits(out))
    elif out.dtype == torch.float32:
        torch.add(left, values, out=out)
    else:
        out.copy_(torch.add(left, values))


def add_signed(
    left: torch.Tensor,
    packed: torch.Tensor,
    row: torch.Tensor,
    col: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Fills `out` `[r, c]` from `left` and what `signed` gives for the rest.

    out[i, j] = fp32(left[i, j]) + signed[i, j], rounded to fp32 and then to the dtype of `out`
    """
    native = compiled() if packed.is_contiguous() and _are_bits(left, out) else None
    if native:
        parts = packed.numpy(), row.numpy(), col.numpy()
        native.add_signed(out.shape[1], *parts, *_bits(left), *_bits(out))
    else:
        add(left, sign_values(packed, out.shape[1], row[:, None] * col), out)


_NONE = np.empty(0, np.uint16), np.empty(0, np.float32)


def _are_bits(*tensors: torch.Tensor) -> bool:
    """Whether `_bits` takes them: contiguous bf16 or fp32 on the CPU, none of them empty."""
    return all(
        x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.is_contiguous()
        and x.numel()
        for x in tensors
    )


def _bits(
    x: torch.Tensor,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The flat memory of `x` as the compiled loops take it: bit patterns of bf16, or fp32."""
    flat = x.view(-1)
    if x.dtype == torch.float32:
        return _NONE[0], flat.numpy()
    return flat.view(torch.int16).numpy().view(np.uint16), _NONE[1]


def is_compilable(x: torch.Tensor) -> bool:
    """Whether the compiled loops take `x`: contiguous fp32 on the CPU."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()


def _are_runs(packed: torch.Tensor) -> bool:
    """Whether the compiled loops take these runs."""
    return packed.device.type == "cpu" and packed.dim() == 2 and packed.is_contiguous()


def lookup(packed: torch.Tensor, bits: int, cols: int, table: torch.Tensor) -> torch.Tensor:
    """fp32 `[..., cols]`, the entry of fp32 `table` `[2^bits]` at each code; bits 1 to 8.

    out[..., j] = table[code j of run]
    """
    # Where codes do not straddle bytes, numpy looks whole bytes up, which is faster.
    straddling = bits not in (1, 2, 4)
    native = compiled() if straddling and _are_runs(packed) and packed.numel() else None
    if native:
        out = torch.empty((len(packed), cols))
        native.lookup(packed.numpy(), bits, table.contiguous().numpy(), out.numpy())
        return out
    if packed.device.type == "cpu":
        return torch.from_numpy(cpu.lookup(packed.numpy(), bits, cols, table.numpy()))
    return reference.lookup(packed, bits, cols, table)


def take(table: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """`table` `[n]` at int32 `indices` of any shape, each from 0 to n - 1.

    out[...] = table[indices[...]]
    """
    if indices.device.type == "cpu":
        return torch.from_numpy(cpu.take(table.numpy(), indices.numpy()))
    return reference.take(table, indices)


def count(indices: torch.Tensor, size: int) -> torch.Tensor:
    """int64 `[size]`, how often each number from 0 to size - 1 stands in int32 `indices`.

    for i in indices: out[i] += 1
    """
    if indices.device.type == "cpu":
        return torch.from_numpy(cpu.count(indices.numpy(), size))
    return reference.count(indices, size)


def odd_numbers(packed: torch.Tensor, bits: int, cols: int) -> torch.Tensor:
    """fp32 `[..., cols]`, the odd numbers for which integer codes stand (SPEC section 6).

    out[..., j] = 2 · code j of run - (2^bits - 1)
    """
    if packed.device.type == "cpu":
        return torch.from_numpy(cpu.odd_numbers(packed.numpy(), bits, cols))
    return reference.odd_numbers(packed, bits, cols)


def signed(
    packed: torch.Tensor, row: torch.Tensor, col: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Fills and gives fp32 `out` `[r, c]` from fp32 `row` `[r | 1]` and `col` `[c | 1]`.

    out[i, j] = row[i] · col[j] if bit j of packed run i else -(row[i] · col[j])
    """
    native = compiled() if is_compilable(out) and packed.is_contiguous() and out.numel() else None
    if native:
        parts = packed.numpy(), row.numpy(), col.numpy()
        native.add_signed(out.shape[1], *parts, *_NONE, *_bits(out))
        return out
    return out.copy_(sign_values(packed, out.shape[1], row[:, None] * col))


def sign_values(packed: torch.Tensor, cols: int, scale: torch.Tensor) -> torch.Tensor:
    """fp32 `[r, cols]`: fp32 `scale` `[r | 1, cols | 1]`, negated where the bit is 0.

    out[i, j] = scale[i, j] if bit j of run i else -scale[i, j]
    """
    unit = scale.view(1) if scale.numel() == 1 else torch.ones(1, device=scale.device)
    values = lookup(packed, 1, cols, torch.cat([-unit, unit]))
    return values if scale.numel() == 1 else values.mul_(scale)
