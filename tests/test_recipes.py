"""Recipe names and what the user's choices make of them."""

from __future__ import annotations

import pytest

from bitdelta_hub.codecs.sign import SignEncoder
from bitdelta_hub.errors import UsageError
from bitdelta_hub.recipes import RECIPES, recipe_names, resolve


@pytest.mark.parametrize(
    "name", [*RECIPES, "bitdelta-2", "bitdelta-8", "magnitude-1", "magnitude-5"]
)
def test_every_recipe_resolves_to_described_terms(name: str) -> None:
    recipe = resolve(name)
    assert recipe.name == name
    assert recipe.exact or all(term.describe() for term in recipe.matrix + recipe.embedding)


def test_names_are_listed_with_a_summary() -> None:
    listed = dict(recipe_names())
    assert {"bitdelta", "exact", "bitdelta-K", "magnitude-M"} <= set(listed)
    assert all(listed.values())


def test_a_family_has_as_many_terms_as_its_name_says() -> None:
    assert len(resolve("bitdelta-3").matrix) == 3


def test_published_rule_holds_only_for_the_published_scale() -> None:
    (plain,) = resolve("bitdelta").matrix
    assert isinstance(plain, SignEncoder)
    assert plain.published
    for choices in ({"scale": "row"}, {"estimator": "rms"}):
        (term,) = resolve("bitdelta", **choices).matrix
        assert isinstance(term, SignEncoder)
        assert not term.published


def test_scale_and_estimator_reach_every_sign_term() -> None:
    recipe = resolve("bitdelta-2", scale="col", estimator="rms")
    assert [(t.axis, t.estimator) for t in recipe.matrix] == [("col", "rms")] * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("bitdelta-9", {}, "--recipe: no recipe 'bitdelta-9'"),
        ("magnitude-0", {}, "--recipe: no recipe 'magnitude-0'"),
        ("magnitude-129", {}, "--recipe: no recipe 'magnitude-129'"),
        ("", {}, "--recipe: no recipe ''"),
        ("bitdelta", {"scale": "column"}, "--scale: no axis 'column'"),
        ("bitdelta", {"estimator": "median"}, "--estimator: no estimator 'median'"),
        ("int4", {"scale": "row"}, "--scale and --estimator: recipe int4 has no sign term"),
        ("bitdelta", {"bits": 2.0}, "--bits: recipe bitdelta has a fixed width"),
        ("svd", {"bits": 0.0}, "--bits: out of range (expected 0.01 to 16, found 0)"),
    ],
)
def test_what_means_nothing_is_refused(name: str, choices: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name, **choices)  # type: ignore[arg-type]
    assert caught.value.message == message
    assert caught.value.exit_status == 2
