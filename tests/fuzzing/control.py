"""Blocks that are subgraphs: branches of If, bodies of Loop and Scan, with layers inside."""

from collections.abc import Callable, Sequence
from typing import Any

import onnx
from fuzzing.graphs import Builder, Dim, Value, reduce, type_number
from fuzzing.layers import dense
from onnx import helper

DEEPEST = 2


def info(
    name: str, dtype: str, shape: Sequence[Dim] | None, sizes: dict[str, int] | None = None
) -> onnx.ValueInfoProto:
    """What a graph says of a value; what is left over by other sizes has no name."""
    known = sizes or {}
    dims = None if shape is None else [_dim(known.get(d, d) if isinstance(d, str) else d) for d in shape]
    if dtype == "sequence":
        return helper.make_tensor_sequence_value_info(name, type_number("float32"), dims)
    return helper.make_tensor_value_info(name, type_number(dtype), dims)


def _dim(dim: Dim) -> Dim | None:
    return None if isinstance(dim, str) and (dim.startswith("?") or "*" in dim) else dim


def branch(b: Builder, v: Value, width: int | None = None) -> Value | None:
    """An If by the data or by a constant, with a layer in each branch."""
    if not _suits(b, v):
        return None
    width = width or b.pick([8, 16, 32])
    graphs = []
    for _ in range(2):
        with b.inside():
            found = dense(b, v, width)
            if found is None:
                return None
            if b.depth < DEEPEST and b.chance(0.1):
                found = branch(b, found, width) or found
            result = b.node("Tanh", [found], found.shape)
            graphs.append(b.subgraph([], [info(result.name, v.dtype, None)]))
    if b.chance(0.2):
        condition = b.constant(b.chance(0.5), "bool")
    else:
        total = reduce(b, "ReduceSum", v, range(v.rank))
        condition = b.node("Greater", [total, b.constant(0.0, v.dtype)], [], dtype="bool").name
    return b.node(
        "If", [condition], (*v.shape[:-1], width), dtype=v.dtype, then_branch=graphs[0], else_branch=graphs[1]
    )


def loop(b: Builder, v: Value) -> Value | None:
    """A Loop of a few turns; now and then all turns are what it gives, one after the other."""
    if not _suits(b, v):
        return None
    turns = int(b.rng.integers(1, 4))
    step, goes, state = Value(b.fresh("i"), (), "int64"), Value(b.fresh("q"), (), "bool"), _like(b, v)
    with b.inside():
        found = _step(b, state)
        if found is None:
            return None
        again = b.node("Identity", [goes], ())
        along = b.node("Identity", [found], found.shape)
        inputs = [info(step.name, "int64", []), info(goes.name, "bool", []), info(state.name, v.dtype, None)]
        outputs = [info(again.name, "bool", []), info(found.name, v.dtype, None), info(along.name, v.dtype, None)]
        body = b.subgraph(inputs, outputs)
    given = [b.constant(turns, "int64"), b.constant(True, "bool"), v]
    last, every = b.node("Loop", given, v.shape, (turns, *v.shape), dtype=v.dtype, body=body)
    return every if v.rank < 4 and b.chance(0.25) else last


def scan(b: Builder, v: Value) -> Value | None:
    """A Scan over the steps of a sequence, a recurrent network that somebody wrote down."""
    if v.rank != 3 or not _suits(b, v) or v.shape[1] == 0 or v.shape[0] == 0:
        return None
    start = reduce(b, "ReduceMean", v, [1])
    state, entry = _like(b, start), _like(b, start)
    with b.inside():
        moved = dense(b, state, int(v.last))
        if moved is None:
            return None
        found = b.node("Tanh", [b.node("Add", [moved, entry], start.shape)], start.shape)
        along = b.node("Identity", [found], found.shape)
        shown = None if b.chance(0.5) else start.shape
        inputs = [info(x.name, v.dtype, shown) for x in (state, entry)]
        outputs = [info(x.name, v.dtype, shown) for x in (found, along)]
        body = b.subgraph(inputs, outputs)
    attributes: dict[str, Any] = {"body": body, "num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1]}
    last, every = b.node("Scan", [start, v], start.shape, v.shape, dtype=v.dtype, **attributes)
    return every if b.chance(0.5) else last


def _suits(b: Builder, v: Value) -> bool:
    return v.dtype == "float32" and v.rank > 1 and isinstance(v.last, int) and v.last > 0 and b.depth < DEEPEST


def _like(b: Builder, v: Value) -> Value:
    return Value(b.fresh("s"), v.shape, v.dtype)


def _step(b: Builder, state: Value) -> Value | None:
    """A layer that keeps the shape."""
    found = dense(b, state, int(state.last))
    return None if found is None else b.node("Tanh", [found], found.shape)


BLOCKS: tuple[Callable[[Builder, Value], Value | None], ...] = (branch, loop, scan)
