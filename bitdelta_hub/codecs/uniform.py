"""Odd integers times a scale a row: the scale of least squared error, and the codes.

Everything is element-wise or summed in fixed order, so the same rows give the same bits anywhere;
`kernels.native.uniform` is the same, operation by operation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bitdelta_hub.codecs.base import Array
from bitdelta_hub.codecs.half import eleven_bits
from bitdelta_hub.codecs.sums import row_sums

# Scale over standard deviation at which Gaussian rows have the least error; the search's start.
GAUSSIAN = {2: 0.498, 3: 0.293, 4: 0.1676, 8: 0.0154}
# The best scale so far is tried times and over each of these; measured within 0.2 % of the error
# of a search over 33 clipping ratios on Gaussian, Laplace, uniform and real diffs, mostly below it.
STEPS = (1.4, 1.18, 1.08, 1.04)
SMALLEST = 2.0**-20
LARGEST_ZERO = 127
# Rows are brought to magnitude 1 by a factor up to this, so that no square leaves fp32's range.
LARGEST_FACTOR = 2.0**126


@dataclass(frozen=True, slots=True)
class Uniform:
    """`codes` uint8 `[m, w]` on the rows' device; `scale` fp64 of 11 bits, `zero` int8 `[m]`."""

    codes: torch.Tensor
    scale: Array
    zero: Array


def quantise(x: torch.Tensor, bits: int, zeros: bool = False, search: bool = True) -> Uniform:
    """Rows of finite fp32 `x` `[m, w]`, w > 0, as `scale · (odd number + zero)`.

    Without `search` the scale covers the whole row. With `zeros` it is fitted about the row's mean
    (its middle without `search`), and `zero` is the nearest integer to that in scales.
    """
    top = x.abs().amax(1, keepdim=True)
    factor = (1 / top).clamp(max=LARGEST_FACTOR)
    y = x * factor
    centre = _centre(y, search) if zeros else torch.zeros_like(top)
    about = y - centre if zeros else y
    fitted = _cover(about, bits)
    if search:
        fitted = _search(about, bits, fitted)
    fitted = torch.maximum(fitted, centre.abs() / LARGEST_ZERO)
    unit = factor.double().cpu().numpy()
    scale = eleven_bits(fitted.double().cpu().numpy() / unit)
    near = torch.from_numpy((scale * unit).astype(np.float32)).to(x.device)
    zero = (centre / near).round().clamp(-LARGEST_ZERO, LARGEST_ZERO)
    codes = _number(y - near * zero if zeros else y, near, bits)
    scale[(top == 0).cpu().numpy()] = 0
    codes = codes.add_(2 ** (bits - 1)).to(torch.uint8)
    return Uniform(codes, scale[:, 0], zero[:, 0].to(torch.int8).cpu().numpy())


def search_constants(bits: int) -> tuple[float, Array, Array]:
    """What the compiled form of `quantise` is told: the start of the search over the standard
    deviation, its steps, and (least scale, largest zero, largest factor)."""
    limits = np.array([SMALLEST, LARGEST_ZERO, LARGEST_FACTOR], np.float32)
    return GAUSSIAN[bits], np.array(STEPS, np.float32), limits


def _centre(y: torch.Tensor, search: bool) -> torch.Tensor:
    if search:
        return torch.div(row_sums(y)[:, None], y.shape[1])
    return torch.add(y.amax(1, keepdim=True), y.amin(1, keepdim=True)).div_(2)


def _cover(y: torch.Tensor, bits: int) -> torch.Tensor:
    """The scale `[m, 1]` whose largest odd number reaches the largest magnitude of a row."""
    return torch.div(y.abs().amax(1, keepdim=True), 2**bits - 1).clamp_(min=SMALLEST)


def _search(y: torch.Tensor, bits: int, cover: torch.Tensor) -> torch.Tensor:
    deviation = _root(row_sums(y * y)[:, None] / y.shape[1])
    scale, error = cover, _error(y, cover, bits)
    gaussian = deviation * GAUSSIAN[bits]
    for trial in (gaussian, _root(gaussian * cover)):
        scale, error = _better(y, bits, cover, trial, scale, error)
    for step in STEPS:
        middle = scale
        for trial in (middle * step, middle / step):
            scale, error = _better(y, bits, cover, trial, scale, error)
    q = _number(y, scale, bits).mul_(2).add_(1)
    refit = row_sums(y * q)[:, None] / row_sums(q * q)[:, None]
    return _better(y, bits, cover, refit, scale, error)[0]


def _root(x: torch.Tensor) -> torch.Tensor:
    """The fp32 square root, rounded rightly: torch's own may be a step off on the CPU."""
    return x.double().sqrt().float()


def _better(
    y: torch.Tensor,
    bits: int,
    cover: torch.Tensor,
    trial: torch.Tensor,
    scale: torch.Tensor,
    error: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The one of scales `trial` and `scale` with less error, row by row, and its error."""
    trial = torch.minimum(trial, cover).clamp(min=SMALLEST)
    new = _error(y, trial, bits)
    return torch.where(new < error, trial, scale), torch.minimum(new, error)


def _number(y: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """The integer t, as fp32, of those of `bits` bits with `scale · (2 t + 1)` nearest to y."""
    half = 2 ** (bits - 1)
    return (y * (0.5 / scale)).floor_().clamp_(-half, half - 1)


def _error(y: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """The squared error `[m, 1]` of a row under each scale."""
    half = 2 ** (bits - 1)
    steps = y * (0.5 / scale)
    off = steps.sub_(steps.floor().clamp_(-half, half - 1)).sub_(0.5)
    return row_sums(off.square_())[:, None] * (2 * scale).square()
