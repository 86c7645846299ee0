"""Checks on the content of stored parts that several codecs share (SPEC R25, R26)."""

from __future__ import annotations

import numpy as np

from bitdelta_hub.codecs.base import Array
from bitdelta_hub.errors import CodecError


def check_padding(packed: Array, bits: int, at: str) -> None:
    """Returns if every run `[..., bytes]` of `bits` used bits is padded with zeros.

    Raises CodecError (R25) at `at` with the first run that is not.
    """
    used = bits % 8
    if not used or packed.size == 0:
        return
    bad = np.flatnonzero(packed[..., -1] >> used)
    if len(bad):
        raise CodecError(f"padding bits are not zero in run {bad[0]}", rule="R25", at=at)


def check_finite(scale: Array, at: str) -> None:
    """Returns if every number of `scale` is finite; raises CodecError (R26) at `at` otherwise."""
    bad = np.flatnonzero(~np.isfinite(scale))
    if len(bad):
        value = scale.reshape(-1)[bad[0]]
        raise CodecError(f"number {bad[0]} is not finite (found {value})", rule="R26", at=at)
