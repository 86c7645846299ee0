"""Checks on stored content: whole messages (R25, R26)."""

from __future__ import annotations

import numpy as np
import pytest

from bitdelta_hub.codecs.content import check_finite, check_padding
from bitdelta_hub.errors import CodecError


def test_padding() -> None:
    packed = np.array([[0xFF, 0x07], [0xFF, 0x08]], np.uint8)
    check_padding(packed, 16, "w.sign")
    check_padding(packed, 12, "w.sign")
    check_padding(packed[:1], 11, "w.sign")
    check_padding(packed[:, :0], 3, "w.sign")
    with pytest.raises(CodecError) as caught:
        check_padding(packed, 11, "w.sign")
    assert str(caught.value) == "w.sign: padding bits are not zero in run 1 [R25]"


def test_finite() -> None:
    scale = np.array([[1, -2], [np.inf, np.nan]], np.float16)
    check_finite(scale[:1], "w.scale")
    with pytest.raises(CodecError) as caught:
        check_finite(scale, "w.scale")
    assert str(caught.value) == "w.scale: number 2 is not finite (found inf) [R26]"
