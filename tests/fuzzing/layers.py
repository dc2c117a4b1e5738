"""Blocks with weights: fully-connected layers in all their forms, convolutions, recurrent layers, attention, tables.

A block takes a value and gives another one, or None where the value does not suit it.
"""

import string
from collections.abc import Callable
from typing import Any

import numpy as np
from fuzzing.graphs import Builder, Value, concat, reshape, squeeze, transpose, unsqueeze
from onnx import helper, numpy_helper

WIDTHS = (8, 12, 16, 24, 32, 48)
WIDE = (48, 64, 96)
HIDDEN = (4, 8, 12, 16)


def dense(b: Builder, v: Value, width: int | None = None) -> Value | None:
    """A fully-connected layer along the last axis."""
    if not v.is_float or not isinstance(v.last, int) or v.last < 1 or not v.shape:
        return None
    out = width or (1 if b.chance(0.03) else b.pick(WIDTHS))
    forms: list[Callable[[Builder, Value, int], Value]] = [_matmul, _matmul, _with_bias, _with_bias]
    if v.rank == 2:
        forms += [_gemm, _gemm, _gemm_turned, _left]
    if v.rank >= 2 and b.opset >= 12 and v.dtype != "float16":
        forms.append(_einsum)
    if v.dtype == "float32":
        forms.append(_fused)
    if b.depth == 0 and v.dtype == "float32":
        forms += [_called, _called]
    if v.rank == 3 and isinstance(v.shape[0], int) and v.shape[0] <= 8:
        forms.append(_batched)
    return b.pick(forms)(b, v, out)


def _fan(v: Value) -> int:
    return int(v.last)


def _to(v: Value, out: int) -> tuple[int | str, ...]:
    return (*v.shape[:-1], out)


def _matmul(b: Builder, v: Value, out: int) -> Value:
    return b.node("MatMul", [v, b.weight((_fan(v), out), v.dtype, fan_in=_fan(v))], _to(v, out))


def _bias(b: Builder, shape: tuple[int, ...], dtype: str) -> str:
    return b.constant(0.3 * b.rng.standard_normal(shape), dtype)


def _with_bias(b: Builder, v: Value, out: int) -> Value:
    product = _matmul(b, v, out)
    shape = b.pick([(out,), (out,), (1, out) if v.rank > 1 else (out,), ()])
    pair = [product, _bias(b, shape, v.dtype)]
    return b.node("Add", pair if b.chance(0.6) else pair[::-1], product.shape, dtype=v.dtype)


def _gemm(b: Builder, v: Value, out: int) -> Value:
    inputs = [v, b.weight((_fan(v), out), v.dtype, fan_in=_fan(v))]
    if b.chance(0.7):
        inputs.append(_bias(b, b.pick([(out,), (1, out), (1,)]), v.dtype))
    return b.node("Gemm", inputs, _to(v, out), alpha=b.pick([1.0, 1.0, -0.5]), beta=b.pick([1.0, 2.0]))


def _gemm_turned(b: Builder, v: Value, out: int) -> Value:
    inputs = [v, b.weight((out, _fan(v)), v.dtype, fan_in=_fan(v))]
    if b.chance(0.7):
        inputs.append(_bias(b, (out,), v.dtype))
    if b.chance(0.2):
        inputs[0] = transpose(b, v, 1, 0)
        return b.node("Gemm", inputs, _to(v, out), transA=1, transB=1)
    return b.node("Gemm", inputs, _to(v, out), transB=1)


def _left(b: Builder, v: Value, out: int) -> Value:
    columns = transpose(b, v, 1, 0)
    product = b.node(
        "MatMul", [b.weight((out, _fan(v)), v.dtype, fan_in=_fan(v)), columns], (out, v.shape[0]), dtype=v.dtype
    )
    return transpose(b, product, 1, 0)


def _einsum(b: Builder, v: Value, out: int) -> Value:
    axes = string.ascii_lowercase[: v.rank]
    turned = b.chance(0.3)
    matrix = f"z{axes[-1]}" if turned else f"{axes[-1]}z"
    shape = (out, _fan(v)) if turned else (_fan(v), out)
    equation = f"{axes},{matrix}->{axes[:-1]}z"
    return b.node("Einsum", [v, b.weight(shape, v.dtype, fan_in=_fan(v))], _to(v, out), equation=equation)


