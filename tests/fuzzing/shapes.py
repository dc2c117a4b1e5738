"""Blocks without weights: what stands between layers in models, and what their outputs are."""

from typing import Any

import numpy as np
from fuzzing.graphs import (
    FLOATS,
    Builder,
    Value,
    cast,
    concat,
    reduce,
    reshape,
    sliced,
    squeeze,
    transpose,
    unsqueeze,
)

SIMPLE = ("Relu", "Tanh", "Sigmoid", "Neg", "Softplus", "Softsign", "Abs")
ACTIVATIONS = ("LeakyRelu", "Elu", "HardSigmoid", "Selu")


def elementwise(b: Builder, v: Value) -> Value | None:
    if not v.is_float:
        return None
    if v.dtype == "float32" and b.chance(0.2):
        return b.node(b.pick(ACTIVATIONS), [v], v.shape)
    if v.shape and v.last != 0 and b.chance(0.15):
        return b.node(b.pick(["Softmax", "LogSoftmax"]), [v], v.shape, axis=-1 if b.opset >= 13 else v.rank - 1)
    if b.chance(0.15):
        return _gelu(b, v)
    if b.chance(0.1):
        return b.node("Clip", [v, b.constant(-1.0, v.dtype), b.constant(1.0, v.dtype)], v.shape)
    kinds = SIMPLE if v.dtype == "float32" else ("Relu", "Tanh", "Sigmoid", "Neg", "Abs")
    return b.node(b.pick(kinds), [v], v.shape)


def _gelu(b: Builder, v: Value) -> Value:
    if v.dtype == "float64":
        return b.node("Relu", [v], v.shape)
    inner = b.node("Erf", [b.node("Mul", [v, b.constant(2**-0.5, v.dtype)], v.shape)], v.shape)
    shifted = b.node("Add", [inner, b.constant(1.0, v.dtype)], v.shape)
    return b.node("Mul", [b.node("Mul", [v, shifted], v.shape), b.constant(0.5, v.dtype)], v.shape)


def normalization(b: Builder, v: Value) -> Value | None:
    if v.dtype != "float32" or v.rank < 2:
        return None
    numbers = b.rng.standard_normal
    if isinstance(v.last, int) and v.last >= 2 and b.opset >= 17 and b.chance(0.5):
        inputs = [v, b.constant(1 + 0.1 * numbers(v.last), v.dtype), b.constant(0.1 * numbers(v.last), v.dtype)]
        return b.node("LayerNormalization", inputs, v.shape, axis=-1)
    channels = v.shape[1]
    if not isinstance(channels, int) or channels < 1 or isinstance(v.shape[0], int):
        return None
    if v.rank >= 3 and v.rank <= 4 and 1 not in v.shape[2:] and 0 not in v.shape[2:] and b.chance(0.3):
        inputs = [v, b.constant(1 + 0.1 * numbers(channels), v.dtype), b.constant(0.1 * numbers(channels), v.dtype)]
        return b.node("InstanceNormalization", inputs, v.shape, epsilon=1e-2)
    scale, bias, mean = (b.constant(k + 0.1 * numbers(channels), v.dtype) for k in (1, 0, 0))
    variance = b.constant(0.5 + b.rng.random(channels), v.dtype)
    return b.node("BatchNormalization", [v, scale, bias, mean, variance], v.shape)


