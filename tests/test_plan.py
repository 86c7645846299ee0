"""Plan: every tensor's terms and bytes before any work, and choices that mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bitdelta_hub import compress, plan
from bitdelta_hub.errors import PairError, UsageError
from bitdelta_hub.recipes import RECIPES
from tests.handmade import content, moved, noise, round_trip, save, save_pair
from tests.models import checkpoints

# Those whose parts have sizes that follow from shapes alone.
FIXED = [name for name in RECIPES if name not in ("exact", "dare", "topk")]
FAMILIES = ["bitdelta-2", "bitdelta-5", "magnitude-1", "magnitude-7", "magnitude-128"]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "models"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, tuned) with a tensor for each policy."""
    base = {
        "model.embed_tokens.weight": noise(120, 64),
        "a.weight": noise(99, 65),
        "b.weight": noise(3, 40, 24),
        "few.weight": noise(64, 64),
        "norm": noise(99),
        "same": noise(64, 64),
        "cast.weight": noise(64, 64, dtype=torch.float32),
        'long name with spaces, ünïcode and "quotes".weight': noise(20, 20),
    }
    tuned = {name: moved(tensor) for name, tensor in base.items()} | {
        "same": base["same"],
        "cast.weight": base["cast.weight"].bfloat16(),
        "few.weight": base["few.weight"].clone(),
        "new": noise(5),
    }
    tuned["few.weight"][2, 2] += 1
    return save_pair(tmp_path_factory.mktemp("plan"), base, tuned)


