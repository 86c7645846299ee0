"""Imports only go down, public names are the listed ones, and light rooms stay without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.resources import files
from pathlib import Path

import pytest

import bitdelta_hub
from bitdelta_hub.errors import BitDeltaError

PACKAGE = Path(bitdelta_hub.__file__).parent

# A room is a file or a folder of the package. It imports from lower floors only: rooms on one floor
# are strangers.
FLOORS = (
    # facts
    ("errors", "layouts", "outcomes"),
    # bytes on disk, and one tensor's diff
    ("format", "kernels"),
    ("codecs",),
    # checkpoints, pairs, plans
    ("carried", "locate", "recipes", "spool", "weightfile", "workers"),
    ("checkpoint",),
    ("operands", "quantised", "sample"),
    ("pair",),
    ("source",),
    ("changes", "delta"),
    ("planner",),
    ("encode", "plan"),
    # whole deltas
    ("compress", "rebuild", "verify"),
    # what people call; "" is the package itself with its public names
    ("", "demo"),
    ("cli",),
)
TORCH_FREE = ("errors", "format", "cli")

FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
PUBLIC = [
    "BitDeltaError",
    "Manifest",
    "__version__",
    "compress",
    "open_delta",
    "plan",
    "rebuild",
    "verify",
]


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name without `bitdelta_hub.`, the skin left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def targets(name: str) -> Iterator[tuple[str, int]]:
    """(imported module or public name, line) for every import inside the package, wherever it
    stands: in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                if top == "bitdelta_hub":
                    yield rest, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}:{node.lineno}: write imports from the package's root"
            top, _, rest = (node.module or "").partition(".")
            if top == "bitdelta_hub":
                for alias in node.names:
                    inner = f"{rest}.{alias.name}".lstrip(".")
                    yield (inner if inner in modules() else rest or alias.name), node.lineno


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_a_floor_and_every_floor_its_rooms() -> None:
    rooms = {""} | {room(name) for name in modules()}
    assert rooms - set(FLOOR) == set(), "give the new room a floor in FLOORS"
    assert set(FLOOR) - rooms == set(), "FLOORS lists a room that is not there"


@pytest.mark.parametrize("name", modules())
def test_imports_go_down(name: str) -> None:
    here = room(name)
    for target, line in targets(name):
        there = room(target)
        if there in (here, "__version__"):
            continue
        place = f"bitdelta_hub.{name}, line {line}, imports {target}"
        assert there in FLOOR, f"{place}: import a name from the file that defines it"
        assert FLOOR[there] < FLOOR.get(here, 0), f"{place}: that is not further down"


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: {t for t, _ in targets(name) if t in modules()} - {name} for name in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def loaded_after(code: str) -> set[str]:
    """Top-level names in sys.modules after `code` ran in a fresh interpreter."""
    script = f"{code}\nimport sys; print('\\n'.join(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_light_rooms_do_not_import_torch() -> None:
    light = [f"import bitdelta_hub.{name}" for name in modules() if room(name) in TORCH_FREE]
    assert not loaded_after("\n".join(light)) & {"torch", "transformers"}


def test_help_loads_neither_torch_nor_the_hub_client() -> None:
    code = """
import contextlib, io
from bitdelta_hub.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    import sys
    sys.argv = ["bdhub", "--help"]
    main()
assert "compress" in out.getvalue()
"""
    assert not loaded_after(code) & {"torch", "transformers", "huggingface_hub", "numba"}


def test_public_names_are_the_listed_ones() -> None:
    assert bitdelta_hub.__all__ == PUBLIC == dir(bitdelta_hub)
    for name in PUBLIC:
        assert getattr(bitdelta_hub, name) is not None
    assert bitdelta_hub.BitDeltaError is BitDeltaError


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'bitdelta_hub' has no attribute 'compres'"):
        _ = bitdelta_hub.compres


@pytest.mark.parametrize("name", ["compress", "plan", "rebuild", "verify"])
def test_importing_the_file_does_not_hide_the_function(name: str) -> None:
    code = f"""
from bitdelta_hub.{name} import {name} as inner
import bitdelta_hub
from bitdelta_hub import {name} as outer
assert outer is inner is bitdelta_hub.{name}
"""
    loaded_after(code)


def test_the_package_itself_is_light() -> None:
    assert not loaded_after("import bitdelta_hub") & {"torch", "numpy", "huggingface_hub"}


def test_specification_and_type_marker_ship_with_the_package() -> None:
    assert files("bitdelta_hub").joinpath("format/SPEC.md").is_file()
    assert files("bitdelta_hub").joinpath("py.typed").is_file()
