"""Writes a synthetic pair of Llama-like bf16 checkpoints at about the speed of the disk.

    python benchmarks/models.py FOLDER --gigabytes 1

Weights are windows of one fixed pool of random numbers, tuned weights the same windows of the pool
plus noise of a tenth of its size, so that making a pair costs no more than writing it. The pool is
larger than any window a compressor looks back on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch

POOL = 1 << 25
MAX_SHARD = 1_000_000_000
Shapes = dict[str, tuple[int, ...]]


def config(gigabytes: float) -> dict[str, object]:
    """A Llama configuration of about `gigabytes` decimal gigabytes in bf16, of a usual width."""
    weights = gigabytes * 1e9 / 2
    width = next(
        w for w, limit in ((512, 0.1), (1024, 0.5), (2048, 3), (4096, 1e9)) if gigabytes < limit
    )
    vocabulary = 8 * width
    inner = width * 11 // 4 // 64 * 64
    layer = width * (2 * width + width // 2 + 3 * inner)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": max(1, round((weights - 2 * vocabulary * width) / layer)),
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 256,
        "head_dim": 64,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }


def shapes(settings: dict[str, object]) -> Shapes:
    """Every tensor of the model, in file order."""
    width, inner = int(settings["hidden_size"]), int(settings["intermediate_size"])
    narrow, vocabulary = width // 4, int(settings["vocab_size"])
    found: Shapes = {"model.embed_tokens.weight": (vocabulary, width)}
    for number in range(int(settings["num_hidden_layers"])):
        at = f"model.layers.{number}"
        found |= {
            f"{at}.input_layernorm.weight": (width,),
            f"{at}.self_attn.q_proj.weight": (width, width),
            f"{at}.self_attn.k_proj.weight": (narrow, width),
            f"{at}.self_attn.v_proj.weight": (narrow, width),
            f"{at}.self_attn.o_proj.weight": (width, width),
            f"{at}.post_attention_layernorm.weight": (width,),
            f"{at}.mlp.gate_proj.weight": (inner, width),
            f"{at}.mlp.up_proj.weight": (inner, width),
            f"{at}.mlp.down_proj.weight": (width, inner),
        }
    return found | {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def shards(tensors: Shapes) -> list[Shapes]:
    """`tensors` cut into files of at most MAX_SHARD bytes."""
    cut: list[Shapes] = [{}]
    size = 0
    for name, shape in tensors.items():
        size += 2 * prod(shape)
        if size > MAX_SHARD and cut[-1]:
            cut.append({})
            size = 2 * prod(shape)
        cut[-1][name] = shape
    return cut


def pools() -> tuple[np.ndarray, np.ndarray]:
    """Bit patterns of the base's and the tuned weights' random numbers."""
    random = np.random.default_rng(0)
    base = torch.from_numpy(random.standard_normal(POOL, np.float32)).mul_(0.02).bfloat16()
    noise = torch.from_numpy(random.standard_normal(POOL, np.float32)).mul_(0.002)
    tuned = (base.float() + noise).bfloat16()
    return base.view(torch.uint16).numpy(), tuned.view(torch.uint16).numpy()


def windows(pool: np.ndarray, start: int, count: int) -> Iterator[np.ndarray]:
    """`count` numbers of the endless repetition of `pool`, from place `start` on."""
    while count:
        at = start % POOL
        window = pool[at : at + count]
        yield window
        start += len(window)
        count -= len(window)


def write_checkpoint(folder: Path, settings: dict[str, object], pool: np.ndarray) -> None:
    """Writes config, shards and, where there are several, their index into `folder`."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    cut = shards(shapes(settings))
    index: dict[str, str] = {}
    start = 0
    for number, tensors in enumerate(cut, 1):
        one = len(cut) == 1
        name = "model.safetensors" if one else f"model-{number:05}-of-{len(cut):05}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor, shape in tensors.items():
            offsets = [end, end := end + 2 * prod(shape)]
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for window in windows(pool, start, end // 2):
                file.write(window.data)
        start += end // 2
        index |= dict.fromkeys(tensors, name)
    if len(cut) > 1:
        table = {"metadata": {"total_size": 2 * start}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(table))


def write_pair(folder: Path, gigabytes: float) -> tuple[Path, Path]:
    """The folders of a base and a tuned checkpoint, written unless they are there."""
    settings = config(gigabytes)
    pair = folder / "base", folder / "tuned"
    for path, pool in zip(pair, pools(), strict=True):
        if not path.is_dir():
            write_checkpoint(path, settings, pool)
    return pair


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    print(*write_pair(arguments.folder, arguments.gigabytes))
