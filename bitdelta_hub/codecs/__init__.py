"""The codecs of `bitdelta/1`: a tensor's diff to named parts and back (SPEC section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitdelta_hub.codecs.base import Codec, View
from bitdelta_hub.codecs.codebook import Codebook
from bitdelta_hub.codecs.int import Int
from bitdelta_hub.codecs.lowrank import LowRank
from bitdelta_hub.codecs.params import shown
from bitdelta_hub.codecs.patch import Patch
from bitdelta_hub.codecs.raw import Raw
from bitdelta_hub.codecs.rows import Rows
from bitdelta_hub.codecs.sign import Sign
from bitdelta_hub.codecs.sparse import Sparse
from bitdelta_hub.codecs.steps import Steps
from bitdelta_hub.errors import VersionError

CODECS: dict[str, type[Codec]] = {
    "sign": Sign,
    "int": Int,
    "codebook": Codebook,
    "lowrank": LowRank,
    "sparse": Sparse,
    "raw": Raw,
    "rows": Rows,
    "patch": Patch,
    "steps": Steps,
}


def codec_from(name: str, params: Mapping[str, Any], view: View, at: str) -> Codec:
    """The codec that `name` and `params` describe for a tensor seen as `view`.

    Raises VersionError (R19) for an unknown name, CodecError (R24) for wrong params, at place `at`.
    """
    if name not in CODECS:
        known = ", ".join(CODECS)
        found = shown(name)
        raise VersionError(
            f"unknown codec (expected one of {known}, found {found})",
            rule="R19",
            at=at,
            fix="install a newer bitdelta_hub that knows this codec",
        )
    return CODECS[name].from_params(params, view, at)
