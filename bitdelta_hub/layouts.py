"""Names that mean the same tensor, and tensors that are others joined row by row.

Every name is brought to a canonical form in which the known layouts of one model agree:
wrappers in front are dropped and renamed modules get one of their names. Two names with one
canonical form are the same tensor if that form belongs to one name only on each side.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

# Modules that compiling, parallel training or checkpointed activations put around others.
_INNER = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
_TRAINING = re.compile(rf"^(?:(?:module|{_INNER})\.)+|\b(?:{_INNER})\.")
# Modules that a model with a head, or one of several modalities, wraps around the bare model.
_WRAPPERS = re.compile(
    r"^(?:(?:model|language_model|base_model|backbone|transformer|bert|roberta|distilbert|deberta"
    r"|electra|vit|deit|beit|dinov2)\.)+(?=.*\.)"
)
# Renamings between published checkpoints and newer saves of the same models, in this order.
_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(LayerNorm)\.gamma$", r"\1.weight"),
        (r"(LayerNorm)\.beta$", r"\1.bias"),
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"\.experts\.(\d+)\.w1\.", r".experts.\1.gate_proj."),
        (r"\.experts\.(\d+)\.w3\.", r".experts.\1.up_proj."),
        (r"\.experts\.(\d+)\.w2\.", r".experts.\1.down_proj."),
        (r"^vision_tower\.vision_model\.", "vision_tower."),
        (r"^encoder\.layer\.", "layers."),
        (r"\.attention\.attention\.query\.", ".attention.q_proj."),
        (r"\.attention\.attention\.key\.", ".attention.k_proj."),
        (r"\.attention\.attention\.value\.", ".attention.v_proj."),
        (r"\.attention\.output\.dense\.", ".attention.o_proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
    )
)
# Whole -> its parts, rows below rows.
_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_WHOLE = {part: whole for whole, parts in _JOINED.items() for part in parts}
_LINEAR = re.compile(r"(?P<module>.+)\.(?P<leaf>\w+)\.(?P<kind>weight|bias)")
_EXPERT = re.compile(r"(?P<all>.+\.experts)\.\d+\.(?P<leaf>gate_proj|up_proj|down_proj)\.weight")
_EXPERTS = re.compile(r"(?P<all>.+\.experts)\.(?P<leaf>gate_up_proj|down_proj)")

_EMBEDDING = re.compile(
    r"(?:.*\.)?(?:embed_tokens|wte|word_embeddings|tok_embeddings|shared|embed_in)\.weight"
)
_HEAD = re.compile(
    r"(?:lm_head|embed_out|output|proj_out|lm_head\.decoder|cls\.predictions\.decoder)\.weight"
)


@lru_cache(maxsize=1 << 16)
def canonical(name: str) -> str:
    """The form of tensor name `name` in which known layouts of one model agree."""
    name = _WRAPPERS.sub("", _TRAINING.sub("", name))
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def is_embedding(name: str) -> bool:
    """Whether `name` is a table of token embeddings."""
    return _EMBEDDING.fullmatch(canonical(name)) is not None


def is_head(name: str) -> bool:
    """Whether `name` is the matrix from hidden states to tokens, which may be tied."""
    return _HEAD.fullmatch(canonical(name)) is not None


def unique(names: Iterable[str]) -> dict[str, str]:
    """Canonical form -> name, for the forms that belong to one name only."""
    forms = {name: canonical(name) for name in names}
    count = Counter(forms.values())
    return {form: name for name, form in forms.items() if count[form] == 1}


def same_tensors(tuned: Iterable[str], base: Iterable[str]) -> dict[str, str]:
    """Tuned name -> base name of the same tensor: by name, by form, then by one common prefix."""
    base = set(base)
    found = {name: name for name in tuned if name in base}
    free_tuned = unique(name for name in tuned if name not in found)
    free_base = unique(base - found.keys())
    found |= {name: free_base[form] for form, name in free_tuned.items() if form in free_base}
    rest_tuned = {form: name for form, name in free_tuned.items() if form not in free_base}
    rest_base = {form: name for form, name in free_base.items() if form not in free_tuned}
    if not (pairs := _without_prefix(rest_tuned, rest_base)):
        pairs = {ours: theirs for theirs, ours in _without_prefix(rest_base, rest_tuned).items()}
    return found | {rest_tuned[ours]: rest_base[theirs] for ours, theirs in pairs.items()}


def _without_prefix(forms: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Form -> other form that it is without the one prefix that fits most of them.

    Empty where fewer than two fit, or where another prefix fits as many: then it is a guess.
    """
    others = set(others)
    by_prefix: dict[str, dict[str, str]] = {}
    for form in forms:
        prefix, _, rest = form.partition(".")
        if (other := canonical(rest)) in others:
            by_prefix.setdefault(prefix, {})[form] = other
    fits = sorted(by_prefix.values(), key=len, reverse=True)
    if not fits or len(fits[0]) < 2 or (len(fits) > 1 and len(fits[1]) == len(fits[0])):
        return {}
    return fits[0]


def parts_of(form: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Canonical names of the tensors that, joined row-major, are the tensor `form`; () for none.

    Fused experts `[experts, rows, cols]` are each expert's matrices in turn, gate above up, as in
    transformers' conversion of Mixtral and Qwen-MoE; fused projections are stacked rows.
    """
    if (found := _EXPERTS.fullmatch(form)) and len(shape) == 3:
        leaves = _JOINED.get(found["leaf"], (found["leaf"],))
        return tuple(
            f"{found['all']}.{expert}.{leaf}.weight"
            for expert in range(shape[0])
            for leaf in leaves
        )
    if (found := _LINEAR.fullmatch(form)) and found["leaf"] in _JOINED:
        return tuple(f"{found['module']}.{leaf}.{found['kind']}" for leaf in _JOINED[found["leaf"]])
    return ()


def whole_of(form: str) -> str | None:
    """Canonical name of the fused tensor that the tensor `form` may be a part of."""
    if found := _EXPERT.fullmatch(form):
        return f"{found['all']}.{_WHOLE.get(found['leaf'], found['leaf'])}"
    if (found := _LINEAR.fullmatch(form)) and found["leaf"] in _WHOLE:
        return f"{found['module']}.{_WHOLE[found['leaf']]}.{found['kind']}"
    return None
