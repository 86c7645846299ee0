import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitdelta_hub.codecs import codec_from
from bitdelta_hub.codecs.base import View
from bitdelta_hub.codecs.lowrank import (
    HEADER_BYTES,
    MAX_GAIN,
    WIDTHS,
    BudgetLowRankEncoder,
    LowRank,
    LowRankEncoder,
)
from bitdelta_hub.errors import CodecError
from bitdelta_hub.kernels import ops
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


def spectrum(shape, decay=0.8, seed=0, scale=0.01):
    """A matrix or a batch of them with falling singular values."""
    generator = torch.Generator().manual_seed(seed)
    *batch, rows, cols = shape
    least = min(rows, cols)
    left = torch.randn((*batch, rows, least), generator=generator)
    right = torch.randn((*batch, least, cols), generator=generator)
    return scale * (left * decay ** torch.arange(least)) @ right


def hostile(groups, view, seed=0, gain=None):
    """Random codes under gains that are random, or all `gain`."""
    generator = np.random.default_rng(seed)
    parts = {}
    for g, (rank, u_bits, v_bits) in enumerate(groups):
        for name, bits, n in (("u", u_bits, view.rows), ("v", v_bits, view.cols)):
            codes = generator.integers(0, 2**bits, (view.batch, rank, n))
            codes = torch.from_numpy(codes.astype(np.int32 if bits == 16 else np.uint8))
            parts[f"{name}{g}"] = ops.pack(codes, bits).numpy()
        gains = generator.integers(0, MAX_GAIN + 1, (view.batch, rank), dtype=np.uint16)
        parts[f"gain{g}"] = gains if gain is None else np.full_like(gains, gain)
    scale = generator.normal(size=(view.batch, len(groups))).astype(np.float32)
    return parts | {"scale": scale}


def by_python_integers(groups, parts, view):
    """The decoded term from integers of any size, as the spec writes it."""
    out = np.zeros((view.batch, view.rows, view.cols), np.float32)
    for matrix in range(view.batch):
        for g, (_, u_bits, v_bits) in enumerate(groups):
            u, v = (
                2 * codes.numpy().astype(object) - (2**bits - 1)
                for codes, bits in (
                    (
                        ops.unpack(torch.from_numpy(parts[f"u{g}"][matrix]), u_bits, 0, view.rows),
                        u_bits,
                    ),
                    (
                        ops.unpack(torch.from_numpy(parts[f"v{g}"][matrix]), v_bits, 0, view.cols),
                        v_bits,
                    ),
                )
            )
            gains = parts[f"gain{g}"][matrix].astype(object)
            total = (u * gains[:, None]).T @ v
            assert max(abs(total.min()), abs(total.max())) < 2**53
            values = total.astype(np.float64).astype(np.float32) * parts["scale"][matrix, g]
            out[matrix] = values if g == 0 else out[matrix] + values
    return torch.from_numpy(out)


@pytest.mark.parametrize(
    "shape", [(24, 16), (16, 40), (1, 9), (9, 1), (3, 12, 10), (2, 2, 8, 8), (7,), (), (5, 1, 6)]
)
@pytest.mark.parametrize(
    "encoder",
    [
        LowRankEncoder(((2, 8, 8), (3, 3, 3), (40, 2, 2))),
        LowRankEncoder(((2, 16, 4),), unbiased=False),
        BudgetLowRankEncoder(bits=40.0),
    ],
    ids=["groups", "16 bits", "budget"],
)
def test_contract(encoder, shape):
    torch.manual_seed(0)
    tuned = (torch.randn(shape) * 0.02).to(torch.bfloat16)
    check_additive(encoder, torch.zeros_like(tuned), tuned)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 4, 4), (2, 0, 4)])
def test_without_elements(shape):
    empty = torch.zeros(shape)
    check_additive(LowRankEncoder(((2, 8, 8), (3, 2, 2))), empty, empty)
    check_additive(BudgetLowRankEncoder(), empty, empty)


def test_zeros_stay_zeros():
    source = source_of(torch.zeros(2, 12, 20))
    codec, parts = encode(LowRankEncoder(((2, 8, 8), (3, 2, 2))), source)
    assert not parts["scale"].any()
    assert same_bits(decode(codec, parts, source.view), torch.zeros(2, 12, 20))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_any_magnitude(scale):
    encoder = LowRankEncoder(((8, 8, 8),), unbiased=False)
    assert relative_error(encoder, spectrum((32, 24), 0.5, scale=scale)) < 0.01


def test_smallest_magnitudes_are_finite():
    diff = torch.full((8, 8), 1e-45)
    source = source_of(diff)
    codec, parts = encode(LowRankEncoder(((2, 8, 8),)), source)
    assert (decode(codec, parts, source.view) - diff).abs().max() <= 1e-45


@pytest.mark.parametrize("unbiased", [True, False])
def test_vectors_beyond_the_rank_correct_those_before(unbiased):
    diff = torch.outer(torch.linspace(-1, 1, 20), torch.linspace(0.5, 2, 30))
    assert relative_error(LowRankEncoder(((1, 2, 2),), unbiased), diff) > 0.3
    assert relative_error(LowRankEncoder(((20, 2, 2),), unbiased), diff) < 0.05


