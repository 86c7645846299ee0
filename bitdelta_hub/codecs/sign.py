"""`sign`: one bit an element and a scale (SPEC 6.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from bitdelta_hub.codecs.base import (
    Adder,
    Allocate,
    Array,
    Decode,
    Params,
    Part,
    Parts,
    Source,
    View,
)
from bitdelta_hub.codecs.content import check_finite, check_padding
from bitdelta_hub.codecs.half import HIGHEST, LOWEST, from_half, to_half
from bitdelta_hub.codecs.params import choice, integer, only_keys
from bitdelta_hub.codecs.sums import (
    ColumnSums,
    fill_moments,
    magnitudes,
    scratch,
    sum_extremes,
    total,
)
from bitdelta_hub.kernels import compiled
from bitdelta_hub.kernels.ops import add_signed, is_compilable, pack_signs, signed, to_tensor

AXES = ("tensor", "row", "col", "row_col")
# axis -> its half parts
SCALES = {"tensor": (), "row": ("row",), "col": ("col",), "row_col": ("row", "col")}
# With m1 = mean |d| and m2 = mean d², the scale is m1 · (m2 / m1²)^p: `mean` has the least squared
# error, `unbiased` the projection 1 on the diff, `rms` the diff's length.
POWERS = {"mean": 0.0, "rms": 0.5, "unbiased": 1.0}
POWER_BITS = 32
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Sign:
    """A scale, negated where the bit is 0."""

    name: ClassVar[str] = "sign"

    axis: str
    row_exponent: int = 0
    col_exponent: int = 0

    def to_params(self) -> Params:
        exponents = {"row": self.row_exponent, "col": self.col_exponent}
        return {"axis": self.axis} | {f"{s}_exponent": exponents[s] for s in SCALES[self.axis]}

    @classmethod
    def from_params(cls, params: Mapping[str, Any], view: View, at: str) -> Self:
        axis = choice(params, "axis", AXES, at) if "axis" in params else "tensor"
        exponents = tuple(f"{scale}_exponent" for scale in SCALES[axis])
        only_keys(params, ("axis", *exponents), at)
        return cls(axis, **{key: integer(params, key, LOWEST, HIGHEST, at) for key in exponents})

    def parts(self, view: View) -> dict[str, Part]:
        parts = {"sign": Part("U8", (view.total_rows, -(-view.cols // 8)))}
        if self.axis == "tensor":
            parts["scale"] = Part("F32", (view.batch,))
        if "row" in SCALES[self.axis]:
            parts["row_scale"] = Part("F16", (view.total_rows,))
        if "col" in SCALES[self.axis]:
            parts["col_scale"] = Part("F16", (view.batch, view.cols))
        return parts

    def decoder(self, parts: Parts, view: View, device: torch.device, at: str) -> Decode:
        sign = parts["sign"]
        check_padding(sign, view.cols, f"{at}.sign")
        for part in parts:
            if part != "sign":
                check_finite(parts[part], f"{at}.{part}")
        return _SignDecoder(view, sign, *self._scales(parts, view, device))

    def _scales(
        self, parts: Parts, view: View, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 scales of rows `[M | 1]` and of columns or matrices `[B, C | 1]`."""
        rows = torch.ones(1, device=device)
        cols = rows.expand(view.batch, 1)
        if "scale" in parts:
            cols = to_tensor(parts["scale"][:, None], device)
        if "row_scale" in parts:
            rows = to_tensor(from_half(parts["row_scale"], self.row_exponent), device)
        if "col_scale" in parts:
            cols = to_tensor(from_half(parts["col_scale"], self.col_exponent), device)
        return rows, cols


class _SignDecoder(Adder):
    def __init__(self, view: View, sign: Array, rows: torch.Tensor, cols: torch.Tensor) -> None:
        """`rows` `[M | 1]` and `cols` `[B, C | 1]` as `Sign._scales` gives them."""
        self._view = view
        self._sign = sign
        self._rows = rows
        self._cols = cols
        self._buffer = torch.empty((0, view.cols), device=rows.device)

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        if len(self._buffer) < stop - start:
            self._buffer = torch.empty((stop - start, self._view.cols), device=self._rows.device)
        for packed, row, col, at in self._matrices(start, stop):
            signed(packed, row, col, self._buffer[at])
        return self._buffer[: stop - start]

    def add(
        self, start: int, stop: int, left: torch.Tensor, out: torch.Tensor, negate: bool
    ) -> None:
        for packed, row, col, at in self._matrices(start, stop):
            # The product of a negated scale is the negated product.
            add_signed(left[at], packed, -row if negate else row, col, out[at])

    def _matrices(
        self, start: int, stop: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, slice]]:
        """(runs, scales of rows, scales of columns, where among rows start..stop) by matrix."""
        for matrix, first, last in self._view.matrices(start, stop):
            packed = to_tensor(self._sign[first:last], self._rows.device)
            row = self._rows[first:last] if len(self._rows) > 1 else self._rows
            yield packed, row, self._cols[matrix], slice(first - start, last - start)