@pytest.mark.parametrize("recipe", [*FIXED, *FAMILIES])
def test_predicted_bytes_are_those_written(
    recipe: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = pair
    planned = plan(tuned, base, recipe=recipe)
    assert not planned.upper_bound
    compressed = compress(tuned, base, tmp_path / "delta", recipe=recipe)
    found = content(tmp_path / "delta")
    assert planned.shard_bytes == len(found["delta.safetensors"])
    assert planned.carried_bytes == (tuned / "config.json").stat().st_size
    assert planned.predicted_bytes == planned.shard_bytes + planned.carried_bytes
    for tensor in planned.tensors:
        entry = compressed.manifest.tensors[tensor.name]
        assert tensor.kind == entry.kind
        assert tensor.bytes == sum(size for term in entry.terms for size in term.parts.values())
        stored = {
            f"{i}_{part}": size
            for i, term in enumerate(entry.terms)
            for part, size in term.parts.items()
        }
        assert {key: part.nbytes for key, part in (tensor.parts or {}).items()} == stored


@pytest.mark.parametrize("choices", [{"scale": "row_col"}, {"scale": "col"}, {"estimator": "rms"}])
def test_predicted_bytes_with_other_scales(
    choices: dict[str, Any], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    trip = round_trip(tmp_path, pair, **choices)
    assert trip.written == trip.plan.shard_bytes


@pytest.mark.parametrize("recipe", ["exact", "dare", "topk"])
def test_bytes_that_depend_on_the_data_are_bounded(
    recipe: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    trip = round_trip(tmp_path, pair, recipe=recipe)
    assert trip.plan.upper_bound
    assert trip.written <= trip.plan.shard_bytes
    for tensor in trip.plan.tensors:
        stored = sum(n for term in trip.entry(tensor.name).terms for n in term.parts.values())
        assert stored <= tensor.bound
        assert tensor.bytes in (None, stored)


def test_noise_that_cannot_be_coded_stays_within_the_bound(tmp_path: Path) -> None:
    """Random bytes against random bytes: there is nothing to gain, and the header comes on top."""
    generator = torch.Generator().manual_seed(0)
    names = [f"{'long.' * 40}{i}" for i in range(30)]
    base, tuned = (
        {n: torch.randint(0, 256, (5000,), generator=generator, dtype=torch.uint8) for n in names}
        for _ in range(2)
    )
    config = {"quantization_config": {"quant_method": "none"}}
    trip = round_trip(tmp_path, save_pair(tmp_path, base, tuned, **config), recipe="exact")
    assert trip.plan.upper_bound
    assert trip.written <= trip.plan.shard_bytes


@pytest.mark.parametrize("largest", [1, 2000, 10_000, 10**9])
def test_predicted_bytes_in_shards(largest: int, pair: tuple[Path, Path], tmp_path: Path) -> None:
    trip = round_trip(tmp_path, pair, max_shard_size=largest)
    assert trip.written == trip.plan.shard_bytes


def test_what_shows_while_encoding_comes_on_top(tmp_path: Path) -> None:
    tuned = moved(noise(64, 48))
    tuned[0, 0] = float("nan")
    trip = round_trip(tmp_path, save_pair(tmp_path, {"w": noise(64, 48)}, {"w": tuned}))
    patch = trip.entry("w").terms[1]
    assert patch.codec == "patch"
    more = trip.written - trip.plan.shard_bytes
    assert 0 < more - sum(patch.parts.values()) < 300


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2", "mixtral"])
def test_groups_add_up_to_the_model(kind: str, root: Path) -> None:
    base, tuned = checkpoints(kind, root)
    planned = plan(tuned, base)
    rows = planned.by_group()
    assert {group for group, *_ in rows} == {"embeddings", "matrices", "other"}
    assert sum(count for _, count, _, _ in rows) == len(planned.tensors)
    assert sum(size for _, _, size, _ in rows) == sum(t.view.nbytes for t in planned.tensors)
    assert sum(size for *_, size in rows) == sum(t.bound for t in planned.tensors)


def test_a_plan_writes_nothing(pair: tuple[Path, Path]) -> None:
    before = content(pair[0]) | content(pair[1])
    plan(pair[1], pair[0])
    assert content(pair[0]) | content(pair[1]) == before
    assert sorted(path.name for path in pair[0].parent.iterdir()) == ["base", "tuned"]


def test_a_plan_names_both_sides_and_keeps_the_notes(tmp_path: Path) -> None:
    base, tuned = save_pair(
        tmp_path,
        {"w.weight": noise(64, 48, dtype=torch.float32), "left": noise(3)},
        {"w.weight": moved(noise(64, 48))},
    )
    planned = plan(tuned, base, recipe="row1")
    assert (planned.tuned, planned.base, planned.recipe) == (str(tuned), str(base), "row1")
    assert planned.tuned_bytes == (tuned / "model.safetensors").stat().st_size
    assert [note.code for note in planned.notes] == ["BDH004", "BDH005"]


def test_what_the_samples_show_is_noted(tmp_path: Path) -> None:
    base, more = {"a.weight": noise(64, 64)}, {"b.weight": noise(9, 9)}
    few = base["a.weight"].clone()
    few.view(-1)[::100] *= 1.25
    pair = save_pair(tmp_path / "few", base | more, {"a.weight": few})
    notes = plan(pair[1], pair[0]).notes
    assert [note.code for note in notes] == ["BDH004", "BDH007"]
    assert notes == compress(pair[1], pair[0], tmp_path / "delta").notes
    pair = save_pair(tmp_path / "cast", base, {"a.weight": moved(base["a.weight"]).float()})
    assert "the fine-tune is fp32 by a cast only: its values are bf16, at twice the bytes" in [
        note.message for note in plan(pair[1], pair[0]).notes
    ]


# Choices that mean nothing


@pytest.mark.parametrize(
    ("choices", "message", "fix"),
    [
        (
            {"embeddings": "none"},
            "--embeddings: unknown value 'none'",
            "use one of auto, exact, sign, base",
        ),
        ({"effort": "much"}, "--effort: unknown value 'much'", "use one of default, max"),
        (
            {"keep": ["a.*", "*.q_proj.*"]},
            "--keep: '*.q_proj.*' matches no tensor (the first is {first!r})",
            "`bdhub plan FT --base BASE` lists the names",
        ),
        (
            {"skip": "lm_head"},
            "--skip: 'lm_head' matches no tensor (the first is {first!r})",
            "`bdhub plan FT --base BASE` lists the names",
        ),
        ({"device": "tpu"}, "--device: no device 'tpu'", "one of auto, cpu, cuda, cuda:N"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(
    choices: dict[str, Any], message: str, fix: str, pair: tuple[Path, Path]
) -> None:
    first = plan(pair[1], pair[0]).tensors[0].name
    with pytest.raises(UsageError) as caught:
        plan(pair[1], pair[0], **choices)
    assert (str(caught.value), caught.value.fix) == (message.format(first=first), fix)
    assert caught.value.code == "BDH200"


@pytest.mark.parametrize("recipe", ["bitdelta", "delta-come"])
def test_memory_that_does_not_suffice_is_told(recipe: str, pair: tuple[Path, Path]) -> None:
    with pytest.raises(PairError) as caught:
        plan(pair[1], pair[0], recipe=recipe, max_memory=1_000_000)
    assert caught.value.code == "BDH108"
    assert str(caught.value).startswith(f"{pair[1]}: not enough memory (expected 64,")
    assert str(caught.value).endswith(" bytes for one tensor, found a limit of 1,000,000)")
    other = ", or use a recipe without singular vectors" if recipe == "delta-come" else ""
    assert caught.value.fix == f"raise --max-memory{other}"


def test_memory_that_suffices_for_one_tensor_gives_the_same_delta(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    compress(pair[1], pair[0], tmp_path / "free", recipe="delta-come")
    compress(pair[1], pair[0], tmp_path / "tight", recipe="delta-come", max_memory=70_000_000)
    assert content(tmp_path / "free") == content(tmp_path / "tight")


def test_an_empty_checkpoint_has_an_empty_plan(tmp_path: Path) -> None:
    base, tuned = save(tmp_path / "base", {"w": noise(3)}), save(tmp_path / "tuned", {})
    planned = plan(tuned, base)
    assert planned.tensors == ()
    with pytest.raises(UsageError, match=r"^--keep: 'x' matches no tensor$"):
        plan(tuned, base, keep=["x"])
