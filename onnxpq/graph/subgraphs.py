"""Values inside If, Loop and Scan, where a run of the whole model can give them out.

onnxruntime gives out values of the main graph alone. What a layer in a branch or a loop body is given is therefore
passed outwards, from graph to graph, as one more output of each node around it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxpq.graph.constants import is_standard
from onnxpq.graph.protobuf import structure
from onnxpq.graph.walking import graph_of, subgraphs_of

_HOLDERS: Final = frozenset({"If", "Loop", "Scan"})
_SCAN_WITHOUT_BATCH: Final = 9
"""Before this opset, Scan runs over the samples of a batch as well."""


def expose(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy in which values of subgraphs are values of the main graph, of the same names.

    A value in a branch of an If is an empty tensor [0] where the other branch is taken. That of a Loop or Scan is
    stacked over the iterations along a new first axis; onnxruntime refuses to run one whose shape changes from
    iteration to iteration.

    Args:
        model: a normalised model (`onnxpq.graph.normalising.normalise`); not changed. Tensors are shared.
        names: values that `can_expose`; those of the main graph stay as they are.

    Returns:
        The copy; its subgraphs call the values otherwise.
    """
    copy = model.clone()
    owners = dict(_owners(copy.graph))
    homes = {value.name: (value, graph) for graph in copy.graphs() for value in _values(graph)}
    inner = [name for name in dict.fromkeys(names) if homes[name][1] is not copy.graph]
    types = _types(copy) if inner else {}
    for name in inner:
        value, graph = homes[name]
        value.name = f"{name}.inside"
        dtype = value.dtype or types.get(name, ir.DataType.FLOAT)
        while graph in owners:
            node = owners[graph]
            value = _passed_on(node, graph, value, f"{name}.of_{node.name}", dtype)
            graph = graph_of(node)
        value.name = name
    return copy


def can_expose(model: ir.Model, name: str) -> bool:
    """Whether a value lies in the main graph, or in subgraphs of If, Loop and Scan alone.

    An If in a Loop does not count: a loop stacks no values that are there in some iterations only.

    Args:
        model: a normalised model.
        name: a value that it has.
    """
    owners = dict(_owners(model.graph))
    graph = next((graph for graph in model.graphs() if any(value.name == name for value in _values(graph))), None)
    around: list[ir.Node] = []
    while graph in owners:
        around.append(owners[graph])
        graph = graph_of(around[-1])
    kinds = [node.op_type for node in around]
    in_loop = "If" in kinds and any(kind != "If" for kind in kinds[kinds.index("If") :])
    return all(is_standard(node, *_HOLDERS) for node in around) and not in_loop and not _batched_scan(model, kinds)


def state_shapes(model: ir.Model) -> None:
    """Change `model`: say the shapes that the outputs of Scan's bodies have, where they can be inferred.

    onnxruntime runs a Scan only where it knows them, and infers none through an operator of a library.

    Args:
        model: whose values have names of their own.
    """
    bodies = [body for node in model.graph.all_nodes() if is_standard(node, "Scan") for body in subgraphs_of(node)]
    silent = [value for body in bodies for value in body.outputs if value.shape is None]
    if not silent:
        return
    graph = onnx.shape_inference.infer_shapes(structure(model)).graph
    known = {info.name: info.type.tensor_type for info in _infos(graph) if info.type.tensor_type.HasField("shape")}
    for value in silent:
        if value.name in known:
            dims = known[value.name].shape.dim
            value.shape = ir.Shape([dim.dim_value if dim.HasField("dim_value") else None for dim in dims])


def hoist(graph: ir.Graph, start: ir.Value, end: ir.Value) -> None:
    """Move the nodes between two values of a subgraph to the main graph, in place; the subgraph is left without them.

    Args:
        graph: the main graph of a normalised model.
        start: where they begin; if it lies in the subgraph, an input of its name is added to the main graph.
        end: what they compute, from `start` and from initializers.
    """
    between: set[ir.Node] = set()
    pending = [end]
    while pending:
        value = pending.pop()
        node = value.producer()
        if value is not start and node is not None and node.graph is not graph and node not in between:
            between.add(node)
            pending.extend(source for source in node.inputs if source is not None)
    if any(value is start for value in (*graph.inputs, *(value for node in graph for value in node.outputs))):
        given = start
    else:
        given = ir.Value(name=start.name, type=start.type, shape=start.shape)
        graph.inputs.append(given)
    for node in [node for node in graph.all_nodes() if node in between]:
        graph_of(node).remove(node)
        graph.append(node)
        for index, source in enumerate(node.inputs):
            if source is start:
                node.replace_input_with(index, given)


def _batched_scan(model: ir.Model, kinds: Sequence[str]) -> bool:
    return "Scan" in kinds and model.opset_imports.get("", 0) < _SCAN_WITHOUT_BATCH


def _passed_on(node: ir.Node, graph: ir.Graph, value: ir.Value, name: str, dtype: ir.DataType) -> ir.Value:
    """A new output of a node: a value of one of its subgraphs, empty where another subgraph runs."""
    for number, subgraph in enumerate(subgraphs_of(node)):
        source = ir.Node("", "Identity", [value]) if subgraph is graph else _empty(dtype)
        source.name = source.outputs[0].name = f"{name}.{number}"
        source.outputs[0].type = ir.TensorType(dtype)
        subgraph.append(source)
        subgraph.outputs.append(source.outputs[0])
    if node.op_type == "Scan":
        for attribute in ("scan_output_axes", "scan_output_directions"):
            if attribute in node.attributes:
                numbers = [*node.attributes.get_ints(attribute), 0]
                node.attributes[attribute] = ir.AttrInt64s(attribute, numbers)
    # A Loop's body gives the condition as well, which the node does not; trailing outputs may have been left out.
    count = len(graph.outputs) - (node.op_type == "Loop")
    node.resize_outputs(count)
    for index, output in enumerate(node.outputs):
        output.name = output.name or f"{name}.unused_{index}"
    result = node.outputs[-1]
    result.name, result.type = name, ir.TensorType(dtype)
    return result


def _empty(dtype: ir.DataType) -> ir.Node:
    nothing = ir.Tensor(np.zeros(0, dtype.numpy()), dtype=dtype)
    return ir.Node("", "Constant", [], [ir.AttrTensor("value", nothing)])


def _types(model: ir.Model) -> dict[str, ir.DataType]:
    """Element types of values of subgraphs, as far as they can be inferred."""
    graph = onnx.shape_inference.infer_shapes(structure(model)).graph
    return {info.name: ir.DataType(info.type.tensor_type.elem_type) for info in _infos(graph)}


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                infos = (*subgraph.input, *subgraph.value_info, *subgraph.output)
                yield from (info for info in infos if info.type.tensor_type.elem_type)
                yield from _infos(subgraph)


def _owners(graph: ir.Graph) -> Iterator[tuple[ir.Graph, ir.Node]]:
    """Each subgraph with the node that holds it."""
    for node in graph:
        for subgraph in subgraphs_of(node):
            yield subgraph, node
            yield from _owners(subgraph)


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    return (*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs))
