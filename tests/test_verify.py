"""Verify: what each level looks at, what it finds, and how it says so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bitdelta_hub import compress, verify
from bitdelta_hub.errors import (
    BaseMismatch,
    BitDeltaError,
    DigestMismatch,
    FormatError,
    StorageError,
    UsageError,
)
from tests.handmade import content, moved, noise, save, save_pair

Made = tuple[Path, Path, Path]
SAME = "--against takes the fine-tune that the delta was made from"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(base, tuned, delta), not to be changed."""
    home = tmp_path_factory.mktemp("made")
    base = {"a.weight": noise(64, 48), "b.weight": noise(300, 200), "norm": noise(50)}
    tuned = {name: moved(tensor) for name, tensor in base.items()}
    pair = save_pair(home, base, tuned)
    (pair[1] / "tokenizer.json").write_text("{}")
    compress(pair[1], pair[0], home / "delta")
    return *pair, home / "delta"


def size_of(folder: Path, *names: str) -> int:
    return sum((folder / name).stat().st_size for name in names)


def test_each_level_looks_at_more(made: Made) -> None:
    base, _, delta = made
    before = content(delta)
    files = size_of(delta, "delta.safetensors", "config.json", "tokenizer.json")
    weights = 2 * (64 * 48 + 300 * 200 + 50)
    lossy = weights - 2 * 50  # the norm is stored whole and starts from nothing
    expected = {"files": (3, 0, files), "base": (3, 0, files + lossy),
                "weights": (3, 3, files + lossy + weights)}  # fmt: skip
    for level, counts in expected.items():
        result = verify(delta, level=level, base=None if level == "files" else base)
        assert (result.checked_files, result.checked_tensors, result.bytes) == counts
        assert (result.level, result.error) == (level, None)
    assert content(delta) == before


def test_against_the_fine_tune(made: Made) -> None:
    base, tuned, delta = made
    for level in ("base", "weights"):
        error = verify(delta, level=level, base=base, against=tuned).error
        assert error is not None
        assert (error["lossy_tensors"], error["exact_tensors"]) == (2, 1)
        assert 0.5 < error["median"] <= error["worst"] < 0.7


@pytest.mark.parametrize(
    ("options", "message", "fix"),
    [
        ({"level": "all"}, "--level: no level 'all'", "one of files, base, weights"),
        (
            {},
            "{delta}: level weights needs the base",
            "pass it with --base, or use --level files",
        ),
        (
            {"level": "base"},
            "{delta}: level base needs the base",
            "pass it with --base, or use --level files",
        ),
        (
            {"level": "files", "against": "tuned"},
            "--against: level files rebuilds nothing to compare with",
            "leave it out, or use --level weights with --base",
        ),
    ],
)
def test_arguments_that_exclude_each_other(
    options: dict[str, Any], message: str, fix: str, made: Made
) -> None:
    with pytest.raises(UsageError) as caught:
        verify(made[2], **options)
    assert (str(caught.value), caught.value.fix) == (message.format(delta=made[2]), fix)


def found(error: type[BitDeltaError], delta: Path, **options: Any) -> BitDeltaError:
    with pytest.raises(error) as caught:
        verify(delta, **options)
    return caught.value


def test_a_changed_shard(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made[2], tmp_path / "delta")
    shard = tmp_path / "delta" / "delta.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    error = found(DigestMismatch, tmp_path / "delta", level="files")
    assert str(error).startswith("shards[0]: delta.safetensors: another content (expected sha256 ")
    assert error.fix == "the file is incomplete or altered; fetch or compress it again"
    assert (error.code, error.exit_status) == ("BDH401", 4)


def test_a_changed_or_missing_carried_file(made: Made, tmp_path: Path) -> None:
    delta = tmp_path / "delta"
    shutil.copytree(made[2], delta)
    file = delta / "tokenizer.json"
    file.write_text("[]")
    error = found(DigestMismatch, delta, level="files")
    assert str(error).startswith("files[1]: tokenizer.json: another content (expected sha256 ")
    file.write_text("longer")
    error = found(DigestMismatch, delta, level="files")
    assert str(error) == "files[1]: tokenizer.json: another size (expected 2, found 6)"
    file.unlink()
    assert str(found(StorageError, delta, level="files")) == f"{file}: missing"
    (tmp_path / "elsewhere").write_text("{}")
    file.symlink_to(tmp_path / "elsewhere")
    error = found(FormatError, delta, level="files")
    assert str(error) == "tokenizer.json: a symbolic link out of the folder [R2]"


