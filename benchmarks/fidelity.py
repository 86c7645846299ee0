"""What every recipe keeps of the zoo's fine-tunes, beside the published methods' table.

    python benchmarks/fidelity.py ../shared/zoo [--tasks math json] [--recipes bitdelta,row1]

Each recipe runs whole: compress with `--embeddings exact`, rebuild, load with transformers, and
the zoo's own evaluation. `bits` is 8 x bytes of a file that holds only the parts of the block
linears, header included, over their number of weights, as in the zoo's table. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, logging

import bitdelta_hub
from bitdelta_hub.format.container import layout

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Row of the zoo's table -> how the same is asked for here.
ROWS: dict[str, dict[str, object]] = {
    "bitdelta": {"recipe": "bitdelta"},
    "bitdelta-row": {"recipe": "bitdelta", "scale": "row"},
    "bitdelta-col": {"recipe": "bitdelta", "scale": "col"},
    "bitdelta-best-axis": {"recipe": "bitdelta", "scale": "row_col"},
    "bitdelta-half-unbiased": {"recipe": "bitdelta", "estimator": "rms"},
    "bitdelta-row-half-unbiased": {"recipe": "row1", "estimator": "rms"},
    "bitdelta-unbiased": {"recipe": "bitdelta", "estimator": "unbiased"},
    "bitdelta-row-unbiased": {"recipe": "row1"},
    "bitdelta-2bit": {"recipe": "bitdelta-2"},
    "bitdelta-2bit-row": {"recipe": "bitdelta-2", "scale": "row"},
    "bitdelta-4bit": {"recipe": "bitdelta-4"},
    "bitdelta-4bit-row": {"recipe": "bitdelta-4", "scale": "row"},
    "rank-1bit-equal": {"recipe": "svd", "bits": 1.0},
    "rank-2bit-equal": {"recipe": "svd", "bits": 2.0},
    "rank2+sign-row": {"recipe": "rank-sign"},
    "delta-come-1bit": {"recipe": "delta-come", "bits": 1.0},
    "delta-come-2bit": {"recipe": "delta-come", "bits": 2.0},
    "dare-p0.9": {"recipe": "dare"},
    "top5%-mask": {"recipe": "topk"},
    "int2-mse": {"recipe": "int2"},
    "int4-mse": {"recipe": "int4"},
    "magnitude-2": {"recipe": "magnitude-2"},
    "magnitude-4": {"recipe": "magnitude-4"},
    "exact": {"recipe": "exact"},
}


def is_linear(name: str) -> bool:
    return name.endswith(".weight") and name.split(".")[-2] in LINEARS


def linear_bits(delta: bitdelta_hub.delta.Delta) -> float:
    """Bits per weight of a file with the parts of the block linears alone."""
    arrays, weights = [], 0
    for name in filter(is_linear, delta.manifest.tensors):
        weights += delta.view(name).numel
        for index, term in enumerate(delta.terms(name)):
            for part, spec in term.codec.parts(delta.view(name)).items():
                arrays.append((f"{name}_{index}_{part}", spec.dtype, spec.shape))
    return 8 * layout(arrays).size / weights


def published(zoo: Path, task: str) -> dict[str, dict[str, float]]:
    """The zoo's table: codec -> bits, exact, kl_task, kl_text."""
    rows = {}
    for line in (zoo / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 10 and cells[0] == task:
            bits, exact, kl, text = (float(cells[i]) for i in (2, 5, 8, 9))
            rows[cells[1]] = {"bits": bits, "exact": exact, "kl_task": kl, "kl_text": text}
    return rows


def measure(zoo: Path, task: str, recipe: dict[str, object], evaluator: object) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        delta, rebuilt = Path(folder, "delta"), Path(folder, "rebuilt")
        began = time.perf_counter()
        bitdelta_hub.compress(
            zoo / f"models/ft-{task}", zoo / "models/base", delta, embeddings="exact", **recipe
        )
        seconds = time.perf_counter() - began
        bitdelta_hub.rebuild(delta, rebuilt, base=zoo / "models/base")
        with bitdelta_hub.open_delta(delta) as opened:
            bits = linear_bits(opened)
            total = sum(path.stat().st_size for path in delta.iterdir())
            tuned = opened.manifest.tuned.bytes
        model = LlamaForCausalLM.from_pretrained(rebuilt, dtype=torch.float32).eval()
        result = evaluator.run(model)
    return {**result, "bits": bits, "ratio": tuned / total, "encode_s": seconds}


COLUMNS = (
    "task", "recipe", "bits", "ratio", "encode s", "exact", "KL answers", "KL text",
    "table: bits", "exact", "KL answers",
)  # fmt: skip


def cells(task: str, name: str, row: dict[str, float], other: dict[str, float]) -> list[str]:
    """One row of the printed table; `other` is the zoo's, empty where it has none."""
    ours = [
        f"{row[key]:{form}}"
        for key, form in (
            ("bits", ".3f"), ("ratio", ".2f"), ("encode_s", ".1f"), ("exact", ".3f"),
            ("kl_task", ".4f"), ("kl_text", ".4f"),
        )
    ]  # fmt: skip
    shown = (("bits", ".3f"), ("exact", ".3f"), ("kl_task", ".4f"))
    theirs = [f"{other[key]:{form}}" if other else "" for key, form in shown]
    return [task, name, *ours, *theirs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--tasks", nargs="*", default=["math", "json"])
    parser.add_argument("--recipes", default="", help="rows, separated by commas; all by default")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sys.path.insert(0, str(arguments.zoo.resolve()))
    from eval_zoo import Evaluator

    wanted = [name for name in arguments.recipes.split(",") if name] or list(ROWS)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"bitdelta-hub {bitdelta_hub.__version__}, {date.today()}\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    numbers = []
    for task in arguments.tasks:
        table = published(arguments.zoo, task)
        evaluator = Evaluator(task, zoo=arguments.zoo)
        for name in wanted:
            row = measure(arguments.zoo, task, ROWS[name], evaluator)
            print(f"| {' | '.join(cells(task, name, row, table.get(name, {})))} |", flush=True)
            numbers.append({"task": task, "recipe": name, **row})
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
