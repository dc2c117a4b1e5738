"""Control flow: the operators that hold graphs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register
from onnxpq.network.ops.tensors import ints

Subgraph = Callable[..., Sequence[Any]]


@register("If", 1, 11, 13, 16, 19, 21, 23, 24, 25)
def if_(cond: Tensor, *, then_branch: Subgraph, else_branch: Subgraph) -> tuple[Any, ...]:
    """The outputs of one of two graphs."""
    return tuple((then_branch if bool(cond) else else_branch)())


@register("Loop", 1, 11, 13, 16, 19, 21, 23, 24, 25)
def loop(
    m: Tensor | None = None, cond: Tensor | None = None, *carried: Any, body: Subgraph, n_outputs: int = 1
) -> tuple[Any, ...]:
    """Repeat a graph up to `m` times, as long as the condition holds.

    The body gets the iteration's number, the condition and the carried values; it gives the next condition, the next
    carried values, and scan outputs, which are stacked over the iterations.
    """
    limit = None if m is None else ints(m)[0]
    goes_on = cond is None or bool(cond)
    state = list(carried)
    scanned: list[list[Tensor]] = [[] for _ in range(n_outputs - len(state))]
    iteration = 0
    while goes_on and (limit is None or iteration < limit):
        results = body(torch.tensor(iteration), torch.tensor(True), *state)
        goes_on = bool(results[0])
        state = list(results[1 : 1 + len(state)])
        for collected, value in zip(scanned, results[1 + len(state) :], strict=False):
            collected.append(value)
        iteration += 1
    return (*state, *(_stacked(values, 0, "Loop") for values in scanned))


@register("Scan", 9, 11, 16, 19, 21, 23, 24, 25)
def scan(
    *inputs: Any,
    body: Subgraph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
    n_outputs: int = 1,
) -> tuple[Any, ...]:
    """Run a graph over the slices of the last `num_scan_inputs` inputs; the other inputs start the carried states.

    Outputs: the final states, and the body's further outputs stacked. A direction of 1 is backwards.
    """
    states, sequences = list(inputs[: len(inputs) - num_scan_inputs]), inputs[len(inputs) - num_scan_inputs :]
    axes = scan_input_axes or [0] * num_scan_inputs
    directions = scan_input_directions or [0] * num_scan_inputs
    slices = [
        x.unbind(axis)[:: -1 if backwards else 1]
        for x, axis, backwards in zip(sequences, axes, directions, strict=True)
    ]
    count = n_outputs - len(states)
    scanned: list[list[Tensor]] = [[] for _ in range(count)]
    for step in zip(*slices, strict=True):
        results = body(*states, *step)
        states = list(results[: len(states)])
        for collected, value in zip(scanned, results[len(states) :], strict=True):
            collected.append(value)
    out_axes, out_directions = scan_output_axes or [0] * count, scan_output_directions or [0] * count
    return (
        *states,
        *(
            _stacked(values[:: -1 if backwards else 1], axis, "Scan")
            for values, axis, backwards in zip(scanned, out_axes, out_directions, strict=True)
        ),
    )


@register("Scan", 8)
def scan_over_batch(
    sequence_lens: Tensor | None = None,
    *inputs: Any,
    body: Subgraph,
    directions: Sequence[int] | None = None,
    num_scan_inputs: int,
    n_outputs: int = 1,
) -> tuple[Any, ...]:
    """Scan-8: all inputs have a leading batch axis, over which the body runs one by one; axis 1 is scanned."""
    if sequence_lens is not None:
        raise UnsupportedOperatorError("Scan-8 with sequence lengths is not supported.")
    rows = [
        scan(
            *row,
            body=body,
            num_scan_inputs=num_scan_inputs,
            scan_input_directions=directions,
            n_outputs=n_outputs,
        )
        for row in zip(*(x.unbind(0) for x in inputs), strict=True)
    ]
    return tuple(_stacked(list(values), 0, "Scan") for values in zip(*rows, strict=True))


def _stacked(values: list[Tensor], axis: int, operator: str) -> Tensor:
    if not values:
        raise UnsupportedOperatorError(
            f"{operator} ran no iteration, so the shape of its scan outputs is not known. Use data that it runs on."
        )
    return torch.stack(values, axis)
