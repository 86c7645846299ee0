"""Rebuild: every architecture and recipe there and back, files and names as tuned has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
import transformers
from safetensors import safe_open

from bitdelta_hub import compress, rebuild, verify
from bitdelta_hub.errors import (
    BaseMismatch,
    BitDeltaError,
    DigestMismatch,
    FormatError,
    StorageError,
    UsageError,
)
from tests import models
from tests.handmade import Trip, bits, content, moved, noise, round_trip, save, save_pair
from tests.models import checkpoints, rewrite

RECIPES = ("bitdelta", "row1", "delta-come", "exact")


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "models"


def header(path: Path) -> list[tuple[str, str, list[int]]]:
    """(name, dtype, shape) of a file's tensors in the order of their bytes."""
    with path.open("rb") as file:
        table = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    table.pop("__metadata__", None)
    ordered = sorted(table.items(), key=lambda item: item[1]["data_offsets"])
    return [(name, entry["dtype"], entry["shape"]) for name, entry in ordered]


def files_of(folder: Path) -> list[str]:
    """The files of a checkpoint but its card."""
    return sorted(path.name for path in folder.iterdir() if path.name != "README.md")


def check_trip(trip: Trip, tuned: Path) -> None:
    """Asserts what holds for every round trip."""
    assert files_of(trip.out) == files_of(tuned)
    weights = models.tensors(tuned)
    rebuilt = models.tensors(trip.out)
    for path in tuned.glob("*.safetensors"):
        assert header(trip.out / path.name) == header(path)
    assert json.loads((trip.out / "config.json").read_text()) == json.loads(
        (tuned / "config.json").read_text()
    )
    for name, tensor in weights.items():
        if trip.manifest.exact(name):
            assert bytes(bits(rebuilt[name])) == bytes(bits(tensor)), name
    if trip.plan.upper_bound:
        assert trip.written <= trip.plan.shard_bytes
    else:
        assert trip.written == trip.plan.shard_bytes
    check_error(trip)


def check_error(trip: Trip) -> None:
    """Asserts that the errors measured anew are those of the manifest."""
    entries = trip.manifest.tensors
    errors = [entries[e.tie].error if e.tie else e.error for e in entries.values()]
    stated = [error for error in errors if error]
    found = trip.verified.error
    assert found is not None
    assert found["lossy_tensors"] == len(stated) == trip.compressed.lossy_tensors
    assert found["exact_tensors"] == len(entries) - len(stated) == trip.compressed.exact_tensors
    if stated:
        assert found["median"] == pytest.approx(median(stated), rel=0.01)
        assert found["worst"] == pytest.approx(max(stated), rel=0.01)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", models.MODELS)
def test_every_architecture_there_and_back(
    kind: str, recipe: str, root: Path, tmp_path: Path
) -> None:
    base, tuned = checkpoints(kind, root)
    trip = round_trip(tmp_path, (base, tuned), recipe=recipe)
    check_trip(trip, tuned)
    if recipe == "exact":
        assert trip.compressed.lossy_tensors == 0
        for name in files_of(tuned):
            assert (trip.out / name).read_bytes() == (tuned / name).read_bytes()
    else:
        assert trip.compressed.lossy_tensors > 0


@pytest.mark.parametrize("kind", models.MODELS)
def test_transformers_loads_what_was_rebuilt(kind: str, root: Path, tmp_path: Path) -> None:
    base, tuned = checkpoints(kind, root)
    compress(tuned, base, tmp_path / "delta")
    rebuild(tmp_path / "delta", tmp_path / "out", base=base)
    model = type(models.build(kind))
    loaded, info = model.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    fresh = model.from_pretrained(tuned, dtype=torch.bfloat16)
    stored = models.tensors(tmp_path / "out")
    for name, tensor in loaded.state_dict().items():
        assert tensor.shape == fresh.state_dict()[name].shape
        if name in stored:
            assert torch.equal(tensor, stored[name])


@pytest.mark.parametrize("recipe", RECIPES)
def test_shards_and_index_come_back(recipe: str, root: Path, tmp_path: Path) -> None:
    base, tuned = checkpoints("llama", root, max_shard_size="20KB")
    trip = round_trip(tmp_path, (base, tuned), recipe=recipe)
    check_trip(trip, tuned)
    theirs, ours = (
        json.loads((folder / "model.safetensors.index.json").read_text())
        for folder in (tuned, trip.out)
    )
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    transformers.AutoModelForCausalLM.from_pretrained(trip.out)


@pytest.mark.parametrize(
    ("stem", "index"),
    [
        ("model", "model.safetensors.index.json"),
        ("diffusion_pytorch_model", "diffusion_pytorch_model.safetensors.index.json"),
    ],
)
def test_a_lone_numbered_file_has_an_index(stem: str, index: str, tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path, {"w": noise(64, 48)}, {"w": moved(noise(64, 48))})
    (tuned / "model.safetensors").rename(tuned / f"{stem}-00001-of-00001.safetensors")
    trip = round_trip(tmp_path, (base, tuned))
    assert json.loads((trip.out / index).read_text()) == {
        "metadata": {"total_size": 64 * 48 * 2},
        "weight_map": {"w": f"{stem}-00001-of-00001.safetensors"},
    }


