"""The frontier against trying everything."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.errors import ConfigError
from onnxpq.targeting.knapsack import Frontier

Item = tuple[list[int], list[float]]


def item(options: list[tuple[int, float]]) -> Item:
    return [size for size, _ in options], [cost for _, cost in options]


# Costs that binary fractions hold exactly, so that sums in any order are equal.
ITEMS = st.lists(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 400).map(lambda n: n / 16)), min_size=1, max_size=5).map(
        item
    ),
    min_size=1,
    max_size=5,
)


def brute_force(items: list[Item], budget: int) -> float | None:
    """The least cost within a budget, by trying all choices."""
    costs = []
    for choice in itertools.product(*(range(len(sizes)) for sizes, _ in items)):
        if sum(sizes[i] for (sizes, _), i in zip(items, choice, strict=True)) <= budget:
            costs.append(sum(cost[i] for (_, cost), i in zip(items, choice, strict=True)))
    return min(costs, default=None)


@given(items=ITEMS, budget=st.integers(-1, 210))
def test_equal_to_trying_everything(items: list[Item], budget: int) -> None:
    frontier = Frontier(items)
    state, best = frontier.within(budget), brute_force(items, budget)
    if state is None:
        assert best is None
        return
    assert frontier.costs[state] == best
    choice = frontier.choice(state)
    assert frontier.bytes[state] == sum(sizes[i] for (sizes, _), i in zip(items, choice, strict=True)) <= budget
    assert frontier.costs[state] == sum(costs[i] for (_, costs), i in zip(items, choice, strict=True))


@given(ITEMS)
def test_nothing_on_the_frontier_is_beaten(items: list[Item]) -> None:
    frontier = Frontier(items)
    assert (np.diff(frontier.bytes) > 0).all()
    assert (np.diff(frontier.costs) < 0).all()
    assert frontier.bytes[0] == sum(min(sizes) for sizes, _ in items)
    assert frontier.costs[-1] == sum(min(costs) for _, costs in items)


def test_by_hand() -> None:
    # 3 bytes more gain 5 in the first item and 4 in the second
    frontier = Frontier([([1, 4], [9.0, 4.0]), ([2, 5], [6.0, 2.0])])
    assert frontier.bytes.tolist() == [3, 6, 9]
    assert frontier.costs.tolist() == [15.0, 10.0, 6.0]
    assert [frontier.choice(state) for state in range(3)] == [[0, 0], [1, 0], [1, 1]]
    assert [frontier.within(budget) for budget in (2, 3, 5.9, 6, 100)] == [None, 0, 0, 1, 2]


def test_a_thinned_frontier_is_nearly_as_good_and_never_over_the_budget() -> None:
    random = np.random.default_rng(0)
    items = []
    for _ in range(20):
        sizes = np.sort(random.integers(1_000, 100_000, 12))
        items.append((sizes.tolist(), np.sort(random.random(12) * 1e5 / sizes)[::-1].tolist()))
    exact, thin = Frontier(items, states=2**17), Frontier(items, states=2**11)
    assert len(thin.bytes) <= 2**11
    assert thin.bytes[0] == exact.bytes[0]
    for budget in np.geomspace(exact.bytes[0], exact.bytes[-1], 50):
        state = thin.within(budget)
        assert state is not None
        assert thin.bytes[state] <= budget
        # As good as what the whole frontier has for 1 % fewer bytes.
        closest = exact.within(0.99 * budget)
        assert closest is None or thin.costs[state] <= exact.costs[closest]


def test_every_item_has_options() -> None:
    with pytest.raises(ConfigError, match=r"^An item has 0 sizes and 0 costs"):
        Frontier([([], [])])
    with pytest.raises(ConfigError, match=r"^An item has 2 sizes and 1 costs"):
        Frontier([([1, 2], [1.0])])
