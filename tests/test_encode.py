"""One tensor encoded: what its entry says is true of the tensor as rebuilt from the parts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bitdelta_hub.format.digest import digest_of
from bitdelta_hub.recipes import RECIPES
from tests.handmade import Trip, bits, moved, noise, round_trip, save_pair
from tests.models import Tensors


def trip_of(root: Path, base: Tensors, tuned: Tensors, **choices: Any) -> Trip:
    """The round trip of these and of a plain matrix, so that the two look like a pair."""
    both = {"other.weight": noise(64, 48)}
    pair = save_pair(root, base | both, tuned | {"other.weight": moved(noise(64, 48))})
    return round_trip(root, pair, **choices)


def error_of(rebuilt: torch.Tensor, tuned: torch.Tensor, base: torch.Tensor) -> float:
    finite = torch.isfinite(tuned) & torch.isfinite(base)
    gap, moves = (
        (rebuilt.double() - tuned.double())[finite],
        (tuned.double() - base.double())[finite],
    )
    return float(gap.norm() / moves.norm())


@pytest.mark.parametrize("recipe", [*RECIPES, "bitdelta-3", "magnitude-4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_digest_and_error_are_those_of_the_rebuilt_tensor(
    recipe: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base, tuned = noise(300, 520, dtype=dtype), moved(noise(300, 520, dtype=dtype), by=0.02)
    tuned[7, 7] = math.inf
    base[8, 8] = math.nan
    trip = trip_of(tmp_path, {"w": base}, {"w": tuned}, recipe=recipe)
    entry, rebuilt = trip.entry("w"), trip.rebuilt["w"]
    assert entry.digest == digest_of(bits(rebuilt).tobytes())
    if recipe == "exact":
        assert entry.error is None
        assert torch.equal(rebuilt, tuned)
    else:
        assert entry.error == pytest.approx(error_of(rebuilt, tuned, base), rel=1e-3)
        assert len(f"{entry.error:.10g}".lstrip("0.").replace(".", "")) <= 4


def test_a_sum_that_hits_every_element_has_error_0(tmp_path: Path) -> None:
    base = torch.zeros(64, 48)
    tuned = torch.where(noise(64, 48) < 0, -0.5, 0.5).float()
    trip = trip_of(tmp_path, {"w": base}, {"w": tuned}, allow_distant_base=True)
    assert trip.codecs("w") == ["sign"]
    assert trip.entry("w").error == 0
    assert trip.manifest.exact("w")
    assert torch.equal(trip.rebuilt["w"], tuned)


def test_signs_of_zeros_alone_have_no_error_and_are_not_called_exact(tmp_path: Path) -> None:
    """Half of the tensor turns to -0, which no sign term gives back; the rest comes out right."""
    base, tuned = torch.zeros(64, 48), torch.ones(64, 48)
    tuned[:32] = -0.0
    trip = trip_of(tmp_path, {"w": base}, {"w": tuned}, recipe="row1", allow_distant_base=True)
    assert trip.entry("w").kind == "sum"
    assert torch.equal(trip.rebuilt["w"], tuned)  # 0 == -0
    assert bits(trip.rebuilt["w"]).tobytes() != bits(tuned).tobytes()
    assert trip.entry("w").error is None
    assert not trip.manifest.exact("w")


def test_the_smallest_exact_codec_is_stored(tmp_path: Path) -> None:
    table = noise(400, 320)
    one_row, everything = table.clone(), moved(table)
    one_row[3] += 1
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randint(0, 255, (90, 90), generator=generator, dtype=torch.uint8) for _ in range(2)
    )
    trip = trip_of(
        tmp_path,
        {"row": table, "all": table.clone(), "same": table.clone(), "noise": left.float()},
        {"row": one_row, "all": everything, "same": table.clone(), "noise": right.float()},
        recipe="exact",
        allow_distant_base=True,
    )
    assert {name: trip.codecs(name) for name in ("row", "all", "same", "noise")} == {
        "row": ["rows"],
        "all": ["steps"],
        "same": [],
        "noise": ["steps"],
    }


def test_what_cannot_be_coded_is_stored_whole(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randint(-(2**63), 2**63 - 1, (900,), generator=generator) for _ in range(2)
    )
    trip = trip_of(tmp_path, {"n": left}, {"n": right}, recipe="exact")
    assert trip.codecs("n") == ["raw"]
    assert trip.entry("n").base is None
    assert "n" not in trip.manifest.base.tensors


def test_the_second_term_is_fitted_to_what_the_first_left(tmp_path: Path) -> None:
    base, tuned = noise(64, 256), moved(noise(64, 256))
    errors = [
        trip_of(tmp_path / str(n), {"w": base}, {"w": tuned}, recipe=f"bitdelta-{n}")
        .entry("w")
        .error
        for n in (2, 3, 4)
    ]
    assert errors == sorted(errors, reverse=True)  # type: ignore[type-var]
    assert errors[-1] is not None
    assert errors[-1] < 0.25
