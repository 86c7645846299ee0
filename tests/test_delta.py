"""An opened delta: what is refused before anything is decoded, and slices of rebuilt tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitdelta_hub import compress, open_delta, rebuild
from bitdelta_hub.checkpoint import open_checkpoint
from bitdelta_hub.delta import checkpoint_digest
from bitdelta_hub.errors import (
    BitDeltaError,
    ContainerError,
    DigestMismatch,
    FormatError,
    ManifestError,
    StorageError,
    VersionError,
)
from bitdelta_hub.format.digest import digest_of, sha256_file
from tests.handmade import bits, moved, noise, save_pair

CPU = torch.device("cpu")
Made = tuple[Path, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(base, delta) with a term of many codecs and two shards; not to be changed."""
    home = tmp_path_factory.mktemp("made")
    base = {
        "model.embed_tokens.weight": noise(90, 64),
        "big.weight": noise(700, 900),
        "deep.weight": noise(3, 40, 24),
        "steps": noise(5000),
        "rows.weight": noise(64, 64),
        "norm": noise(7),
    }
    tuned = {name: moved(tensor) for name, tensor in base.items()}
    tuned["model.embed_tokens.weight"] = torch.cat(
        [tuned["model.embed_tokens.weight"], noise(6, 64)]
    )
    tuned["big.weight"][5, 5] = float("inf")
    tuned["rows.weight"] = base["rows.weight"].clone()
    tuned["rows.weight"][9] += 1
    tuned["lm_head.weight"] = tuned["model.embed_tokens.weight"].clone()
    pair = save_pair(home, base, tuned)
    compress(pair[1], pair[0], home / "delta", recipe="bitdelta-2", max_shard_size=100_000)
    rebuild(home / "delta", home / "out", base=pair[0])
    return pair[0], home / "delta"


def copy_of(made: Made, folder: Path) -> Path:
    shutil.copytree(made[1], folder)
    return folder


