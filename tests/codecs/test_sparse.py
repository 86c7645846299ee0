import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitdelta_hub.codecs import codec_from
from bitdelta_hub.codecs.base import View
from bitdelta_hub.codecs.positions import Positions
from bitdelta_hub.codecs.sparse import (
    METHODS,
    WIDTHS,
    Sparse,
    SparseEncoder,
    fitted_scale,
    position_hash,
)
from bitdelta_hub.errors import CodecError
from tests.codecs.contract import (
    AT,
    CPU,
    check_additive,
    decode,
    encode,
    relative_error,
    same_bits,
    source_of,
)


def coded(encoder, diff, block_rows=0):
    source = source_of(diff, block_rows)
    codec, parts = encode(encoder, source)
    return codec, parts, decode(codec, parts, source.view)


@pytest.mark.parametrize(
    "shape", [(24, 16), (1, 9), (9, 1), (3, 12, 10), (7,), (), (0, 4), (4, 0), (2, 0, 3)]
)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("method", METHODS)
def test_contract(method, bits, shape):
    torch.manual_seed(0)
    tuned = (torch.randn(shape) * 0.02).to(torch.bfloat16)
    check_additive(SparseEncoder(method, 0.3, bits), torch.zeros_like(tuned), tuned)


@given(
    diff=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.sampled_from([0, -0.0, 1e-45, -1e-45, 1, -1, 1.0000001, 3e38, -3e38, 0.25]),
    ),
    density=st.floats(0.01, 1),
    block_rows=st.integers(0, 5),
)
def test_topk_takes_the_largest_then_the_first(diff, density, block_rows):
    source = source_of(torch.from_numpy(diff), block_rows)
    codec, parts = encode(SparseEncoder("topk", density, 16), source)
    flat = np.abs(diff.reshape(-1))
    order = np.argsort(-flat, kind="stable")[: round(density * diff.size)]
    expected = np.sort(order[flat[order] > 0])
    found = codec.positions.unpack(parts, diff.size, AT)
    assert found.tolist() == expected.tolist()


def test_half_values_are_those_of_the_diff():
    diff = torch.randn(20, 30).half().float() * 2**-20
    _, _, values = coded(SparseEncoder("topk", 1.0, 16), diff)
    assert torch.equal(values, diff)


@pytest.mark.parametrize(("bits", "limit"), [(16, 3e-4), (8, 0.02), (4, 0.2)])
def test_error_of_the_values(bits, limit):
    torch.manual_seed(0)
    assert relative_error(SparseEncoder("topk", 1.0, bits), torch.randn(50, 60)) < limit


def test_dare_keeps_a_share_and_divides_by_it():
    torch.manual_seed(0)
    diff = torch.randn(300, 400)
    _, _, values = coded(SparseEncoder("dare", 0.25, 16), diff)
    kept = values != 0
    assert abs(float(kept.double().mean()) - 0.25) < 0.005
    assert torch.allclose(values[kept], 4 * diff[kept], rtol=1e-3)


def test_dare_depends_on_seed_and_position_alone():
    ones = torch.ones(60, 50)
    _, _, first = coded(SparseEncoder("dare", 0.5, 16, seed=3), ones)
    _, _, again = coded(SparseEncoder("dare", 0.5, 16, seed=3), torch.full((50, 60), -2.0))
    _, _, other = coded(SparseEncoder("dare", 0.5, 16, seed=4), ones)
    assert torch.equal(first.flatten() != 0, again.flatten() != 0)
    agree = float(((first != 0) == (other != 0)).double().mean())
    assert abs(agree - 0.5) < 0.05


def test_dare_of_density_one_keeps_everything():
    diff = torch.randn(20, 30).half().float()
    _, _, values = coded(SparseEncoder("dare", 1.0, 16), diff)
    assert torch.equal(values, diff)


def test_position_hash_is_fixed():
    """Deltas made by different releases with one seed agree."""
    assert position_hash(0, 0, 4, CPU).tolist() == [0, 1753845952, -787275391, 1408362973]
    far = position_hash(7, 2**32 - 2, 4, CPU)
    assert far[2:].tolist() == position_hash(7, 2**32, 2, CPU).tolist()
    assert far[2:].tolist() != position_hash(7, 0, 2, CPU).tolist()


def test_position_hash_spreads_evenly():
    counts = torch.histc(position_hash(1, 5, 1 << 16, CPU).double(), 64, -(2.0**31), 2.0**31)
    # 1024 expected in each; five standard deviations.
    assert (counts - 1024).abs().max() < 160


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_zeros_are_never_stored(method, bits):
    diff = torch.zeros(2, 12, 20)
    codec, _, values = coded(SparseEncoder(method, 1.0, bits), diff)
    assert codec.positions.count == 0
    assert (values == 0).all()
    diff[1, 3, 4] = -2
    codec, _, values = coded(SparseEncoder(method, 1.0, bits), diff)
    assert codec.positions.count == 1
    assert torch.allclose(values, diff)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("scale", [1e-45, 1e-30, 1e30, 3e38])
def test_any_magnitude_stays_finite(scale, bits):
    diff = torch.tensor([[1.0, -1.0, 0.5, 0.0]]) * scale
    for method in METHODS:
        _, _, values = coded(SparseEncoder(method, 0.9, bits), diff)
        assert torch.isfinite(values).all()
    if scale > 1e-40:
        assert relative_error(SparseEncoder("topk", 1.0, bits), diff) < 0.1


