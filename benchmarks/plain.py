"""BitDelta in the fewest lines of torch, whole tensors one by one: what we compare with."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

WEIGHTS = 2 ** torch.arange(8, dtype=torch.uint8)


def pack(signs: torch.Tensor) -> torch.Tensor:
    """Eight signs a byte, `[rows, cols / 8]`."""
    return (signs.view(*signs.shape[:-1], -1, 8) * WEIGHTS).sum(-1, dtype=torch.uint8)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """+1 or -1 in fp32, `[rows, cols]`."""
    bits = packed.unsqueeze(-1) & WEIGHTS
    return (bits != 0).float().mul_(2).sub_(1).flatten(-2)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, mapped."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file itself is no iterable
    return found


def compress(tuned: Path, base: Path, out: Path) -> None:
    """Writes signs and mean magnitude of every matrix, everything else whole."""
    ours, theirs, parts = tensors(tuned), tensors(base), {}
    for name, tensor in ours.items():
        if tensor.ndim < 2:
            parts[name] = tensor
            continue
        diff = tensor.float() - theirs[name].float()
        parts[f"{name}.sign"] = pack(diff >= 0)
        parts[f"{name}.scale"] = diff.abs().mean()
    out.mkdir()
    save_file(parts, out / "delta.safetensors")


def rebuild(delta: Path, base: Path, out: Path) -> None:
    """Writes the checkpoint that `compress` stored."""
    parts, built = tensors(delta), {}
    for name, tensor in tensors(base).items():
        if f"{name}.sign" in parts:
            diff = unpack(parts[f"{name}.sign"]) * parts[f"{name}.scale"]
            built[name] = (tensor.float() + diff).to(tensor.dtype)
        else:
            built[name] = parts[name]
    out.mkdir()
    save_file(built, out / "model.safetensors")