def test_wide_codes_reach_the_best_low_rank_matrix():
    diff = spectrum((48, 64))
    values = torch.linalg.svdvals(diff.double())
    best = float(values[10:].norm() / values.norm())
    for unbiased in (True, False):
        encoder = LowRankEncoder(((10, 16, 16),), unbiased)
        assert relative_error(encoder, diff) == pytest.approx(best, rel=1e-3)


def test_refitted_codes_beat_rounded_singular_vectors():
    """Two bits a vector: coordinate descent lets vectors correct each other."""
    diff = spectrum((96, 128), 0.95)
    values = torch.linalg.svdvals(diff.double())
    # A uniform 2-bit quantiser of a Gaussian leaves 0.1188 of the energy, on each side.
    kept = (1 - 0.1188) ** 2 * values[:24].square().sum()
    rounded = float((1 - kept / values.square().sum()).sqrt())
    assert relative_error(LowRankEncoder(((24, 2, 2),), unbiased=False), diff) < 0.9 * rounded


def test_unbiased_gains_restore_the_singular_values():
    diff = spectrum((96, 128), 0.7)
    left, values, right = torch.linalg.svd(diff.double(), full_matrices=False)

    def along(unbiased):
        source = source_of(diff)
        codec, parts = encode(LowRankEncoder(((6, 2, 2),), unbiased), source)
        coded = decode(codec, parts, source.view).double()
        return torch.einsum("ik,ij,kj->k", left, coded, right)[:4] / values[:4]

    assert (along(False) < 0.93).all()
    assert (along(True) - 1).abs().max() < 0.1