def _fused(b: Builder, v: Value, out: int) -> Value:
    weight = b.weight((out, _fan(v)), v.dtype, fan_in=_fan(v))
    return b.node("FusedMatMul", [v, weight], _to(v, out), domain="com.microsoft", transB=1, alpha=b.pick([1.0, 0.5]))


def _batched(b: Builder, v: Value, out: int) -> Value:
    return b.node("MatMul", [v, b.weight((v.shape[0], _fan(v), out), v.dtype, fan_in=_fan(v))], _to(v, out))


def _called(b: Builder, v: Value, out: int) -> Value:
    """A layer in a local function, its weight given or the function's own, or in a function within one."""
    kind = b.pick(["given", "given", "nested", "own"])
    if kind == "own":
        name = b.fresh("Own")
        tensor = numpy_helper.from_array(b.numbers((_fan(v), out), v.dtype, fan_in=_fan(v)))
        b.weights += _fan(v) * out
        body = [
            helper.make_node("Constant", [], ["w"], value=tensor),
            helper.make_node("MatMul", ["x", "w"], ["y"], name="fc"),
        ]
        _function(b, name, ["x"], body)
        return b.node(name, [v], _to(v, out), domain="local")
    inner = [helper.make_node("MatMul", ["x", "w"], ["p"], name="fc"), helper.make_node("Tanh", ["p"], ["y"])]
    _function(b, "Dense", ["x", "w"], inner)
    if kind == "nested":
        body = [helper.make_node("Dense", ["x", "w"], ["d"], domain="local"), helper.make_node("Neg", ["d"], ["y"])]
        _function(b, "Block", ["x", "w"], body)
    weight = b.weight((_fan(v), out), v.dtype, fan_in=_fan(v))
    return b.node("Block" if kind == "nested" else "Dense", [v, weight], _to(v, out), domain="local")


def _function(b: Builder, name: str, inputs: list[str], body: list[Any]) -> None:
    imports = [helper.make_opsetid("", b.opset), helper.make_opsetid("local", 1)]
    b.functions.setdefault(name, helper.make_function("local", name, inputs, ["y"], body, imports))


