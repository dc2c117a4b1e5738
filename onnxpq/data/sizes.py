"""Sizes of inputs that the model leaves open, where nobody gave data: they are tried out.

A network of convolutions with a head of a fixed size says nothing of its images' height and width, and runs with one
size only. What is right is known to onnxruntime alone, and to the user.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.config import BatchAxes
from onnxpq.data.datasets import random_inputs
from onnxpq.data.inputs import InputSpec, input_specs
from onnxpq.data.reading import Source, peek
from onnxpq.errors import DataError, OnnxpqError

Run: TypeAlias = Callable[[Mapping[str, NDArray[np.generic]]], Mapping[str, NDArray[np.generic]]]
"""Runs the model on inputs by name; raises an `OnnxpqError` where it does not take them."""

USUAL: Final = (
    224,
    256,
    64,
    32,
    128,
    512,
    28,
    299,
    96,
    160,
    192,
    384,
    320,
    416,
    448,
    640,
    48,
    16,
    8,
    240,
    260,
    300,
    380,
)
"""Heights and widths of images, those of the most networks first."""

MULTIPLES: Final = (*range(8, 1025, 8), 2048, 3000, 4096, 8000, 16000)
"""The last ones are those of sounds: frames, and a second of samples."""

SMALL: Final = range(2, 129)

RANKS: Final = (2, 4, 3, 1, 5)
"""Of an input that tells nothing of its shape: tables, images, sequences, ..."""

SECONDS: Final = 60.0
"""That are spent on trying."""

ENTRIES: Final = 2**24
"""Of one trial's inputs: sizes that make more are not tried."""


def ranks(model: ir.Model, sources: Iterable[Source | None]) -> dict[str, int]:
    """The ranks, by name, that data have for inputs which do not tell theirs."""
    names, found = unshaped(model), dict[str, int]()
    # An iterable can be gone through once, which is left to those who read it.
    for source in sources if names else ():
        arrays = peek(source) if source is not None else {}
        # An array of objects has a sample in each.
        sizes = {name: a.ndim + (np.ndim(a[0]) if a.dtype.hasobject and a.size else 0) for name, a in arrays.items()}
        found |= {name: size for name, size in sizes.items() if name in names}
    return found


def unshaped(model: ir.Model) -> list[str]:
    """Names of inputs that do not tell their rank."""
    return [str(v.name) for v in model.graph.inputs if v.shape is None and isinstance(v.type, ir.TensorType)]


def found(model: ir.Model, run: Run, seed: int, axes: BatchAxes | None = None) -> tuple[list[InputSpec], list[str]]:
    """The inputs of a model with sizes with which it runs.

    Args:
        model: whose open sizes are tried, the batch apart.
        run: runs it.
        seed: of the numbers that are tried.
        axes: where the samples lie, as far as the user said.

    Returns:
        The inputs, of which only the batch is open, and a note that says what was made up.

    Raises:
        DataError: it runs with none of the sizes, or nobody can make up what its inputs hold.
        ModelError: an input is no tensor.
    """
    names = unshaped(model)
    first = input_specs(model, dict.fromkeys(names, RANKS[0]), axes)
    if not names and not any(_is_open(spec) for spec in first):
        return first, []
    started, failure = time.monotonic(), ""
    tried: list[int] = []
    for size, specs in _candidates(model, names, axes):
        inputs = random_inputs(specs, 1, seed).feeds
        try:
            outputs = run(inputs)
        except OnnxpqError as error:
            failure = failure or str(error)
        else:
            if all(array.size for array in outputs.values()):
                made = ", ".join(f"'{spec.name}' {spec.describe()}" for spec in specs)
                return specs, [f"Sizes that the model leaves open were made up: {made}. --test gives it true inputs."]
            failure = failure or "an output is empty."
        tried.append(size)
        if time.monotonic() - started > SECONDS:
            break
    wanted = ", ".join(f"'{spec.name}' {spec.describe() if spec.name not in names else spec.dtype}" for spec in first)
    raise DataError(
        f"The model leaves sizes of its inputs open ({wanted}), and with made-up ones from {min(tried)} to "
        f"{max(tried)} it does not run. Give inputs that it takes with --test, or with --data. The first "
        f"failure: {failure}"
    )


def _is_open(spec: InputSpec) -> bool:
    """Whether a size other than the batch is not known; what a state begins with is."""
    return spec.start is None and any(dim is None for axis, dim in enumerate(spec.shape) if axis != spec.axis)


def _candidates(model: ir.Model, unknown: list[str], axes: BatchAxes | None) -> Iterator[tuple[int, list[InputSpec]]]:
    """Inputs with all open sizes the same: 1, those that images have, those of constants of the model, and others."""
    constants = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    own = sorted({size for tensor in constants if tensor is not None for size in tensor.shape.numpy() if size > 1})
    for size in dict.fromkeys((1, *USUAL, *own, *MULTIPLES, *SMALL)):
        for rank in RANKS if unknown else (0,):
            specs = [
                replace(spec, shape=_filled(spec, size))
                for spec in input_specs(model, dict.fromkeys(unknown, rank), axes)
            ]
            if all(math.prod(dim or 1 for dim in spec.shape) <= ENTRIES for spec in specs):
                yield size, specs


def _filled(spec: InputSpec, size: int) -> tuple[int | None, ...]:
    """The sizes of an input with all open ones but the batch being `size`; a state begins as it does."""
    begun = spec.start or spec.shape
    return tuple(
        dim if axis == spec.axis else own if isinstance(own := begun[axis], int) else size
        for axis, dim in enumerate(spec.shape)
    )
