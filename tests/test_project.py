"""Promises that hold for the project as a whole: one version, no code in data, traceable rules."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import bitdelta_hub

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bitdelta_hub"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Tests that are about more than one file of the package.
ABOUT_THE_WHOLE = {
    "test_ladder.py",
    "test_project.py",
    "test_readme.py",
    "test_robustness.py",
    "test_spec.py",
    "test_vectors.py",
}

RUNS_DATA = {"eval", "exec", "compile", "__import__"}
READS_CODE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
# The one place that may read torch's pickles: a `.bin` checkpoint, asked for, weights only.
PICKLES = PACKAGE / "weightfile.py"


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def tracked() -> list[Path]:
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_one_version() -> None:
    declared = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["version"]
    newest = re.search(r"^## (\S+)", text_of(ROOT / "CHANGELOG.md"), re.M)
    assert newest is not None
    assert declared == newest[1] == bitdelta_hub.__version__


def test_every_direct_dependency_has_a_tested_version() -> None:
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in wanted}
    pins = re.findall(r"^([\w-]+)==", text_of(ROOT / ".ci" / "constraints.txt"), re.M)
    names -= {project["name"]}  # an extra that names another extra
    assert names <= {pin.lower().replace("_", "-") for pin in pins}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_data_never_runs(path: Path) -> None:
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found = READS_CODE & {name.partition(".")[0] for name in names}
            assert not found or path == PICKLES, f"line {node.lineno} imports {found}"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            place = f"line {node.lineno} calls {name}"
            assert name not in RUNS_DATA, place
            assert name.partition(".")[0] not in READS_CODE, place
            if name == "torch.load":
                assert path == PICKLES, place
                assert keywords.get("weights_only") == "True", place
            elif name in ("np.load", "numpy.load"):
                assert "allow_pickle" not in keywords, place


def test_no_paths_of_one_machine() -> None:
    pattern = re.compile(rb"(?<![\w.])/(home|root|tmp|work|Users)/\w")
    found = [str(path.relative_to(ROOT)) for path in tracked() if pattern.search(path.read_bytes())]
    assert found == []


def rules_in_spec() -> list[str]:
    return re.findall(r"\*\*(R\d+)\*\*", text_of(PACKAGE / "format" / "SPEC.md"))


def test_rules_are_numbered_without_gap_and_defined_once() -> None:
    counted = Counter(rules_in_spec())
    assert [rule for rule, times in counted.items() if times > 1] == []
    assert set(counted) == {f"R{number}" for number in range(1, len(counted) + 1)}


def test_rules_named_in_code_exist() -> None:
    known = set(rules_in_spec())
    named = {(p.name, rule) for p in SOURCES for rule in re.findall(r"\bR\d+\b", text_of(p))}
    assert {(name, rule) for name, rule in named if rule not in known} == set()


def mirrors(path: Path) -> bool:
    """Whether `test_NAME.py` or `test_NAME_topic.py` stands where the file or folder NAME does in
    the package."""
    folder = PACKAGE / path.parent.relative_to(Path(__file__).parent)
    words = path.stem.split("_")[1:]
    names = ["_".join(words[:n]) for n in range(1, len(words) + 1)]
    return any((folder / f"{name}.py").is_file() or (folder / name).is_dir() for name in names)


def test_tests_mirror_the_package() -> None:
    here = Path(__file__).parent
    strays = {path.name for path in here.rglob("test_*.py") if not mirrors(path)}
    assert strays <= ABOUT_THE_WHOLE
    assert list(here.rglob("__init__.py")) == []