def test_nothing_is_added_elsewhere():
    """A base of -0.0 keeps its sign."""
    diff = torch.zeros(4, 5)
    diff[2, 2] = 1
    _, _, values = coded(SparseEncoder("topk", 0.1, 16), diff)
    base = torch.full((4, 5), -0.0)
    expected = base.clone()
    expected[2, 2] = 1
    assert same_bits(base + values, expected)


def test_the_smaller_form_of_positions_is_taken():
    torch.manual_seed(0)
    diff = torch.randn(50, 60)
    assert coded(SparseEncoder("topk", 0.01, 8), diff)[0].positions.kind == "elias-fano"
    assert coded(SparseEncoder("topk", 0.9, 8), diff)[0].positions.kind == "bitmap"


def test_fitted_scale_clips_outliers():
    values = np.r_[np.linspace(-1, 1, 100000), 8].astype(np.float32)
    assert fitted_scale(values, 4) < 0.1
    assert fitted_scale(values[-1:], 4) == np.float32(8 / 15)
    assert fitted_scale(np.empty(0, np.float32), 4) == 0


def test_value_is_scale_times_odd_number():
    codec = Sparse(Positions("bitmap", 3), 4)
    parts = {
        "bitmap": np.array([0b00100110, 0], np.uint8),
        "code": np.array([0x0F, 0x07], np.uint8),
        "scale": np.array([0.1], np.float32),
    }
    tenth = torch.tensor(0.1)
    expected = torch.full((3, 3), -0.0)
    expected[0, 1], expected[0, 2], expected[1, 2] = 15 * tenth, -15 * tenth, -1 * tenth
    assert same_bits(decode(codec, parts, View((3, 3), "BF16")), expected)


def test_description():
    assert SparseEncoder("dare", 0.1, 8).describe() == "sparse dare 0.1, 8 bits"


GOOD = {"count": 3, "positions": "bitmap", "low_bits": 0, "bits": 8}
KEYS = '["count", "positions", "low_bits", "bits"'
WRONG_PARAMS = {
    "no bits": (
        {"count": 3, "positions": "bitmap", "low_bits": 0},
        f': wrong params (expected {KEYS}], found ["count", "low_bits", "positions"]) [R24]',
    ),
    "exponent at 8 bits": (
        GOOD | {"exponent": 0},
        f': wrong params (expected {KEYS}], found ["bits", "count", "exponent", "low_bits", '
        '"positions"]) [R24]',
    ),
    "no exponent at 16 bits": (
        GOOD | {"bits": 16},
        f': wrong params (expected {KEYS}, "exponent"], found ["bits", "count", "low_bits", '
        '"positions"]) [R24]',
    ),
    "2 bits": (
        GOOD | {"bits": 2},
        ".bits: wrong value (expected one of 4, 8, 16, found 2) [R24]",
    ),
    "16.0 bits": (
        GOOD | {"bits": 16.0, "exponent": 0},
        ".bits: wrong value (expected one of 4, 8, 16, found 16.0) [R24]",
    ),
    "exponent": (
        GOOD | {"bits": 16, "exponent": 113},
        ".exponent: wrong value (expected an integer from -126 to 112, found 113) [R24]",
    ),
    "count": (
        GOOD | {"count": 13},
        ".count: wrong value (expected an integer from 0 to 12, found 13) [R24]",
    ),
    "positions": (
        GOOD | {"positions": "list"},
        '.positions: wrong value (expected one of "bitmap", "elias-fano", found "list") [R24]',
    ),
    "low bits of a bitmap": (
        GOOD | {"low_bits": 1},
        ".low_bits: wrong value (expected an integer from 0 to 0, found 1) [R24]",
    ),
}


@pytest.mark.parametrize("case", WRONG_PARAMS)
def test_wrong_params_are_refused(case):
    params, message = WRONG_PARAMS[case]
    with pytest.raises(CodecError) as caught:
        codec_from("sparse", params, View((3, 4), "BF16"), AT)
    assert caught.value.message == AT + message


@pytest.mark.parametrize(
    ("bits", "part", "index", "value", "message"),
    [
        (4, "code", -1, 0x10, ".code: padding bits are not zero in run 0 [R25]"),
        (4, "scale", 0, np.inf, ".scale: number 0 is not finite (found inf) [R26]"),
        (16, "value", 2, np.nan, ".value: number 2 is not finite (found nan) [R26]"),
        (8, "bitmap", 0, 0, ": wrong number of positions (expected 5, found 0) [R29]"),
    ],
)
def test_wrong_content_is_refused(bits, part, index, value, message):
    view = View((2, 4), "BF16")
    codec = Sparse(Positions("bitmap", 5), bits)
    parts = {
        "bitmap": np.array([0b11111], np.uint8),
        "code": np.zeros(3 if bits == 4 else 5, np.uint8),
        "scale": np.ones(1, np.float32),
        "value": np.ones(5, np.float16),
    }
    parts = {name: parts[name] for name in codec.parts(view)}
    codec.decoder(parts, view, CPU, AT)
    parts[part][index] = value
    with pytest.raises(CodecError) as caught:
        codec.decoder(parts, view, CPU, AT)
    assert caught.value.message.startswith(AT)
    assert caught.value.message.endswith(message)
