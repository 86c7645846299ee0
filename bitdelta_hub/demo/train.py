"""Training and scoring of a small language model on `words`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bitdelta_hub.demo.words import LENGTH, Problem, problems

Say = Callable[[str], None]

BATCH = 64
WARM_UP = 20


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama of 1.3 million parameters with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    steps: int,
    rate: float,
    seed: int,
    avoid: Set[str],
    say: Say,
) -> None:
    """Trains every parameter of `model` to answer `tasks`, on words outside `avoid`."""
    rng = Random(seed)  # noqa: S311 - repeatable data, no secret
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
    )
    began = time.perf_counter()
    model.train()
    for step in range(1, steps + 1):
        ids, labels = _batch(tokenizer, problems(rng, tasks, BATCH, avoid))
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 40 == 0 or step == steps:
            seconds = time.perf_counter() - began
            say(f"  step {step} of {steps}: loss {loss.item():.4f}, {seconds:.0f} s")


def _batch(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[Problem]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels `[batch, length]`; only answers are learnt."""
    ids = tokenizer([p.prompt + p.answer for p in asked], return_tensors="pt").input_ids
    labels = ids.clone()
    labels[:, : len(asked[0].prompt)] = -100
    return ids, labels


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes an ordinary bf16 checkpoint with its tokenizer."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> Any:
    """The checkpoint in `folder` as a model that computes in fp32, loaded as anybody would."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def exact_match(folder: Path, asked: Sequence[Problem]) -> float:
    """The part of `asked` that the checkpoint in `folder` answers without a mistake."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = tokenizer([p.prompt for p in asked], return_tensors="pt")
    prompts = {key: prompts[key] for key in ("input_ids", "attention_mask")}
    made = load(folder).generate(**prompts, max_new_tokens=LENGTH + 1, do_sample=False)
    answers = tokenizer.batch_decode(made[:, prompts["input_ids"].shape[1] :])
    right = sum(answer == p.answer for answer, p in zip(answers, asked, strict=True))
    return right / len(asked)
