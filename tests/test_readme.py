"""What the README says is what happens: commands run, outputs and tables are the real ones."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bitdelta_hub.demo.run import RECIPES
from bitdelta_hub.recipes import recipe_names
from tests.models import checkpoints, rewrite

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BDHUB = "import sys; from bitdelta_hub.cli import main; sys.argv[0] = 'bdhub'; main()"


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)


def steps() -> list[tuple[str, str, str]]:
    """(language, input, printed output) of every console command and Python block, in order."""
    found = []
    for language, content in blocks(README):
        if language == "python":
            found.append(("python", content, ""))
        elif language == "console":
            for step in re.split(r"^\$ ", content, flags=re.M)[1:]:
                command, _, output = step.partition("\n")
                found.append(("console", command, output))
    return found


def skeleton(output: str) -> list[str]:
    """The lines of `output` without what is another model's or another machine's: numbers with
    their units, digests and tensor names become `#`, the rows of codecs and parts one row."""
    for varying in (
        r"blake3:[0-9a-f]{64}",
        r"model\.layers\.[\w.]+",
        r"\d[\d.]*( bytes| ?[kMG]?B(/s)?| s|x|%)?(?!\w)",
    ):
        output = re.sub(varying, "#", output)
    lines = [" ".join(line.split()) for line in output.strip().splitlines()]
    lines = [re.sub(r"^\w+ \w+ # #$", "codec part # #", line) for line in lines]
    return [line for line, before in zip(lines, ["", *lines], strict=False) if line != before]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and `tuned`, every tensor changed, as a reader of the README has one."""
    home = tmp_path_factory.mktemp("readme")
    base, tuned = checkpoints("llama", home)
    rewrite(base, home / "base")
    rewrite(tuned, home / "tuned", lambda found: {k: v * 1.01 for k, v in found.items()})
    return home


def run(arguments: list[str], folder: Path) -> str:
    """Standard output of this interpreter with `arguments`, run in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_do_what_is_printed_below_them(folder: Path) -> None:
    for language, text, expected in steps():
        if language == "python":
            run(["-c", text], folder)
            continue
        program, *arguments = shlex.split(text)
        assert program == "bdhub"
        printed = run(["-c", BDHUB, *arguments], folder)
        assert skeleton(printed) == skeleton(expected), f"$ {text}\n{printed}"


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_a_set_up_command_is_one_line_with_its_own_environment(name: str) -> None:
    marked = re.findall(
        rf"^<!-- setup:{name} -->\n(.*?)^<!-- /setup:{name} -->$", README, re.M | re.S
    )
    ((language, line),) = blocks("".join(marked))
    assert language == "sh"
    assert line.count("\n") == 1
    assert line.startswith(
        "python3 -m venv .venv && .venv/bin/pip install -q -c .ci/constraints.txt"
    )


def test_the_table_of_recipes_is_the_library_s() -> None:
    rows = "".join(f"| `{name}` | {summary} |\n" for name, summary in recipe_names())
    table = f"| recipe | what a delta holds |\n|---|---|\n{rows}\n"
    assert table in README, f"the table of recipes should read:\n{table}"


def test_the_demo_s_table_names_its_recipes() -> None:
    (table,) = [content for language, content in blocks(README) if language == "text"]
    models = [line.split()[0] for line in table.splitlines()]
    assert models == ["MODEL", "base", "tuned", *RECIPES]


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert [target for target in targets if not (ROOT / target).exists()] == []
