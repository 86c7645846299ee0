"""Tiny checkpoints of real architectures, made by transformers when a test first asks for them.

    base, tuned = checkpoints("llama", tmp_path_factory.getbasetemp())

`tuned` is a copy of `base` with every weight moved by about a tenth. Both are folders as
`save_pretrained` writes them, in bf16. `rewrite` gives the variants that are met in the wild.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

transformers.utils.logging.disable_progress_bar()

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}


def _gemma3() -> transformers.PreTrainedModel:
    text = {**TEXT, "head_dim": 8, "sliding_window": 16}
    vision = {**ENCODER, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _gpt2() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=96,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def _t5() -> transformers.PreTrainedModel:
    config = transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=56, num_layers=2, num_heads=4
    )
    return transformers.T5ForConditionalGeneration(config)


def _vit() -> transformers.PreTrainedModel:
    config = transformers.ViTConfig(**ENCODER, image_size=28, patch_size=14)
    return transformers.ViTForImageClassification(config)


def _causal(kind: str, **changes: Any) -> Callable[[], transformers.PreTrainedModel]:
    def make() -> transformers.PreTrainedModel:
        config = getattr(transformers, f"{kind}Config")(**{**TEXT, **changes})
        model: transformers.PreTrainedModel = getattr(transformers, f"{kind}ForCausalLM")(config)
        return model

    return make


MODELS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "llama": _causal("Llama"),
    "llama-tied": _causal("Llama", tie_word_embeddings=True),
    "qwen2": _causal("Qwen2"),
    "qwen3": _causal("Qwen3", head_dim=8),
    "mixtral": _causal("Mixtral", num_local_experts=4),
    "qwen3-moe": _causal("Qwen3Moe", **MOE),
    "phi3": _causal("Phi3"),
    "gpt2": _gpt2,
    "t5": _t5,
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=96, **ENCODER)),
    "vit": _vit,
    "gemma3": _gemma3,
}


@cache
def checkpoints(kind: str, root: Path, max_shard_size: str = "5GB") -> tuple[Path, Path]:
    """(base, tuned) folders of model `kind` of MODELS under `root`, made once."""
    home = root / f"{kind}-{max_shard_size}"
    model = build(kind)
    model.save_pretrained(home / "base", max_shard_size=max_shard_size)
    move(model)
    model.save_pretrained(home / "tuned", max_shard_size=max_shard_size)
    return home / "base", home / "tuned"


def build(kind: str, seed: int = 0) -> transformers.PreTrainedModel:
    """Model `kind` of MODELS in bf16, at the random start that belongs to `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[kind]().to(torch.bfloat16)


@torch.no_grad()
def move(model: torch.nn.Module, by: float = 0.1) -> None:
    """Adds noise of `by` times a parameter's own spread to each parameter, always the same."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter += (by * parameter.float().std(correction=0) * noise).to(parameter.dtype)


def rewrite(
    source: Path,
    out: Path,
    change: Callable[[Tensors], Tensors] = dict,
    **config: Any,
) -> Path:
    """`out`, a single-file copy of checkpoint `source` with its tensors and config changed.

    A config key given as None is removed.
    """
    out.mkdir(parents=True)
    save_file(change(tensors(source)), out / "model.safetensors", {"format": "pt"})
    values = {**json.loads((source / "config.json").read_text()), **config}
    kept = {key: value for key, value in values.items() if value is not None}
    (out / "config.json").write_text(json.dumps(kept))
    return out


def tensors(folder: Path) -> Tensors:
    """All tensors of a folder of safetensors files."""
    return {
        k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()
    }


def renamed(pattern: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    """A change for `rewrite` that gives every tensor another name."""
    return lambda found: {pattern(name): tensor for name, tensor in found.items()}


def as_pickle(source: Path, out: Path) -> Path:
    """`out`, a copy of `source` with its weights in `pytorch_model.bin`."""
    out.mkdir(parents=True)
    torch.save(tensors(source), out / "pytorch_model.bin")
    shutil.copy(source / "config.json", out)
    return out
