"""The tasks, and a tokenizer that loses nothing."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from transformers import AutoTokenizer

from bitdelta_hub.demo.words import TASKS, Problem, make_tokenizer, problems


@pytest.mark.parametrize(
    ("task", "answer"),
    [("copy", "apple"), ("next", "bqqmf"), ("turn", "pplea"), ("swap", "palpe"), ("flip", "elppa")],
)
def test_answers(task: str, answer: str) -> None:
    assert Problem(task, "apple").prompt == f"{task} apple="
    assert Problem(task, "apple").answer == f"{answer}\n"


def test_the_alphabet_goes_round() -> None:
    assert Problem("next", "xyzab").answer == "yzabc\n"


def test_problems_repeat_with_the_seed_and_avoid_what_they_must() -> None:
    first = problems(Random(3), list(TASKS), 50)
    assert first == problems(Random(3), list(TASKS), 50)
    words = {problem.word for problem in first}
    other = problems(Random(3), list(TASKS), 50, avoid=words)
    assert not words & {problem.word for problem in other}
    assert {len(problem.prompt) for problem in first} == {11}


def test_the_tokenizer_loads_as_any_other_and_has_a_token_a_character(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = Problem("flip", "apple").prompt + Problem("flip", "apple").answer
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token == "\n"
