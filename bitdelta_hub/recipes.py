"""Recipes: user-facing names of a choice of encoders for matrices and for embeddings."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from bitdelta_hub.codecs.base import Encoder
from bitdelta_hub.codecs.codebook import CodebookEncoder
from bitdelta_hub.codecs.int import IntEncoder
from bitdelta_hub.codecs.lowrank import BudgetLowRankEncoder, LowRankEncoder
from bitdelta_hub.codecs.sign import SignEncoder
from bitdelta_hub.codecs.sparse import SparseEncoder
from bitdelta_hub.errors import UsageError

AXES = ("tensor", "row", "col", "row_col")
ESTIMATORS = ("mean", "rms", "unbiased")


@dataclass(frozen=True, slots=True)
class Recipe:
    """`matrix` encodes the diffs of matrices, `embedding` those of embeddings and heads.

    Both are sequences of terms; `exact` stands for every tensor kept bit for bit.
    """

    name: str
    summary: str
    matrix: tuple[Encoder, ...]
    embedding: tuple[Encoder, ...]
    exact: bool = False


ROW = SignEncoder(axis="row", estimator="unbiased")


def _plain(name: str, summary: str, *terms: Encoder) -> Recipe:
    return Recipe(name, summary, terms, terms)


def _spectral(name: str, summary: str, *terms: Encoder) -> Recipe:
    # A vocabulary-sized matrix has no singular-value decomposition in reasonable time and memory.
    return Recipe(name, summary, terms, (ROW,))


def _bitdelta() -> Recipe:
    one = SignEncoder(axis="tensor", estimator="mean", published=True)
    row = SignEncoder(axis="row", estimator="mean")
    return Recipe("bitdelta", "one bit and one scale a matrix, as published", (one,), (row,))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "bitdelta": _bitdelta,
    "row1": lambda: _plain("row1", "one bit, an unbiased scale a row", ROW),
    "delta-come": lambda: _spectral(
        "delta-come",
        "singular vectors in groups of 8, 4 and 2 bits, unbiased",
        BudgetLowRankEncoder(bits=1.0),
    ),
    "svd": lambda: _spectral(
        "svd", "singular vectors at 8 bits", BudgetLowRankEncoder(bits=1.0, shares=((8, 1.0),))
    ),
    "rank-sign": lambda: _spectral(
        "rank-sign",
        "three singular vectors at 2 bits, one bit for the rest",
        LowRankEncoder(groups=((3, 2, 2),)),
        ROW,
    ),
    "dare": lambda: _plain(
        "dare",
        "a random eighth of the elements, rescaled",
        SparseEncoder(method="dare", density=0.12, bits=8),
    ),
    "topk": lambda: _plain(
        "topk",
        "the largest sixteenth of the elements",
        SparseEncoder(method="topk", density=0.06, bits=8),
    ),
    "int2": lambda: _plain("int2", "two bits, a fitted scale a row", IntEncoder(bits=2)),
    "int4": lambda: _plain("int4", "four bits, a fitted scale a row", IntEncoder(bits=4)),
    "exact": lambda: Recipe("exact", "every tensor bit for bit", (), (), exact=True),
}
FAMILIES = {
    "bitdelta-K": "K = 2..8 sign terms, each on what the last left",
    "magnitude-M": "sign and M = 1..128 blocks of equal population by magnitude",
}


def recipe_names() -> list[tuple[str, str]]:
    """(name, summary) of every recipe and family, for help and listings."""
    return [(name, make().summary) for name, make in RECIPES.items()] + list(FAMILIES.items())


def resolve(
    name: str,
    *,
    scale: str | None = None,
    estimator: str | None = None,
    bits: float | None = None,
) -> Recipe:
    """The recipe called `name` with the user's choices put in.

    `scale` (an axis) and `estimator` concern sign terms, `bits` the recipes with a budget.
    Raises UsageError where the name or a choice means nothing.
    """
    recipe = _named(name)
    if scale is not None and scale not in AXES:
        raise UsageError(f"--scale: no axis {scale!r}", fix=f"one of {', '.join(AXES)}")
    if estimator is not None and estimator not in ESTIMATORS:
        raise UsageError(
            f"--estimator: no estimator {estimator!r}", fix=f"one of {', '.join(ESTIMATORS)}"
        )
    if scale is not None or estimator is not None:
        if not any(isinstance(term, SignEncoder) for term in recipe.matrix):
            raise UsageError(
                f"--scale and --estimator: recipe {name} has no sign term",
                fix="leave them out, or use a recipe with signs such as bitdelta or row1",
            )
        recipe = replace(
            recipe,
            matrix=tuple(_with_scale(term, scale, estimator) for term in recipe.matrix),
            embedding=tuple(_with_scale(term, None, estimator) for term in recipe.embedding),
        )
    return recipe if bits is None else _with_bits(recipe, bits)


def _named(name: str) -> Recipe:
    if name in RECIPES:
        return RECIPES[name]()
    if match := re.fullmatch(r"bitdelta-([2-8])", name):
        count = int(match[1])
        tensor = SignEncoder(axis="tensor", estimator="mean")
        row = SignEncoder(axis="row", estimator="mean")
        return Recipe(name, f"{count} sign terms", (tensor,) * count, (row,) * count)
    if (match := re.fullmatch(r"magnitude-(\d{1,3})", name)) and 1 <= int(match[1]) <= 128:
        blocks = int(match[1])
        term = CodebookEncoder(bits=1 + (blocks - 1).bit_length(), fit="magnitude", blocks=blocks)
        return _plain(name, f"sign and {blocks} magnitude blocks", term)
    known = ", ".join([*RECIPES, *FAMILIES])
    raise UsageError(f"--recipe: no recipe {name!r}", fix=f"one of {known}")


def _with_scale(term: Encoder, scale: str | None, estimator: str | None) -> Encoder:
    if not isinstance(term, SignEncoder):
        return term
    published = term.published and scale in (None, "tensor") and estimator in (None, "mean")
    return replace(
        term,
        axis=scale or term.axis,
        estimator=estimator or term.estimator,
        published=published,
    )


def _with_bits(recipe: Recipe, bits: float) -> Recipe:
    if not any(isinstance(term, BudgetLowRankEncoder) for term in recipe.matrix):
        raise UsageError(
            f"--bits: recipe {recipe.name} has a fixed width",
            fix="leave it out, or use delta-come or svd; bitdelta-K and magnitude-M name their own",
        )
    if not 0.01 <= bits <= 16:
        raise UsageError(f"--bits: out of range (expected 0.01 to 16, found {bits:g})")
    matrix = tuple(
        replace(term, bits=bits) if isinstance(term, BudgetLowRankEncoder) else term
        for term in recipe.matrix
    )
    return replace(recipe, matrix=matrix)
