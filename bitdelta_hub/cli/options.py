"""Flags that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from bitdelta_hub.cli.values import parse_size

Tuned = Annotated[Path, Argument(metavar="FT", help="Folder of the fine-tuned checkpoint.")]
DeltaFolder = Annotated[Path, Argument(metavar="DIR", help="Folder of a delta.")]
Base = Annotated[Path, Option(metavar="BASE", help="Folder of the base checkpoint.")]
Out = Annotated[Path, Option(metavar="OUT", help="Folder to write; it must not exist yet.")]
Device = Annotated[str, Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
MaxMemory = Annotated[str | None, Option(metavar="SIZE", help="Memory to stay within, as 8GB.")]
AllowPickle = Annotated[bool, Option("--allow-pickle", help="Read .bin files, weights only.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace OUT if it is there.")]


@dataclass(frozen=True, slots=True)
class PairOptions:
    """How a fine-tune is stored: the flags of `compress` and `plan`."""

    recipe: Annotated[
        str,
        Option(
            metavar="NAME",
            help="bitdelta, bitdelta-K (K = 2..8), row1, rank-sign, magnitude-M, delta-come, svd, "
            "dare, topk, int2, int4 or exact.",
        ),
    ] = "bitdelta"
    embeddings: Annotated[
        Literal["auto", "exact", "sign", "base"],
        Option(help="Embeddings and head: by the recipe, bit for bit, one bit, or the base's."),
    ] = "auto"
    keep: Annotated[
        list[str] | None, Option(metavar="GLOB", help="Tensors to store exactly. Repeatable.")
    ] = None
    skip: Annotated[
        list[str] | None, Option(metavar="GLOB", help="Tensors to leave at the base. Repeatable.")
    ] = None
    scale: Annotated[
        Literal["tensor", "row", "col", "row_col"] | None, Option(help="Where sign scales apply.")
    ] = None
    estimator: Annotated[
        Literal["mean", "rms", "unbiased"] | None, Option(help="How sign scales are fitted.")
    ] = None
    bits: Annotated[
        float | None, Option(metavar="BITS", help="Bits a weight, for recipes with a budget.")
    ] = None
    effort: Annotated[
        Literal["default", "max"], Option(help="max: smaller exact tensors, much slower.")
    ] = "default"
    device: Device = "auto"
    max_memory: MaxMemory = None
    max_shard_size: Annotated[str, Option(metavar="SIZE", help="Largest file of the delta.")] = (
        "5GB"
    )
    allow_pickle: AllowPickle = False
    allow_distant_base: Annotated[
        bool, Option("--allow-distant-base", help="Go on although the base looks like another one.")
    ] = False

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the library's `compress` and `plan`."""
        return {
            "recipe": self.recipe,
            "embeddings": self.embeddings,
            "keep": self.keep or (),
            "skip": self.skip or (),
            "scale": self.scale,
            "estimator": self.estimator,
            "bits": self.bits,
            "effort": self.effort,
            "device": self.device,
            "max_memory": parse_size(self.max_memory, "--max-memory"),
            "max_shard_size": parse_size(self.max_shard_size, "--max-shard-size"),
            "allow_pickle": self.allow_pickle,
            "allow_distant_base": self.allow_distant_base,
        }


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How the result is printed: on every command."""

    format: Annotated[
        Literal["auto", "human", "agent", "json", "quiet"],
        Option(help="How the result is printed; auto is human."),
    ] = "auto"
    json: Annotated[bool, Option("--json", help="Short for --format json.")] = False
    quiet: Annotated[bool, Option("--quiet", "-q", help="Short for --format quiet.")] = False
    no_truncate: Annotated[bool, Option("--no-truncate", help="Cut no table cells.")] = False