def bert_with_a_head(root: Path, folder: Path) -> tuple[Path, Path]:
    base, tuned = checkpoints("bert", root)
    head = {"classifier.weight": noise(3, 32), "classifier.bias": noise(3)}
    return base, rewrite(tuned, folder, lambda found: {**found, **head})


def gemma_with_another_prefix(root: Path, folder: Path) -> tuple[Path, Path]:
    model = models.build("gemma3")
    models.move(model)
    model.save_pretrained(folder, save_original_format=False)
    return checkpoints("gemma3", root)[0], folder


def fused_experts(root: Path, folder: Path) -> tuple[Path, Path]:
    model = models.build("mixtral")
    models.move(model)
    model.save_pretrained(folder, save_original_format=False)
    return checkpoints("mixtral", root)[0], folder


def unfused_experts(root: Path, folder: Path) -> tuple[Path, Path]:
    models.build("mixtral").save_pretrained(folder, save_original_format=False)
    return folder, checkpoints("mixtral", root)[1]


def more_tokens(root: Path, folder: Path) -> tuple[Path, Path]:
    return _resized(root, folder, 104)


def fewer_tokens(root: Path, folder: Path) -> tuple[Path, Path]:
    return _resized(root, folder, 88)


def _resized(root: Path, folder: Path, tokens: int) -> tuple[Path, Path]:
    model = models.build("llama")
    models.move(model)
    model.resize_token_embeddings(tokens, mean_resizing=False)
    model.save_pretrained(folder)
    return checkpoints("llama", root)[0], folder


def head_beside_tied_embeddings(root: Path, folder: Path) -> tuple[Path, Path]:
    base, tuned = checkpoints("llama-tied", root)
    key = "model.embed_tokens.weight"
    return base, rewrite(
        tuned, folder, lambda found: {"lm_head.weight": found[key].clone(), **found}
    )


VARIANTS = (
    bert_with_a_head, gemma_with_another_prefix, fused_experts, unfused_experts, more_tokens,
    fewer_tokens, head_beside_tied_embeddings,
)  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_variants_of_layout_there_and_back(
    variant: Callable[[Path, Path], tuple[Path, Path]], recipe: str, root: Path, tmp_path: Path
) -> None:
    base, tuned = variant(root, tmp_path / "variant")
    check_trip(round_trip(tmp_path, (base, tuned), recipe=recipe), tuned)