@pytest.mark.parametrize("u_bits", WIDTHS)
@pytest.mark.parametrize("v_bits", WIDTHS)
def test_hostile_codes_decode_exactly(u_bits, v_bits):
    groups = ((5, u_bits, v_bits), (3, v_bits, u_bits))
    view = View((2, 11, 13), "F32")
    weight = (2**u_bits - 1) * (2**v_bits - 1)
    gain = min(MAX_GAIN, (2**53 - 1) // (5 * weight))
    parts = hostile(groups, view, gain=gain)
    expected = by_python_integers(groups, parts, view)
    assert same_bits(decode(LowRank(groups), parts, view), expected)


@pytest.mark.parametrize(("rank", "gain"), [(113, 16), (1000, 65535), (512, 4095)])
def test_sums_at_the_limits_of_exactness(rank, gain):
    """Aligned codes: sums just below 2^24, where fp32 serves, and just below 2^53."""
    bits = {113: 8, 1000: 8, 512: 16}[rank]
    if rank == 113:
        gain = (2**24 - 1) // (rank * 255 * 255)
    view = View((3, 4), "F32")
    groups = ((rank, bits, bits),)
    parts = hostile(groups, view, gain=gain)
    for name in ("u0", "v0"):
        parts[name][..., : parts[name].shape[-1] // 2] = 255
    expected = by_python_integers(groups, parts, view)
    codec = LowRank(groups)
    assert same_bits(decode(codec, parts, view), expected[0])
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        rows = codec.decoder(parts, view, CPU, AT)
        assert same_bits(torch.cat([rows(i, i + 1) for i in range(3)]), expected[0])
        torch.set_num_threads(before)


def test_flags_of_the_process_do_not_enter():
    groups = ((40, 8, 4),)
    view = View((16, 24), "F32")
    parts = hostile(groups, view, gain=100)
    expected = by_python_integers(groups, parts, view)[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert same_bits(decode(LowRank(groups), parts, view), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_sum_of_zero_has_no_sign():
    groups = ((2, 2, 2),)
    view = View((3, 5), "F32")
    parts = hostile(groups, view, gain=0)
    parts["scale"][:] = 1
    assert same_bits(decode(LowRank(groups), parts, view), torch.zeros(3, 5))


def test_fine_gains_stay_within_fp32():
    source = source_of(spectrum((64, 48)))
    _, parts = encode(LowRankEncoder(((4, 8, 8), (8, 3, 3))), source)
    assert parts["gain1"].max() >= 2**10
    assert int(parts["gain1"].sum()) * 7 * 7 < 2**24
    # At 8 bits that would leave gains of a few steps only.
    assert parts["gain0"].max() == MAX_GAIN


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5000), st.integers(1, 5000)),
    bits=st.floats(0.01, 16),
)
def test_budget_is_kept(shape, bits):
    view = View(shape, "BF16")
    encoder = BudgetLowRankEncoder(bits=bits)
    parts = encoder.predict(view)
    groups = encoder.fixed(view).groups
    assert sum(rank for rank, _, _ in groups) <= min(view.rows, view.cols)
    stored = sum(part.nbytes + HEADER_BYTES for part in parts.values())
    assert groups == ((1, 2, 2),) or 8 * stored <= bits * view.numel


def test_budget_is_spent():
    view = View((4096, 4096), "BF16")
    encoder = BudgetLowRankEncoder(bits=1.0)
    assert encoder.fixed(view).groups == ((7, 8, 8), (190, 4, 4), (614, 2, 2))
    stored = sum(part.nbytes for part in encoder.predict(view).values())
    assert 0.998 < 8 * stored / view.numel <= 1


def test_descriptions():
    assert LowRankEncoder(((2, 8, 8), (30, 3, 2))).describe() == "lowrank 2x8+30x3/2"
    assert BudgetLowRankEncoder(1.5).describe() == "lowrank 8+4+2 bits, 1.5 a weight"


WRONG_PARAMS = {
    "no groups": (
        {},
        'tensors.w.terms[0]: wrong params (expected ["groups"], found []) [R24]',
    ),
    "more keys": (
        {"groups": [[1, 2, 2]], "rank": 1},
        'tensors.w.terms[0]: wrong params (expected ["groups"], found ["groups", "rank"]) [R24]',
    ),
    "not a list": (
        {"groups": "abc"},
        'tensors.w.terms[0].groups: wrong value (expected 1 to 16 groups, found "abc") [R24]',
    ),
    "empty": (
        {"groups": []},
        "tensors.w.terms[0].groups: wrong value (expected 1 to 16 groups, found []) [R24]",
    ),
    "too many": (
        {"groups": [[1, 2, 2]] * 17},
        "tensors.w.terms[0].groups: wrong value (expected 1 to 16 groups, found "
        "[[1, 2, 2], [1, 2, 2], [1, 2, 2], [1, 2, 2], [1, 2, 2], [...) [R24]",
    ),
    "two integers": (
        {"groups": [[1, 2, 2], [1, 2]]},
        "tensors.w.terms[0].groups[1]: wrong value "
        "(expected [rank, bits of u, bits of v], found [1, 2]) [R24]",
    ),
    "boolean rank": (
        {"groups": [[True, 2, 2]]},
        "tensors.w.terms[0].groups[0].rank: wrong value "
        "(expected an integer from 1 to 65536, found true) [R24]",
    ),
    "rank 0": (
        {"groups": [[0, 2, 2]]},
        "tensors.w.terms[0].groups[0].rank: wrong value "
        "(expected an integer from 1 to 65536, found 0) [R24]",
    ),
    "rank 65537": (
        {"groups": [[65537, 2, 2]]},
        "tensors.w.terms[0].groups[0].rank: wrong value "
        "(expected an integer from 1 to 65536, found 65537) [R24]",
    ),
    "5 bits of u": (
        {"groups": [[1, 5, 2]]},
        "tensors.w.terms[0].groups[0].u_bits: wrong value "
        "(expected one of 2, 3, 4, 8, 16, found 5) [R24]",
    ),
    "2.0 bits of v": (
        {"groups": [[1, 2, 2.0]]},
        "tensors.w.terms[0].groups[0].v_bits: wrong value "
        "(expected one of 2, 3, 4, 8, 16, found 2.0) [R24]",
    ),
}


@pytest.mark.parametrize("case", WRONG_PARAMS)
def test_wrong_params_are_refused(case):
    params, message = WRONG_PARAMS[case]
    with pytest.raises(CodecError) as caught:
        codec_from("lowrank", params, View((4, 4), "BF16"), AT)
    assert caught.value.message == message


def refusal(groups, view, parts):
    with pytest.raises(CodecError) as caught:
        LowRank(groups).decoder(parts, view, CPU, AT)
    return caught.value.message


@pytest.mark.parametrize(("part", "run"), [("u0", 0), ("v1", 3)])
def test_padding_is_refused(part, run):
    groups = ((2, 3, 2), (2, 4, 3))
    view = View((2, 5, 7), "BF16")
    parts = hostile(groups, view)
    parts[part].reshape(4, -1)[run, -1] |= 0x80
    expected = f"tensors.w.terms[0].{part}: padding bits are not zero in run {run} [R25]"
    assert refusal(groups, view, parts) == expected


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_scales_that_are_not_finite_are_refused(value):
    groups = ((2, 3, 2), (2, 4, 3))
    view = View((2, 5, 7), "BF16")
    parts = hostile(groups, view)
    parts["scale"][1, 0] = float(value)
    expected = f"tensors.w.terms[0].scale: number 2 is not finite (found {value}) [R26]"
    assert refusal(groups, view, parts) == expected


def test_sums_beyond_exactness_are_refused():
    groups = ((33, 16, 16),)
    view = View((2, 2, 2), "BF16")
    parts = hostile(groups, view, gain=0)
    parts["gain0"][1, :] = MAX_GAIN
    bound = 33 * MAX_GAIN**3
    expected = (
        "tensors.w.terms[0].gain0: sum of products in matrix 1 may reach "
        f"{bound} (expected below 2^53) [R27]"
    )
    assert refusal(groups, view, parts) == expected
    parts["gain0"][1, 32:] = 0
    parts["gain0"][1, 0] -= 1
    assert 32 * MAX_GAIN**3 - MAX_GAIN**2 < 2**53
    LowRank(groups).decoder(parts, view, CPU, AT)
