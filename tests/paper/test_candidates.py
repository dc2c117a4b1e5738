"""The settings that a method could have, their bytes, and the choice among them."""

import pytest
import torch

from benchmarks.paper import candidates
from benchmarks.paper.candidates import Clusterer

pytestmark = pytest.mark.rounding

ANY = range(2**62)


@pytest.fixture(scope="module")
def clusterer() -> Clusterer:
    return Clusterer(torch.randn(40, 24, generator=torch.Generator().manual_seed(0)), seed=0)


@pytest.mark.parametrize("kind", candidates.KINDS)
def test_bytes_are_those_of_the_form(clusterer, kind):
    found = list(candidates.KINDS[kind](clusterer, ANY))
    assert len(found) >= 3
    for candidate in found[:: max(1, len(found) // 8)]:
        assert candidate.nbytes == candidate.make().nbytes, candidate.settings
    some = range(300, 800)
    assert {c.settings for c in candidates.KINDS[kind](clusterer, some)} == {
        c.settings for c in found if c.nbytes in some
    }


@pytest.mark.parametrize(("d", "k", "factor"), [(2, 4, 25.5), (4, 16, 15.8), (8, 16, 21.0), (20, 16, 26.1)])
def test_formula_of_gong(d, k, factor):
    """32 m n / (32 k n + log2(k) m s) for a layer of 500 x 800, worked out by hand."""
    layer = Clusterer(torch.zeros(500, 800), seed=0)
    bits = {c.settings: c.formula_bits for c in layer.pq(ANY)}
    assert 32 * 500 * 800 / bits[f"d={d} K={k}"] == pytest.approx(factor, abs=0.05)


def test_formula_of_scalar_kmeans():
    layer = Clusterer(torch.zeros(500, 800), seed=0)
    bits = {c.settings: c.formula_bits for c in layer.kmeans(ANY)}
    assert bits["K=4"] == 2 * 500 * 800 + 32 * 4


def test_pq_finds_repeated_sub_vectors():
    generator = torch.Generator().manual_seed(1)
    words = torch.randn(3, 4, 5, generator=generator)
    codes = torch.randint(0, 4, (60, 3), generator=generator)
    matrix = torch.cat([words[m, codes[:, m]] for m in range(3)], dim=1)
    found = Clusterer(matrix, seed=0).block(5, 4).matrix().detach()
    torch.testing.assert_close(found, matrix, atol=1e-5, rtol=1e-5)


def test_scalar_kmeans_by_hand():
    matrix = torch.tensor([[1.0, 1.0, 5.0], [5.0, 1.0, 5.0]])
    torch.testing.assert_close(Clusterer(matrix, seed=0).scalar(2).matrix().detach(), matrix)


def test_each_residual_stage_lowers_the_error(clusterer):
    errors = [
        float((clusterer.matrix - clusterer.residual(4, 16, stages).matrix().detach()).square().sum())
        for stages in (1, 2, 3)
    ]
    assert errors[0] > 1.5 * errors[1]
    assert errors[1] > 1.5 * errors[2]


@pytest.mark.parametrize("kind", candidates.KINDS)
@pytest.mark.parametrize("factor", [8, 16])
def test_choice_fits_and_is_the_best_that_does(clusterer, kind, factor):
    small = Clusterer(torch.randn(10, 40, generator=torch.Generator().manual_seed(2)), seed=0)
    budget = 4 * (40 * 24 + 10 * 40) / factor
    chosen = candidates.choose([clusterer, small], kind, budget)
    if chosen is None:
        assert sum(min(c.nbytes for c in candidates.KINDS[kind](x, ANY)) for x in (clusterer, small)) > budget
        return
    assert sum(c.nbytes for c in chosen) <= candidates.TOLERANCE * budget
    looser = candidates.choose([clusterer, small], kind, 2 * budget)

    def error(some):
        pairs = zip((clusterer, small), some, strict=True)
        return sum(
            float((x.matrix - c.make().matrix().detach()).square().sum() / x.matrix.square().sum()) for x, c in pairs
        )

    assert error(looser) < error(chosen)


def test_what_cannot_be_so_small_is_none(clusterer):
    assert candidates.choose([clusterer], "kmeans", 4 * 40 * 24 / 64) is None


def test_svd_errors_are_those_of_the_matrices(clusterer):
    for candidate in list(clusterer.svd(ANY))[::5]:
        missed = clusterer.matrix - candidate.make().matrix().detach()
        exact = float(missed.square().sum() / clusterer.matrix.square().sum())
        assert candidates._error(clusterer, candidate, "svd") == pytest.approx(exact, abs=1e-5)
