"""A lazy, slice-wise view of a checkpoint: headers first, data when a slice is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from bitdelta_hub.codecs.base import Array
from bitdelta_hub.errors import PairError, StorageError
from bitdelta_hub.locate import PICKLES, Located, locate, read_json
from bitdelta_hub.weightfile import TORCH, PickleFile, SafetensorsFile, TensorInfo, WeightFile


class FileInfo(NamedTuple):
    """Bare name and bytes of one file of weights."""

    name: str
    size: int


class Checkpoint:
    """The tensors of one checkpoint, in the order in which they lie in its files.

    `place` is what messages call it; `folder` holds its other files, None if they are remote.
    """

    def __init__(
        self,
        place: str,
        files: Sequence[WeightFile],
        config: Mapping[str, Any],
        folder: Path | None = None,
    ) -> None:
        self.place = place
        self.folder = folder
        self.config = dict(config)
        self.files = tuple(FileInfo(file.name, file.size) for file in files)
        self.metadata = {file.name: file.metadata for file in files}
        self.tensors: dict[str, TensorInfo] = {}
        self._files = {file.name: file for file in files}
        for file in files:
            for name, info in file.tensors.items():
                if name in self.tensors:
                    twice = f"{self.tensors[name].file} and in {file.name}"
                    raise StorageError(f"{place}: {name} is in {twice}")
                self.tensors[name] = info

    @property
    def nbytes(self) -> int:
        """Bytes of all files of weights, headers included."""
        return sum(file.size for file in self.files)

    def read_bits(self, name: str, start: int, stop: int) -> Array:
        """Elements start..stop of tensor `name`, flattened, as unsigned bit patterns; read-only.

        Shares memory with the file unless the file keeps them unaligned.
        """
        bits = self._bits(name, start, stop)
        bits.flags.writeable = False
        return bits

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements start..stop of tensor `name`, flattened, in its own dtype; not to be written to.

        Shares memory like `read_bits`.
        """
        dtype: torch.dtype = getattr(torch, TORCH[self.tensors[name].dtype])
        return torch.from_numpy(self._bits(name, start, stop)).view(dtype)

    def _bits(self, name: str, start: int, stop: int) -> Array:
        info = self.tensors[name]
        assert 0 <= start <= stop <= info.numel, f"{name}: {start}..{stop} of {info.numel}"
        size = info.itemsize
        raw = self._files[info.file].read(name, start * size, stop * size)
        bits = raw.view(np.dtype(f"u{size}"))
        return bits if bits.flags.aligned else bits.copy()

    def prefetch(self, name: str) -> None:
        """Asks for the tensor's bytes ahead of time; returns at once."""
        self._files[self.tensors[name].file].prefetch(name)

    def close(self) -> None:
        """Lets go of the files; arrays handed out stay valid."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(source: str | Path, *, allow_pickle: bool = False) -> Checkpoint:
    """The checkpoint in `source`: a folder as `save_pretrained` writes it, or one file of weights.

    Raises what `locate` raises; PairError BDH107 for pickles without `allow_pickle`; StorageError
    where files and index disagree; ContainerError for a safetensors file that breaks a rule.
    """
    source = Path(source)
    located = locate(source)
    if not allow_pickle and any(path.suffix in PICKLES for path in located.files):
        raise PairError(
            f"{source}: weights in {located.files[0].name} only, which is a pickle",
            code="BDH107",
            fix="pass --allow-pickle to read it as plain tensors (no code is run), or save it as "
            "safetensors; on the Hub the safetensors-convert space opens a pull request with one",
        )
    folder = source if source.is_dir() else source.parent
    config = folder / "config.json"
    with ExitStack() as undo:
        files = []
        for path in located.files:
            files.append(file := _open(path))
            undo.callback(file.close)
        opened = Checkpoint(
            str(source), files, read_json(config) if config.is_file() else {}, folder
        )
        _check_index(opened, located)
        undo.pop_all()
    return opened


def _open(path: Path) -> WeightFile:
    return PickleFile(path) if path.suffix in PICKLES else SafetensorsFile(path)


def _check_index(checkpoint: Checkpoint, located: Located) -> None:
    for name, file in (located.weight_map or {}).items():
        info = checkpoint.tensors.get(name)
        if info is None or info.file != file:
            where = f"found in {info.file}" if info else "in no file"
            raise StorageError(
                f"{checkpoint.place}: {name} is missing from {file} ({where})",
                fix="fetch the file and its index again",
            )
