"""The compiled loops give the bits of numpy and torch, whatever they are given."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from bitdelta_hub import source
from bitdelta_hub.codecs import sums
from bitdelta_hub.codecs.base import Encoder
from bitdelta_hub.codecs.codebook import CodebookEncoder
from bitdelta_hub.codecs.int import IntEncoder
from bitdelta_hub.kernels import compiled, ops
from tests.codecs import contract

pytest.importorskip("numba", reason="the extra `cpu` is not installed")

CPU = torch.device("cpu")
NATIVE = "bitdelta_hub.kernels.native"
WIDTHS = [1, 2, 3, 7, 8, 9, 16, 31, 64, 65, 1000]
TINY, HUGE = 2.0**-149, torch.finfo(torch.float32).max
EDGES = [0.0, -0.0, TINY, -TINY, 1e-40, 1.0, -1.0, 1.00390625, 1.01171875, 1e30, -1e30, HUGE, -HUGE]


@contextmanager
def plain() -> Iterator[None]:
    """Runs as where numba is not installed."""
    known = sys.modules.pop(NATIVE, None)
    sys.modules[NATIVE] = None  # type: ignore[assignment]
    compiled.cache_clear()
    try:
        yield
    finally:
        del sys.modules[NATIVE]
        if known:
            sys.modules[NATIVE] = known
        compiled.cache_clear()


def check(function: Callable[[], object]) -> None:
    """`function` gives the same bits with and without compiled loops."""
    assert compiled() is not None
    fast = bits_of(function())
    with plain():
        assert compiled() is None
        slow = bits_of(function())
    assert fast == slow


def bits_of(found: object) -> list[tuple[object, ...]]:
    """dtype, shape and bytes of every array; what is not a number has no bits to compare."""
    if isinstance(found, tuple):
        return [bits for part in found for bits in bits_of(part)]
    if not isinstance(found, torch.Tensor | np.ndarray):
        return [(found,)]
    if isinstance(found, torch.Tensor):
        found = (found.float() if found.dtype == torch.bfloat16 else found).numpy()
    array = found.copy()
    if array.dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    return [(array.dtype, array.shape, array.tobytes())]


def block(rows: int, cols: int, kind: str = "normal") -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + cols)
    x = torch.randn((rows, cols), generator=generator)
    if kind == "scales":  # every magnitude of fp32
        return x * torch.exp2(torch.randint(-140, 126, (rows, cols), generator=generator))
    if kind == "edges":
        chosen = torch.randint(0, len(EDGES), (rows, cols), generator=generator)
        return torch.tensor(EDGES)[chosen]
    return x


def bf16_bits(rows: int, cols: int, kind: str) -> np.ndarray:
    if kind == "any":
        generator = np.random.default_rng(cols)
        return generator.integers(0, 1 << 16, (rows, cols)).astype(np.uint16)
    return source.as_bits(block(rows, cols, kind).clamp(-3e38, 3e38).bfloat16(), "BF16")


KINDS = ["normal", "scales", "edges"]
every_block = pytest.mark.parametrize("kind", KINDS)
every_width = pytest.mark.parametrize("cols", WIDTHS)


@every_width
@every_block
def test_sums(kind: str, cols: int) -> None:
    x = block(5, cols, kind)
    check(lambda: sums.row_sums(x))
    check(lambda: sums.magnitudes(x))
    check(lambda: sums.magnitudes(x, squares=False))
    for rows in (1, 2, 3, 5, 8):
        check(lambda rows=rows: sums.energies(x, rows))


@every_width
@every_block
def test_signs(kind: str, cols: int) -> None:
    x = block(5, cols, kind)
    check(lambda: ops.pack_signs(x))
    packed = ops.pack_signs(block(5, cols))
    for row in (x[:, 0].clone(), x[:1, 0].clone()):
        for col in (x[0].clone(), x[0, :1].clone()):
            check(lambda row=row, col=col: ops.signed(packed, row, col, torch.empty(5, cols)))


@every_width
@pytest.mark.parametrize("kind", [*KINDS, "any"])
def test_differences(kind: str, cols: int) -> None:
    left, right = bf16_bits(4, cols, kind), bf16_bits(4, cols, kind)[::-1].copy()

    def difference() -> tuple[bool, torch.Tensor]:
        out = torch.empty(4, cols)
        return source.subtract(left, right, ("BF16", "BF16"), out), out

    check(difference)
    for rows in (1, 3, 4):
        check(lambda rows=rows: source.compare(left, right, "BF16", rows, CPU))


@every_width
@every_block
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32")])
def test_adding(kind: str, cols: int, dtypes: tuple[str, str]) -> None:
    left = block(4, cols, kind).clamp(-3e38, 3e38).to(getattr(torch, dtypes[0]))
    dtype = getattr(torch, dtypes[1])
    values, packed = block(4, cols, "scales"), ops.pack_signs(block(4, cols))
    row, col = block(4, 1, kind).view(4), block(1, cols, "normal").view(cols)

    def added() -> torch.Tensor:
        out = torch.empty((4, cols), dtype=dtype)
        ops.add(left, values, out)
        return out

    def signed(row: torch.Tensor, col: torch.Tensor) -> torch.Tensor:
        out = torch.empty((4, cols), dtype=dtype)
        ops.add_signed(left, packed, row, col, out)
        return out

    check(added)
    for rows in (row, row[:1]):
        for columns in (col, col[:1]):
            check(lambda rows=rows, columns=columns: signed(rows, columns))
    total = left.float()
    ops.add_signed(total, packed, row, col, total)
    assert torch.equal(total, left.float() + ops.sign_values(packed, cols, row[:, None] * col))


def test_products_and_sums_are_rounded_apart() -> None:
    """1 + 2^-12 squared is 1 + 2^-11 in fp32; less 1, a fused multiply-add has 2^-24 more."""
    edge, one = 1 + 2.0**-12, torch.ones(3, 40)
    out, packed = torch.empty(3, 40), torch.full((3, 5), 0xFF, dtype=torch.uint8)
    ops.add_signed(-one, packed, torch.full((3,), edge), torch.full((40,), edge), out)
    assert set(out.flatten().tolist()) == {2.0**-11}


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("cols", [*WIDTHS, 21, 40])
def test_codes(bits: int, cols: int) -> None:
    codes = torch.randint(0, 2**bits, (3, cols)).to(torch.uint8)
    packed, table = ops.pack(codes, bits), torch.randn(2**bits)
    check(lambda: ops.unpack(packed, bits, 0, cols))
    check(lambda: ops.unpack(packed, bits, 0, cols // 2))
    check(lambda: ops.lookup(packed, bits, cols, table))


def encoded(encoder: Encoder, x: torch.Tensor) -> tuple[object, ...]:
    """What is stored, and what it decodes to."""
    source = contract.source_of(x)
    codec, parts = contract.encode(encoder, source)
    return codec, *parts.values(), contract.decode(codec, parts, source.view)


@every_width
@every_block
def test_integers(kind: str, cols: int) -> None:
    x = block(6, cols, kind)
    x[2] = 0
    for bits in (2, 3, 4, 8):
        for group in (0, 1, 7, 16):
            for zeros in (False, True):
                for clip in ("mse", "max"):
                    encoder = IntEncoder(bits, group, zeros, clip)
                    check(lambda encoder=encoder: encoded(encoder, x))


@every_width
@every_block
def test_codebooks(kind: str, cols: int) -> None:
    x = block(6, cols, kind)
    for bits in (1, 3, 4, 8):
        for rows in (0, 4):
            check(lambda bits=bits, rows=rows: encoded(CodebookEncoder(bits, rows=rows), x))


def test_memory_that_is_neither_aligned_nor_writable() -> None:
    memory = np.arange(83, dtype=np.uint8)
    left, right = memory[1:81].view(np.uint16), memory[3:83].view(np.uint16)
    assert not left.flags.aligned
    left.flags.writeable = False
    out = torch.empty(40)
    assert source.subtract(left, right, ("BF16", "BF16"), out)
    wanted = source.as_float(left.copy(), "BF16").float() - source.as_float(right.copy(), "BF16")
    assert torch.equal(out, wanted)


SCRIPT = """
import sys
if sys.argv[1] == "plain":
    sys.modules["numba"] = None