def test_metadata_of_the_files_tells_loaders_what_they_are(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, {"w": noise(8)}, {"w": noise(8, seed=1)})
    trip = round_trip(tmp_path, pair, allow_distant_base=True)
    with safe_open(trip.out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


# What is refused


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(base, tuned, delta) with a large and a small tensor; not to be changed."""
    home = tmp_path_factory.mktemp("made")
    base, tuned = save_pair(
        home,
        {"large.weight": noise(300, 200), "small": noise(40)},
        {"large.weight": moved(noise(300, 200)), "small": moved(noise(40))},
    )
    (tuned / "tokenizer.json").write_text("{}")
    compress(tuned, base, home / "delta")
    return base, tuned, home / "delta"


def refused(error: type[BitDeltaError], delta: Path, out: Path, base: Path | None) -> BitDeltaError:
    with pytest.raises(error) as caught:
        rebuild(delta, out, base=base)
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}.*"))
    return caught.value


def test_a_rebuild_without_a_base_is_refused(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    error = refused(UsageError, made[2], tmp_path / "out", None)
    assert str(error) == f"{made[2]}: no base given"
    assert error.fix == "pass the checkpoint that the delta was made from with --base"


def flipped(source: Path, out: Path, name: str, place: int) -> Path:
    """`out`, a copy of checkpoint `source` with one bit of byte `place` of `name` changed."""
    shutil.copytree(source, out)
    data = bytearray((out / "model.safetensors").read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:start])
    data[start + table[name]["data_offsets"][0] + place] ^= 1
    (out / "model.safetensors").write_bytes(data)
    return out


def test_a_bit_of_a_large_base_tensor(tmp_path: Path) -> None:
    home = save_pair(
        tmp_path / "pair",
        {f"w{i}": noise(40, 30, seed=i) for i in range(12)} | {"large": noise(300, 200)},
        {f"w{i}": moved(noise(40, 30, seed=i)) for i in range(12)}
        | {"large": moved(noise(300, 200))},
    )
    compress(home[1], home[0], tmp_path / "delta")
    other = flipped(home[0], tmp_path / "other", "large", 77_001)
    error = refused(DigestMismatch, tmp_path / "delta", tmp_path / "out", other)
    assert error.code == "BDH401"
    assert str(error).startswith('tensors["large"]: rebuilt tensor differs (expected blake3:')
    assert (
        error.fix == "`bdhub verify DELTA --base BASE` tells whether the base or the delta changed"
    )
    with pytest.raises(BaseMismatch, match=r'^base.tensors\["large"\]: another content'):
        verify(tmp_path / "delta", base=other)


def test_a_bit_of_a_small_base_tensor(tmp_path: Path) -> None:
    base, tuned = save_pair(
        tmp_path,
        {"w": noise(64, 48), "n": noise(32)},
        {"w": moved(noise(64, 48)), "n": noise(32)},
    )
    compress(tuned, base, tmp_path / "delta")
    other = flipped(base, tmp_path / "other", "n", 3)
    error = refused(BaseMismatch, tmp_path / "delta", tmp_path / "out", other)
    assert error.code == "BDH402"
    assert str(error).startswith('base.tensors["n"]: another content (expected blake3:')
    assert error.fix.startswith(
        "pass the base of this delta with --base: the checkpoint that it was made from, "
        "fingerprint blake3:"
    )


def test_another_base_of_the_same_shapes(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    other = {"large.weight": noise(300, 200, seed=5), "small": noise(40)}
    refused(BaseMismatch, made[2], tmp_path / "out", save(tmp_path / "other", other))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"small": noise(40)}, 'base.tensors["large.weight"]: not in the base'),
        (
            {"large.weight": noise(200, 300)},
            'base.tensors["large.weight"]: another tensor (expected BF16 [300, 200], '
            "found BF16 [200, 300])",
        ),
        (
            {"large.weight": noise(300, 200, dtype=torch.float16)},
            'base.tensors["large.weight"]: another tensor (expected BF16 [300, 200], '
            "found F16 [300, 200])",
        ),
    ],
)
def test_another_architecture_is_no_base(
    tensors: dict[str, torch.Tensor],
    message: str,
    made: tuple[Path, Path, Path],
    tmp_path: Path,
) -> None:
    error = refused(BaseMismatch, made[2], tmp_path / "out", save(tmp_path / "other", tensors))
    assert str(error) == message


def test_a_base_with_more_tensors_and_another_name_serves(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, _, delta = made
    same = rewrite(base, tmp_path / "mirror", lambda found: {**found, "more": noise(3)})
    rebuild(delta, tmp_path / "out", base=same)
    rebuild(delta, tmp_path / "again", base=base)
    assert content(tmp_path / "out") == content(tmp_path / "again")


def test_a_carried_file_that_changed(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, delta = made
    shutil.copytree(delta, tmp_path / "delta")
    (tmp_path / "delta" / "tokenizer.json").write_text("[]")
    error = refused(DigestMismatch, tmp_path / "delta", tmp_path / "out", base)
    assert str(error).startswith("files[1]: tokenizer.json: another content (expected sha256 ")
    (tmp_path / "delta" / "tokenizer.json").unlink()
    missing = refused(StorageError, tmp_path / "delta", tmp_path / "out", base)
    assert str(missing) == f"{tmp_path / 'delta' / 'tokenizer.json'}: missing"
    assert missing.fix == "fetch the delta again, or compress again"


def test_a_link_out_of_the_delta_is_not_followed(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, _, delta = made
    shutil.copytree(delta, tmp_path / "delta")
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "delta" / "tokenizer.json").unlink()
    (tmp_path / "delta" / "tokenizer.json").symlink_to(tmp_path / "secret")
    error = refused(FormatError, tmp_path / "delta", tmp_path / "out", base)
    assert str(error) == "tokenizer.json: a symbolic link out of the folder [R2]"


def test_the_output_is_never_an_input(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, tuned, delta = made
    before = content(base) | content(delta)
    for out in (base, delta, base.parent):
        with pytest.raises(StorageError) as caught:
            rebuild(delta, out, base=base, overwrite=True)
        assert str(caught.value) == f"{out}: holds an input of this run"
        assert caught.value.fix == "choose another output folder"
    assert content(base) | content(delta) == before
    assert tuned.exists()


def test_overwriting_replaces_a_checkpoint_and_nothing_else(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, _, delta = made
    out = tmp_path / "out"
    rebuild(delta, out, base=base)
    with pytest.raises(StorageError, match="already exists"):
        rebuild(delta, out, base=base)
    (out / "stray").write_text("")
    result = rebuild(delta, out, base=base, overwrite=True)
    assert not (out / "stray").exists()
    assert result.bytes == (out / "model.safetensors").stat().st_size
    assert result.tensors == 2
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "diary").write_text("mine")
    with pytest.raises(StorageError, match="not overwritten, for it holds other things"):
        rebuild(delta, notes, base=base, overwrite=True)
    assert (notes / "diary").read_text() == "mine"


def test_progress_counts_the_bytes_of_the_checkpoint(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    rebuild(made[2], tmp_path / "out", base=made[0], progress=lambda *event: seen.append(event))
    total = 2 * (300 * 200 + 40)
    assert seen[0] == ("rebuild", 0, total)
    assert seen[-1] == ("rebuild", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