def _image(b: Builder, v: Value) -> Value | None:
    """A value with channels along axis 1 and one to three axes of space, each of two or more points."""
    if v.dtype not in ("float32", "float16"):
        return None
    if v.rank in (3, 4, 5) and isinstance(v.shape[1], int) and v.shape[1] > 0 and not isinstance(v.shape[0], int):
        space = v.shape[2:]
        return v if all(isinstance(dim, str) or dim >= 2 for dim in space) else None
    if v.rank == 2 and isinstance(v.last, int) and v.last >= 16 and v.last % 4 == 0:
        space = b.pick([(4,), (2, 2), (4, 1)] if v.last % 8 else [(8,), (2, 4), (2, 2, 2)])
        if 1 in space:
            return None
        return reshape(b, v, (v.shape[0], v.last // int(np.prod(space)), *space))
    return None


def convolution(b: Builder, v: Value) -> Value | None:
    """Of one to three dimensions, with groups, strides, pads and dilations."""
    x = _image(b, v)
    if x is None:
        return None
    axes, channels = x.rank - 2, int(x.shape[1])
    groups = b.pick([1, 1, 1, *(g for g in (2, 4, channels) if channels % g == 0)])
    out = groups * b.pick([1, 2, 3] if groups > 4 else [4, 8, 12])
    kernel = [b.pick([1, 2, 3]) if isinstance(d, str) or d >= 3 else b.pick([1, 2]) for d in x.shape[2:]]
    if b.chance(0.25):
        kernel = [1] * axes
    strides = [b.pick([1, 1, 2]) for _ in range(axes)]
    pads = [b.pick([0, k // 2]) for k in kernel] * 2
    space = [
        "?" + b.fresh() if isinstance(d, str) else (d + 2 * p - k) // s + 1
        for d, k, s, p in zip(x.shape[2:], kernel, strides, pads, strict=False)
    ]
    inputs = [
        x,
        b.weight((out, channels // groups, *kernel), x.dtype, fan_in=channels // groups * int(np.prod(kernel))),
    ]
    if b.chance(0.6):
        inputs.append(_bias(b, (out,), x.dtype))
    attributes = {"group": groups, "strides": strides, "pads": pads}
    if b.chance(0.5):
        attributes["kernel_shape"] = kernel
    return b.node("Conv", inputs, (x.shape[0], out, *space), **attributes)


def transposed_convolution(b: Builder, v: Value) -> Value | None:
    x = _image(b, v)
    if x is None or x.rank == 5:
        return None
    channels, out = int(x.shape[1]), b.pick([2, 4, 8])
    groups = b.pick([1, 1, *(g for g in (2,) if channels % g == 0)])
    kernel = [b.pick([1, 2, 3]) for _ in x.shape[2:]]
    strides = [b.pick([1, 2]) for _ in kernel]
    space = [
        "?" + b.fresh() if isinstance(d, str) else (d - 1) * s + k
        for d, k, s in zip(x.shape[2:], kernel, strides, strict=True)
    ]
    inputs = [x, b.weight((channels, out // groups, *kernel), x.dtype, fan_in=channels * int(np.prod(kernel)))]
    if b.chance(0.5):
        inputs.append(_bias(b, (out,), x.dtype))
    return b.node("ConvTranspose", inputs, (x.shape[0], out, *space), group=groups, strides=strides)


def recurrent(b: Builder, v: Value) -> Value | None:
    """LSTM, GRU or RNN in either or both directions; all steps, time-major or not, or the last state."""
    if v.rank != 3 or v.dtype != "float32" or not isinstance(v.last, int) or v.last < 1:
        return None
    steps_first = v if isinstance(v.shape[0], int) else transpose(b, v, 1, 0, 2)
    steps, samples, _ = steps_first.shape
    if samples == 0 or steps == 0:
        return None
    kind, hidden = b.pick(["LSTM", "GRU", "RNN"]), b.pick(HIDDEN)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    direction = b.pick(["forward", "reverse", "bidirectional"])
    ways = 2 if direction == "bidirectional" else 1
    inputs: list[Value | str] = [
        steps_first,
        b.weight((ways, gates * hidden, v.last), fan_in=v.last),
        b.weight((ways, gates * hidden, hidden), fan_in=hidden),
    ]
    if b.chance(0.7):
        inputs.append(_bias(b, (ways, 2 * gates * hidden), v.dtype))
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if kind == "GRU":
        attributes["linear_before_reset"] = b.pick([0, 1])
    every, last = b.node(
        kind, inputs, (steps, ways, samples, hidden), (ways, samples, hidden), dtype="float32", **attributes
    )
    if b.chance(0.3):
        turned = transpose(b, last, 1, 0, 2)
        return reshape(b, turned, (samples, ways * hidden))
    if ways == 1:
        along = squeeze(b, every, 1)
    else:
        along = reshape(b, transpose(b, every, 0, 2, 1, 3), (steps, samples, ways * hidden))
    return along if b.chance(0.3) else transpose(b, along, 1, 0, 2)


def attention(b: Builder, v: Value) -> Value | None:
    """Attention of several heads, its three layers apart, in one with a Split, or onnxruntime's fused operator."""
    if v.rank != 3 or v.dtype != "float32" or not isinstance(v.last, int) or isinstance(v.shape[0], int):
        return None
    heads, width = b.pick([1, 2, 4]), b.pick([4, 8])
    both = heads * width
    if b.chance(0.2) and v.shape[1] != 0:
        inputs = [v, b.weight((v.last, 3 * both), fan_in=v.last), _bias(b, (3 * both,), v.dtype)]
        found = b.node("Attention", inputs, (*v.shape[:2], both), domain="com.microsoft", num_heads=heads)
        return _matmul(b, found, v.last)
    if b.chance(0.4):
        packed = _with_bias(b, v, 3 * both)
        if b.opset >= 13:
            parts = b.node("Split", [packed, b.integers(both, both, both)], *[(*v.shape[:2], both)] * 3, axis=2)
        else:
            parts = b.node("Split", [packed], *[(*v.shape[:2], both)] * 3, axis=2, split=[both] * 3)
    else:
        parts = [_with_bias(b, v, both) for _ in range(3)]
    split = [reshape(b, part, (*v.shape[:2], heads, width)) for part in parts]
    query, value = (transpose(b, part, 0, 2, 1, 3) for part in (split[0], split[2]))
    key = transpose(b, split[1], 0, 2, 3, 1)
    scores = b.node("MatMul", [query, key], (v.shape[0], heads, v.shape[1], v.shape[1]))
    scaled = b.node("Mul", [scores, b.constant(width**-0.5, v.dtype)], scores.shape)
    mixed = b.node("MatMul", [b.node("Softmax", [scaled], scores.shape, axis=3), value], query.shape)
    joined = reshape(b, transpose(b, mixed, 0, 2, 1, 3), (*v.shape[:2], both))
    found = _with_bias(b, joined, v.last)
    return b.node("Add", [v, found], v.shape) if b.chance(0.6) else found


def lookup(b: Builder, v: Value) -> Value | None:
    """A table whose rows are looked up: by integers, or by the largest entries of floats."""
    width = b.pick(WIDTHS)
    if v.dtype in ("int64", "int32"):
        rows, ids = 100, v
    elif v.dtype == "float32" and v.rank >= 2 and isinstance(v.last, int) and v.last >= 2:
        rows = v.last
        ids = b.node("ArgMax", [v], v.shape[:-1], dtype="int64", axis=-1, keepdims=0)
    else:
        return None
    table = b.weight((rows, width), fan_in=1)
    return b.node("Gather", [table, ids], (*ids.shape, width), dtype="float32", axis=0)


def tied(b: Builder, v: Value) -> Value | None:
    """A layer whose weight is a table's that was looked up before."""
    if not v.shape or v.dtype != "float32":
        return None
    tables = [n for n, array in b.tensors.items() if array.shape == (100, v.last) and array.dtype == v.dtype]
    if not tables:
        return None
    turned = b.node("Transpose", [b.pick(tables)], (v.last, 100), dtype="float32", perm=[1, 0])
    return b.node("MatMul", [v, turned], _to(v, 100))


def merged_steps(b: Builder, v: Value) -> Value | None:
    """A layer on the steps of all samples as rows, and back."""
    if v.rank != 3 or not v.is_float or not all(isinstance(dim, int) and dim > 0 for dim in v.shape[1:]):
        return None
    if isinstance(v.shape[0], int):
        return None
    rows = reshape(b, v, ("N*", v.last))
    found = dense(b, rows)
    return found if found is None or b.chance(0.2) else reshape(b, found, (*v.shape[:2], found.last))


def with_image(b: Builder, v: Value) -> Value | None:
    """A row of numbers as a sequence or an image of one channel."""
    if v.rank != 2 or not v.is_float or not isinstance(v.last, int):
        return None
    return unsqueeze(b, v, 1) if b.chance(0.5) else unsqueeze(b, v, 2)


def ensemble(b: Builder, v: Value) -> Value | None:
    """Two layers side by side."""
    one, other = dense(b, v), dense(b, v)
    if one is None or other is None or not isinstance(one.last, int) or not isinstance(other.last, int):
        return None
    return concat(b, [one, other], one.rank - 1)


def integer_layer(b: Builder, v: Value) -> Value | None:
    """A layer that is quantized already, as dynamic quantization writes it: onnxpq leaves it alone."""
    if v.dtype != "float32" or v.rank < 2 or not isinstance(v.last, int) or v.last < 1 or 0 in v.shape:
        return None
    out = b.pick(WIDTHS)
    codes, scale, zero = b.node("DynamicQuantizeLinear", [v], v.shape, (), ())
    weight = b.constant(b.rng.integers(0, 255, (v.last, out)), "uint8")
    inputs = [codes, weight, zero, b.constant(128, "uint8")]
    sums = b.node("MatMulInteger", inputs, _to(v, out), dtype="int32")
    floats = b.node("Cast", [sums], sums.shape, dtype="float32", to=1)
    both = b.node("Mul", [scale, b.constant(0.003, "float32")], (), dtype="float32")
    return b.node("Mul", [floats, both], floats.shape, dtype="float32")


def from_units(b: Builder, v: Value) -> Value | None:
    """The first layer of a model whose scaler is folded into it: inputs in different units."""
    if v.dtype != "float32" or v.rank != 2 or v.shape[0] != "N" or not isinstance(v.last, int):
        return None
    b.units[v.name] = units = 10.0 ** b.rng.uniform(-2, 3, v.last)
    out = b.pick(WIDTHS)
    b.weights += v.last * out
    weight = b.store((b.numbers((v.last, out), fan_in=v.last) / units[:, None]).astype(np.float32))
    return b.node("Gemm", [v, weight, _bias(b, (out,), v.dtype)], _to(v, out))
