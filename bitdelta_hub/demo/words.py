"""Small text tasks on words, and a tokenizer with one token a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

LENGTH = 5
END = "\n"
UNKNOWN = " "

# What is asked of a word; the names have four letters, so that all lines have one length.
TASKS: dict[str, Callable[[str], str]] = {
    "copy": lambda word: word,
    "next": lambda word: "".join(map(_following, word)),
    "turn": lambda word: word[1:] + word[0],
    "swap": lambda word: word[1] + word[0] + word[3] + word[2] + word[4],
    "flip": lambda word: word[::-1],
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A task put to a word."""

    task: str
    word: str

    @property
    def prompt(self) -> str:
        return f"{self.task} {self.word}="

    @property
    def answer(self) -> str:
        return TASKS[self.task](self.word) + END


def problems(
    rng: Random, tasks: Sequence[str], count: int, avoid: Set[str] = frozenset()
) -> list[Problem]:
    """`count` problems of `tasks` with random words, none of them in `avoid`."""
    found: list[Problem] = []
    while len(found) < count:
        word = "".join(rng.choices(ascii_lowercase, k=LENGTH))
        if word not in avoid:
            found.append(Problem(rng.choice(tasks), word))
    return found


def make_tokenizer() -> PreTrainedTokenizerBase:
    """A fast tokenizer that knows the letters, space, `=` and the end of a line."""
    vocabulary = {
        character: index for index, character in enumerate(f"{END}{UNKNOWN}={ascii_lowercase}")
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast: Any = PreTrainedTokenizerFast  # transformers leaves its signature untyped
    made: PreTrainedTokenizerBase = fast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    return made


def _following(letter: str) -> str:
    return ascii_lowercase[(ascii_lowercase.index(letter) + 1) % 26]
