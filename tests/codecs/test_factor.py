import pytest
import torch

from bitdelta_hub.codecs.factor import factorise, fit, nearest_odd, singular_vectors


def falling(rows, cols, decay=0.7):
    generator = torch.Generator().manual_seed(0)
    least = min(rows, cols)
    left = torch.linalg.qr(torch.randn((rows, least), generator=generator).double()).Q
    right = torch.linalg.qr(torch.randn((cols, least), generator=generator).double()).Q
    return (left * decay ** torch.arange(least)) @ right.T


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (20, 20)])
@pytest.mark.parametrize("count", [2, 12])
def test_singular_vectors_are_those_of_lapack(shape, count):
    """Two of forty come from subspace iteration, twelve from the Gram matrix."""
    matrix = falling(*shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = singular_vectors(matrix, count)
    assert torch.allclose(found[1], values[:count], rtol=1e-6, atol=0)
    pairs = found[0].T * found[1] @ found[2]
    assert torch.allclose(pairs, left[:, :count] * values[:count] @ right[:count], atol=1e-5)


def test_the_largest_entry_of_a_right_vector_is_positive():
    _, _, right = singular_vectors(falling(30, 20), 8)
    assert (right.gather(1, right.abs().argmax(1, keepdim=True)) > 0).all()


def test_nearest_odd():
    rows = torch.tensor([[-9.0, -3.1, -2.1, -1.9, -0.1, 0.0, 0.1, 1.9, 2.1, 9.0]]).double()
    found = nearest_odd(rows, torch.ones(1).double(), 3)
    assert found.tolist() == [[-3, -3, -3, -1, -1, 1, 1, 1, 3, 3]]


def test_fit_clips_outliers():
    rows = torch.ones(1, 256).double()
    rows[0, ::2] = -1
    rows[0, 7] = 9
    codes, step = fit(rows, 3)
    assert step.item() < 1.5
    assert codes[0, 7] == 3


def test_fit_of_zeros_is_finite():
    codes, step = fit(torch.zeros(2, 5).double(), 7)
    assert step.tolist() == [0, 0]
    assert codes.abs().max() == 1


def test_factors_are_odd_and_gains_positive():
    factors = factorise(falling(24, 16), [(2, 255, 15), (3, 3, 7)], unbiased=True)
    for codes, tops in ((factors.u, (255, 3)), (factors.v, (15, 7))):
        assert (codes.remainder(2) == 1).all()
        assert codes[:2].abs().max() <= tops[0]
        assert codes[2:].abs().max() <= tops[1]
    assert (factors.gain > 0).all()
