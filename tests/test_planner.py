"""Which terms store which tensor: policies, and the smaller of lossy and exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bitdelta_hub import plan
from bitdelta_hub.planner import PlannedTensor
from tests.handmade import bits, moved, noise, round_trip, save_pair
from tests.models import Tensors

TABLE = "model.embed_tokens.weight"


def planned(
    root: Path, base: Tensors, tuned: Tensors, config: dict[str, Any] | None = None, **choices: Any
) -> dict[str, PlannedTensor]:
    folders = save_pair(root, base, tuned, **(config or {}))
    return {tensor.name: tensor for tensor in plan(folders[1], folders[0], **choices).tensors}


def terms(tensor: PlannedTensor) -> tuple[str, str]:
    return tensor.kind, tensor.terms


def few(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """`tensor` with `count` elements changed, all over it."""
    changed = tensor.clone()
    changed.view(-1)[:: tensor.numel() // count][:count] += 1
    return changed


# Groups


@pytest.mark.parametrize(
    ("name", "shape", "group"),
    [
        ("model.embed_tokens.weight", (64, 32), "embeddings"),
        ("lm_head.weight", (64, 32), "embeddings"),
        ("transformer.wpe.weight", (64, 32), "embeddings"),
        ("shared.weight", (64, 32), "embeddings"),
        ("lm_head.bias", (64,), "other"),
        ("output.weight", (2010, 32), "embeddings"),  # about as many rows as the vocabulary
        ("model.layers.0.mlp.gate.weight", (64, 32), "other"),
        ("model.layers.0.mlp.gate_proj.weight", (64, 32), "matrices"),
        ("model.layers.0.mlp.experts.down_proj", (4, 64, 32), "matrices"),
        ("model.layers.0.norm.weight", (64,), "other"),
        ("patch_embedding.weight", (64, 3, 14, 14), "other"),
        ("model.layers.0.A_log", (64, 8), "other"),
        ("weight", (64, 32), "matrices"),
    ],
)
def test_groups_follow_names_and_shapes(
    name: str, shape: tuple[int, ...], group: str, tmp_path: Path
) -> None:
    tensor = noise(*shape)
    found = planned(
        tmp_path, {name: tensor}, {name: moved(tensor)}, {"vocab_size": 2000}, recipe="bitdelta"
    )
    assert found[name].group == group
    assert found[name].kind == ("exact" if group == "other" else "sum")


def test_the_vocabulary_of_a_multimodal_model_counts(tmp_path: Path) -> None:
    tensor = noise(2000, 32)
    config = {"text_config": {"vocab_size": 2000}}
    assert planned(tmp_path, {"w": tensor}, {"w": moved(tensor)}, config)["w"].group == "embeddings"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_tables_that_no_diff_is_taken_of_are_kept_exactly(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    table, other = (noise(64, 64, seed=seed).to(dtype) for seed in (0, 1))
    config = {"quantization_config": {"quant_method": "fp8"}}
    for embeddings in ("auto", "sign", "base", "exact"):
        found = planned(
            tmp_path / embeddings,
            {TABLE: table, "w": noise(64, 64)},
            {TABLE: other, "w": moved(noise(64, 64))},
            config,
            embeddings=embeddings,
        )
        assert found[TABLE].kind == "exact"


# Embeddings


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({}, ("sum", "sign row mean")),
        ({"recipe": "delta-come"}, ("sum", "sign row unbiased")),
        ({"embeddings": "sign"}, ("sum", "sign row unbiased")),
        ({"embeddings": "exact"}, ("exact", "steps")),
        ({"embeddings": "base"}, ("sum", "base")),
        ({"recipe": "exact"}, ("exact", "steps")),
        ({"embeddings": "base", "keep": ["*embed*"]}, ("exact", "steps")),
    ],
)
def test_embeddings_follow_the_choice(
    choices: dict[str, Any], expected: tuple[str, str], tmp_path: Path
) -> None:
    table, matrix = noise(96, 64), noise(64, 64)
    found = planned(
        tmp_path,
        {TABLE: table, "w": matrix},
        {TABLE: moved(table), "w": moved(matrix)},
        **choices,
    )
    assert terms(found[TABLE]) == expected
    assert found["w"].kind == ("exact" if choices.get("recipe") == "exact" else "sum")


@pytest.mark.parametrize("embeddings", ["auto", "sign", "base", "exact"])
def test_an_unchanged_table_is_copied_whatever_the_choice(embeddings: str, tmp_path: Path) -> None:
    table, matrix = noise(96, 64), noise(64, 64)
    found = planned(
        tmp_path, {TABLE: table, "w": matrix}, {TABLE: table, "w": moved(matrix)},
        embeddings=embeddings,
    )  # fmt: skip
    assert terms(found[TABLE]) == ("copy", "copy")
    assert found[TABLE].bytes == 0


@pytest.mark.parametrize("embeddings", ["auto", "sign", "base", "exact"])
def test_new_tokens_are_always_kept(embeddings: str, tmp_path: Path) -> None:
    """The base has no rows for them, so none can be left at the base."""
    table, more = noise(96, 64), noise(8, 64, seed=7)
    tuned = torch.cat([moved(table), more])
    pair = save_pair(
        tmp_path, {TABLE: table, "w": noise(64, 64)}, {TABLE: tuned, "w": moved(noise(64, 64))}
    )
    trip = round_trip(tmp_path, pair, embeddings=embeddings)
    assert torch.equal(trip.rebuilt[TABLE][96:], more)
    if embeddings == "base":
        assert torch.equal(trip.rebuilt[TABLE][:96], table)
        assert trip.codecs(TABLE) == ["rows"]


# The smaller of lossy and exact


@pytest.mark.parametrize(
    ("change", "codec"),
    [
        (lambda x: few(x, 3), "patch"),
        (lambda x: few(x, 100), "patch"),
        (lambda x: torch.cat([moved(x[:4]), x[4:]]), "rows"),
        (lambda x: torch.cat([x[:150], moved(x[150:160]), x[160:]]), "rows"),
    ],
)
@pytest.mark.parametrize("recipe", ["bitdelta", "row1", "int4", "exact"])
def test_few_changes_are_kept_exactly(change: Any, codec: str, recipe: str, tmp_path: Path) -> None:
    tensor = noise(400, 320)
    pair = save_pair(
        tmp_path,
        {"w": tensor, "v.weight": noise(64, 64)},
        {"w": change(tensor), "v.weight": moved(noise(64, 64))},
    )
    trip = round_trip(tmp_path, pair, recipe=recipe)
    assert trip.entry("w").kind == "exact"
    assert trip.codecs("w") == [codec] or recipe == "exact"
    assert bytes(bits(trip.rebuilt["w"])) == bytes(bits(change(tensor)))
    lossy = tensor.numel() // 8 if recipe != "int4" else tensor.numel() // 2
    assert sum(trip.entry("w").terms[0].parts.values()) < lossy


@pytest.mark.parametrize(("rows", "kind"), [(20, "exact"), (40, "sum")])
def test_lossy_terms_begin_where_they_are_smaller(rows: int, kind: str, tmp_path: Path) -> None:
    tensor = noise(400, 320)
    changed = torch.cat([moved(tensor[:rows]), tensor[rows:]])
    assert planned(tmp_path, {"w": tensor}, {"w": changed})["w"].kind == kind


def test_terms_that_outgrow_the_tensor_give_way_to_an_exact_one(tmp_path: Path) -> None:
    tensor = noise(64, 48)
    found = planned(tmp_path, {"w": tensor}, {"w": moved(tensor)}, recipe="delta-come", bits=16.0)[
        "w"
    ]
    assert found.bound <= tensor.numel() * 2


def test_a_small_tensor_has_the_smaller_of_raw_and_patch(tmp_path: Path) -> None:
    small = noise(200)
    found = planned(
        tmp_path,
        {"all": small, "half": small.clone(), "few": small.clone(), "w.weight": noise(64, 64)},
        {
            "all": moved(small),
            "half": few(small, 40),
            "few": few(small, 1),
            "w.weight": moved(noise(64, 64)),
        },
    )
    assert [found[name].terms for name in ("all", "half", "few")] == [
        "raw",
        found["half"].terms,
        found["few"].terms,
    ]
    assert found["half"].terms.startswith("patch")
    assert found["few"].terms.startswith("patch")
    assert (found["few"].bytes or 0) < (found["half"].bytes or 0) < 400


# Keep and skip


def test_kept_tensors_are_exact_and_skipped_ones_the_base(tmp_path: Path) -> None:
    names = [f"layers.{i}.{leaf}.weight" for i in range(3) for leaf in ("q_proj", "down_proj")]
    base = {name: noise(64, 48, seed=i) for i, name in enumerate(names)} | {"norm": noise(50)}
    pair = save_pair(tmp_path, base, {name: moved(tensor) for name, tensor in base.items()})
    trip = round_trip(
        tmp_path, pair, keep=["*.down_proj.*", "layers.1.*"], skip=["layers.[12].*", "norm"]
    )
    entries = trip.manifest.tensors
    assert {name for name in names if entries[name].kind == "exact"} == {
        "layers.0.down_proj.weight",
        "layers.1.q_proj.weight",
        "layers.1.down_proj.weight",
        "layers.2.down_proj.weight",
    }
    for name in ("layers.2.q_proj.weight", "norm"):
        assert entries[name].kind == "sum"
        assert entries[name].terms == ()
        assert entries[name].error == 1
        assert torch.equal(trip.rebuilt[name], base[name])
    assert trip.codecs("layers.0.q_proj.weight") == ["sign"]
    notes = {tensor.name: tensor.note for tensor in trip.plan.tensors if tensor.note}
    assert set(notes.values()) == {"left at the base, as asked"}
    assert set(notes) == {"layers.2.q_proj.weight", "norm"}


def test_only_floats_can_be_left_at_the_base(tmp_path: Path) -> None:
    base = {"n": torch.arange(10), "v.weight": noise(64, 64)}
    pair = save_pair(tmp_path, base, {"n": torch.arange(10) + 1, "v.weight": moved(noise(64, 64))})
    trip = round_trip(tmp_path, pair, skip=["n"])
    assert trip.entry("n").kind == "exact"
    assert torch.equal(trip.rebuilt["n"], torch.arange(10) + 1)
    note = "kept, for only floats can be left at the base"
    assert [tensor.note for tensor in trip.plan.tensors if tensor.name == "n"] == [note]


@pytest.mark.parametrize("name", ["new", "reshaped"])
def test_a_tensor_without_an_operand_is_stored_whole(name: str, tmp_path: Path) -> None:
    base = {"v.weight": noise(64, 64), "reshaped": noise(10)}
    tuned = {"v.weight": moved(noise(64, 64)), "reshaped": noise(4, 5), "new": noise(64, 64)}
    options: list[dict[str, Any]] = [{}, {"recipe": "exact"}, {"skip": [name]}]
    for i, choices in enumerate(options):
        found = planned(tmp_path / str(i), base, tuned, **choices)[name]
        assert terms(found) == ("exact", "raw")
        assert found.operand is None


def test_another_dtype_is_a_sum_a_cast_or_raw(tmp_path: Path) -> None:
    wide = noise(64, 64, dtype=torch.float32)
    base = dict.fromkeys(("lossy.weight", "cast", "kept", "skipped.weight"), wide)
    base = {name: tensor.clone() for name, tensor in base.items()}
    tuned = {name: moved(wide).bfloat16() for name in base} | {"cast": wide.bfloat16()}
    found = planned(tmp_path, base, tuned, keep=["kept"], skip=["skipped.*"])
    assert {name: terms(tensor) for name, tensor in found.items()} == {
        "lossy.weight": ("sum", "sign tensor mean"),
        "cast": ("sum", "base"),
        "kept": ("exact", "raw"),
        "skipped.weight": ("sum", "base"),
    }
    assert found["cast"].note == "the base, cast"


def test_ties_are_shown_with_their_target(tmp_path: Path) -> None:
    table = noise(96, 64)
    found = planned(
        tmp_path,
        {TABLE: table, "w": noise(64, 64)},
        {TABLE: moved(table), "lm_head.weight": moved(table), "w": moved(noise(64, 64))},
    )
    tie = found["lm_head.weight"]
    assert (tie.kind, tie.terms, tie.bytes) == ("tie", f"tie {TABLE}", 0)
    assert (tie.dtype, tie.shape) == ("BF16", (96, 64))
