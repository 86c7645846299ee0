"""Files that travel beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitdelta_hub.carried import carried_files, carry, mark, restore, unmark
from bitdelta_hub.errors import FormatError, StorageError
from bitdelta_hub.format.manifest import BaseRef

BASE = BaseRef(
    repo="org/base", revision="a" * 40, fingerprint="blake3:" + "0" * 64, files=(), tensors={}
)


def write(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_weights_cards_and_folders_stay_behind(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "ft", config__json="{}", tokenizer__json="{}", README__md="#",
        model__safetensors="x", tokenizer__bin="x", LICENSE="free", training_args__bin="x",
    )  # fmt: skip
    (folder / "tokenizer_extra").mkdir()
    assert [path.name for path in carried_files(folder)] == [
        "LICENSE",
        "config.json",
        "tokenizer.json",
    ]


def test_a_link_to_nothing_is_not_left_out_in_silence(tmp_path: Path) -> None:
    folder = write(tmp_path / "ft", config__json="{}")
    (folder / "README.md").symlink_to(tmp_path / "nowhere")
    assert [path.name for path in carried_files(folder)] == ["config.json"]
    (folder / "tokenizer.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError) as caught:
        carried_files(folder)
    assert str(caught.value) == f"{folder / 'tokenizer.json'}: a link that leads nowhere"
    assert caught.value.fix == "fetch the missing file"


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"quantization_config": {"quant_method": "fp8", "bits": 8}},
        {"quantization_config": None},
    ],
)
def test_the_configuration_comes_back_as_it_was(own: dict[str, object]) -> None:
    config = {"model_type": "llama"} | own
    marked = mark(config, BASE)
    assert marked["quantization_config"]["quant_method"] == "bitdelta-hub"
    assert marked["quantization_config"]["base_model"] == "org/base"
    assert unmark(marked) == config


def test_carried_files_travel_there_and_back(tmp_path: Path) -> None:
    text = json.dumps({"model_type": "llama", "name": "ä"}, indent=2, ensure_ascii=False) + "\n"
    source = write(tmp_path / "ft", config__json=text, vocab__json="{}")
    delta, out = tmp_path / "delta", tmp_path / "out"
    delta.mkdir()
    out.mkdir()
    files = carry(source, delta, BASE)
    assert [file.file for file in files] == ["config.json", "vocab.json"]
    restore(delta, files, out)
    for name in ("config.json", "vocab.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "config.json: not a JSON object [R4]"),
        (
            "{",
            "config.json: not JSON (Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)) [R4]",
        ),
    ],
)
def test_a_broken_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    source = write(tmp_path / "ft", config__json="{}")
    delta, out = tmp_path / "delta", tmp_path / "out"
    delta.mkdir()
    out.mkdir()
    files = carry(source, delta, BASE)
    (delta / "config.json").write_text(text)
    with pytest.raises(FormatError) as caught:
        restore(delta, files, out)
    assert caught.value.message == message


def test_half_of_a_surrogate_pair_travels_as_an_escape(tmp_path: Path) -> None:
    source = write(tmp_path / "ft", config__json='{\n  "name": "\\ud83d"\n}\n')
    delta, out = tmp_path / "delta", tmp_path / "out"
    delta.mkdir()
    out.mkdir()
    restore(delta, carry(source, delta, BASE), out)
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
