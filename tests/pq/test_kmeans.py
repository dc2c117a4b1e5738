import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from onnxpq.pq import kmeans

pytestmark = pytest.mark.rounding

INERTIA_BUDGET = 0.02
"""Largest excess of our inertia over scikit-learn's, both from several starts, as a share."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within_budget(ours: float, theirs: float) -> bool:
    return ours <= theirs * (1 + INERTIA_BUDGET)


def squared_distances(points: torch.Tensor, centroids: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Of each point to its centroid, [G, N]."""
    own = centroids.gather(1, index.long().unsqueeze(2).expand_as(points))
    return (points - own).square().sum(2)


def inertia(points: torch.Tensor, centroids: torch.Tensor) -> float:
    return float(squared_distances(points, centroids, kmeans.nearest(points, centroids)).double().sum())


def test_by_hand() -> None:
    points = torch.tensor([[[0.0], [1.0], [10.0], [11.0]], [[5.0], [5.0], [7.0], [9.0]]])
    centroids, index = kmeans.kmeans(points, 2, generator=generator())
    assert sorted(centroids[0].flatten().tolist()) == [0.5, 10.5]
    assert sorted(centroids[1].flatten().tolist()) in ([5.0, 8.0], [17 / 3, 9.0])
    assert index[0, 0] == index[0, 1] != index[0, 2] == index[0, 3]


def test_weights_by_hand() -> None:
    points = torch.tensor([[[0.0], [1.0], [10.0]]])
    weights = torch.tensor([[3.0, 1.0, 5.0]])
    centroids, _ = kmeans.kmeans(points, 2, weights=weights, generator=generator())
    assert sorted(centroids.flatten().tolist()) == [0.25, 10.0]


def test_nearest_is_brute_force() -> None:
    points, centroids = torch.randn(3, 50, 4, generator=generator()), torch.randn(3, 7, 4, generator=generator(1))
    index = kmeans.nearest(points, centroids)
    distances = (points.unsqueeze(2) - centroids.unsqueeze(1)).square().sum(-1)
    squared = squared_distances(points, centroids, index)
    torch.testing.assert_close(squared, distances.min(-1).values, rtol=1e-4, atol=1e-4)
    assert torch.equal(index.long(), distances.argmin(-1))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centroids = torch.randn(3, 50, 4, generator=generator()), torch.randn(3, 7, 4, generator=generator(1))
    whole = kmeans.nearest(points, centroids)
    monkeypatch.setattr(kmeans, "_CHUNK_ELEMENTS", {"cpu": 100})
    assert torch.equal(kmeans.nearest(points, centroids), whole)


@pytest.mark.parametrize("codewords", [7, 300])
def test_points_laid_out_for_each_step_cluster_like_those_laid_out_once(
    codewords: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, weights = torch.randn(2, 4000, 3, generator=generator()), torch.rand(2, 4000, generator=generator(1))
    monkeypatch.setattr(kmeans, "_CHUNK_ELEMENTS", {"cpu": 2 * codewords * 1000})
    once = kmeans.kmeans(points, codewords, weights=weights, generator=generator(2))
    monkeypatch.setattr(kmeans, "_HELD_ELEMENTS", 0)
    anew = kmeans.kmeans(points, codewords, weights=weights, generator=generator(2))
    assert all(torch.equal(a, b) for a, b in zip(once, anew, strict=True))
    assert torch.equal(once[1], kmeans.nearest(points, once[0]))


@pytest.mark.parametrize(("count", "d", "codewords"), [(1000, 4, 16), (600, 8, 16), (2000, 2, 32)])
def test_as_good_as_scikit_learn(count: int, d: int, codewords: int) -> None:
    """Mean over eight sets of points, as single runs from one start differ by several per cent in either program."""
    points = torch.randn(8, count, d, generator=generator(3))
    centroids, _ = kmeans.kmeans(points, codewords, generator=generator())
    ours = inertia(points, centroids)
    theirs = sum(KMeans(codewords, n_init=1, random_state=0).fit(group.numpy()).inertia_ for group in points)
    assert within_budget(ours, theirs)


def test_a_two_percent_worse_clustering_fails_the_budget() -> None:
    assert within_budget(1.019, 1.0)
    assert not within_budget(1.0201, 1.0)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 3),
    count=st.integers(1, 40),
    d=st.integers(1, 5),
    codewords=st.integers(2, 20),
    seed=st.integers(0, 99),
)
@example(groups=1, count=1, d=5, codewords=2, seed=87)
def test_properties(groups: int, count: int, d: int, codewords: int, seed: int) -> None:
    points = torch.randn(groups, count, d, generator=generator(seed))
    centroids, index = kmeans.kmeans(points, codewords, generator=generator(seed))
    again, _ = kmeans.kmeans(points, codewords, generator=generator(seed))
    assert torch.equal(centroids, again), "the same seed gives the same result"
    assert torch.isfinite(centroids).all()
    assert torch.equal(index, kmeans.nearest(points, centroids))
    variance = (points - points.mean(1, keepdim=True)).square().sum()
    error = float(squared_distances(points, centroids, index).sum())
    assert error <= float(variance) * 1.001 + 1e-6
    if codewords >= count:
        assert error <= 1e-4 * count * d, "every point can have a centroid of its own"


def test_identical_points() -> None:
    points = torch.ones(1, 30, 3)
    centroids, _ = kmeans.kmeans(points, 16, generator=generator())
    assert torch.equal(centroids, torch.ones(1, 16, 3))
