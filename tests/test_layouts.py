"""Canonical names, and which names of two layouts are one tensor."""

from __future__ import annotations

import pytest

from bitdelta_hub.layouts import (
    canonical,
    is_embedding,
    is_head,
    parts_of,
    same_tensors,
    unique,
    whole_of,
)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("language_model.model.norm.weight", "norm.weight"),
        ("model.language_model.norm.weight", "norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.visual.merger.mlp.0.weight", "visual.merger.mlp.0.weight"),
        ("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight"),
        ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
        ("vision_tower.vision_model.head.probe", "vision_tower.head.probe"),
        ("model.layers.1.block_sparse_moe.gate.weight", "layers.1.mlp.gate.weight"),
        (
            "model.layers.1.block_sparse_moe.experts.3.w2.weight",
            "layers.1.mlp.experts.3.down_proj.weight",
        ),
        ("vit.encoder.layer.0.output.dense.bias", "layers.0.mlp.fc2.bias"),
        ("module._orig_mod.model.norm.weight", "norm.weight"),
        ("_orig_mod.module.lm_head.weight", "lm_head.weight"),
        ("model.layers.0._orig_mod.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        (
            "_fsdp_wrapped_module.model.layers.0._checkpoint_wrapped_module.norm.weight",
            "layers.0.norm.weight",
        ),
        ("encoder.module.weight", "encoder.module.weight"),
        ("model.weight", "model.weight"),
        ("model", "model"),
    ],
)
def test_canonical_names(name: str, form: str) -> None:
    assert canonical(name) == form
    assert canonical(form) == form


def test_a_form_of_two_names_belongs_to_neither() -> None:
    names = ["model.norm.weight", "norm.weight", "lm_head.weight"]
    assert unique(names) == {"lm_head.weight": "lm_head.weight"}


def test_names_go_before_forms() -> None:
    assert same_tensors(
        ["model.norm.weight", "norm.weight"], ["norm.weight", "transformer.norm.weight"]
    ) == {"norm.weight": "norm.weight", "model.norm.weight": "transformer.norm.weight"}


def test_one_agreement_under_a_prefix_is_a_chance() -> None:
    names = [f"layers.{layer}.weight" for layer in range(2)]
    wrapped = [f"core.{name}" for name in names]
    assert same_tensors(wrapped, names) == dict(zip(wrapped, names, strict=True))
    assert same_tensors(names, wrapped) == dict(zip(names, wrapped, strict=True))
    assert same_tensors(wrapped[:1], names) == {}


@pytest.mark.parametrize(
    ("name", "embedding", "head"),
    [
        ("model.embed_tokens.weight", True, False),
        ("model.language_model.embed_tokens.weight", True, False),
        ("transformer.wte.weight", True, False),
        ("bert.embeddings.word_embeddings.weight", True, False),
        ("shared.weight", True, False),
        ("lm_head.weight", False, True),
        ("language_model.lm_head.weight", False, True),
        ("cls.predictions.decoder.weight", False, True),
        ("lm_head.bias", False, False),
        ("bert.embeddings.position_embeddings.weight", False, False),
        ("model.embed_tokens_per_layer.weight", False, False),
    ],
)
def test_tables_of_tokens(name: str, embedding: bool, head: bool) -> None:
    assert (is_embedding(name), is_head(name)) == (embedding, head)


@pytest.mark.parametrize(
    ("whole", "shape"),
    [
        ("layers.0.mlp.experts.gate_up_proj", (3, 8, 4)),
        ("layers.0.mlp.experts.down_proj", (3, 4, 8)),
        ("layers.0.self_attn.qkv_proj.weight", (12, 4)),
        ("layers.0.self_attn.qkv_proj.bias", (12,)),
        ("layers.0.mlp.gate_up_proj.weight", (8, 4)),
    ],
)
def test_parts_know_their_whole(whole: str, shape: tuple[int, ...]) -> None:
    parts = parts_of(whole, shape)
    assert len(set(parts)) == len(parts) > 1
    assert {whole_of(part) for part in parts} == {whole}


def test_what_is_not_fused_has_no_parts() -> None:
    assert parts_of("layers.0.mlp.experts.gate_up_proj", (8, 4)) == ()
    assert parts_of("layers.0.mlp.down_proj.weight", (4, 8)) == ()
    assert whole_of("layers.0.mlp.down_proj.weight") is None
    assert whole_of("norm.weight") is None
