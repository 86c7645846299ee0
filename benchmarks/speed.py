"""Prints a table of speed, peak memory and bytes of compressing and rebuilding, beside `cp`.

    python benchmarks/speed.py                        # pairs of 0.2 and 1 GB
    python benchmarks/speed.py --gigabytes 0.2 5      # the memory must not grow with the model
    python benchmarks/speed.py --pair BASE TUNED      # a pair of your own

Every figure is the median of `--rounds` rounds; a round runs every operation once, each in a fresh
process, with the inputs in the page cache and nothing left to write back. `deltatensors` rows
appear where that package is installed. Linux only.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from models import write_pair

MEASURE = Path(__file__).with_name("measure.py")


@dataclass(frozen=True)
class Run:
    """One operation, run once: wall time of the call and of its process, bytes held and written."""

    seconds: float
    process_seconds: float
    anonymous_bytes: int
    written: int


@dataclass(frozen=True)
class Step:
    """A row of the table: its label, what measure.py is told, which bytes its rate counts, and
    which folder it writes."""

    label: str
    operation: str
    reads: str = "base+tuned"
    writes: str = "delta"


def steps(recipes: list[str], device: str) -> list[list[Step]]:
    """Groups of steps that hand a delta on; each group starts on an empty folder."""
    groups = [
        [Step("`cp` of the tuned checkpoint", "cp", "tuned", "out")],
        [
            Step("plain torch, compress", "plain compress"),
            Step("plain torch, rebuild", "plain rebuild", "tuned", "out"),
        ],
    ]
    groups += [
        [
            Step(f"compress `{recipe}`", f"compress {recipe} {device}"),
            Step(f"verify `{recipe}`", "verify", "tuned", ""),
            Step(f"rebuild `{recipe}`", f"rebuild {device}", "tuned", "out"),
        ]
        for recipe in recipes
    ]
    if find_spec("deltatensors"):
        groups.append([Step("deltatensors, compress 1-bit", "deltatensors quantized")])
        groups.append([Step("deltatensors, compress int4", "deltatensors int4")])
    return groups


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def warm(*folders: Path) -> None:
    """Reads every file once and writes back what waits, so that no step pays for another."""
    os.sync()
    for folder in folders:
        for path in folder.glob("*.safetensors"):
            with open(path, "rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def run(step: Step, base: Path, tuned: Path, work: Path) -> Run:
    """Runs `step` in a fresh process; its delta and output are in `work`."""
    delta, out = work / "delta", work / "out"
    shutil.rmtree(out, ignore_errors=True)
    warm(base, tuned)
    command = [sys.executable, MEASURE, step.operation, base, tuned, delta, out]
    if step.operation == "cp":
        command = ["cp", "-r", tuned, out]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    whole = time.perf_counter() - start
    found = json.loads(done.stdout or "{}")
    written = folder_bytes(work / step.writes) if step.writes else 0
    return Run(found.get("seconds", whole), whole, found.get("anonymous_bytes", 0), written)


def measure(
    groups: list[list[Step]], base: Path, tuned: Path, work: Path, rounds: int
) -> dict[Step, list[Run]]:
    """The runs of every step, one a round, the rounds one after the other."""
    runs: dict[Step, list[Run]] = {step: [] for group in groups for step in group}
    for _ in range(rounds):
        for group in groups:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            for step in group:
                runs[step].append(run(step, base, tuned, work))
    shutil.rmtree(work)
    return runs


def table(measured: dict[Step, list[Run]], base: Path, tuned: Path) -> str:
    """The measurements as Markdown; memory is the largest of all rounds."""
    sizes = {"tuned": weight_bytes(tuned), "base+tuned": weight_bytes(base) + weight_bytes(tuned)}
    rows = [
        ("operation", "wall s", "with start-up s", "GB/s", "x `cp`", "anonymous MB", "written MB"),
        ("---",) * 7,
    ]
    copy = 0.0
    for step, runs in measured.items():
        seconds = median(run.seconds for run in runs)
        copy = copy or seconds
        rows.append(
            (
                step.label,
                f"{seconds:.2f}",
                f"{median(run.process_seconds for run in runs):.2f}",
                f"{sizes[step.reads] / seconds / 1e9:.2f}",
                f"{seconds / copy:.2f}",
                f"{max(run.anonymous_bytes for run in runs) / 1e6:.0f}",
                f"{runs[0].written / 1e6:.1f}",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine(device: str) -> str:
    """One line: processor, cores, memory, accelerator, versions, date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.split(": ")[1] for x in lines if x.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = ["bitdelta-hub", "torch", "numpy", "zstandard", "blake3", "deltatensors"]
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    accelerator = ""
    if device != "cpu":
        import torch

        accelerator = f", {torch.cuda.get_device_name()}"
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB{accelerator}; "
        f"Python {platform.python_version()}, {', '.join(versions)}; {time.strftime('%Y-%m-%d')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.2, 1.0])
    parser.add_argument("--pair", type=Path, nargs=2, metavar=("BASE", "TUNED"))
    parser.add_argument("--recipes", nargs="*", default=["bitdelta", "exact"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where pairs and outputs go; kept if it exists")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        groups = steps(options.recipes, options.device)
        print(machine(options.device))
        for size in options.gigabytes if options.pair is None else [None]:
            base, tuned = options.pair or write_pair(folder / f"{size:g}GB", size)
            print(f"\n**{weight_bytes(tuned) / 1e9:.2f} GB a checkpoint**\n")
            measured = measure(groups, base, tuned, folder / "work", options.rounds)
            print(table(measured, base, tuned), flush=True)


if __name__ == "__main__":
    main()
