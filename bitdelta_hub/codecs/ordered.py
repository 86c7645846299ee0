"""Bit patterns as integers that lie in the order of the values they stand for (SPEC 6.9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from bitdelta_hub.codecs.base import NUMPY, Array

# Mantissa bits of the dtypes that have a sign bit, an exponent and a mantissa.
MANTISSA = {"F8_E4M3": 3, "F8_E5M2": 2, "F16": 10, "BF16": 7, "F32": 23, "F64": 52}
CONTEXTS = 256
# F64's exponents are counted from here, so that those of F32's range come out as F32 has them.
F64_OFFSET = 896


@dataclass(frozen=True, slots=True)
class Ordered:
    """How the bit patterns of one dtype are ordered; `mantissa` is None for integers."""

    width: int
    mantissa: int | None

    @classmethod
    def of(cls, dtype: str) -> Self:
        """The order of container dtype `dtype`."""
        return cls(8 * np.dtype(NUMPY[dtype]).itemsize, MANTISSA.get(dtype))

    @property
    def max_shift(self) -> int:
        """The most low bits that are set apart from the 8-bit symbol of a number."""
        spare = self.width - 8
        return spare if self.mantissa is None else min(self.mantissa, spare)

    def contexts(self, base: Array) -> Array:
        """The exponents of `base`, uint8; zeros for integers."""
        if self.mantissa is None:
            return np.zeros(base.shape, np.uint8)
        exponents = base >> self.mantissa
        if self.width == 64:
            exponents &= 0x7FF
            return np.clip(exponents.view(np.int64) - F64_OFFSET, 0, CONTEXTS - 1).astype(np.uint8)
        exponents &= (1 << (self.width - 1 - self.mantissa)) - 1
        return exponents.astype(np.uint8)

    def origin(self, base: Array) -> Array:
        """`base` as signed numbers, mirrored where it is negative, so never below 0 for floats."""
        if self.mantissa is None:
            return base.view(self._signed)
        bits: Array = base & base.dtype.type((1 << (self.width - 1)) - 1)
        return bits.view(self._signed)

    def fold(self, base: Array, tuned: Array) -> Array:
        """`tuned` as signed numbers, mirrored where `base` is negative.

        Neighbouring values are one step apart; zero and its negative are 0 and -1.
        """
        if self.mantissa is None:
            return tuned.view(self._signed)
        return self._mirror((tuned ^ self._sign(base)).view(self._signed))

    def unfold(self, base: Array, numbers: Array) -> Array:
        """The tuned bit patterns that `fold` turned into `numbers`, which are overwritten."""
        if self.mantissa is None:
            return numbers.view(base.dtype)
        bits = self._mirror(numbers).view(base.dtype)
        bits ^= self._sign(base)
        return bits

    @property
    def _signed(self) -> str:
        return f"i{self.width // 8}"

    def _sign(self, base: Array) -> Array:
        bits: Array = base & base.dtype.type(1 << (self.width - 1))
        return bits

    def _mirror(self, numbers: Array) -> Array:
        """Sign and magnitude to two's complement or back: all bits but the sign of negatives."""
        flip = numbers >> (self.width - 1)
        flip &= numbers.dtype.type((1 << (self.width - 1)) - 1)
        numbers ^= flip
        return numbers
