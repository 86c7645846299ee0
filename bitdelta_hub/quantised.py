"""Recognises checkpoints that were saved quantised, by tensor suffixes, dtypes and config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bitdelta_hub.checkpoint import Checkpoint

# Suffix that nothing else writes -> who does. AWQ shares GPTQ's; the config tells them apart.
_SUFFIXES = {
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": "gptq",
    ".qzeros": "gptq",
    ".weight_packed": "compressed-tensors",
    ".W_q": "hqq",
    "_blocks": "mxfp4",
}
# Methods whose stored values are kept exactly, whatever they mean.
_KEPT = {"fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4"}
_SCALES = ("_scale", "_scale_inv")
# Weights as numbers, and the masks and positions that some models store beside them.
_PLAIN = ("F16", "BF16", "F32", "F64", "BOOL", "I64")


@dataclass(frozen=True, slots=True)
class Quantised:
    """How a checkpoint is quantised: the method, and one tensor and its dtype as evidence.

    `packed` is set where a tensor holds codes of several weights, `known` where its values are
    understood well enough to be kept or refused by name.
    """

    method: str
    tensor: str
    dtype: str
    packed: bool
    known: bool


def quantised(checkpoint: Checkpoint) -> Quantised | None:
    """How `checkpoint` is quantised; None where its weights are floats of 16 bits or more."""
    method = quant_method(checkpoint.config)
    for name, info in checkpoint.tensors.items():
        for suffix, writer in _SUFFIXES.items():
            if name.endswith(suffix) and (writer != "mxfp4" or _has_scales(checkpoint, name)):
                shown = method if method and writer != "mxfp4" else writer
                return Quantised(shown, name, info.dtype, packed=True, known=True)
    for name, info in checkpoint.tensors.items():
        if len(info.shape) < 2 or info.dtype in _PLAIN or not (method or name.endswith("weight")):
            continue
        scaled = any(name + suffix in checkpoint.tensors for suffix in _SCALES)
        eight = info.dtype in ("F8_E4M3", "F8_E5M2")
        known = method in _KEPT or (not method and eight and scaled)
        return Quantised(method or ("fp8" if eight else "none"), name, info.dtype, False, known)
    return None


def quant_method(config: dict[str, Any]) -> str:
    """The `quant_method` that `config` names, empty if none."""
    for holder in (config, config.get("text_config")):
        stated = holder.get("quantization_config") if isinstance(holder, dict) else None
        if isinstance(stated, dict):
            return str(stated.get("quant_method", ""))
    return ""


def _has_scales(checkpoint: Checkpoint, name: str) -> bool:
    return name.removesuffix("_blocks") + "_scales" in checkpoint.tensors
