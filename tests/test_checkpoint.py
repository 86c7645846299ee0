"""Checkpoints: which files are read, what they say, and slices that cost no copy."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bitdelta_hub.checkpoint import FileInfo, open_checkpoint
from bitdelta_hub.errors import BitDeltaError, ContainerError, PairError, StorageError
from bitdelta_hub.locate import hub_origin
from tests import models
from tests.models import checkpoints

Small = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "models"


@pytest.fixture
def sharded(root: Path, tmp_path: Path) -> Path:
    """A copy of three shards and their index, to be spoiled."""
    base, _ = checkpoints("llama", root, max_shard_size="20KB")
    return Path(shutil.copytree(base, tmp_path / "sharded"))


def refusal(source: Path, **options: Any) -> tuple[type[BitDeltaError], str, str, str]:
    """(class, code, message, fix) of the error that opening `source` raises."""
    with pytest.raises(BitDeltaError) as caught:
        open_checkpoint(source, **options)
    error = caught.value
    return type(error), error.code, str(error), error.fix


def one_tensor(folder: Path, name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.arange(4.0)}, folder / name)
    return folder


# What a checkpoint says


def test_tensors_come_by_file_and_then_by_place(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        places = [(info.file, info.start) for info in checkpoint.tensors.values()]
        assert places == sorted(places)
        names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
        assert checkpoint.files == tuple(
            FileInfo(name, (sharded / name).stat().st_size) for name in names
        )
        assert checkpoint.nbytes == sum((sharded / name).stat().st_size for name in names)
        assert checkpoint.metadata == {name: {"format": "pt"} for name in names}
        assert checkpoint.config["model_type"] == "llama"
        assert (checkpoint.place, checkpoint.folder) == (str(sharded), sharded)
        info = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
        assert (info.dtype, info.shape, info.itemsize) == ("BF16", (56, 32), 2)
        assert (info.numel, info.nbytes, info.stop - info.start) == (1792, 3584, 3584)


def test_values_are_those_of_safetensors(sharded: Path) -> None:
    expected = models.tensors(sharded)
    with open_checkpoint(sharded) as checkpoint:
        assert checkpoint.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            read = checkpoint.read(name, 0, tensor.numel())
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor.view(-1))


DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16,
    "I16": torch.int16, "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64,
    "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


@pytest.mark.parametrize("pickled", [False, True])
def test_every_dtype_as_tensor_and_as_bits(pickled: bool, tmp_path: Path) -> None:
    tensors = {name: torch.tensor([0, 1, 1, 0]).to(dtype) for name, dtype in DTYPES.items()}
    if pickled:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path, allow_pickle=True) as checkpoint:
        for name, tensor in tensors.items():
            assert checkpoint.tensors[name].dtype == name
            read = checkpoint.read(name, 1, 4)
            assert read.dtype == tensor.dtype
            raw = tensor.view(torch.uint8).numpy().view(f"u{tensor.itemsize}")
            assert read.view(torch.uint8).numpy().tobytes() == raw[1:].tobytes()
            bits = checkpoint.read_bits(name, 1, 4)
            assert bits.dtype == np.dtype(f"u{tensor.itemsize}")
            assert np.array_equal(bits, raw[1:])


@given(data=st.data())
def test_any_slice_is_the_slice_of_the_whole(data: st.DataObject, root: Path) -> None:
    base, _ = checkpoints("llama", root)
    name = "model.layers.1.mlp.down_proj.weight"
    with open_checkpoint(base) as checkpoint:
        total = checkpoint.tensors[name].numel
        start = data.draw(st.integers(0, total))
        stop = data.draw(st.integers(start, total))
        whole = checkpoint.read_bits(name, 0, total)
        assert np.array_equal(checkpoint.read_bits(name, start, stop), whole[start:stop])
        assert len(checkpoint.read(name, start, stop)) == stop - start


def test_shapes_without_elements_and_without_axes(tmp_path: Path) -> None:
    tensors = {"none": torch.zeros(0, 3), "one": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "other.bin")
    for source in (tmp_path, tmp_path / "other.bin"):
        with open_checkpoint(source, allow_pickle=True) as checkpoint:
            assert checkpoint.tensors["none"].shape == (0, 3)
            assert len(checkpoint.read("none", 0, 0)) == 0
            assert checkpoint.tensors["one"].shape == ()
            assert checkpoint.read("one", 0, 1).tolist() == [2.5]


def test_a_slice_is_a_view_of_the_file_and_cannot_change_it(tmp_path: Path) -> None:
    path = one_tensor(tmp_path) / "model.safetensors"
    before = path.read_bytes()
    with open_checkpoint(tmp_path) as checkpoint, warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = checkpoint.read("a", 1, 3)
        bits = checkpoint.read_bits("a", 1, 3)
        assert tensor.data_ptr() == bits.__array_interface__["data"][0]
        assert not bits.flags.writeable
        tensor.fill_(9)
    assert path.read_bytes() == before
    assert tensor.tolist() == [9, 9]


def test_slices_outlive_their_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(one_tensor(tmp_path))
    tensor = checkpoint.read("a", 0, 4)
    checkpoint.close()
    checkpoint.close()
    assert tensor.tolist() == [0, 1, 2, 3]


def test_arrays_at_odd_places_are_copied_to_even_ones(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "flag": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    data = b"\x07" + struct.pack("<2f", 1.5, -2.0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    with open_checkpoint(tmp_path) as checkpoint:
        bits = checkpoint.read_bits("a", 0, 2)
        assert bits.flags.aligned
        assert bits.tolist() == [0x3FC00000, 0xC0000000]
        assert checkpoint.read("a", 1, 2).tolist() == [-2.0]


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="no madvise on this system")
def test_prefetch_takes_any_tensor(root: Path) -> None:
    base, _ = checkpoints("llama", root)
    with open_checkpoint(base) as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.prefetch(name)


# Which files are read


def test_twins_adapters_and_strays_are_not_read(sharded: Path) -> None:
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "model-9.safetensors"):
        one_tensor(sharded, name)
    one_tensor(sharded, "model-00001-of-00009.safetensors")  # of an older save: the index wins
    one_tensor(sharded / "original", "model.safetensors")
    torch.save({"b": torch.ones(1)}, sharded / "pytorch_model.bin")
    with open_checkpoint(sharded) as checkpoint:
        assert "a" not in checkpoint.tensors
        assert len(checkpoint.files) == 3


def test_shards_without_their_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    with open_checkpoint(sharded) as checkpoint:
        assert len(checkpoint.tensors) == 21


def test_one_file_and_the_config_beside_it(root: Path) -> None:
    base, _ = checkpoints("llama", root)
    with open_checkpoint(base / "model.safetensors") as checkpoint:
        assert checkpoint.config["model_type"] == "llama"
        assert len(checkpoint.tensors) == 21


def test_a_missing_config_is_an_empty_one(tmp_path: Path) -> None:
    with open_checkpoint(str(one_tensor(tmp_path))) as checkpoint:
        assert checkpoint.config == {}


def test_links_of_a_cache_are_followed(tmp_path: Path) -> None:
    blob = one_tensor(tmp_path / "blobs", "0123abcd") / "0123abcd"
    snapshot = tmp_path / "snapshots"
    snapshot.mkdir()
    os.symlink(blob, snapshot / "model.safetensors")
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.files == (FileInfo("model.safetensors", blob.stat().st_size),)


def test_tied_tensors_of_a_pickle_have_both_names(tmp_path: Path) -> None:
    tied = torch.arange(6.0).view(2, 3)
    torch.save({"embed": tied, "head": tied, "turned": tied.T}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path, allow_pickle=True) as checkpoint:
        assert [*checkpoint.tensors] == ["embed", "head", "turned"]
        assert checkpoint.read("head", 0, 6).tolist() == [0, 1, 2, 3, 4, 5]
        assert checkpoint.read("turned", 0, 6).tolist() == [0, 3, 1, 4, 2, 5]
        checkpoint.prefetch("head")


def test_pickles_in_shards_and_of_the_first_kind(tmp_path: Path) -> None:
    names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    torch.save({"a": torch.ones(2)}, tmp_path / names[0])
    torch.save({"b": torch.ones(3)}, tmp_path / names[1], _use_new_zipfile_serialization=False)
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with open_checkpoint(tmp_path, allow_pickle=True) as checkpoint:
        assert [info.file for info in checkpoint.tensors.values()] == names
        assert checkpoint.read("b", 0, 3).tolist() == [1, 1, 1]


def test_a_single_pth_file(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pth")
    with open_checkpoint(tmp_path, allow_pickle=True) as checkpoint:
        assert [*checkpoint.tensors] == ["a"]


def test_a_component_of_a_pipeline(tmp_path: Path) -> None:
    with open_checkpoint(one_tensor(tmp_path, "diffusion_pytorch_model.safetensors")) as checkpoint:
        assert [*checkpoint.tensors] == ["a"]


# What is refused


def test_nothing_there(tmp_path: Path) -> None:
    looked = "looked for model.safetensors, model-*-of-*.safetensors, pytorch_model*.bin, *.pth"
    assert refusal(tmp_path) == (
        StorageError,
        "BDH500",
        f"{tmp_path}: neither weights nor config.json ({looked})",
        "",
    )
    (tmp_path / "config.json").write_text("{}")
    assert refusal(tmp_path)[2] == f"{tmp_path}: no weights ({looked})"
    assert refusal(tmp_path / "absent")[2:] == (
        f"{tmp_path / 'absent'}: no such file or folder",
        "check the path",
    )
    assert refusal(tmp_path / "config.json")[2] == (
        f"{tmp_path / 'config.json'}: not a file of weights (expected .safetensors)"
    )


def test_the_name_of_a_repository_is_no_folder() -> None:
    assert refusal(Path("org/some-model.v1"))[2:] == (
        "org/some-model.v1: no such file or folder",
        "check the path; for a model of the Hub, first: "
        "hf download org/some-model.v1 --local-dir FOLDER",
    )


def test_a_delta_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "bitdelta.json").write_text("{}")
    assert refusal(tmp_path)[1:] == (
        "BDH500",
        f"{tmp_path}: a delta, not a checkpoint",
        f"bdhub rebuild {tmp_path} --base BASE --out FOLDER",
    )
    spaced = tmp_path / "a delta"
    spaced.mkdir()
    (spaced / "bitdelta.json").write_text("{}")
    assert refusal(spaced)[3] == f"bdhub rebuild '{spaced}' --base BASE --out FOLDER"


def test_what_is_no_weights_says_how_to_get_them(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    assert refusal(tmp_path) == (
        StorageError,
        "BDH500",
        f"{file}: a Git LFS pointer, not the weights",
        "fetch them: git lfs pull, in that folder",
    )
    for content in (b"", b"<html>Not found</html>"):
        file.write_bytes(content)
        assert refusal(tmp_path)[3] == f"fetch {file} again, or save it anew"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files here")
def test_a_damaged_shard_leaves_none_open(sharded: Path) -> None:
    last = sorted(sharded.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(ContainerError):
        open_checkpoint(sharded)
    assert str(sharded) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ('{"a": 1,}', "not valid JSON (Illegal trailing comma before end of object at line 1"),
        ("\udcff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "not a JSON object (found list)"),
    ],
)
def test_a_config_that_is_none(text: str, fact: str, tmp_path: Path) -> None:
    config = one_tensor(tmp_path) / "config.json"
    config.write_bytes(text.encode(errors="surrogateescape"))
    kind, code, message, _ = refusal(tmp_path)
    assert (kind, code) == (StorageError, "BDH500")
    assert message.startswith(f"{config}: {fact.split(' (Illegal')[0]}")


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return path


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    kind, _, message, fix = refusal(sharded)
    assert kind is StorageError
    assert message == (
        f"{sharded / 'model.safetensors.index.json'}: model.layers.0.input_layernorm.weight is in "
        "'model-00002-of-00003.safetensors', which is not in the folder"
    )
    assert fix == "fetch the missing file"
    (sharded / "model.safetensors.index.json").unlink()
    assert refusal(sharded)[2] == f"{sharded}: model-00002-of-00003.safetensors is missing"


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "", 3, None])
def test_an_index_that_points_elsewhere(file: Any, sharded: Path) -> None:
    path = edit_index(sharded, lambda found: found.update({"lm_head.weight": file}))
    assert refusal(sharded)[2] == (
        f"{path}: lm_head.weight is in {file!r}, which is not in the folder"
    )


def test_an_index_without_a_map(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    path.write_text("{}")
    assert refusal(sharded)[2] == f"{path}: no weight_map"


def test_a_tensor_that_its_shard_lacks(sharded: Path) -> None:
    first, last = (f"model-0000{number}-of-00003.safetensors" for number in (1, 3))
    edit_index(sharded, lambda found: found.update({"model.embed_tokens.weight": last}))
    assert refusal(sharded)[2:] == (
        f"{sharded}: model.embed_tokens.weight is missing from {last} (found in {first})",
        "fetch the file and its index again",
    )
    edit_index(sharded, lambda found: found.update({"model.embed_tokens.weight": first, "b": last}))
    assert refusal(sharded)[2] == f"{sharded}: b is missing from {last} (in no file)"


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    first, last = (f"model-0000{number}-of-00003.safetensors" for number in (1, 3))
    tensors = models.load_file(sharded / last)
    save_file({**tensors, "model.embed_tokens.weight": torch.ones(2)}, sharded / last)
    assert refusal(sharded)[2] == (
        f"{sharded}: model.embed_tokens.weight is in {first} and in {last}"
    )


def test_shards_of_two_saves(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    one_tensor(sharded, "model-00001-of-00002.safetensors")
    assert refusal(sharded)[2:] == (
        f"{sharded}: shards of more than one save (of-00002, of-00003)",
        "remove those out of date, or fetch model.safetensors.index.json",
    )


def test_a_single_file_beside_the_index_of_others(sharded: Path) -> None:
    one_tensor(sharded)
    assert refusal(sharded)[2:] == (
        f"{sharded}: both model.safetensors and model.safetensors.index.json, "
        "which names other files",
        "remove the one that is out of date",
    )


def test_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"lora_A": torch.zeros(64, 1000)}, tmp_path / "adapter_model.safetensors")
    assert refusal(tmp_path) == (
        PairError,
        "BDH102",
        f"{tmp_path}: an adapter (256.1 kB), not a fine-tuned checkpoint",
        "share it as it is: it is small already; or merge it into its base and save that",
    )


def test_gguf_files_only(tmp_path: Path) -> None:
    (tmp_path / "model-q4_k_m.gguf").write_bytes(b"GGUF")
    assert refusal(tmp_path) == (
        PairError,
        "BDH103",
        f"{tmp_path}: quantised for llama.cpp (GGUF files only)",
        "give the 16-bit checkpoint that it was made from",
    )


def test_a_pipeline_of_models(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    assert refusal(tmp_path) == (
        PairError,
        "BDH111",
        f"{tmp_path}: a pipeline of several models (model_index.json)",
        "give the folder of one component, such as unet/ or transformer/, on both sides",
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_a_pickle_unasked(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / name)
    assert refusal(tmp_path) == (
        PairError,
        "BDH107",
        f"{tmp_path}: weights in {name} only, which is a pickle",
        "pass --allow-pickle to read it as plain tensors (no code is run), or save it as "
        "safetensors; on the Hub the safetensors-convert space opens a pull request with one",
    )


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("evil",))


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ({"a": Evil()}, "it holds other objects, or is no such file"),
        ([torch.ones(1)], "a list where a table of tensors is due"),
        ({"a": torch.ones(1), "step": 3}, "'step' is not a named tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)},
         "a is of a kind that safetensors lacks (complex64, strided)"),
    ],
)  # fmt: skip
def test_a_pickle_of_other_things(
    content: Any, fact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert refusal(tmp_path, allow_pickle=True) == (
        PairError,
        "BDH107",
        f"pytorch_model.bin: not a file of tensors alone: {fact}",
        "load the model with transformers and save it with save_pretrained, as safetensors",
    )
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", b"\x80\x02."])
def test_a_damaged_pickle(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    assert refusal(tmp_path, allow_pickle=True)[1] == "BDH107"


def test_a_cut_off_pickle(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert refusal(tmp_path, allow_pickle=True)[1] == "BDH107"


def test_a_name_with_control_characters(tmp_path: Path) -> None:
    torch.save({"a\x1b[2J": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    kind, code, message, _ = refusal(tmp_path, allow_pickle=True)
    assert (kind, code) == (ContainerError, "BDH302")
    assert message == "pytorch_model.bin: a tensor name holds a control character [R8]"


def test_a_cut_off_file(tmp_path: Path) -> None:
    path = one_tensor(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    kind, code, message, _ = refusal(tmp_path)
    assert (kind, code) == (ContainerError, "BDH302")
    assert message == ("model.safetensors: cut short (expected 80 bytes, found 79) [R21]")


def test_a_dtype_that_the_format_does_not_know(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    kind, code, message, fix = refusal(tmp_path)
    assert (kind, code) == (PairError, "BDH110")
    assert message == (
        'model.safetensors["a"].dtype: unknown dtype (expected one of BOOL U8 I8 U16 I16 U32 I32 '
        'U64 I64 F8_E4M3 F8_E5M2 F8_E8M0 F16 BF16 F32 F64, found "F4") [R9]'
    )
    assert fix == "give a copy of the checkpoint in a 16-bit type"


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        (f"models--org--base/snapshots/{'a' * 40}", ("org/base", "a" * 40)),
        (f"models--gpt2/snapshots/{'0' * 40}", ("gpt2", "0" * 40)),
        (f"models--org--base/snapshots/{'a' * 39}", (None, None)),
        (f"models--org--base/other/{'a' * 40}", (None, None)),
        (f"datasets--org--base/snapshots/{'a' * 40}", (None, None)),
        ("base", (None, None)),
    ],
)
def test_a_hub_snapshot_is_known_by_its_path(
    tmp_path: Path, path: str, origin: tuple[str | None, str | None]
) -> None:
    assert hub_origin(tmp_path / path) == origin
