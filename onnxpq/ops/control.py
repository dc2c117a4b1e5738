"""Control flow: the operators that hold graphs."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from onnxpq.ops.registry import register

Subgraph = Callable[..., Sequence[Any]]


@register("If", 1, 11, 13, 16, 19, 21, 23, 24, 25)
def if_(cond: Tensor, *, then_branch: Subgraph, else_branch: Subgraph) -> tuple[Any, ...]:
    """The outputs of one of two graphs."""
    return tuple((then_branch if bool(cond) else else_branch)())
