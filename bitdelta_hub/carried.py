"""Files that travel beside the weights: configuration, tokenizer, processor, licences (SPEC R4)."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bitdelta_hub.errors import FormatError, StorageError
from bitdelta_hub.format.digest import sha256_file
from bitdelta_hub.format.manifest import BaseRef, FileRef
from bitdelta_hub.format.names import member

METHOD = "bitdelta-hub"
FORMAT = "bitdelta/1"
CONFIG = "config.json"
CARRIED = (
    "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "*.model",
    "*.tiktoken", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "normalizer.json", "configuration_*.py", "modeling_*.py", "tokenization_*.py",
    "processing_*.py", "image_processing_*.py", "feature_extraction_*.py",
    "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.index.json", "*.gguf")
# No configuration or tokenizer is near this; what is larger is weights under another name.
LARGEST = 256_000_000


def carried_files(folder: Path) -> list[Path]:
    """The files of checkpoint folder `folder` that a delta carries, in order of name.

    Raises StorageError for one that is a link to nothing, as in a cache that lost a file.
    """
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if _is_carried(path)]


def _is_carried(path: Path) -> bool:
    def fits(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(path.name, pattern) for pattern in patterns)

    if not fits(CARRIED) or fits(WEIGHTS):
        return False
    if path.is_symlink() and not path.exists():
        raise StorageError(f"{path}: a link that leads nowhere", fix="fetch the missing file")
    if not path.is_file():
        return False
    return path.stat().st_size <= LARGEST


def carry(folder: Path, out: Path, base: BaseRef) -> tuple[FileRef, ...]:
    """Copies the carried files of `folder` to `out`, marking `config.json`; their descriptors."""
    for source in carried_files(folder):
        target = out / source.name
        if source.name == CONFIG:
            target.write_bytes(_dump(mark(_read_config(source), base)))
        else:
            shutil.copyfile(source, target)
    return tuple(
        FileRef(file=path.name, size=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(out.iterdir())
        if _is_carried(path)
    )


def restore(delta: Path, files: tuple[FileRef, ...], out: Path) -> None:
    """Copies the carried files of a delta to `out`, with the tuned model's own configuration."""
    for file in files:
        source = member(delta, file.file)
        if file.file == CONFIG:
            (out / CONFIG).write_bytes(_dump(unmark(_read_config(source))))
        else:
            shutil.copyfile(source, out / file.file)


def mark(config: dict[str, Any], base: BaseRef) -> dict[str, Any]:
    """`config` with the entry that tells loaders what the folder is (SPEC R4)."""
    marked: dict[str, Any] = {
        "quant_method": METHOD,
        "format": FORMAT,
        "base_model": base.repo,
        "base_revision": base.revision,
    }
    if "quantization_config" in config:
        marked["tuned"] = config["quantization_config"]
    return {**config, "quantization_config": marked}


def unmark(config: dict[str, Any]) -> dict[str, Any]:
    """The tuned model's configuration that `mark` was given."""
    marked = config.get("quantization_config")
    if not isinstance(marked, dict) or marked.get("quant_method") != METHOD:
        return config
    if "tuned" in marked:
        return {**config, "quantization_config": marked["tuned"]}
    return {key: value for key, value in config.items() if key != "quantization_config"}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON ({error})", rule="R4", at=CONFIG) from error
    if not isinstance(config, dict):
        raise FormatError("not a JSON object", rule="R4", at=CONFIG)
    return config


def _dump(config: dict[str, Any]) -> bytes:
    # The layout in which transformers writes its own: an untouched file comes back as it was.
    try:
        return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can hold
        return (json.dumps(config, indent=2) + "\n").encode()
    except RecursionError as error:
        raise FormatError("nested too deep", rule="R4", at=CONFIG) from error
