"""What every codec owes the rest of the package, checked in one call."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import torch

from bitdelta_hub.codecs import codec_from
from bitdelta_hub.codecs.base import FLOATS, NUMPY, Array, Codec, Encoder, Parts, View

CPU = torch.device("cpu")
AT = "tensors.w.terms[0]"


class ArraySource:
    """A source over two tensors in memory, in blocks of `block_rows` rows (0: all at once)."""

    def __init__(self, base: torch.Tensor, tuned: torch.Tensor, block_rows: int = 0) -> None:
        dtype = next(name for name, known in FLOATS.items() if known == tuned.dtype)
        self.view = View(tuple(tuned.shape), dtype)
        self.device = tuned.device
        self._base = base.reshape(self.view.total_rows, self.view.cols)
        self._tuned = tuned.reshape(self.view.total_rows, self.view.cols)
        self._step = block_rows or max(1, self.view.total_rows)

    def _blocks(self) -> Iterator[tuple[int, slice]]:
        if self.view.numel:
            for start in range(0, self.view.total_rows, self._step):
                yield start, slice(start, start + self._step)

    def diff(self) -> Iterator[tuple[int, torch.Tensor]]:
        for start, rows in self._blocks():
            yield start, self._tuned[rows].float() - self._base[rows].float()

    def matrix(self, index: int) -> torch.Tensor:
        rows = slice(index * self.view.rows, (index + 1) * self.view.rows)
        return self._tuned[rows].float() - self._base[rows].float()

    def bits(self) -> Iterator[tuple[int, Array, Array]]:
        for start, rows in self._blocks():
            yield start, _bits(self._base[rows]), _bits(self._tuned[rows])


def _bits(x: torch.Tensor) -> Array:
    signed = {2: torch.int16, 4: torch.int32}[x.element_size()]
    return x.contiguous().view(signed).numpy().view(f"u{x.element_size()}")


def source_of(diff: torch.Tensor, block_rows: int = 0) -> ArraySource:
    """A source whose diff is fp32 `diff`."""
    return ArraySource(torch.zeros_like(diff), diff, block_rows)


def encode(encoder: Encoder, source: ArraySource) -> tuple[Codec, dict[str, Array]]:
    """(codec, parts) as compress would get them; `allocate` may be called once."""
    given: list[dict[str, Array]] = []

    def allocate(codec: Codec) -> dict[str, Array]:
        assert not given
        parts = codec.parts(source.view)
        given.append({k: np.zeros(p.shape, NUMPY[p.dtype]) for k, p in parts.items()})
        return given[0]

    codec = encoder.encode(source, allocate)
    return codec, given[0]


def decode(codec: Codec, parts: Parts, view: View) -> torch.Tensor:
    """The whole term, fp32 in the tensor's shape."""
    values = codec.decoder(parts, view, CPU, AT)(0, view.total_rows)  # type: ignore[attr-defined]
    return values.reshape(view.shape)


def relative_error(encoder: Encoder, diff: torch.Tensor) -> float:
    """‖decoded - diff‖ / ‖diff‖."""
    source = source_of(diff)
    codec, parts = encode(encoder, source)
    wrong = decode(codec, parts, source.view).double() - diff.double()
    return float(wrong.norm() / diff.double().norm())


def check_additive(encoder: Encoder, base: torch.Tensor, tuned: torch.Tensor) -> None:
    """The contract of additive codecs, on one pair of tensors."""
    source = ArraySource(base, tuned)
    view = source.view
    codec, parts = encode(encoder, source)
    _check_parts(encoder, codec, parts, view)
    _check_params(codec, view)
    _check_blocks(encoder, base, tuned, codec, parts)
    _check_slices(codec, parts, view)


def _check_parts(encoder: Encoder, codec: Codec, parts: Parts, view: View) -> None:
    assert encoder.codec == codec.name
    expected = codec.parts(view)
    predicted = encoder.predict(view)
    assert predicted is None or predicted == expected
    assert list(parts) == list(expected)
    for name, part in expected.items():
        assert parts[name].dtype == np.dtype(NUMPY[part.dtype])
        assert parts[name].shape == part.shape
        assert parts[name].nbytes == part.nbytes


def _check_params(codec: Codec, view: View) -> None:
    params = codec.to_params()
    read = json.loads(json.dumps(params))
    assert list(read) == list(params)
    assert codec_from(codec.name, read, view, AT) == codec


def _check_blocks(
    encoder: Encoder, base: torch.Tensor, tuned: torch.Tensor, codec: Codec, parts: Parts
) -> None:
    threads = torch.get_num_threads()
    try:
        for block_rows, count in ((1, 1), (7, 2)):
            torch.set_num_threads(count)
            again, others = encode(encoder, ArraySource(base, tuned, block_rows))
            assert again == codec
            for name, array in parts.items():
                assert array.tobytes() == others[name].tobytes(), (name, block_rows)
    finally:
        torch.set_num_threads(threads)


def _check_slices(codec: Codec, parts: Parts, view: View) -> None:
    whole = decode(codec, parts, view).reshape(view.total_rows, view.cols)
    assert whole.dtype == torch.float32
    for array in parts.values():
        array.flags.writeable = False
    decoder = codec.decoder(parts, view, CPU, AT)  # type: ignore[attr-defined]
    generator = np.random.default_rng(0)
    ends = np.sort(generator.integers(0, view.total_rows + 1, (12, 2)))
    for start, stop in ends.tolist():
        rows = decoder(start, stop)
        assert rows.shape == (stop - start, view.cols)
        assert same_bits(rows, whole[start:stop])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether fp32 `a` and `b` agree bit for bit, zeros' signs included."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


# Shapes with one column, odd columns, batches, nothing, a scalar.
SHAPES = [(24, 40), (5,), (3, 7, 13), (1, 1), (0, 4), (4, 0), (2, 3, 4, 9), (), (33, 1)]


def pair(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, ...]:
    """(base, tuned) of `shape`, a small step apart."""
    generator = torch.Generator().manual_seed(len(shape))
    base = torch.randn(shape, generator=generator).to(dtype)
    step = 0.01 * torch.randn(shape, generator=generator)
    return base, (base.float() + step).to(dtype)
