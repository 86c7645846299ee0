"""Checks on a CUDA card: the same bytes as the CPU, the same digests, and rates side by side.

    python benchmarks/gpu.py [--gigabytes 1] [--zoo ../shared/zoo]

Element-wise recipes must give the same delta on both devices, every recipe must verify on both, and
the exit status says so. Prints Markdown tables with the card, versions and date.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from models import write_pair

import bitdelta_hub

ELEMENTWISE = ("bitdelta", "row1", "bitdelta-2", "int4", "magnitude-2", "dare", "topk", "exact")
SPECTRAL = ("svd", "delta-come", "rank-sign")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def timed(tuned: Path, base: Path, out: Path, recipe: str, device: str) -> float:
    start = time.perf_counter()
    bitdelta_hub.compress(tuned, base, out, recipe=recipe, device=device, overwrite=True)
    return time.perf_counter() - start


def compare(tuned: Path, base: Path, work: Path, recipes: tuple[str, ...], same: bool) -> bool:
    """Prints a row for every recipe; whether all is as it must be."""
    read = sum(p.stat().st_size for side in (tuned, base) for p in side.glob("*.safetensors"))
    print("| recipe | CPU s | GPU s | CPU / GPU | GPU GB/s of input | same bytes | verified |")
    print("|---|---|---|---|---|---|---|")
    fine = True
    for recipe in recipes:
        timed(tuned, base, work / "warm", recipe, "cuda")
        gpu = timed(tuned, base, work / "gpu", recipe, "cuda")
        cpu = timed(tuned, base, work / "cpu", recipe, "cpu")
        equal = contents(work / "gpu") == contents(work / "cpu")
        for device in ("cpu", "cuda"):
            bitdelta_hub.verify(work / "gpu", base=base, device=device)
        fine = fine and (equal or not same)
        print(
            f"| {recipe} | {cpu:.2f} | {gpu:.2f} | {cpu / gpu:.1f} | {read / gpu / 1e9:.2f} "
            f"| {'yes' if equal else 'no'} | CPU, GPU |",
            flush=True,
        )
    print()
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--zoo", type=Path, help="folder with models/base and models/ft-math")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu.py: no CUDA device here")
    print(
        f"{torch.cuda.get_device_name()}, {platform.machine()}, torch {torch.__version__}, "
        f"bitdelta-hub {bitdelta_hub.__version__}, {date.today()}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base, tuned = write_pair(work / "pair", arguments.gigabytes)
        fine = compare(tuned, base, work, ELEMENTWISE, same=True)
        small = write_pair(work / "small", 0.1)
        fine &= compare(small[1], small[0], work, SPECTRAL, same=False)
        if arguments.zoo:
            models = arguments.zoo / "models"
            recipes = ELEMENTWISE + SPECTRAL
            fine &= compare(models / "ft-math", models / "base", work, recipes, same=False)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
