"""Checkpoints made by hand, one file of a few tensors, and deltas between them.

pair = save_pair(tmp_path, {"w": noise(64, 48)}, {"w": moved(noise(64, 48))})
trip = round_trip(tmp_path, pair, recipe="exact")
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import bitdelta_hub
from bitdelta_hub.compress import CompressResult
from bitdelta_hub.format.manifest import Manifest, TensorEntry
from bitdelta_hub.plan import Plan
from bitdelta_hub.verify import VerifyResult

Tensors = dict[str, torch.Tensor]
WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normal random numbers, the same for the same seed and shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def moved(tensor: torch.Tensor, by: float = 0.05, seed: int = 1) -> torch.Tensor:
    """`tensor` with normal noise of standard deviation `by` on top."""
    gap = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    return (tensor.float() + by * gap).to(tensor.dtype)


def save(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """`folder`, a checkpoint of one file and a configuration."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def save_pair(root: Path, base: Tensors, tuned: Tensors, **config: Any) -> tuple[Path, Path]:
    """(base, tuned) folders under `root`."""
    return save(root / "base", base, **config), save(root / "tuned", tuned, **config)


def bits(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The bit patterns of a tensor, flattened; equal where two tensors are the same bit for bit."""
    found: np.ndarray[Any, Any] = (
        tensor.contiguous().flatten().view(WIDTHS[tensor.itemsize]).numpy()
    )
    return found


def content(folder: Path) -> dict[str, bytes]:
    """name -> bytes of every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@dataclass(frozen=True, slots=True)
class Trip:
    """Everything that came of one pair."""

    plan: Plan
    compressed: CompressResult
    verified: VerifyResult
    delta: Path
    out: Path

    @property
    def manifest(self) -> Manifest:
        return self.compressed.manifest

    @property
    def rebuilt(self) -> Tensors:
        return {k: v for path in self.out.glob("*.safetensors") for k, v in load_file(path).items()}

    @property
    def written(self) -> int:
        """Bytes of the shards."""
        return sum(shard.size for shard in self.manifest.shards)

    def entry(self, name: str) -> TensorEntry:
        return self.manifest.tensors[name]

    def codecs(self, name: str) -> list[str]:
        return [term.codec for term in self.entry(name).terms]


def round_trip(root: Path, pair: tuple[Path, Path], **choices: Any) -> Trip:
    """Plans, compresses, rebuilds and compares a (base, tuned) pair under `root`."""
    base, tuned = pair
    pickle = {"allow_pickle": choices["allow_pickle"]} if "allow_pickle" in choices else {}
    planned = bitdelta_hub.plan(tuned, base, **choices)
    compressed = bitdelta_hub.compress(tuned, base, root / "delta", **choices)
    bitdelta_hub.rebuild(root / "delta", root / "out", base=base, **pickle)
    verified = bitdelta_hub.verify(root / "delta", base=base, against=tuned, **pickle)
    return Trip(planned, compressed, verified, root / "delta", root / "out")
