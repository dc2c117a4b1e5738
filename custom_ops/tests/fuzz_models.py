"""From a case of the fuzzer to a model file and the batch for it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from fuzz_cases import CONSTANTS, SPECIALS, Case
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxpq.operators import body
from onnxpq.operators.schema import ATTR_FAST, DOMAIN, VERSION

_HELD = ("FLOAT", "FLOAT16", "UINT8", "INT8")
"""Types that the operator takes somewhere; tensors of others are filled with zeros."""

OPSET, IR_VERSION = 21, 10
"""The first with all element types that are tried."""


@dataclass(frozen=True)
class Tensors:
    """What a case's model holds and is given."""

    constants: dict[str, NDArray[Any]]  # of the types that the operator takes, others as float32
    types: dict[str, str]  # names in TensorProto
    x: NDArray[Any] = field(repr=False)


def tensors_of(case: Case) -> Tensors:
    """Contents of all inputs: the layer, with the case's changes of shapes, values and bits."""
    rng = np.random.default_rng(case.seed)
    features = () if case.x_scalar else (max(case.in_features + case.x_more, 0),)
    x_type = np.float32 if case.x_type == "BFLOAT16" else helper.tensor_dtype_to_np_dtype(_code(case.x_type))
    x = rng.standard_normal((*case.leading, *features)).astype(x_type)
    constants = case.layer().constants()
    with np.errstate(over="ignore", invalid="ignore"):
        for name, index, count in case.specials:
            target = x if name == "X" else constants[name]
            if target.size:
                target.reshape(-1)[rng.integers(0, target.size, count)] = np.float64(SPECIALS[index]).astype(
                    target.dtype
                )
    nudged = [(name, _nudged(constants[name].shape, *nudge)) for name, nudge in case.nudges]
    for name, shape in (*nudged, *case.shapes):
        size = int(np.prod(shape, dtype=np.int64))
        constants[name] = np.resize(constants[name], size)[:size].reshape(shape)
    for name, bit in case.flips:
        raw = bytearray(np.ascontiguousarray(constants[name]).tobytes())
        if raw:
            raw[bit // 8 % len(raw)] ^= 1 << bit % 8
            constants[name] = np.frombuffer(bytes(raw), constants[name].dtype).reshape(constants[name].shape)
    types = {name: TensorProto.DataType.Name(helper.np_dtype_to_tensor_dtype(v.dtype)) for name, v in constants.items()}
    for name, kind in case.types:
        types[name] = kind
        if kind in _HELD:
            with np.errstate(all="ignore"):
                constants[name] = constants[name].astype(helper.tensor_dtype_to_np_dtype(_code(kind)))
    return Tensors(constants, types, x)


def _nudged(shape: tuple[int, ...], axis: int, more: int) -> tuple[int, ...]:
    axis %= len(shape)
    return (*shape[:axis], max(shape[axis] + more, 0), *shape[axis + 1 :])


def _code(name: str) -> int:
    return int(TensorProto.DataType.Value(name))


def _tensor(case: Case, tensors: Tensors, name: str) -> TensorProto:
    array, kind = tensors.constants[name], tensors.types[name]
    place, damage = dict(case.places).get(name), dict(case.damages).get(name)
    tensor = TensorProto(name=name, data_type=_code(kind), dims=array.shape)
    if kind == "STRING":
        tensor.string_data.extend([b"text"] * array.size)
    elif kind not in _HELD:
        bits = 4 if kind.endswith("INT4") else helper.tensor_dtype_to_np_dtype(_code(kind)).itemsize * 8
        tensor.raw_data = bytes(-(-array.size * bits // 8))
    elif place == "typed" and damage is None:
        words = array.reshape(-1).view(np.uint16) if kind == "FLOAT16" else array.reshape(-1)
        (tensor.float_data if kind == "FLOAT" else tensor.int32_data).extend(words.tolist())
    else:
        tensor.raw_data = np.ascontiguousarray(array).tobytes()
    if damage is not None:
        _damage(tensor, damage)
    return tensor


def _damage(tensor: TensorProto, damage: str) -> None:
    dims = list(tensor.dims) or [1]
    match damage:
        case "short":
            tensor.raw_data = tensor.raw_data[:-1]
        case "long":
            tensor.raw_data += b"\0\0\0\0"
        case "empty":
            tensor.raw_data = b""
        case "negative size":
            dims[0] = -dims[0] or -1
        case "huge size":
            dims[-1] = 2**40
        case "overflowing sizes":
            dims = [2**32, 2**32, *dims]
        case "type 0":
            tensor.data_type = 0
        case "type 99":
            tensor.data_type = 99
    tensor.ClearField("dims")
    tensor.dims.extend(dims)


def _externalize(tensor: TensorProto, folder: Path, damage: str | None) -> None:
    file = f"{tensor.name}.data"
    (folder / file).write_bytes(tensor.raw_data)
    entries = {"location": file, "offset": "0", "length": str(len(tensor.raw_data))}
    match damage:
        case "external past the end":
            (folder / file).write_bytes(tensor.raw_data[: len(tensor.raw_data) // 2])
        case "external file missing":
            entries["location"] = "missing.data"
        case "external far offset":
            entries["offset"] = str(2**62)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def _attribute(name: str, kind: str) -> onnx.AttributeProto:
    tensor = helper.make_tensor("t", TensorProto.INT64, [1], [7])
    values = {"int": 7, "float": 0.5, "string": "text", "ints": [1, 2], "tensor": tensor}
    return helper.make_attribute(name, values[kind])


def _x_info(case: Case, x: NDArray[Any]) -> onnx.ValueInfoProto:
    shape: list[Any] | None = [*x.shape[:-1], case.in_features] if x.ndim else []
    match case.declared:
        case "names":
            shape = [f"size_{i}" for i in range(x.ndim)]
        case "exact":
            shape = list(x.shape)
        case "unnamed":
            shape = [None] * x.ndim
        case "no rank":
            shape = None
        case "other size":
            shape = [*x.shape[:-1], x.shape[-1] + 1] if x.ndim else [1]
        case "other rank":
            shape = [*x.shape, 1]
    return helper.make_tensor_value_info("X", _code(case.x_type), shape)


def model_of_case(case: Case, tensors: Tensors, folder: Path) -> onnx.ModelProto:
    """The model; its external data go to `folder`."""
    places, damages = dict(case.places), dict(case.damages)
    inputs, initializers, nodes = [_x_info(case, tensors.x)], [], []
    for name in CONSTANTS:
        tensor, place = _tensor(case, tensors, name), places.get(name, "initializer")
        if place in {"overridable", "graph input", "computed"}:
            source = f"{name}_source" if place == "computed" else name
            inputs.append(helper.make_tensor_value_info(source, tensor.data_type, tensors.constants[name].shape))
            if place == "computed":
                nodes.append(helper.make_node("Identity", [source], [name]))
            if place != "overridable":
                continue
        if place == "external" and tensor.HasField("raw_data"):
            _externalize(tensor, folder, damages.get(name))
        if place == "constant node":
            nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            continue
        if place == "identity":
            tensor.name = f"{name}_source"
            nodes.append(helper.make_node("Identity", [tensor.name], [name]))
        initializers.append(tensor)
    nodes.append(_node(case))
    y = helper.make_tensor_value_info("Y", _code(case.x_type), None)
    if case.nested:
        inside = initializers if case.nested == "inside" else []
        branch = helper.make_graph(nodes, "branch", [], [y], inside)
        nodes = [helper.make_node("If", ["condition"], ["Y"], then_branch=branch, else_branch=branch)]
        inputs.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
        initializers = [] if inside else initializers
    made = body.functions([case.op_type], _dialect(case)) if case.body else []
    functions = [ir.to_proto(function) for function in made]
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph(nodes, "fuzz", inputs, [y], initializers)
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=IR_VERSION)


def _dialect(case: Case) -> body.Dialect:
    return body.Dialect.of(OPSET, [case.layer().sizes], has_fast=True)


def _node(case: Case) -> onnx.NodeProto:
    names = ["X", *CONSTANTS]
    match case.inputs.split(" "):
        case ["four"]:
            names = names[:4]
        case ["six"]:
            names = [*names, "bias"]
        case ["none"]:
            names = []
        case ["no", name]:
            names[names.index(name)] = ""
    node = helper.make_node(case.op_type, names, ["Y"], name="fc", domain=DOMAIN)
    if case.body:
        attributes = body.attributes(case.op_type, case.layer().sizes, _dialect(case))
        node.attribute.extend(ir.to_proto(a) for a in attributes if a.name != ATTR_FAST)
    if case.fast_kind != "int":
        node.attribute.append(_attribute(ATTR_FAST, case.fast_kind))
    elif case.fast or case.body:
        node.attribute.append(helper.make_attribute(ATTR_FAST, case.fast))
    node.attribute.extend(_attribute(name, kind) for name, kind in case.attributes)
    return node
