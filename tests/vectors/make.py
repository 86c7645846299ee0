"""Writes the valid vectors that are not there yet: `python -m tests.vectors.make` from the root.

A vector that exists is never written again: what is stored is what every release must read.
Hand-made ones take their digests from the second reader. Those of `compress` keep the call beside
them and are compressed again by the tests while `same_bytes` says so: where a release chooses other
terms on purpose, that becomes false, and nothing else changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bitdelta_hub import compress
from tests.vectors.build import HERE, Maker, bits_of, expect, write_safetensors
from tests.vectors.terms import codecs, exact
from tests.vectors.wholes import CASES

CALLS: dict[str, dict[str, Any]] = {
    "bitdelta": {"recipe": "bitdelta"},
    "bitdelta-col": {"recipe": "bitdelta", "scale": "col"},
    "bitdelta-row_col": {"recipe": "bitdelta", "scale": "row_col", "estimator": "rms"},
    "bitdelta-3": {"recipe": "bitdelta-3"},
    "row1": {"recipe": "row1"},
    "magnitude-3": {"recipe": "magnitude-3"},
    "int2": {"recipe": "int2"},
    "int4": {"recipe": "int4"},
    "dare": {"recipe": "dare"},
    "topk": {"recipe": "topk"},
    "embeddings-exact": {
        "recipe": "row1",
        "embeddings": "exact",
        "keep": ["*down*"],
        "skip": ["*up*"],
    },
    "two-shards": {"recipe": "int4", "max_shard_size": 2000},
    "exact": {"recipe": "exact"},
    "delta-come": {"recipe": "delta-come", "bits": 3.0},
}
# Zstandard and singular values come from libraries whose bytes may change.
FREE = ("exact", "delta-come")


def pair(folder: Path) -> None:
    """A base and a fine-tune of it with everything that a plan tells apart, in `folder`."""
    make = Maker("pair")
    base = {
        "embed_tokens.weight": make.tensor("BF16", 40, 16),
        "up.weight": make.tensor("BF16", 32, 19),
        "down.weight": make.tensor("BF16", 19, 32),
        "experts": make.tensor("BF16", 2, 16, 24),
        "wide.weight": make.tensor("F32", 17, 20),
        "norm.weight": make.tensor("BF16", 16),
        "frozen.weight": make.tensor("BF16", 16, 16),
        "rare.weight": make.tensor("BF16", 32, 32),
        "steps": bits_of("I64", np.arange(3)),
    }
    tuned = dict(base)
    for name in (
        "embed_tokens.weight",
        "up.weight",
        "down.weight",
        "experts",
        "wide.weight",
        "norm.weight",
    ):
        dtype, bits = base[name]
        wide = (bits.astype("<u4") << 16 if dtype == "BF16" else bits).view("<f4")
        tuned[name] = bits_of(dtype, wide + make.rng.normal(0, 0.002, wide.shape).astype("<f4"))
    dtype, bits = base["embed_tokens.weight"]
    grown = np.concatenate([tuned["embed_tokens.weight"][1], make.tensor(dtype, 2, 16)[1]])
    tuned["embed_tokens.weight"] = dtype, grown
    up = base["up.weight"][1].copy(), tuned["up.weight"][1]
    up[0][3, 4], up[1][5, 6] = 0x7FC0, 0xFF80
    base["up.weight"] = "BF16", up[0]
    tuned["rare.weight"] = make.near(base["rare.weight"], 0.01)
    tuned["lm_head.weight"] = tuned["embed_tokens.weight"]
    for side, tensors in (("base", base), ("tuned", tuned)):
        (folder / side).mkdir(parents=True)
        write_safetensors(folder / side / "model.safetensors", tensors)
        rows = tensors["embed_tokens.weight"][1].shape[0]
        config = {"model_type": "none", "vocab_size": rows, "tie_word_embeddings": False}
        (folder / side / "config.json").write_text(json.dumps(config))


def compressed() -> None:
    """Deltas of one pair by `compress`, and the calls that made them."""
    source = HERE / "pair"
    if not source.exists():
        pair(source)
    for name, call in CALLS.items():
        folder = HERE / f"compress-{name}"
        if folder.exists():
            continue
        made = compress(source / "tuned", source / "base", folder / "delta", **call)
        digests = {key: entry.digest for key, entry in made.manifest.tensors.items()}
        expect(
            folder,
            digests,
            base="../pair/base",
            tuned="../pair/tuned",
            compress=call,
            same_bytes=name not in FREE,
        )


def main() -> None:
    for vector in (*codecs(), *exact(), *(case() for case in CASES)):
        vector.write()
    compressed()


if __name__ == "__main__":
    main()