from bitdelta_hub import compress, rebuild
from bitdelta_hub.kernels import compiled
assert (compiled() is None) == (sys.argv[1] == "plain")
folder, out = sys.argv[2:]
for recipe in ("bitdelta", "row1", "bitdelta-3", "int4", "int2", "magnitude-2", "magnitude-3"):
    compress(f"{folder}/tuned", f"{folder}/base", f"{out}/{recipe}", recipe=recipe)
    rebuild(f"{out}/{recipe}", f"{out}/{recipe}-rebuilt", base=f"{folder}/base")
"""


def write_pair(folder: Path) -> None:
    from safetensors.torch import save_file

    base, tuned = {}, {}
    for name, shape in {"a": (65, 129), "b": (3, 20, 40), "c": (300, 1), "d": (64, 256)}.items():
        key = f"model.layers.0.{name}.weight"
        base[key] = block(shape[0], int(np.prod(shape[1:]))).view(shape).bfloat16()
        step = block(int(np.prod(shape[:-1])), shape[-1], "scales" if name == "d" else "normal")
        tuned[key] = (base[key].float() + 0.01 * step.view(shape).clamp(-1, 1)).bfloat16()
    tuned["model.layers.0.a.weight"][3, 4] = float("nan")
    base["model.layers.0.b.weight"][1, 2, 3] = float("inf")
    for side, tensors in (("base", base), ("tuned", tuned)):
        (folder / side).mkdir()
        save_file(tensors, folder / side / "model.safetensors")


def test_whole_deltas_are_the_same_without_numba(tmp_path: Path) -> None:
    write_pair(tmp_path)
    contents = []
    for how in ("compiled", "plain"):
        out = tmp_path / how
        out.mkdir()
        command = [sys.executable, "-c", SCRIPT, how, str(tmp_path), str(out)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
        files = sorted(path for path in out.rglob("*") if path.is_file())
        contents.append(
            {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
        )
    assert contents[0] == contents[1]
    assert len(contents[0]) >= 21


NO_CACHE = """
import numba.core.caching, torch
numba.core.caching.CacheImpl._locator_classes = []
from bitdelta_hub.kernels import compiled, ops, preload
preload()
out = torch.empty(2, 2)
ops.add(torch.ones(2, 2), torch.ones(2, 2), out)
assert compiled() and (out == 2).all()
"""


def test_without_a_folder_for_the_cache_loops_are_compiled_quietly() -> None:
    command = [sys.executable, "-W", "error", "-c", NO_CACHE]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, check=True, cwd=root, capture_output=True, text=True)
    assert done.stdout == done.stderr == ""
