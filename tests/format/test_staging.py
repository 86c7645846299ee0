from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bitdelta_hub.errors import StorageError
from bitdelta_hub.format.staging import stage_folder

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str = "new") -> None:
    (folder / "bitdelta.json").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "part").write_text(text)


def fill_and_fail(target: Path, error: type[BaseException]) -> None:
    with stage_folder(target, overwrite=True) as staged:
        fill(staged)
        raise error


def fill_while_another_makes(target: Path) -> None:
    with stage_folder(target) as staged:
        fill(staged)
        target.mkdir()
        (target / "mine").touch()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    fill(folder, "old")
    return folder


def kill_during(target: Path, body: str) -> None:
    """Runs `body` inside `stage_folder(target, overwrite=True)` in a process that it must kill."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from bitdelta_hub.format import staging\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "with staging.stage_folder(Path(sys.argv[1]), overwrite=True) as staged:\n"
        "    (staged / 'bitdelta.json').write_text('half')\n"
        f"    {body}\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, target], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("durable", [True, False])
def test_the_folder_appears_at_the_end(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "a" / "b" / "out"
    with stage_folder(target, durable=durable) as staged:
        assert staged.parent == target.parent
        assert names(staged) == []
        fill(staged)
        assert not target.exists()
    assert names(target.parent) == ["out"]
    assert (target / "sub" / "part").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fill_and_fail(tmp_path / "a" / "b" / "out", error)
    assert names(tmp_path) == []


def test_an_error_leaves_the_old_folder(old: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fill_and_fail(old, ZeroDivisionError)
    assert names(old.parent) == ["out"]
    assert (old / "sub" / "part").read_text() == "old"


def test_a_failed_rename_leaves_the_old_folder(old: Path) -> None:
    with pytest.raises(StorageError) as caught, stage_folder(old, overwrite=True) as staged:
        shutil.rmtree(staged)
    assert str(caught.value) == f"{old}: no such file or folder"
    assert names(old.parent) == ["out"]
    assert (old / "bitdelta.json").read_text() == "old"


def test_nothing_is_overwritten_unasked(old: Path) -> None:
    with pytest.raises(StorageError) as caught, stage_folder(old):
        pytest.fail("the block must not run")
    assert str(caught.value) == f"{old}: already exists"
    assert caught.value.fix == "pass --overwrite or choose another folder"


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(StorageError) as caught:
        fill_while_another_makes(target)
    assert str(caught.value) == f"{target}: already exists"
    assert names(tmp_path) == ["out"]
    assert names(target) == ["mine"]


def test_overwrite(old: Path) -> None:
    with stage_folder(old, overwrite=True) as staged:
        fill(staged)
        assert (old / "bitdelta.json").read_text() == "old"
    assert names(old.parent) == ["out"]
    assert (old / "sub" / "part").read_text() == "new"


def test_overwrite_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with stage_folder(tmp_path / "out", overwrite=True) as staged:
        fill(staged)
    assert names(tmp_path / "out") == ["bitdelta.json", "sub"]


def test_a_folder_of_other_things_is_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "bitdelta.json").mkdir(parents=True)  # a folder of that name marks nothing
    with (
        pytest.raises(StorageError) as caught,
        stage_folder(target, overwrite=True, marker=("bitdelta.json", "config.json")),
    ):
        pytest.fail("the block must not run")
    assert str(caught.value) == (
        f"{target}: not overwritten, for it holds other things than this program writes "
        "(expected bitdelta.json or config.json)"
    )
    (target / "config.json").touch()
    with stage_folder(target, overwrite=True, marker=("bitdelta.json", "config.json")):
        pass
    assert names(target) == []


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(StorageError) as caught, stage_folder(tmp_path / "out", overwrite=True):
        pytest.fail("the block must not run")
    assert str(caught.value) == f"{tmp_path / 'out'}: not a folder"


def test_a_file_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(StorageError) as caught, stage_folder(tmp_path / "a" / "out"):
        pytest.fail("the block must not run")
    assert str(caught.value) == f"{tmp_path / 'a' / 'out'}: a part of the path is not a folder"


@pytest.mark.parametrize("inside", [".", "sub"])
def test_an_input_is_never_overwritten(old: Path, inside: str) -> None:
    with (
        pytest.raises(StorageError) as caught,
        stage_folder(old, overwrite=True, reading=[old / inside]),
    ):
        pytest.fail("the block must not run")
    assert str(caught.value) == f"{old}: holds an input of this run"
    assert (old / "sub" / "part").read_text() == "old"


def test_an_output_may_lie_in_an_input(old: Path) -> None:
    with stage_folder(old / "out", reading=[old]) as staged:
        fill(staged)
    assert names(old) == ["bitdelta.json", "out", "sub"]


def test_a_link_is_followed_to_the_folder_that_it_names(old: Path) -> None:
    link = old.parent / "link"
    link.symlink_to("out")
    with stage_folder(link, overwrite=True) as staged:
        fill(staged)
    assert link.is_symlink()
    assert (old / "bitdelta.json").read_text() == "new"


def test_killed_in_the_middle(tmp_path: Path) -> None:
    target = tmp_path / "out"
    kill_during(target, "die()")
    assert not target.exists()
    assert len(names(tmp_path)) == 1  # hidden, and gone after the next run
    with stage_folder(target) as staged:
        assert names(tmp_path) == [staged.name]
        fill(staged)
    assert names(tmp_path) == ["out"]


def test_killed_before_an_old_folder_is_replaced(old: Path) -> None:
    kill_during(old, "die()")
    assert (old / "sub" / "part").read_text() == "old"
    with stage_folder(old, overwrite=True) as staged:
        fill(staged)
    assert names(old.parent) == ["out"]


def test_killed_between_the_two_renames(old: Path) -> None:
    kill_during(old, "Path.rename = lambda self, to: (os.rename(self, to), die())")
    assert not old.exists()
    with pytest.raises(StorageError) as caught, stage_folder(old):
        pytest.fail("the block must not run")
    assert str(caught.value) == f"{old}: already exists"  # it was put back
    assert (old / "sub" / "part").read_text() == "old"
    assert names(old.parent) == ["out"]


def test_killed_while_the_old_folder_is_removed(old: Path) -> None:
    kill_during(old, "staging.shutil.rmtree = die")
    assert (old / "bitdelta.json").read_text() == "half"  # the block's own text, and complete
    shutil.rmtree(old)
    with stage_folder(old) as staged:
        assert names(old.parent) == [staged.name]


def test_a_run_at_work_keeps_its_folder(tmp_path: Path) -> None:
    with stage_folder(tmp_path / "out", overwrite=True) as first:
        fill(first, "first")
        with stage_folder(tmp_path / "out", overwrite=True) as second:
            fill(second, "second")
        assert names(first) == ["bitdelta.json", "sub"]
    assert (tmp_path / "out" / "bitdelta.json").read_text() == "first"
    assert names(tmp_path) == ["out"]


def test_hidden_names_of_others_stay(tmp_path: Path) -> None:
    others = [".out.bdhub", ".out.1234567.bdhub", ".out.12345678.tmp", ".out.x.12345678.bdhub"]
    for name in others:
        (tmp_path / name).mkdir()
    with stage_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted([*others, "out"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(StorageError) as caught, stage_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    tmp_path.chmod(0o755)
    assert str(caught.value) == f"{tmp_path / 'out'}: permission denied"
