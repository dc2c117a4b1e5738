"""The user's model in the form in which it is interpreted and trained: every weight by name in the main graph."""

import onnx_ir as ir
from onnx_ir.passes import common

from onnxpq.graph.constants import FLOATS, element_type, rearranges, swaps_last_axes, values_of
from onnxpq.graph.inlining import inline
from onnxpq.graph.preparing import prepare
from onnxpq.graph.walking import graph_of


def normalise(model: ir.Model) -> ir.Model:
    """A copy of the model in which every weight is an initializer of the main graph and nothing is hidden.

    Local functions are inlined, Constant nodes become initializers, initializers of subgraphs move to the main graph,
    initializers leave the graph's inputs, users of an Identity of an initializer use the initializer. What is cut out
    of initializers (`onnxpq.graph.constants.rearranges`) becomes one of its own; users of a matrix and of its
    transpose go on sharing it. Nodes and values of a prepared model (`onnxpq.graph.preparing.prepare`) keep their
    names. Tensors are shared with the original.

    Args:
        model: any valid model.

    Raises:
        ModelError: if nodes are not in topological order, or a function imports another opset than the model.
    """
    copy = prepare(model)
    inline(copy)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    common.LiftSubgraphInitializersToMainGraphPass()(copy)
    common.RemoveInitializersFromInputsPass()(copy)
    _see_through_identity(copy.graph)
    _cut_out(copy)
    return copy


def _see_through_identity(graph: ir.Graph) -> None:
    for node in list(graph.all_nodes()):
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx"):
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is not None and source.is_initializer() and not result.is_graph_output():
            result.replace_all_uses_with(source)
            graph_of(node).remove(node, safe=True)


def _cut_out(model: ir.Model) -> None:
    """Computes what rearranges initializers, as nodes that pass whole matrices on do not."""
    for node in list(model.graph.all_nodes()):
        is_output = any(value.is_graph_output() for value in node.outputs)
        if is_output or not rearranges(node) or swaps_last_axes(node) is not None:
            continue
        results = {value: (values_of(value), element_type(value)) for value in node.outputs}
        for value, (array, dtype) in results.items():
            if array is None or dtype is None or dtype not in FLOATS:
                break
            tensor = ir.Tensor(array, dtype=dtype, name=value.name)
            shape = ir.Shape(array.shape)
            result = ir.Value(name=value.name, type=ir.TensorType(dtype), shape=shape, const_value=tensor)
            model.graph.register_initializer(result)
            value.replace_all_uses_with(result)
        else:
            sources = [value for value in node.inputs if value is not None and value.is_initializer()]
            graph_of(node).remove(node, safe=True)
            for source in sources:
                if not (source.uses() or source.is_graph_output()):
                    model.graph.initializers.pop(source.name or "", None)
