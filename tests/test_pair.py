"""Pairs as they are met in the wild, each with checkpoints that really have that shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bitdelta_hub.checkpoint import open_checkpoint
from bitdelta_hub.errors import PairError
from bitdelta_hub.pair import OUTCOMES, Match, Note, Pair, Piece, check_base, match
from tests import models
from tests.models import Tensors, checkpoints, rewrite

Open = Callable[..., Pair]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "models"


@pytest.fixture
def pair() -> Any:
    """match(base folder, tuned folder); both are closed after the test."""
    with ExitStack() as stack:

        def opened(base: Path, tuned: Path, **options: bool) -> Pair:
            sides = [
                stack.enter_context(open_checkpoint(path, **options)) for path in (base, tuned)
            ]
            return match(*sides)

        yield opened


def operand_values(pair: Pair, name: str) -> torch.Tensor:
    """The operand's values in the tuned tensor's shape, zeros where it has none."""
    info, operand = pair.tuned.tensors[name], pair.matches[name].operand
    assert operand is not None
    pieces = (Piece(operand, 0, info.numel),) if isinstance(operand, str) else operand
    values = torch.cat([pair.base.read(*piece) for piece in pieces])
    return torch.nn.functional.pad(values, (0, info.numel - len(values))).view(info.shape)


def by_name(pair: Pair) -> dict[str, Match]:
    return {name: Match(name) for name in pair.tuned.tensors}


def refusal(call: Callable[[], Any]) -> tuple[str, str, str]:
    """(code, message, fix) of the PairError that `call` raises."""
    with pytest.raises(PairError) as caught:
        call()
    return caught.value.code, str(caught.value), caught.value.fix


# The same layout


@pytest.mark.parametrize("kind", models.MODELS)
def test_the_same_architecture_pairs_by_name(kind: str, root: Path, pair: Open) -> None:
    found = pair(*checkpoints(kind, root))
    assert found.matches == by_name(found)
    assert found.notes == ()
    sample = check_base(found)
    assert sample.notes == ()
    assert sample.changed_fraction > 0.9
    assert all(0.09 < distance < 0.12 for distance in sample.distances.values())


def test_shards_pair_with_a_single_file(root: Path, pair: Open) -> None:
    sharded, _ = checkpoints("llama", root, max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) == 3
    _, tuned = checkpoints("llama", root)
    found = pair(sharded, tuned)
    assert found.matches == by_name(found)
    assert found.notes == ()


# BDH001: tied heads


def with_head(found: Tensors) -> Tensors:
    return {"lm_head.weight": found["model.embed_tokens.weight"].clone(), **found}


def test_a_head_with_the_bytes_of_the_embeddings_is_a_tie(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("llama-tied", root)
    found = pair(base, rewrite(tuned, tmp_path / "tuned", with_head))
    assert found.matches["lm_head.weight"] == Match(tie="model.embed_tokens.weight")
    assert found.matches["model.embed_tokens.weight"] == Match("model.embed_tokens.weight")
    assert found.notes == (
        Note("BDH001", "lm_head.weight holds the bytes of model.embed_tokens.weight"),
    )


def test_an_untied_head_starts_from_the_embeddings_of_a_tied_base(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("llama-tied", root)
    own = rewrite(
        tuned,
        tmp_path / "tuned",
        lambda found: {**found, "lm_head.weight": found["model.embed_tokens.weight"] * 1.5},
        tie_word_embeddings=False,
    )
    found = pair(base, own)
    assert found.matches["lm_head.weight"] == Match("model.embed_tokens.weight")
    assert found.notes == (
        Note(
            "BDH001",
            "lm_head.weight is paired with model.embed_tokens.weight, to which the base ties it",
        ),
    )


def test_a_head_that_only_the_base_writes_is_no_loss(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("llama-tied", root)
    found = pair(rewrite(base, tmp_path / "base", with_head), tuned)
    assert found.matches == by_name(found)
    assert found.notes == (Note("BDH001", "the base also writes lm_head.weight, which it ties"),)


def test_a_new_head_on_an_untied_bare_base_starts_from_nothing(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    models.build("llama").base_model.save_pretrained(tmp_path / "base")
    _, tuned = checkpoints("llama", root)
    found = pair(tmp_path / "base", tuned)
    assert found.matches["lm_head.weight"] == Match()
    assert found.matches["model.norm.weight"] == Match("norm.weight")


def test_the_embeddings_of_another_part_are_not_those_of_the_base(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("llama-tied", root)
    name = "model.layers.2.embed_tokens.weight"
    found = pair(
        base,
        rewrite(tuned, tmp_path / "tuned", lambda found: {**found, name: torch.ones(96, 32)}),
    )
    assert found.matches[name] == Match()


def test_tied_tensors_of_a_pickle_are_stored_once(root: Path, pair: Open, tmp_path: Path) -> None:
    base, _ = checkpoints("t5", root)
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    model = models.build("t5", seed=1)
    torch.save(model.state_dict(), tuned / "pytorch_model.bin")
    model.config.save_pretrained(tuned)
    found = pair(base, tuned, allow_pickle=True)
    ties = {name: match.tie for name, match in found.matches.items() if match.tie}
    assert ties == dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
        "shared.weight",
    )
    assert found.matches["shared.weight"] == Match("shared.weight")


# BDH002: resized vocabularies


@pytest.mark.parametrize(("rows", "common"), [(100, 96), (80, 80)])
def test_a_resized_vocabulary_pairs_its_common_rows(
    rows: int, common: int, root: Path, pair: Open, tmp_path: Path
) -> None:
    base, _ = checkpoints("llama", root)
    model = models.build("llama")
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(tmp_path / "tuned")
    found = pair(base, tmp_path / "tuned")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert found.matches[name] == Match((Piece(name, 0, common * 32),))
    assert found.notes == (
        Note(
            "BDH002",
            "2 tensors for another number of tokens; the common rows are paired: "
            f"lm_head.weight has {rows} rows (there 96); "
            f"model.embed_tokens.weight has {rows} rows (there 96)",
        ),
    )


def test_a_resized_vocabulary_resizes_its_biases_too(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, _ = checkpoints("bert", root)
    model = models.build("bert")
    model.resize_token_embeddings(104, mean_resizing=False)
    model.save_pretrained(tmp_path / "tuned")
    found = pair(base, tmp_path / "tuned")
    bias = "cls.predictions.bias"
    assert found.matches[bias] == Match((Piece(bias, 0, 96),))


# BDH003: prefixes and layouts


def test_old_and_new_multimodal_prefixes_are_one(root: Path, pair: Open, tmp_path: Path) -> None:
    base, _ = checkpoints("gemma3", root)
    models.build("gemma3").save_pretrained(tmp_path / "tuned", save_original_format=False)
    found = pair(base, tmp_path / "tuned")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert found.matches[name] == Match("language_model.model.layers.0.mlp.up_proj.weight")
    name = "model.vision_tower.post_layernorm.bias"
    assert found.matches[name] == Match("vision_tower.post_layernorm.bias")
    assert all(match.operand for match in found.matches.values())
    assert found.notes == (
        Note(
            "BDH003",
            "78 tensors under another name or layout in the base; the fine-tune's are kept: "
            "model.language_model.embed_tokens.weight (there "
            "language_model.model.embed_tokens.weight); "
            "model.language_model.layers.0.input_layernorm.weight (there "
            "language_model.model.layers.0.input_layernorm.weight); ...",
        ),
    )


def test_qwen_vision_and_text_prefixes_are_one(root: Path, pair: Open, tmp_path: Path) -> None:
    """The names of Qwen2.5-VL before and after transformers 4.52."""
    base, tuned = checkpoints("qwen2", root)
    vision = {"visual.blocks.0.attn.qkv.weight": torch.ones(96, 32)}
    old = rewrite(base, tmp_path / "old", lambda found: {**found, **vision})
    new = rewrite(
        tuned,
        tmp_path / "new",
        lambda found: {
            **{re.sub("^model", "model.language_model", name): t for name, t in found.items()},
            **{f"model.{name}": tensor for name, tensor in vision.items()},
        },
    )
    for one, other in ((old, new), (new, old)):
        found = pair(one, other)
        assert all(match.operand for match in found.matches.values())
        assert [note.code for note in found.notes] == ["BDH003"]


@pytest.mark.parametrize("kind", ["gpt2", "bert", "vit"])
def test_a_base_without_head_and_prefix_pairs(
    kind: str, root: Path, pair: Open, tmp_path: Path
) -> None:
    models.build(kind).base_model.save_pretrained(tmp_path / "base")
    _, tuned = checkpoints(kind, root)
    found = pair(tmp_path / "base", tuned)
    prefix = {"gpt2": "transformer.", "bert": "bert.", "vit": "vit."}[kind]
    for name, got in found.matches.items():
        assert got.operand == (name.removeprefix(prefix) if name.startswith(prefix) else None)


def test_any_prefix_serves_that_makes_the_names_agree(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("llama", root)
    named = rewrite(tuned, tmp_path / "tuned", models.renamed(lambda name: f"thinker.{name}"))
    for one, other in ((base, named), (named, base)):
        found = pair(one, other)
        assert all(match.operand for match in found.matches.values())
        assert [note.code for note in found.notes] == ["BDH003"]


def test_a_prefix_that_two_parts_share_alike_is_a_guess(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("llama", root)
    twice = rewrite(
        tuned,
        tmp_path / "tuned",
        lambda found: {
            f"{side}.{n}": t.clone() for side in ("query", "key") for n, t in found.items()
        },
    )
    code, message, _ = refusal(lambda: pair(base, twice))
    assert code == "BDH105"
    assert message.endswith(
        "41 of 42 tensors have no counterpart: key.lm_head.weight is not in the base; "
        "key.model.embed_tokens.weight is not in the base; "
        "key.model.layers.0.input_layernorm.weight is not in the base"
    )


def test_names_of_layer_norms_of_the_first_berts(root: Path, pair: Open, tmp_path: Path) -> None:
    base, tuned = checkpoints("bert", root)

    def first(name: str) -> str:
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return name.replace("LayerNorm.bias", "LayerNorm.beta")

    found = pair(rewrite(base, tmp_path / "base", models.renamed(first)), tuned)
    assert all(got.operand == first(name) for name, got in found.matches.items())


def test_old_and_new_names_of_vit(root: Path, pair: Open, tmp_path: Path) -> None:
    base, _ = checkpoints("vit", root)
    model = models.build("vit")
    model.save_pretrained(tmp_path / "tuned", save_original_format=False)
    found = pair(base, tmp_path / "tuned")
    for name in found.tuned.tensors:
        assert torch.equal(operand_values(found, name), model.state_dict()[name])


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe"])
def test_experts_pair_fused_and_one_by_one(
    kind: str, root: Path, pair: Open, tmp_path: Path
) -> None:
    apart, _ = checkpoints(kind, root)
    models.build(kind).save_pretrained(tmp_path / "fused", save_original_format=False)
    for base, tuned in ((apart, tmp_path / "fused"), (tmp_path / "fused", apart)):
        found = pair(base, tuned)
        values = models.tensors(tuned)
        assert all(torch.equal(operand_values(found, name), values[name]) for name in values)
        assert [note.code for note in found.notes] == ["BDH003"]


def test_the_pieces_of_fused_experts(root: Path, pair: Open, tmp_path: Path) -> None:
    apart, _ = checkpoints("mixtral", root)
    models.build("mixtral").save_pretrained(tmp_path / "fused", save_original_format=False)
    found = pair(apart, tmp_path / "fused")
    experts = "model.layers.1.block_sparse_moe.experts"
    assert found.matches["model.layers.1.mlp.experts.gate_up_proj"].operand == tuple(
        Piece(f"{experts}.{expert}.{leaf}.weight", 0, 56 * 32)
        for expert in range(4)
        for leaf in ("w1", "w3")
    )
    back = pair(tmp_path / "fused", apart)
    assert back.matches[f"{experts}.2.w3.weight"].operand == (
        Piece("model.layers.1.mlp.experts.gate_up_proj", 5 * 56 * 32, 6 * 56 * 32),
    )


def split(found: Tensors) -> Tensors:
    """Phi-3 with the projections of Llama: 4 heads of 8 for q, 2 each for k and v."""
    out: Tensors = {}
    for name, tensor in found.items():
        if "qkv_proj" in name:
            for leaf, part in zip("qkv", tensor.split((32, 16, 16)), strict=True):
                out[name.replace("qkv", leaf)] = part.clone()
        elif "gate_up_proj" in name:
            for leaf, part in zip(("gate", "up"), tensor.chunk(2), strict=True):
                out[name.replace("gate_up", leaf)] = part.clone()
        else:
            out[name] = tensor
    return out


def test_projections_pair_fused_and_one_by_one(root: Path, pair: Open, tmp_path: Path) -> None:
    fused, _ = checkpoints("phi3", root)
    apart = rewrite(fused, tmp_path / "apart", split)
    for base, tuned in ((fused, apart), (apart, fused)):
        found = pair(base, tuned)
        values = models.tensors(tuned)
        assert all(torch.equal(operand_values(found, name), values[name]) for name in values)
        assert [note.code for note in found.notes] == ["BDH003"]


# BDH004 and BDH005


def test_tensors_that_only_the_base_has_are_left_out(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("gemma3", root)
    text = rewrite(
        tuned,
        tmp_path / "tuned",
        lambda found: {
            name.removeprefix("language_model."): tensor
            for name, tensor in found.items()
            if name.startswith("language_model.")
        },
    )
    found = pair(base, text)
    assert found.matches["model.norm.weight"] == Match("language_model.model.norm.weight")
    assert [note.code for note in found.notes] == ["BDH003", "BDH004"]
    assert found.notes[1].message == (
        "50 tensors of the base left out: multi_modal_projector.mm_input_projection_weight; "
        "multi_modal_projector.mm_soft_emb_norm.weight; ..."
    )


def cast(dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda found: {name: tensor.to(dtype) for name, tensor in found.items()}


def test_another_dtype_is_a_warning(root: Path, pair: Open, tmp_path: Path) -> None:
    base, tuned = checkpoints("llama", root)
    found = pair(rewrite(base, tmp_path / "base", cast(torch.float16)), tuned)
    assert found.matches == by_name(found)
    assert found.notes == (
        Note(
            "BDH005",
            "21 tensors of another dtype in the base; differences are taken in fp32: "
            "lm_head.weight is BF16 (there F16); "
            "model.embed_tokens.weight is BF16 (there F16); ...",
        ),
    )
    assert check_base(found).notes == ()


def test_fp32_by_a_cast_is_told(root: Path, pair: Open, tmp_path: Path) -> None:
    base, tuned = checkpoints("llama", root)
    found = pair(base, rewrite(tuned, tmp_path / "tuned", cast(torch.float32)))
    assert check_base(found).notes == (
        Note(
            "BDH005",
            "the fine-tune is fp32 by a cast only: its values are bf16, at twice the bytes",
        ),
    )


def test_a_difference_is_not_taken_in_fp64(root: Path, pair: Open, tmp_path: Path) -> None:
    base, tuned = checkpoints("llama", root)
    name = "model.norm.weight"
    found = pair(
        base,
        rewrite(tuned, tmp_path / "tuned", lambda found: {**found, name: found[name].double()}),
    )
    assert found.matches[name] == Match()
    assert found.matches["lm_head.weight"] == Match("lm_head.weight")


# BDH006, BDH103, BDH110: quantised storage


def quantise(suffix: str, dtype: torch.dtype = torch.uint8) -> Callable[[Tensors], Tensors]:
    """Every projection's weight as codes, with an array called `suffix` beside them."""

    def change(found: Tensors) -> Tensors:
        out: Tensors = {}
        for name, tensor in found.items():
            if "_proj" not in name:
                out[name] = tensor
            elif suffix.startswith(".weight."):
                out[name] = torch.zeros(tensor.numel() // 2, 1, dtype=dtype)
                out[name.removesuffix(".weight") + suffix] = torch.zeros(4)
            else:
                out[name.removesuffix(".weight") + suffix] = torch.zeros(8, 32, dtype=dtype)
        return out

    return change


@pytest.mark.parametrize(
    ("method", "suffix", "dtype"),
    [
        ("bitsandbytes", ".weight.absmax", torch.uint8),
        ("bitsandbytes", ".SCB", torch.float32),
        ("gptq", ".qweight", torch.int32),
        ("awq", ".qweight", torch.int32),
        ("compressed-tensors", ".weight_packed", torch.int32),
    ],
)
def test_a_fine_tune_saved_quantised_is_refused(
    method: str, suffix: str, dtype: torch.dtype, root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("llama", root)
    small = rewrite(
        tuned,
        tmp_path / "tuned",
        quantise(suffix, dtype),
        quantization_config={"quant_method": method},
    )
    assert refusal(lambda: pair(base, small)) == (
        "BDH103",
        f"{small}: saved quantised by {method} (model.layers.0.mlp.down_proj{suffix})",
        "give the 16-bit checkpoint that it was made from",
    )


def test_unknown_quantised_storage_is_refused(root: Path, pair: Open, tmp_path: Path) -> None:
    base, tuned = checkpoints("llama", root)
    odd = rewrite(
        tuned,
        tmp_path / "tuned",
        lambda found: {n: t.to(torch.int8) if "proj" in n else t for n, t in found.items()},
        quantization_config={"quant_method": "eetq"},
    )
    assert refusal(lambda: pair(base, odd)) == (
        "BDH110",
        f"{odd}: quantised storage that is not understood "
        "(model.layers.0.mlp.down_proj.weight is I8, quant_method eetq)",
        "give a copy of the fine-tune in a 16-bit type",
    )


def test_quantised_storage_under_other_names_is_refused(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("llama", root)
    odd = rewrite(
        tuned,
        tmp_path / "tuned",
        lambda found: {
            f"{name}_qdata" if "proj" in name else name: tensor.to(torch.int8)
            for name, tensor in found.items()
        },
        quantization_config={"quant_method": "torchao"},
    )
    assert refusal(lambda: pair(base, odd))[:2] == (
        "BDH110",
        f"{odd}: quantised storage that is not understood "
        "(lm_head.weight is I8, quant_method torchao)",
    )


def test_masks_and_positions_are_no_quantised_storage(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("gpt2", root)

    def add(found: Tensors) -> Tensors:
        mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        return {**found, "position_ids": torch.arange(8)[None], "transformer.h.0.attn.bias": mask}

    found = pair(
        rewrite(base, tmp_path / "base", add),
        rewrite(tuned, tmp_path / "tuned", add, quantization_config={"quant_method": "x"}),
    )
    assert found.matches == by_name(found)


def fp8(found: Tensors) -> Tensors:
    out: Tensors = {}
    for name, tensor in found.items():
        out[name] = tensor
        if "_proj" in name:
            out[name] = tensor.to(torch.float8_e4m3fn)
            out[f"{name}_scale_inv"] = torch.ones(1, 1)
    return out


def test_fp8_on_both_sides_is_paired_to_be_kept_exactly(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("llama", root)
    method = {"quant_method": "fp8"}
    found = pair(
        rewrite(base, tmp_path / "base", fp8, quantization_config=method),
        rewrite(tuned, tmp_path / "tuned", fp8, quantization_config=method),
    )
    assert found.matches == by_name(found)
    assert found.notes == ()


def test_an_fp8_fine_tune_of_a_16_bit_base_is_refused(
    root: Path, pair: Open, tmp_path: Path
) -> None:
    base, tuned = checkpoints("llama", root)
    small = rewrite(tuned, tmp_path / "tuned", fp8, quantization_config={"quant_method": "fp8"})
    assert refusal(lambda: pair(base, small)) == (
        "BDH103",
        f"{small}: saved quantised by fp8 (model.layers.0.mlp.down_proj.weight), "
        "which the base is not",
        "give the 16-bit checkpoint that it was made from",
    )


def mxfp4(found: Tensors) -> Tensors:
    out: Tensors = {}
    for name, tensor in found.items():
        if "experts" in name:
            out[f"{name}_blocks"] = torch.zeros(*tensor.shape[:-1], 1, 16, dtype=torch.uint8)
            out[f"{name}_scales"] = torch.zeros(*tensor.shape[:-1], 1, dtype=torch.uint8)
        else:
            out[name] = tensor
    return out


def test_a_quantised_base_needs_a_16_bit_copy(root: Path, pair: Open, tmp_path: Path) -> None:
    models.build("mixtral").save_pretrained(tmp_path / "tuned", save_original_format=False)
    method = {"quant_method": "mxfp4"}
    base = rewrite(tmp_path / "tuned", tmp_path / "base", mxfp4, quantization_config=method)
    assert refusal(lambda: pair(base, tmp_path / "tuned")) == (
        "BDH110",
        f"{base}: the base is quantised and the fine-tune is not "
        "(model.layers.0.mlp.experts.down_proj_blocks is U8, quant_method mxfp4)",
        "give a bf16 copy of the base as --base",
    )
    again = pair(base, base)
    assert again.matches == by_name(again)


# BDH104: wrong base


def test_another_start_is_the_wrong_base(root: Path, pair: Open, tmp_path: Path) -> None:
    _, tuned = checkpoints("llama", root)
    models.build("llama", seed=1).save_pretrained(tmp_path / "base")
    found = pair(tmp_path / "base", tuned)
    assert refusal(lambda: check_base(found)) == (
        "BDH104",
        f"base and fine-tune do not match: {tmp_path / 'base'} vs {tuned}: "
        "‖Δ‖/‖W‖ is 1.42 on 12 of 12 sampled tensors (a real fine-tune is below 0.3)",
        "name the base that the fine-tune was made from; if this is it, pass --allow-distant-base",
    )
    sample = check_base(found, allow_distant=True)
    assert all(distance > 1.3 for distance in sample.distances.values())


def test_a_permuted_base_is_the_wrong_base(root: Path, pair: Open, tmp_path: Path) -> None:
    base, tuned = checkpoints("qwen3", root)
    other = rewrite(
        base,
        tmp_path / "base",
        lambda found: {n: t.flip(0) if t.dim() > 1 else t for n, t in found.items()},
    )
    assert refusal(lambda: check_base(pair(other, tuned)))[0] == "BDH104"


def test_layers_started_anew_are_no_wrong_base(root: Path, pair: Open, tmp_path: Path) -> None:
    base, tuned = checkpoints("llama", root)
    anew = rewrite(
        tuned,
        tmp_path / "tuned",
        lambda found: {
            name: torch.randn_like(tensor) if "layers.1.mlp" in name else tensor
            for name, tensor in found.items()
        },
    )
    sample = check_base(pair(base, anew))
    assert sum(distance > 1 for distance in sample.distances.values()) == 3


def test_trained_models_are_near_their_base(zoo: Path, pair: Open) -> None:
    for tuned in ("ft-math", "ft-json"):
        sample = check_base(pair(zoo / "models/base", zoo / "models" / tuned))
        assert len(sample.distances) == 12
        assert max(sample.distances.values()) < 0.2
        assert 0.97 < sample.changed_fraction < 0.99
        assert sample.notes == ()


def test_almost_nothing_changed(root: Path, pair: Open, tmp_path: Path) -> None:
    base, _ = checkpoints("llama", root)

    def touch(found: Tensors) -> Tensors:
        for tensor in found.values():
            if tensor.dim() > 1:
                tensor.view(-1)[::100] *= 1.25
        return found

    sample = check_base(pair(base, rewrite(base, tmp_path / "tuned", touch)))
    assert 0 < sample.changed_fraction < 0.011
    assert sample.notes == (
        Note("BDH007", "1 % of the sampled weights changed: keeping them exactly is smaller"),
    )


def test_not_a_number_enters_no_distance(root: Path, pair: Open, tmp_path: Path) -> None:
    base, tuned = checkpoints("llama", root)

    def spoil(found: Tensors) -> Tensors:
        for tensor in found.values():
            tensor.view(-1)[0] = torch.nan
        return found

    sample = check_base(pair(base, rewrite(tuned, tmp_path / "tuned", spoil)))
    assert all(0.09 < distance < 0.12 for distance in sample.distances.values())


# BDH105: another architecture


def test_another_architecture_is_refused(root: Path, pair: Open) -> None:
    base, _ = checkpoints("gpt2", root)
    _, tuned = checkpoints("llama", root)
    assert refusal(lambda: pair(base, tuned)) == (
        "BDH105",
        f"base and fine-tune do not match ({tuned} is a llama, {base} a gpt2): "
        "19 of 21 tensors have no counterpart: "
        "model.layers.0.input_layernorm.weight is not in the base; "
        "model.layers.0.mlp.down_proj.weight is not in the base; "
        "model.layers.0.mlp.gate_proj.weight is not in the base",
        "name the base that the fine-tune was made from",
    )


def test_another_size_is_refused(root: Path, pair: Open, tmp_path: Path) -> None:
    _, tuned = checkpoints("llama", root)
    config = transformers.LlamaConfig(**{**models.TEXT, "hidden_size": 48, "head_dim": 8})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    code, message, _ = refusal(lambda: pair(tmp_path / "base", tuned))
    assert code == "BDH105"
    assert message == (
        "base and fine-tune do not match: 21 of 21 tensors have no counterpart: "
        "lm_head.weight is [96, 32] (there [96, 48]); "
        "model.embed_tokens.weight is [96, 32] (there [96, 48]); "
        "model.layers.0.input_layernorm.weight is [32] (there [48])"
    )


def test_new_heads_are_normal(root: Path, pair: Open, tmp_path: Path) -> None:
    base, _ = checkpoints("bert", root)
    model = transformers.BertForSequenceClassification.from_pretrained(base, num_labels=3)
    models.move(model)
    model.save_pretrained(tmp_path / "three")
    found = pair(base, tmp_path / "three")
    assert found.matches["classifier.weight"] == Match()
    assert found.matches["bert.pooler.dense.weight"] == Match()
    assert found.notes == (
        Note(
            "BDH004",
            "5 tensors of the base left out: cls.predictions.bias; "
            "cls.predictions.transform.LayerNorm.bias; ...",
        ),
    )
    model = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "three", num_labels=5, ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path / "five")
    found = pair(tmp_path / "three", tmp_path / "five")
    assert {name for name, got in found.matches.items() if got == Match()} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert found.notes == ()


# BDH109 and the table


def test_custom_code_is_a_note(root: Path, pair: Open, tmp_path: Path) -> None:
    base, tuned = checkpoints("llama", root)
    custom = rewrite(tuned, tmp_path / "tuned", auto_map={"AutoModel": "modeling_x.XModel"})
    assert pair(base, custom).notes == (
        Note("BDH109", "config.json names code of its own (auto_map); it is never run"),
    )


def test_every_code_has_its_outcome() -> None:
    assert [*OUTCOMES] == [f"BDH{n:03d}" for n in (*range(1, 10), *range(101, 112))]
    assert {outcome.severity for outcome in OUTCOMES.values()} == {"note", "warning", "error"}
    names = [outcome.name for outcome in OUTCOMES.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in names)


def test_a_note_tells_its_name_and_severity() -> None:
    note = Note("BDH005", "one tensor")
    assert (note.name, note.severity) == ("other-dtype", "warning")