def test_files_that_are_not_listed_do_not_matter(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made[2], tmp_path / "delta")
    (tmp_path / "delta" / "README.md").write_text("a card")
    verify(tmp_path / "delta", base=made[0])


def test_another_base(made: Made, tmp_path: Path) -> None:
    other = save(
        tmp_path / "other",
        {"a.weight": noise(64, 48), "b.weight": noise(300, 200, seed=4), "norm": noise(50)},
    )
    for level in ("base", "weights"):
        error = found(BaseMismatch, made[2], level=level, base=other)
        assert str(error).startswith('base.tensors["b.weight"]: another content (expected blake3:')
        assert "fingerprint blake3:" in error.fix
        assert (error.code, error.exit_status) == ("BDH402", 4)
    missing = save(tmp_path / "missing", {"a.weight": noise(64, 48)})
    error = found(BaseMismatch, made[2], base=missing)
    assert str(error) == 'base.tensors["b.weight"]: not in the base'


def test_against_another_fine_tune(made: Made, tmp_path: Path) -> None:
    base, _, delta = made
    tuned = {"a.weight": noise(64, 48), "b.weight": noise(300, 200), "norm": noise(50)}
    tuned = {name: moved(tensor) for name, tensor in tuned.items()}
    cases = {
        'tensors["norm"]: called exact, but differs from the fine-tune': {"norm": noise(50)},
        'tensors["norm"]: not a tensor of the fine-tune with this dtype and shape': {
            "norm": noise(51)
        },
        'tensors["more"]: of the fine-tune, but not of the delta': {"more": noise(3)},
    }
    for i, (message, change) in enumerate(cases.items()):
        other = save(tmp_path / str(i), tuned | change)
        error = found(DigestMismatch, delta, base=base, against=other)
        assert (str(error), error.fix) == (message, SAME)
    unmoved = save(
        tmp_path / "unmoved", {**tuned, "a.weight": noise(64, 48), "b.weight": noise(300, 200)}
    )
    later = save(tmp_path / "later", {**tuned, "b.weight": moved(tuned["b.weight"], seed=9)})
    for other, error_found in ((later, r"\d+\.\d+"), (unmoved, r"\d\.?\d*e\+\d+")):
        error = found(DigestMismatch, delta, base=base, against=other)
        fact = rf"another relative error \(expected 0\.\d+, found {error_found}\)"
        assert re.fullmatch(rf'tensors\["[ab]\.weight"\]: {fact}', str(error))
        assert error.fix == SAME
    del tuned["norm"]
    error = found(DigestMismatch, delta, base=base, against=save(tmp_path / "less", tuned))
    assert str(error).startswith('tensors["norm"]: not a tensor of the fine-tune')


@pytest.mark.parametrize("size", [1e30, 1e-21, 1e-30])
def test_errors_of_any_magnitude_are_numbers(size: float, tmp_path: Path) -> None:
    weight = noise(64, 64, dtype=torch.float32)
    pair = save_pair(tmp_path, {"w": size * weight}, {"w": size * moved(weight)})
    compress(pair[1], pair[0], tmp_path / "delta")
    error = verify(tmp_path / "delta", base=pair[0], against=pair[1]).error
    assert error is not None
    assert 0.5 < error["worst"] < 0.7


def test_progress_ends_at_the_total_of_every_phase(made: Made) -> None:
    last: dict[str, tuple[int, int]] = {}
    verify(
        made[2],
        base=made[0],
        against=made[1],
        progress=lambda phase, done, total: last.update({phase: (done, total)}),
    )
    assert list(last) == ["verify files", "verify base", "verify weights", "compare"]
    assert all(done == total > 0 for done, total in last.values())