@dataclass(frozen=True, slots=True)
class SignEncoder:
    """Signs, and scales on `axis` by `estimator`: `mean`, `rms`, `unbiased`, or the power p itself.

    `published` takes the diff as the published code does: rounded to bf16 first.
    """

    codec: ClassVar[str] = "sign"

    axis: str = "tensor"
    estimator: str | float = "mean"
    published: bool = False

    def describe(self) -> str:
        return f"sign {self.axis} {self.estimator}"

    def predict(self, view: View) -> dict[str, Part] | None:
        return Sign(self.axis).parts(view)

    def encode(self, source: Source, allocate: Allocate) -> Sign:
        view = source.view
        arrays = allocate(Sign(self.axis))
        sums = _Sums(view, self._power != 0, by_columns="col" in SCALES[self.axis])
        for start, diff in source.diff():
            packed = arrays["sign"][start : start + len(diff)]
            sums.add_columns(_pack(diff, self.published, packed, *sums.rows(start, len(diff))))
        if self.axis == "tensor":
            arrays["scale"][:] = self._fit(sums.of_matrices(), view.rows * view.cols)
            return Sign(self.axis)
        if self.axis == "row":
            arrays["row_scale"][:], exponent = to_half(self._fit(sums.of_rows(), view.cols))
            return Sign(self.axis, row_exponent=exponent)
        if self.axis == "col":
            scale = self._fit(sums.of_columns(), view.rows)
            arrays["col_scale"][:], exponent = to_half(scale)
            return Sign(self.axis, col_exponent=exponent)
        return self._fit_both(source, sums, arrays)

    def _fit_both(self, source: Source, sums: _Sums, arrays: dict[str, Array]) -> Sign:
        """Columns by their mean magnitude, then rows fitted to these columns as stored."""
        view = source.view
        first, _ = sums.of_columns()
        mean = np.array([total(matrix) for matrix in first]) / max(view.cols, 1)
        share = _ratio(first, mean[:, None])
        arrays["col_scale"][:], col_exponent = to_half(share)
        cols = from_half(arrays["col_scale"], col_exponent)
        weight = np.array([total(matrix) for matrix in np.square(cols, dtype=np.float64)])
        weighted = _Sums(view, squares=False)
        on_device = to_tensor(cols, source.device).double()
        for start, diff in source.diff():
            x = (_as_bf16(diff) if self.published else diff).double()
            for matrix, a, b in view.matrices(start, start + len(x)):
                x[a - start : b - start] *= on_device[matrix]
            weighted.rows(start, len(x))[0][:] = magnitudes(x, squares=False)[0]
        moments = np.stack([weighted.of_rows()[0], sums.of_rows()[1]])
        scale = self._fit(moments, np.repeat(weight, view.rows))
        arrays["row_scale"][:], row_exponent = to_half(scale)
        return Sign(self.axis, row_exponent, col_exponent)

    @property
    def _power(self) -> float:
        return POWERS[self.estimator] if isinstance(self.estimator, str) else self.estimator

    def _fit(self, moments: Array, weight: Array | float) -> Array:
        """The scales from (Σ |d|c, Σ d²) and Σ c² over what each is the scale of (c = 1 alone)."""
        first, second = moments
        mean = _ratio(first, weight)
        if self._power:
            mean *= _power(_ratio(_ratio(second, first) * weight, first), self._power)
        return np.minimum(mean, LARGEST)


def _pack(
    x: torch.Tensor, published: bool, packed: Array, first: Array, second: Array
) -> torch.Tensor:
    """Fills the runs of the signs of fp32 `x`, and the sums of magnitudes and, unless `second` is
    empty, of squares of its rows; gives `x` itself, or what was `published`, its rounding to bf16.
    """
    native = compiled() if is_compilable(x) else None
    if native:
        memory = scratch(x.shape[1] // 2)
        native.encode_signs(x.numpy(), published, packed, memory, first, second)
    else:
        x = _as_bf16(x) if published else x
        packed[:] = pack_signs(x).cpu().numpy()
        fill_moments(x, first, second)
    sum_extremes(x, first, second)
    return x


def _as_bf16(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


class _Sums:
    """Σ |d| and Σ d² of rows, and of columns where asked for."""

    def __init__(self, view: View, squares: bool, by_columns: bool = False) -> None:
        self._view = view
        self._squares = squares
        self._rows = np.zeros((2, view.total_rows))
        self._columns = [ColumnSums(view.rows) for _ in range(2 * by_columns)]

    def rows(self, start: int, count: int) -> tuple[Array, Array]:
        """Where both sums of these rows are to be put; the second is empty if not wanted."""
        first, second = self._rows[:, start : start + count]
        return first, second if self._squares else second[:0]

    def add_columns(self, x: torch.Tensor) -> None:
        """Takes the next rows."""
        if self._columns:
            wide = x.abs().double()  # squares of any fp32 number fit
            self._columns[0].add(wide)
            if self._squares:
                self._columns[1].add(wide * wide)

    def of_rows(self) -> Array:
        return self._rows

    def of_matrices(self) -> Array:
        by_matrix = self._rows.reshape(2, self._view.batch, self._view.rows)
        return np.array([[total(rows) for rows in moment] for moment in by_matrix])

    def of_columns(self) -> Array:
        sums = np.zeros((2, self._view.batch, self._view.cols))
        for moment, columns in zip(sums, self._columns, strict=True):
            for matrix, values in enumerate(columns.sums()):
                moment[matrix] = values.cpu().numpy()
        return sums


def _ratio(a: Array, b: Array | float) -> Array:
    """a / b, and 0 where b is 0."""
    b = np.broadcast_to(np.asarray(b, np.float64), a.shape)
    ratio: Array = np.divide(a, b, out=np.zeros(a.shape), where=b != 0)
    return ratio


def _power(x: Array, p: float) -> Array:
    """x^p for p from 0 to 1, by square roots alone: the same bits whatever the maths library."""
    assert 0 <= p <= 1
    result, root = np.ones_like(x), x
    if p == 1:
        return x
    for place in range(1, POWER_BITS + 1):
        root = np.sqrt(root)
        if int(p * 2**place) % 2:
            result = result * root
    return result
