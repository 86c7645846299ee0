"""`bdhub rebuild`: an ordinary checkpoint, and status 4 for another base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitdelta_hub import compress
from tests.cli.conftest import Bdhub
from tests.handmade import moved, noise, save_pair

Pair = tuple[Path, Path]


def test_human(bdhub: Bdhub, pair: Pair, delta: Path, tmp_path: Path) -> None:
    out = tmp_path / "rebuilt"
    done = bdhub("rebuild", delta, "--base", pair[0], "--out", out, "--max-memory", "1GB")
    assert done.status == 0
    assert done.out.startswith(f"✓ Rebuilt {out}\n  size: 48.5 kB\n  tensors: 21\n  time: ")
    assert done.err == f'Hint: load it with AutoModelForCausalLM.from_pretrained("{out}")\n'


@pytest.mark.parametrize(
    ("config", "loader"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "AutoModelForCausalLM"),
        ({"architectures": ["ViTForImageClassification"]}, "ViTForImageClassification"),
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": ["os.system('x')"]}, "AutoModel"),
        ({"architectures": ["MyForCausalLM"], "auto_map": {}}, "AutoModel"),
        ({"architectures": [3]}, "AutoModel"),
        ({}, "AutoModel"),
    ],
)
def test_the_hint_names_what_loads_the_model(
    bdhub: Bdhub, config: dict[str, object], loader: str, tmp_path: Path
) -> None:
    weight = noise(8, 8)
    base, tuned = save_pair(tmp_path, {"w": weight}, {"w": moved(weight)}, **config)
    compress(tuned, base, tmp_path / "delta")
    out = tmp_path / 'a "quoted" name'
    done = bdhub("rebuild", tmp_path / "delta", "--base", base, "--out", out)
    quoted = str(out).replace('"', '\\"')
    assert done.err == f'Hint: load it with {loader}.from_pretrained("{quoted}")\n'


def test_json(bdhub: Bdhub, pair: Pair, delta: Path, tmp_path: Path) -> None:
    out = tmp_path / "rebuilt"
    done = bdhub("rebuild", delta, "--base", pair[0], "--out", out, "--json")
    found = json.loads(done.out)
    assert found.pop("seconds") > 0
    size = (out / "model.safetensors").stat().st_size
    assert found == {"out": str(out), "bytes": size, "tensors": 21}


def test_another_base_is_status_4(bdhub: Bdhub, pair: Pair, delta: Path, tmp_path: Path) -> None:
    done = bdhub("rebuild", delta, "--base", pair[1], "--out", tmp_path / "rebuilt")
    assert (done.status, done.out) == (4, "")
    assert "(BDH402 base-mismatch)\nFix: pass the base of this delta with --base: " in done.err
    assert list(tmp_path.iterdir()) == []
