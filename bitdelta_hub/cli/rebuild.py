"""`bdhub rebuild`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import bitdelta_hub
from bitdelta_hub.cli.leaf import leaf
from bitdelta_hub.cli.options import (
    AllowPickle,
    Base,
    DeltaFolder,
    Device,
    MaxMemory,
    Out,
    Overwrite,
)
from bitdelta_hub.cli.output import Output, Report
from bitdelta_hub.cli.progress import progress
from bitdelta_hub.cli.values import Bytes, Seconds, pace, parse_size
from bitdelta_hub.locate import read_json

if TYPE_CHECKING:
    from bitdelta_hub.rebuild import RebuildResult


def add_to(app: typer.Typer) -> None:
    """Adds `rebuild` to `app`."""
    leaf(
        app,
        "bdhub rebuild ./delta --base ./base --out ./rebuilt",
        "bdhub rebuild ./delta --base ./base --out ./rebuilt --overwrite --json",
    )(rebuild)


def rebuild(
    output: Output,
    delta: DeltaFolder,
    base: Base,
    out: Out,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    allow_pickle: AllowPickle = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the checkpoint that the delta DIR stands for.

    Every tensor is compared with its recorded digest on the way.
    """
    with progress(output) as watch:
        result = bitdelta_hub.rebuild(
            delta,
            out,
            base=base,
            device=device,
            max_memory=parse_size(max_memory, "--max-memory"),
            allow_pickle=allow_pickle,
            overwrite=overwrite,
            progress=watch,
        )
    output.show(report(result))
    quoted = json.dumps(str(out), ensure_ascii=False)
    output.hint(f"load it with {_loader(out)}.from_pretrained({quoted})")


def _loader(folder: Path) -> str:
    """The class of transformers that loads the checkpoint in `folder`, by its configuration."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if not isinstance(name, str) or not name.isidentifier() or "auto_map" in config:
        return "AutoModel"
    return "AutoModelForCausalLM" if name.endswith("ForCausalLM") else name


def report(result: RebuildResult) -> Report:
    """What `rebuild` says of its result."""
    return Report(
        headline=f"Rebuilt {result.out}",
        fields={
            "size": Bytes(result.bytes),
            "tensors": result.tensors,
            **pace(result.bytes, result.seconds),
        },
        document={
            "out": str(result.out),
            "bytes": Bytes(result.bytes),
            "tensors": result.tensors,
            "seconds": Seconds(round(result.seconds, 3)),
        },
        quiet=(str(result.out),),
    )
