"""Nodes in topological order: each after those that compute what it, or a graph in it, reads."""

import heapq
from collections.abc import Iterator, Sequence

import onnx

from onnxpq.errors import ModelError
from onnxpq.graph.protos import Scope, graphs_in, graphs_of


def sort(proto: onnx.ModelProto) -> list[str]:
    """Changes a model: sorts the nodes of each graph and function, and leaves alone what is in order.

    Args:
        proto: the model.

    Returns:
        The names of the graphs and functions that were not in order.

    Raises:
        ModelError: nodes form a cycle; the message names them.
    """
    # Inner graphs first: an outer one that is sorted afterwards is copied whole.
    scopes: list[Scope] = [*reversed(graphs_of(proto)), *proto.functions]
    return [scope.name for scope in scopes if _sort(scope)]


def _sort(scope: Scope) -> bool:
    nodes = list(scope.node)
    made = [(name, number) for number, node in enumerate(nodes) for name in node.output if name]
    makers = dict(made)
    if len(makers) < len(made):
        return False  # two nodes compute one value: the checker says which
    needs = [{makers[name] for name in _read(node) if name in makers} for node in nodes]
    if all(maker < number for number, found in enumerate(needs) for maker in found):
        return False
    order = _order(needs)
    if len(order) < len(nodes):
        cycle = " -> ".join(f"'{_label(nodes[number])}'" for number in _cycle(needs, set(order)))
        raise ModelError(
            f"The nodes of '{scope.name}' form a cycle: {cycle}. Each needs what comes after it, so that no runtime "
            "can run the model. Export it again."
        )
    del scope.node[:]
    scope.node.extend(nodes[number] for number in order)
    return True


def _order(needs: Sequence[set[int]]) -> list[int]:
    """Numbers of nodes, each after those that it needs, otherwise as they were; without those of a cycle."""
    users: dict[int, list[int]] = {}
    for number, found in enumerate(needs):
        for maker in found:
            users.setdefault(maker, []).append(number)
    left = [len(found) for found in needs]
    ready = [number for number, count in enumerate(left) if count == 0]
    order = []
    while ready:
        number = heapq.heappop(ready)
        order.append(number)
        for user in users.get(number, ()):
            left[user] -= 1
            if left[user] == 0:
                heapq.heappush(ready, user)
    return order


def _cycle(needs: Sequence[set[int]], sorted_ones: set[int]) -> list[int]:
    """Nodes that need one another in a circle, the first one again at the end."""
    number = next(number for number in range(len(needs)) if number not in sorted_ones)
    seen: list[int] = []
    while number not in seen:
        seen.append(number)
        number = min(needs[number] - sorted_ones)
    return [number, *reversed(seen[seen.index(number) :])]


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Names of what a node reads, and of what the graphs in it read of those around them."""
    yield from (name for name in node.input if name)
    for graph in graphs_in(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own |= {name for inner in graph.node for name in inner.output}
        used = [*(name for inner in graph.node for name in _read(inner)), *(value.name for value in graph.output)]
        yield from (name for name in used if name not in own)


def _label(node: onnx.NodeProto) -> str:
    return node.name or next((name for name in node.output if name), node.op_type)
