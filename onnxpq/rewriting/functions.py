"""What a model needs for its operators of ours: their functions, and attributes that agree with them."""

from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from onnxpq.errors import ModelError
from onnxpq.graph import opset
from onnxpq.operators import (
    CONV_OP_TYPE,
    DOMAIN,
    INPUTS_OF,
    INTEGER_OP_TYPE,
    LOOKUP_OP_TYPE,
    MATMUL_OP_TYPES,
    OP_TYPE,
    OP_TYPES,
    body,
    schema,
)

CONV_ATTRIBUTES: Final = {
    "auto_pad": "string",
    "dilations": "ints",
    "group": "int",
    "kernel_shape": "ints",
    "pads": "ints",
    "strides": "ints",
}
"""The attributes of Conv, and their types as a function's text names them."""


def settle(model: ir.Model, *, takes_half: bool) -> None:
    """Adds the functions of the operators that a model calls, and gives their nodes the attributes of these.

    A function serves all nodes of its name, those of an earlier compression too, and holds what some of them needs.

    Args:
        model: the model; changed.
        takes_half: some new PQMatMul has a float16 X.

    Raises:
        ModelError: the opset is too old (`onnxpq.operators.body.function`), or a node's matrix has no known sizes.
    """
    nodes = [node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_type in OP_TYPES]
    sizes = [sizes_of(node) for node in nodes]
    if any(each.stages > 1 for each in sizes):
        # PQDecode adds stages up in float32 then.
        for node in nodes:
            node.op_type = OP_TYPE if node.op_type == INTEGER_OP_TYPE else node.op_type
    fast = [node.attributes.get_int(schema.ATTR_FAST, 0) == 1 for node in nodes]
    dialect = body.Dialect.of(
        opset(model),
        sizes,
        lookups=[each for node, each in zip(nodes, sizes, strict=True) if node.op_type == LOOKUP_OP_TYPE],
        has_fast=any(fast),
        any_float=takes_half or gives_back_types(model),
        conv=_conv_attributes(nodes),
    )
    for node, each, is_fast in zip(nodes, sizes, fast, strict=True):
        weight = stored_of(node)
        kept = [attribute for name, attribute in node.attributes.items() if name in CONV_ATTRIBUTES]
        node.attributes.clear()
        for attribute in (*body.attributes(node.op_type, each, dialect, fast=is_fast, weight=weight), *kept):
            node.attributes.add(attribute)
    for identifier in [each for each in model.functions if each[0] == DOMAIN]:
        del model.functions[identifier]
    for made in body.functions(dict.fromkeys(node.op_type for node in nodes), dialect):
        model.functions[made.identifier()] = made


def weight_attributes(rows: int, columns: int, stored: body.Stored | None = None) -> list[ir.Attr]:
    """What `settle` makes the attributes of a new node from.

    Args:
        rows: of the matrix, `out`.
        columns: `in`.
        stored: what the matrix is to the node, of PQConv and PQWeight.
    """
    shape = ir.AttrInt64s(schema.ATTR_SHAPE, [rows, columns])
    if stored is None:
        return [shape]
    own = ir.AttrInt64s(schema.ATTR_WEIGHT_SHAPE, list(stored.shape))
    return [shape, own, ir.AttrInt64(schema.ATTR_TO, int(stored.dtype))]


def gives_back_types(model: ir.Model) -> bool:
    """Whether the functions of a model give back the type of X, be it float16."""
    functions = [model.functions.get((DOMAIN, name, "")) for name in MATMUL_OP_TYPES]
    return any(node.op_type == "CastLike" for found in functions if found is not None for node in found)


def _conv_attributes(nodes: list[ir.Node]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        if node.op_type == CONV_OP_TYPE:
            yield from ((name, kind) for name, kind in CONV_ATTRIBUTES.items() if name in node.attributes)


def sizes_of(node: ir.Node) -> body.Sizes:
    """The sizes of the matrix that an operator of ours holds.

    Raises:
        ModelError: they are not known.
    """
    value, shape = node.inputs[INPUTS_OF[node.op_type].index("codebooks")], node.attributes.get(schema.ATTR_SHAPE)
    codebooks = value.shape if value is not None else None
    if codebooks is None or not codebooks.is_static() or len(codebooks) != schema.CODEBOOKS_RANK or shape is None:
        raise ModelError(
            f"Node '{node.name}' ({DOMAIN}::{node.op_type}) has codebooks of the shape {codebooks} and the attribute"
            f" '{schema.ATTR_SHAPE}' {shape}; expected [R, G, K, d] and [out, in]. Compress the original model again."
        )
    out_features, in_features = _integers(shape)
    stages, groups, codewords, sub_vector = codebooks.numpy()
    return body.Sizes(out_features, in_features, stages, groups, codewords, sub_vector)


def stored_of(node: ir.Node) -> body.Stored | None:
    """What the matrix of a PQConv or PQWeight is to its node; None of other operators."""
    shape = node.attributes.get(schema.ATTR_WEIGHT_SHAPE)
    if shape is None:
        return None
    return body.Stored(_integers(shape), ir.DataType(node.attributes.get_int(schema.ATTR_TO, ir.DataType.FLOAT)))


def _integers(attribute: ir.Attr) -> tuple[int, ...]:
    if attribute.type == ir.AttributeType.INTS:
        return tuple(attribute.as_ints())
    return tuple(int(number) for number in attribute.as_tensor().numpy())
