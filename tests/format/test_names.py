from __future__ import annotations

from pathlib import Path

import pytest

from bitdelta_hub.errors import ManifestError
from bitdelta_hub.format.names import check_file_name, check_not_weights, member, quoted


@pytest.mark.parametrize("name", ["a", "delta-00001-of-00002.safetensors", "é" * 127, "...", " "])
def test_bare_names_pass(name: str) -> None:
    check_file_name(name, "here")
    check_not_weights(name, "here")


@pytest.mark.parametrize(
    "name",
    ["modules.json", "my-model.safetensors", "delta.safetensors", "models.txt", "tokenizer.model"],
)
def test_names_that_no_loader_takes_for_weights_pass(name: str) -> None:
    check_not_weights(name, "here")


def test_quoted_text_is_short_and_safe() -> None:
    assert quoted('a"\x1b[31m\x9b\n\ud800') == '"a\\"\\u001b[31m\\u009b\\n\\ud800"'
    assert quoted("x" * 1000) == f'"{"x" * 160}..."'


def test_a_link_within_the_folder_is_a_member(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert member(tmp_path, "link") == tmp_path / "link"


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "delta"
    folder.mkdir()
    (folder / "config.json").symlink_to("../secret")
    with pytest.raises(ManifestError) as caught:
        member(folder, "config.json")
    assert str(caught.value) == "config.json: a symbolic link out of the folder [R2]"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    (tmp_path / "models--org--d" / "blobs").mkdir(parents=True)
    (tmp_path / "models--org--d" / "blobs" / "0abc").write_text("x")
    folder = tmp_path / "models--org--d" / "snapshots" / "1def"
    folder.mkdir(parents=True)
    return folder


def test_a_link_into_the_blobs_of_a_hub_cache_is_a_member(snapshot: Path) -> None:
    (snapshot / "config.json").symlink_to("../../blobs/0abc")
    assert member(snapshot, "config.json").read_text() == "x"


def test_a_link_out_of_a_hub_cache_is_refused(snapshot: Path) -> None:
    (snapshot.parents[2] / "secret").write_text("x")
    (snapshot / "config.json").symlink_to("../../../secret")
    with pytest.raises(ManifestError):
        member(snapshot, "config.json")
