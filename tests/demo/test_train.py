"""Training moves every weight, repeats with its seed, and is scored as anybody would score."""

from __future__ import annotations

from pathlib import Path

import torch

from bitdelta_hub.demo import train
from bitdelta_hub.demo.words import Problem, make_tokenizer

TOKENIZER = make_tokenizer()


def trained(seed: int, steps: int = 3) -> tuple[dict[str, torch.Tensor], list[str]]:
    said: list[str] = []
    model = train.new_model(TOKENIZER, seed)
    train.train(
        model, TOKENIZER, ["copy"], steps=steps, rate=1e-3, seed=seed, avoid=set(), say=said.append
    )
    return model.state_dict(), said


def test_a_seed_decides_everything() -> None:
    start = train.new_model(TOKENIZER, 0).state_dict()
    first, said = trained(0)
    again, _ = trained(0)
    other, _ = trained(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(start[name], first[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert [line.partition(":")[0] for line in said] == ["  step 3 of 3"]


def test_exact_match_counts_whole_answers(tmp_path: Path) -> None:
    model = train.new_model(TOKENIZER, 0)
    for parameter in model.parameters():  # zero logits: always token 0, the end of the line
        torch.nn.init.zeros_(parameter)
    train.save(model, TOKENIZER, tmp_path)
    assert train.load(tmp_path).dtype == torch.float32
    asked = [Problem("copy", "apple"), Problem("flip", "bread")]
    assert train.exact_match(tmp_path, asked) == 0.0