def edit_manifest(delta: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = delta / "bitdelta.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refused(delta: Path, error: type[BitDeltaError]) -> str:
    with pytest.raises(error) as caught:
        open_delta(delta)
    return str(caught.value)


# Slices


def test_a_slice_is_the_slice_of_the_whole(made: Made) -> None:
    """Any rows for terms that are sums, whole blocks in any case."""
    base, folder = made
    whole = load_file(folder.parent / "out" / "model.safetensors")
    with open_delta(folder) as delta, open_checkpoint(base) as checkpoint:
        for name in ("big.weight", "deep.weight", "rows.weight", "model.embed_tokens.weight"):
            view = delta.view(name)
            wanted = bits(whole[name]).reshape(view.total_rows, view.cols)
            rebuilder = delta.rebuilder(name, checkpoint, CPU)
            for start, stop in ((0, 1), (3, 17), (39, 41), (view.total_rows - 1, view.total_rows)):
                found = rebuilder.bits(start, stop).view(wanted.dtype)
                assert np.array_equal(found, wanted[start:stop]), (name, start)


def test_rebuilt_blocks_are_those_of_the_checkpoint(made: Made) -> None:
    base, folder = made
    whole = load_file(folder.parent / "out" / "model.safetensors")
    with open_delta(folder) as delta, open_checkpoint(base) as checkpoint:
        for name, tensor in whole.items():
            blocks = [rows.tobytes() for _, rows in delta.rebuilt(name, checkpoint, CPU)]
            assert b"".join(blocks) == bits(tensor).tobytes()


def test_a_tie_is_rebuilt_from_its_target(made: Made) -> None:
    with open_delta(made[1]) as delta:
        assert delta.manifest.tensors["lm_head.weight"].kind == "tie"
        assert delta.resolve("lm_head.weight") == "model.embed_tokens.weight"
        assert delta.resolve("norm") == "norm"


def test_arrays_outlive_the_delta(made: Made) -> None:
    with open_delta(made[1]) as delta:
        (first, *_) = delta.terms("big.weight")
        before = {name: array.copy() for name, array in first.parts.items()}
    assert all(np.array_equal(first.parts[name], array) for name, array in before.items())


def test_the_digest_of_a_checkpoint_is_that_of_its_bytes(made: Made) -> None:
    with open_checkpoint(made[0]) as checkpoint:
        for name, tensor in load_file(made[0] / "model.safetensors").items():
            assert checkpoint_digest(checkpoint, name) == digest_of(bits(tensor).tobytes())


# The folder (R1, R2)


def test_what_is_no_delta_is_told(made: Made, tmp_path: Path) -> None:
    missing, empty, file = tmp_path / "missing", tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("{}")
    for path in (missing, file):
        assert refused(path, StorageError) == f"{path}: no such folder"
    assert refused(empty, StorageError) == f"{empty}: not a delta, bitdelta.json is missing"
    assert refused(made[0], StorageError) == f"{made[0]}: not a delta, bitdelta.json is missing"


def test_a_missing_shard(made: Made, tmp_path: Path) -> None:
    delta = copy_of(made, tmp_path / "delta")
    shard = sorted(delta.glob("*.safetensors"))[1]
    shard.unlink()
    assert refused(delta, StorageError) == f"{shard}: no such file or folder"


@pytest.mark.parametrize("name", ["bitdelta.json", "delta-00001-of-00002.safetensors"])
def test_a_link_out_of_the_folder_is_not_followed(name: str, made: Made, tmp_path: Path) -> None:
    delta = copy_of(made, tmp_path / "delta")
    (delta / name).rename(tmp_path / "elsewhere")
    (delta / name).symlink_to(tmp_path / "elsewhere")
    assert refused(delta, ManifestError) == f"{name}: a symbolic link out of the folder [R2]"


def test_links_of_a_hub_cache_are_followed(made: Made, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in made[1].iterdir():
        shutil.copy(path, blobs / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    rebuild(snapshot, tmp_path / "out", base=made[0])
    out = made[1].parent / "out"
    for path in out.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


# The shards (R20 to R23)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_a_shard_of_another_size(
    change: Callable[[bytes], bytes], made: Made, tmp_path: Path
) -> None:
    delta = copy_of(made, tmp_path / "delta")
    shard = delta / "delta-00002-of-00002.safetensors"
    size = shard.stat().st_size
    shard.write_bytes(change(shard.read_bytes()))
    assert refused(delta, ContainerError) == (
        "shards[1]: delta-00002-of-00002.safetensors: another size "
        f"(expected {size}, found {shard.stat().st_size}) [R23]"
    )


def rewrite_shard(delta: Path, index: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the arrays of a shard, and the manifest's record of the file with them."""
    path = sorted(delta.glob("*.safetensors"))[index]
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)

    def record(value: dict[str, Any]) -> None:
        entry = next(item for item in value["shards"] if item["file"] == path.name)
        entry["size"], entry["sha256"] = path.stat().st_size, sha256_file(path)

    edit_manifest(delta, record)


def test_an_array_that_is_missing_or_another_or_one_too_many(made: Made, tmp_path: Path) -> None:
    key = "deep.weight_0_scale"
    names = sorted(path.name for path in made[1].glob("*.safetensors"))
    index = next(i for i, name in enumerate(names) if key in load_file(made[1] / name))

    def rename(arrays: dict[str, Any]) -> None:
        arrays["deep.weight_0_scalf"] = arrays.pop(key)

    def halve(arrays: dict[str, Any]) -> None:
        arrays[key] = arrays[key].view(torch.float16)

    def add(arrays: dict[str, Any]) -> None:
        arrays["stray"] = torch.zeros(3)

    expected = {
        rename: f'shards["{key}"]: missing [R22]',
        halve: f'shards["{key}"]: another array (expected F32 [3], found F16 [6]) [R22]',
        add: 'shards["stray"]: belongs to no term [R22]',
    }
    for change, message in expected.items():
        delta = copy_of(made, tmp_path / change.__name__)
        rewrite_shard(delta, index, change)
        assert refused(delta, ContainerError) == message


def test_an_array_in_two_shards(made: Made, tmp_path: Path) -> None:
    delta = copy_of(made, tmp_path / "delta")
    names = sorted(path.name for path in delta.glob("*.safetensors"))
    key, array = next(iter(load_file(delta / names[0]).items()))
    rewrite_shard(delta, 1, lambda arrays: arrays.update({key: array}))
    assert refused(delta, ContainerError) == f'{names[1]}["{key}"]: stored twice [R22]'


# The manifest against the codecs (R19, R24)


def test_parts_are_those_that_the_codec_computes(made: Made, tmp_path: Path) -> None:
    delta = copy_of(made, tmp_path / "delta")

    def change(value: dict[str, Any]) -> None:
        value["tensors"]["deep.weight"]["terms"][0]["parts"]["scale"] = 8

    edit_manifest(delta, change)
    assert refused(delta, ManifestError) == (
        'tensors["deep.weight"].terms[0].parts: another list of parts '
        "(expected {'sign': 360, 'scale': 12}, found {'sign': 360, 'scale': 8}) [R19]"
    )


@pytest.mark.parametrize(
    ("change", "error", "rule"),
    [
        (lambda term: term["params"].update(axis="diagonal"), FormatError, "R24"),
        (lambda term: term["params"].update(more=1), FormatError, "R24"),
        (lambda term: term["params"].clear(), FormatError, "R24"),
        (lambda term: term.update(codec="wavelet"), VersionError, "R19"),
    ],
)
def test_terms_that_no_codec_knows(
    change: Callable[[dict[str, Any]], None],
    error: type[FormatError],
    rule: str,
    made: Made,
    tmp_path: Path,
) -> None:
    delta = copy_of(made, tmp_path / "delta")
    edit_manifest(delta, lambda value: change(value["tensors"]["deep.weight"]["terms"][0]))
    with pytest.raises(error) as caught:
        open_delta(delta)
    assert caught.value.rule == rule
    assert caught.value.at.startswith('tensors["deep.weight"].terms[0]')


def test_a_digest_that_is_another(made: Made, tmp_path: Path) -> None:
    delta = copy_of(made, tmp_path / "delta")
    wrong = f"blake3:{'0' * 64}"
    edit_manifest(delta, lambda value: value["tensors"]["deep.weight"].update(digest=wrong))
    with pytest.raises(DigestMismatch) as caught:
        rebuild(delta, tmp_path / "out", base=made[0])
    assert str(caught.value).startswith(
        f'tensors["deep.weight"]: rebuilt tensor differs (expected {wrong}, found blake3:'
    )
    assert not (tmp_path / "out").exists()


def test_a_delta_that_is_refused_keeps_no_files_open(made: Made, tmp_path: Path) -> None:
    delta = copy_of(made, tmp_path / "delta")
    rewrite_shard(delta, 1, lambda arrays: arrays.update(stray=torch.zeros(3)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        refused(delta, ContainerError)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