def pooling(b: Builder, v: Value) -> Value | None:
    if v.dtype != "float32" or v.rank not in (3, 4, 5) or isinstance(v.shape[0], int) or v.shape[1] == "T":
        return None
    if any(isinstance(dim, int) and dim < 2 for dim in v.shape[2:]):
        return None
    if b.chance(0.3):
        return b.node(b.pick(["GlobalAveragePool", "GlobalMaxPool"]), [v], (*v.shape[:2], *[1] * (v.rank - 2)))
    space = ["?" + b.fresh() if isinstance(dim, str) else (dim - 2) // 2 + 1 for dim in v.shape[2:]]
    axes = v.rank - 2
    return b.node(
        b.pick(["MaxPool", "AveragePool"]), [v], (*v.shape[:2], *space), kernel_shape=[2] * axes, strides=[2] * axes
    )


def reduction(b: Builder, v: Value) -> Value | None:
    axes = [axis for axis, dim in enumerate(v.shape) if not (isinstance(dim, str) and dim[0] == "N") and dim != 0]
    if v.rank < 3 or not axes or not v.is_float:
        return None
    kind = b.pick(["ReduceMean", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2"])
    return reduce(b, kind if v.dtype == "float32" else "ReduceMean", v, [b.pick(axes)], keepdims=b.chance(0.3))


def rearranged(b: Builder, v: Value) -> Value | None:
    """Another order of the axes, or another shape of the same numbers."""
    if v.rank < 2:
        return None
    rest = v.shape[1:]
    if b.chance(0.5):
        if isinstance(v.shape[0], int) or v.rank < 3:
            return None
        order = [0, *(1 + b.rng.permutation(v.rank - 1))]
        return transpose(b, v, *map(int, order))
    if all(isinstance(dim, int) and dim > 0 for dim in rest) and isinstance(v.shape[0], str):
        total = int(np.prod([int(dim) for dim in rest]))
        if v.rank > 2:
            return (
                b.node("Flatten", [v], (v.shape[0], total), axis=1)
                if b.chance(0.6)
                else reshape(b, v, (v.shape[0], total))
            )
        if total % 4 == 0:
            return reshape(b, v, (v.shape[0], *b.pick([(4, total // 4), (total // 4, 4), (2, 2, total // 4)])))
    return None


def squeezed(b: Builder, v: Value) -> Value | None:
    ones = [axis for axis, dim in enumerate(v.shape) if dim == 1 and axis]
    if ones and b.chance(0.7):
        return squeeze(b, v, b.pick(ones))
    return unsqueeze(b, v, b.pick([1, v.rank])) if 0 < v.rank <= 3 else None


def part(b: Builder, v: Value) -> Value | None:
    """A slice; rarely one of a single entry, or of none that is put together with the rest again."""
    axes = [axis for axis, dim in enumerate(v.shape) if isinstance(dim, int) and dim >= 2]
    if not axes:
        return None
    axis = b.pick(axes)
    size = int(v.shape[axis])
    if b.chance(0.15) and v.is_float:
        return concat(b, [sliced(b, v, axis, 0, 0), v], axis)
    start = int(b.rng.integers(0, size))
    stop = int(b.rng.integers(start + 1, size + 1))
    return sliced(b, v, axis, start, stop)


def joined(b: Builder, v: Value, other: Value) -> Value | None:
    """Two values as one: their sum or product where the shapes are the same, side by side where they can be."""
    if v.dtype != other.dtype or not v.is_float or v.rank != other.rank or not v.rank:
        return None
    if v.shape == other.shape and b.chance(0.7):
        kind = b.pick(["Add", "Add", "Sub", "Mul", "Max"])
        both = b.node(kind, [v, other], v.shape)
        return both if kind != "Mul" or v.dtype != "float32" else b.node("Tanh", [both], v.shape)
    differing = [axis for axis in range(v.rank) if v.shape[axis] != other.shape[axis]]
    axis = differing[0] if len(differing) == 1 else v.rank - 1
    if len(differing) > 1 or not all(isinstance(entry.shape[axis], int) for entry in (v, other)):
        return None
    return concat(b, [v, other], axis)


def chosen(b: Builder, v: Value) -> Value | None:
    """Where one number is large, that; else another."""
    if v.dtype != "float32" or not v.shape:
        return None
    mask = b.node("Greater", [v, b.constant(0.0, v.dtype)], v.shape, dtype="bool")
    other = b.node("Mul", [v, b.constant(0.1, v.dtype)], v.shape)
    return b.node("Where", [mask, v, other], v.shape, dtype=v.dtype)


def retyped(b: Builder, v: Value) -> Value | None:
    """To another type of floats, where layers go on."""
    if not v.is_float:
        return None
    return cast(b, v, b.pick([dtype for dtype in FLOATS if dtype != v.dtype]))


def rounded(b: Builder, v: Value) -> Value | None:
    """As quantization-aware training leaves it; no gradient comes through."""
    if v.dtype != "float32" or not v.shape:
        return None
    if b.chance(0.3):
        return b.node("Round", [b.node("Mul", [v, b.constant(8.0, v.dtype)], v.shape)], v.shape)
    scale, zero = b.constant(np.float32(0.05)), b.constant(np.int8(0))
    codes = b.node("QuantizeLinear", [v, scale, zero], v.shape, dtype="int8")
    return b.node("DequantizeLinear", [codes, scale, zero], v.shape, dtype="float32")


def expanded(b: Builder, v: Value) -> Value | None:
    """Repeated along a new axis of its own."""
    if v.rank not in (1, 2) or not v.is_float:
        return None
    row = unsqueeze(b, v, 1)
    tiled = b.integers(1, 3, *[1] * (row.rank - 2))
    return b.node("Tile", [row, tiled], (row.shape[0], 3, *row.shape[2:]), dtype=v.dtype)


# Outputs.


def output(b: Builder, v: Value) -> list[Value]:
    """What the model gives of a value: most often the value itself."""
    if not v.is_float:
        return [v]
    kinds: list[Any] = [_itself] * 10 + [_typed, _typed, _largest, _top, _above, _mean, _filtered, _places]
    kinds += [_time_major, _time_major, _rows, _batch_mean, _empty, _shape, _sequence, _probability, _constant]
    found: list[Value] | None = None
    while found is None:
        found = b.pick(kinds)(b, v)
    return found


def _itself(b: Builder, v: Value) -> list[Value]:
    return [v]


def _typed(b: Builder, v: Value) -> list[Value]:
    return [cast(b, v, b.pick([dtype for dtype in (*FLOATS, "int32", "bool") if dtype != v.dtype]))]


def _plain(b: Builder, v: Value) -> Value:
    return v if v.dtype == "float32" else cast(b, v, "float32")


def _largest(b: Builder, v: Value) -> list[Value] | None:
    if v.rank < 2 or v.last == 0:
        return None
    x = _plain(b, v)
    label = b.node("ArgMax", [x], x.shape[:-1], dtype="int64", axis=-1, keepdims=0)
    return [label] if b.chance(0.5) else [x, label]


def _top(b: Builder, v: Value) -> list[Value] | None:
    if v.rank < 2 or not isinstance(v.last, int) or v.last < 3:
        return None
    x = _plain(b, v)
    shape = (*x.shape[:-1], 2)
    values, indices = b.node("TopK", [x, b.integers(2)], shape, shape, dtype="float32", axis=-1)
    return [values, Value(indices.name, shape, "int64")]


def _above(b: Builder, v: Value) -> list[Value]:
    return [b.node("Greater", [v, b.constant(0.1, v.dtype)], v.shape, dtype="bool")]


def _mean(b: Builder, v: Value) -> list[Value] | None:
    """One number of the whole call, as a loss."""
    if not v.shape or 0 in v.shape:
        return None
    return [reduce(b, "ReduceMean", v, range(v.rank))]


def _scores(b: Builder, v: Value) -> Value | None:
    """A number for each sample."""
    if not v.shape or v.shape[0] != "N" or 0 in v.shape:
        return None
    x = _plain(b, v)
    return x if x.rank == 1 else reduce(b, "ReduceSum", x, range(1, x.rank))


def _filtered(b: Builder, v: Value) -> list[Value] | None:
    """The samples that a threshold leaves."""
    score = _scores(b, v)
    if score is None:
        return None
    mask = b.node("Greater", [score, b.constant(0.0, "float32")], score.shape, dtype="bool")
    return [b.node("Compress", [v, mask], ("?" + b.fresh(), *v.shape[1:]), dtype=v.dtype, axis=0)]


def _places(b: Builder, v: Value) -> list[Value] | None:
    score = _scores(b, v)
    if score is None:
        return None
    mask = b.node("Greater", [score, b.constant(0.0, "float32")], score.shape, dtype="bool")
    return [b.node("NonZero", [mask], (1, "?" + b.fresh()), dtype="int64")]


def _time_major(b: Builder, v: Value) -> list[Value] | None:
    if v.rank < 2 or v.shape[0] != "N":
        return None
    turned = transpose(b, v, *range(1, v.rank), 0) if b.chance(0.3) else transpose(b, v, 1, 0, *range(2, v.rank))
    if turned.rank == 3 and turned.shape[1] == "N" and isinstance(turned.last, int) and turned.last and b.chance(0.3):
        return [reshape(b, turned, ("N*", turned.last))]
    return [turned]


def _rows(b: Builder, v: Value) -> list[Value] | None:
    if v.rank != 3 or v.shape[0] != "N" or not isinstance(v.last, int) or 0 in v.shape:
        return None
    return [reshape(b, v, ("N*", v.last))]


def _batch_mean(b: Builder, v: Value) -> list[Value] | None:
    """Of the call as a whole."""
    return [reduce(b, "ReduceMean", v, [0])] if v.rank > 1 and v.shape[0] == "N" else None


def _empty(b: Builder, v: Value) -> list[Value] | None:
    axes = [axis for axis, dim in enumerate(v.shape) if isinstance(dim, int) and dim and axis]
    return [v, sliced(b, v, b.pick(axes), 0, 0)] if axes else None


def _shape(b: Builder, v: Value) -> list[Value]:
    return [v, b.node("Shape", [v], [v.rank], dtype="int64")]


def _sequence(b: Builder, v: Value) -> list[Value] | None:
    if v.rank < 2 or not isinstance(v.last, int) or v.last < 2 or v.dtype != "float32":
        return None
    found = b.node("SplitToSequence", [v], [], axis=v.rank - 1, keepdims=1)
    return [Value(found.name, (*v.shape[:-1], 1), "sequence")]


def _constant(b: Builder, v: Value) -> list[Value] | None:
    """Beside the value a weight."""
    names = [name for name in b.tensors if name[0] == "w"]
    if not names or not b.chance(0.3):
        return None
    name = b.pick(names)
    return [v, Value(name, b.tensors[name].shape, str(b.tensors[name].dtype))]


def _probability(b: Builder, v: Value) -> list[Value] | None:
    if v.rank < 2 or v.dtype != "float32" or v.last == 0:
        return None
    total = reduce(b, "ReduceMean", v, [v.rank - 1], keepdims=b.chance(0.5))
    return [b.node("Sigmoid", [total], total.shape)]
