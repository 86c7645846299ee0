"""Whole runs that are killed, interrupted, starved of disk, raced, or robbed of their inputs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitdelta_hub import compress, rebuild, verify
from bitdelta_hub.errors import BitDeltaError, ContainerError, PairError, StorageError
from tests import child
from tests.handmade import content, moved, noise, save_pair

ROOT = Path(__file__).parents[1]


def big_pair(root: Path) -> tuple[Path, Path]:
    """A (base, tuned) pair that takes some tenths of a second."""
    base = {f"layer{i}.weight": noise(700, 800, seed=i) for i in range(5)}
    base["norm.weight"] = noise(800)
    return save_pair(root, base, {name: moved(tensor) for name, tensor in base.items()})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, Path]:
    """(base, tuned, delta, rebuilt), not to be changed; the delta is exact."""
    home = tmp_path_factory.mktemp("made")
    base, tuned = big_pair(home)
    compress(tuned, base, home / "delta", recipe="exact")
    rebuild(home / "delta", home / "rebuilt", base=base)
    return base, tuned, home / "delta", home / "rebuilt"


Made = tuple[Path, Path, Path, Path]
Run = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Path]


def job(name: str, made: Made, out: Path) -> Run:
    """(function, its arguments, its options, the folder that it should come out as)."""
    base, tuned, delta, rebuilt = made
    if name == "compress":
        return compress, (tuned, base, out), {"recipe": "exact"}, delta
    return rebuild, (delta, out), {"base": base}, rebuilt


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def seconds_of(run: Run) -> float:
    """How long the run takes in a process of its own."""
    function, args, options, _ = run
    began = time.perf_counter()
    process = child.start(function, *args, **options)
    process.join(60)
    assert process.exitcode == 0
    return time.perf_counter() - began


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("name", ["compress", "rebuild"])
def test_a_run_that_is_cut_off_leaves_nothing_under_the_final_name(
    name: str, overwrite: bool, number: signal.Signals, made: Made, tmp_path: Path
) -> None:
    whole = seconds_of(job(name, made, tmp_path / "timed"))
    out = tmp_path / "home" / "out"
    function, args, options, wanted = job(name, made, out)
    before: dict[str, bytes] = {}
    if overwrite:
        function(*args, **options)
        (out / "old").write_text("")
        before = content(out)
    complete = content(wanted)
    left_over = 0
    for share in (0.2, 0.5, 0.75, 1):
        process = child.start(function, *args, overwrite=overwrite, **options)
        time.sleep(share * whole)
        with contextlib.suppress(ProcessLookupError):  # it was faster this time
            os.kill(process.pid or 0, number)
        process.join(60)
        assert process.exitcode in (-number, 1, 0)
        found = content(out) if out.exists() else {}
        # Between the two renames that replace a folder the old one is out of its place.
        allowed = (
            ({}, before, complete) if overwrite and number == signal.SIGKILL else (before, complete)
        )
        assert found in allowed
        if number == signal.SIGINT and out.parent.exists():
            left_over += bool(hidden(out.parent))
        if found == complete:
            shutil.rmtree(out)
            before = {}
    # An interrupt that falls into the cleaning up itself leaves that to the next run.
    assert left_over <= 1
    function(*args, overwrite=True, **options)
    assert content(out) == complete
    assert not hidden(out.parent)


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("name", ["compress", "rebuild"])
def test_two_runs_at_once_leave_one_complete_folder(
    name: str, overwrite: bool, made: Made, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    function, args, options, wanted = job(name, made, out)
    if overwrite:
        function(*args, **options)
    runs = [child.start(function, *args, overwrite=overwrite, **options) for _ in range(3)]
    for process in runs:
        process.join(60)
    assert 0 in [process.exitcode for process in runs]
    assert {process.exitcode for process in runs} <= {0, 1}
    assert content(out) == content(wanted)
    assert not hidden(tmp_path)


# A disk that is full, read-only, or has limits


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with the options given; skips where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a file system here ({done.stderr.strip()})")
        mounted.append(place)
        return place

    try:
        yield mount
    finally:
        for path in mounted:
            subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("name", ["compress", "rebuild"])
def test_a_disk_that_fills_up_meanwhile(
    name: str, made: Made, disk: Callable[[str], Path], tmp_path: Path
) -> None:
    place = disk("size=128m")
    function, args, options, wanted = job(name, made, place / "out")
    filler = place / "filler"

    def fill(phase: str, done: int, total: int) -> None:
        if phase == name and not done:
            with filler.open("wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(1 << 20))
                    except OSError:
                        return

    with pytest.raises(StorageError) as caught:
        function(*args, progress=fill, **options)
    assert str(caught.value) == f"{place / 'out'}: no space left on the disk"
    assert caught.value.fix == "free some space, or choose an --out on another disk"
    assert [path.name for path in place.iterdir()] == ["filler"]
    filler.unlink()
    function(*args, **options)
    assert content(place / "out") == content(wanted)


@pytest.mark.parametrize("name", ["compress", "rebuild"])
def test_a_disk_that_is_too_small_is_told_before_the_work(
    name: str, made: Made, disk: Callable[[str], Path]
) -> None:
    place = disk("size=4m")
    function, args, options, _ = job(name, made, place / "out")
    with pytest.raises(PairError, match="not enough disk") as caught:
        function(*args, **options)
    assert caught.value.code == "BDH108"
    assert str(caught.value).startswith(f"{place / 'out'}: not enough disk (expected ")
    assert caught.value.fix == "free some space or choose another disk with --out"
    assert not list(place.iterdir())


@pytest.mark.parametrize("name", ["compress", "rebuild"])
def test_a_read_only_disk(name: str, made: Made, disk: Callable[[str], Path]) -> None:
    place = disk("size=4m,ro")
    function, args, options, _ = job(name, made, place / "out")
    with pytest.raises(StorageError) as caught:
        function(*args, **options)
    assert caught.value.code == "BDH500"
    assert str(caught.value) == f"{place / 'out'}: the file system is read-only"
    assert caught.value.fix == "choose a folder on another disk"


@pytest.mark.parametrize("name", ["compress", "rebuild"])
def test_a_file_system_with_small_files(name: str, made: Made, tmp_path: Path) -> None:
    out, said = tmp_path / "out", tmp_path / "said"
    function, args, options, _ = job(name, made, out)
    process = child.start(
        child.with_file_limit, 1_500_000, child.report, said, function, *args, **options
    )
    process.join(60)
    assert json.loads(said.read_text())[:3] == [
        "StorageError",
        "BDH500",
        f"{out}: too large a file for this file system",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["said"]


# Inputs that change under the run


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_an_input_cut_off_under_the_run_ends_it_and_leaves_nothing(
    side: str, made: Made, tmp_path: Path
) -> None:
    """The system ends a process that reads a mapped file beyond its end; no wrong delta results."""
    for source in made[:2]:
        shutil.copytree(source, tmp_path / source.name)
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    file = tmp_path / side / "model.safetensors"
    whole = file.read_bytes()
    process = child.start(
        child.truncating, file, "compress", compress, tuned, base, tmp_path / "out", recipe="exact"
    )
    process.join(60)
    assert process.exitcode == -signal.SIGBUS
    assert not (tmp_path / "out").exists()
    with pytest.raises(ContainerError) as caught:
        compress(tuned, base, tmp_path / "out", recipe="exact")
    assert str(caught.value) == (
        f"model.safetensors: cut short (expected {len(whole)} bytes, found 4096) [R21]"
    )
    file.write_bytes(whole)
    compress(tuned, base, tmp_path / "out", recipe="exact")
    assert content(tmp_path / "out") == content(made[2])
    assert not hidden(tmp_path)


# Deltas that were damaged


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, delta) of few bytes with parts of many codecs."""
    home = tmp_path_factory.mktemp("small")
    base = {f"{name}.weight": noise(24, 20, seed=i) for i, name in enumerate("abc")}
    base |= {"steps": noise(3000), "patched": noise(40, 40), "norm": noise(7)}
    tuned = {name: moved(tensor) for name, tensor in base.items()}
    tuned["patched"] = base["patched"].clone()
    tuned["patched"][3, 4] += 1
    tuned["b.weight"][2, 2] = float("inf")
    pair = save_pair(home, base, tuned)
    compress(pair[1], pair[0], home / "delta", recipe="row1")
    rebuild(home / "delta", home / "out", base=pair[0])
    return pair[0], home / "delta"


