"""Shared flags name what the library has."""

from __future__ import annotations

import re

from bitdelta_hub.cli.options import PairOptions
from bitdelta_hub.plan import Choices
from bitdelta_hub.recipes import recipe_names
from tests.cli.conftest import Bdhub


def test_the_help_names_every_recipe(bdhub: Bdhub) -> None:
    text = " ".join(bdhub("compress", "--help").out.split()).replace("- ", "-")
    named = re.search(r"--recipe NAME (.*?)\. \[default", text)
    assert named is not None
    assert set(re.split(r", | or ", re.sub(r" \(.*?\)", "", named[1]))) == {
        name for name, _ in recipe_names()
    }


def test_flags_are_the_library_s_choices() -> None:
    assert set(PairOptions().arguments()) == set(Choices.__annotations__)
