"""Which files of a folder are the weights, by the names that `save_pretrained` gives them.

A single file, or shards and their index; safetensors before pickles. Twins in other layouts
(`consolidated*`, `original/`), adapters beside weights and stray shards are not read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from bitdelta_hub.errors import PairError, StorageError
from bitdelta_hub.format.names import MANIFEST
from bitdelta_hub.format.storage import decimal_size, storage_errors

LOOKED_FOR = "model.safetensors, model-*-of-*.safetensors, pytorch_model*.bin, *.pth"
STEMS = (
    ("model", ".safetensors"),
    ("diffusion_pytorch_model", ".safetensors"),
    ("pytorch_model", ".bin"),
)
PICKLES = (".bin", ".pth", ".pt")
JSON_LIMIT = 1 << 26


@dataclass(frozen=True, slots=True)
class Located:
    """The weight files in their order; `weight_map` (tensor -> file) if they have an index."""

    files: tuple[Path, ...]
    weight_map: dict[str, str] | None = None


def locate(source: Path) -> Located:
    """The weights under `source`, a folder or one file.

    Raises PairError BDH102 (adapters only), BDH103 (GGUF only), BDH111 (several components);
    StorageError where there are no weights, or a file that an index or a shard's name calls for is
    missing.
    """
    if source.is_file():
        if source.suffix != ".safetensors" and source.suffix not in PICKLES:
            raise StorageError(f"{source}: not a file of weights (expected .safetensors)")
        return Located((source,))
    if not source.is_dir():
        fix = "check the path"
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
            fix += f"; for a model of the Hub, first: hf download {source} --local-dir FOLDER"
        raise StorageError(f"{source}: no such file or folder", fix=fix)
    if (source / MANIFEST).is_file():
        raise StorageError(
            f"{source}: a delta, not a checkpoint",
            fix=f"bdhub rebuild {quote(str(source))} --base BASE --out FOLDER",
        )
    if (source / "model_index.json").is_file():
        raise PairError(
            f"{source}: a pipeline of several models (model_index.json)",
            code="BDH111",
            fix="give the folder of one component, such as unet/ or transformer/, on both sides",
        )
    with storage_errors(source):
        names = sorted(path.name for path in source.iterdir() if path.is_file())
    for stem, suffix in STEMS:
        if found := _named(source, names, stem, suffix):
            return found
    if not (found := _only_pth(source, names)):
        raise _nothing(source, names)
    return found


def _named(folder: Path, names: list[str], stem: str, suffix: str) -> Located | None:
    single, index = f"{stem}{suffix}", f"{stem}{suffix}.index.json"
    if index in names:
        found = _indexed(folder, names, index)
        if single in names and folder / single not in found.files:
            raise StorageError(
                f"{folder}: both {single} and {index}, which names other files",
                fix="remove the one that is out of date",
            )
        return found
    if single in names:
        return Located((folder / single,))
    return _numbered(folder, names, stem, suffix)


def _indexed(folder: Path, names: list[str], index: str) -> Located:
    content = read_json(folder / index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise StorageError(f"{folder / index}: no weight_map")
    for tensor, file in weight_map.items():
        # A name that is not in the listing of the folder itself leads nowhere, or out of it.
        if not isinstance(file, str) or file not in names:
            raise StorageError(
                f"{folder / index}: {tensor} is in {file!r}, which is not in the folder",
                fix="fetch the missing file",
            )
    return Located(tuple(folder / file for file in sorted(set(weight_map.values()))), weight_map)


def _numbered(folder: Path, names: list[str], stem: str, suffix: str) -> Located | None:
    pattern = re.compile(rf"{re.escape(stem)}-(\d{{5}})-of-(\d{{5}}){re.escape(suffix)}")
    shards = {name: match for name in names if (match := pattern.fullmatch(name))}
    if not shards:
        return None
    totals = sorted({match[2] for match in shards.values()})
    if len(totals) > 1:
        raise StorageError(
            f"{folder}: shards of more than one save ({', '.join('of-' + t for t in totals)})",
            fix=f"remove those out of date, or fetch {stem}{suffix}.index.json",
        )
    for number in range(1, int(totals[0]) + 1):
        name = f"{stem}-{number:05d}-of-{totals[0]}{suffix}"
        if name not in shards:
            raise StorageError(f"{folder}: {name} is missing", fix="fetch the missing file")
    return Located(tuple(folder / name for name in shards))


def _only_pth(folder: Path, names: list[str]) -> Located | None:
    found = [name for name in names if name.endswith((".pth", ".pt"))]
    return Located((folder / found[0],)) if len(found) == 1 else None


def _nothing(folder: Path, names: list[str]) -> PairError | StorageError:
    adapters = [name for name in names if name.startswith("adapter_model.")]
    if "adapter_config.json" in names or adapters:
        size = sum((folder / name).stat().st_size for name in adapters)
        return PairError(
            f"{folder}: an adapter ({decimal_size(size)}), not a fine-tuned checkpoint",
            code="BDH102",
            fix="share it as it is: it is small already; or merge it into its base and save that",
        )
    if any(name.endswith(".gguf") for name in names):
        return PairError(
            f"{folder}: quantised for llama.cpp (GGUF files only)",
            code="BDH103",
            fix="give the 16-bit checkpoint that it was made from",
        )
    without = "no weights" if "config.json" in names else "neither weights nor config.json"
    return StorageError(f"{folder}: {without} (looked for {LOOKED_FOR})")


def hub_origin(folder: Path | None) -> tuple[str | None, str | None]:
    """(repo id, commit) of a snapshot in a Hub cache, by its path; (None, None) for other folders.

    `models--org--name/snapshots/<commit>` is where the Hub's client keeps org/name.
    """
    if folder is None:
        return None, None
    commit, snapshots = folder.absolute().name, folder.absolute().parent
    found = re.fullmatch(r"models--([^-].*)", snapshots.parent.name)
    if snapshots.name == "snapshots" and found and re.fullmatch(r"[0-9a-f]{40}", commit):
        return found[1].replace("--", "/"), commit
    return None, None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises StorageError for anything else."""
    with storage_errors(path):
        if path.stat().st_size > JSON_LIMIT:
            raise StorageError(f"{path}: too large (expected at most {JSON_LIMIT} bytes)")
        text = path.read_bytes()
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise StorageError(f"{path}: not valid JSON ({error.msg} at {place})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise StorageError(f"{path}: not valid JSON") from error
    if not isinstance(content, dict):
        raise StorageError(f"{path}: not a JSON object (found {type(content).__name__})")
    return content