def shard_places(delta: Path) -> list[tuple[int, int]]:
    """(byte, bit) all over the shard: every region of it, header and every array."""
    data = (delta / "delta.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    offsets = [span for e in json.loads(data[8:start]).values() for span in [e["data_offsets"]]]
    places = [0, 1, 7, 8, 9, start // 2, start - 1]
    for first, last in offsets:
        places += [start + first, start + (first + last) // 2, start + last - 1]
    return [(place, place % 8) for place in places] + [(place, 7) for place in places]


def rebuilt_or_refused(delta: Path, out: Path, base: Path) -> dict[str, bytes] | BitDeltaError:
    """The files of the rebuilt checkpoint, or why there is none; leaves nothing behind."""
    try:
        rebuild(delta, out, base=base)
    except BitDeltaError as error:
        assert not out.exists()
        assert not hidden(out.parent)
        return error
    found = content(out)
    shutil.rmtree(out)
    return found


def test_a_flipped_bit_of_a_shard_never_gives_another_checkpoint(
    small: tuple[Path, Path], tmp_path: Path
) -> None:
    base, delta = small
    wanted = content(delta.parent / "out")
    shutil.copytree(delta, tmp_path / "delta")
    shard = tmp_path / "delta" / "delta.safetensors"
    whole = shard.read_bytes()
    classes = set()
    for place, bit in shard_places(delta):
        data = bytearray(whole)
        data[place] ^= 1 << bit
        shard.write_bytes(data)
        with pytest.raises(BitDeltaError):
            verify(tmp_path / "delta", level="files")
        # The last bit of a scale may be lost when the sum is rounded.
        found = rebuilt_or_refused(tmp_path / "delta", tmp_path / "out", base)
        if isinstance(found, BitDeltaError):
            classes.add(type(found).__name__)
        else:
            assert found == wanted
    # The container, the content of a part, or the tensor that came of it.
    assert {"ContainerError", "CodecError", "DigestMismatch"} == classes


def test_a_flipped_bit_of_the_manifest_never_gives_another_checkpoint(
    small: tuple[Path, Path], tmp_path: Path
) -> None:
    """It is refused, or concerns what is not needed to decode."""
    base, delta = small
    wanted = content(delta.parent / "out")
    shutil.copytree(delta, tmp_path / "delta")
    manifest = tmp_path / "delta" / "bitdelta.json"
    whole = manifest.read_bytes()
    refused = 0
    for place in range(0, len(whole), 41):
        data = bytearray(whole)
        data[place] ^= 1 << place % 7
        manifest.write_bytes(data)
        found = rebuilt_or_refused(tmp_path / "delta", tmp_path / "out", base)
        if isinstance(found, BitDeltaError):
            refused += 1
        else:  # a file may have come out under another name
            assert sorted(found.values()) == sorted(wanted.values())
    assert refused > 0.8 * len(whole) / 41


# Memory


MEASURE = ROOT / "benchmarks" / "measure.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from Linux's /proc")
@pytest.mark.parametrize("recipe", ["bitdelta", "exact"])
def test_memory_does_not_grow_with_the_model(recipe: str, tmp_path: Path) -> None:
    held: dict[str, list[int]] = {"compress": [], "rebuild": []}
    for megabytes in (60, 400):
        home = tmp_path / str(megabytes)
        shape = (2500, 2000)  # 10 MB
        base = {f"{i}.weight": noise(*shape, seed=i) for i in range(megabytes // 10)}
        pair = save_pair(home, base, {name: moved(tensor) for name, tensor in base.items()})
        del base
        for name in held:
            held[name].append(
                measured(f"{name} {recipe}" if name == "compress" else name, home, pair)
            )
        shutil.rmtree(home)
    for small, large in held.values():
        assert large < 400_000_000
        assert large - small < 60_000_000


def measured(operation: str, home: Path, pair: tuple[Path, Path]) -> int:
    """Peak anonymous bytes of `operation`, above what the imports hold."""
    command = [sys.executable, str(MEASURE), operation, *map(str, pair)]
    command += [str(home / "delta"), str(home / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(json.loads(done.stdout.splitlines()[-1])["anonymous_bytes"])
