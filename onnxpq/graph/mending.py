"""Models that onnxruntime runs and ONNX's tools do not take, brought into a form that both take.

onnxruntime is the judge of what is a model; everything that is done with one here goes by ONNX's rules. What is mended
is what has one meaning to onnxruntime. Each change that matters to anybody is told in a sentence.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod
from typing import Final, NamedTuple

import numpy as np
import onnx
import onnx.shape_inference
from onnx import numpy_helper

from onnxpq.errors import ModelError
from onnxpq.graph import ordering, private
from onnxpq.graph.checking import hollow
from onnxpq.graph.protos import all_nodes, graphs_of, is_default, nodes_of, version_of
from onnxpq.operators import DOMAIN, INPUTS_OF

FIRST_IR_WITH_CONSTANTS: Final = 4
"""The first IR version whose initializers need not be graph inputs."""

_USERS_DOMAIN: Final = f"{DOMAIN}.user"
_GRAPH_NAME: Final = "graph"
_NAMED: Final = 5
"""Of many names a note has so many."""

_MOST_VALUES: Final = 2**27
"""Of a sparse tensor that becomes a dense one."""


class Mended(NamedTuple):
    """What was done to a model.

    Attributes:
        notes: a sentence for each thing that makes a difference to somebody.
        changed: whether it is another model than it was.
    """

    notes: list[str]
    changed: bool


def mend(proto: onnx.ModelProto, where: str) -> Mended:
    """Changes a model so that ONNX's tools take it as onnxruntime does.

    Args:
        proto: the model; external data may be missing.
        where: names it in messages.

    Raises:
        ModelError: nodes form a cycle, there is no form that ONNX's tools take, or the model is damaged.
    """
    steps = (
        _free_initializers,
        _domains,
        _own_domain,
        _imports,
        _functions,
        _names,
        _initializers,
        _sparse,
        _training,
        _old_operators,
        _order,
        _outputs,
    )
    _check_texts(proto, where)
    try:
        found = [what for step in steps for what in step(proto)]
    # What else is damaged, the functions of ONNX and Python refuse each in its own way.
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where} is damaged: {error}. Export or copy it again.") from error
    return Mended([f"The model was mended: {what}." for what in found if what], bool(found))


def _check_texts(proto: onnx.ModelProto, where: str) -> None:
    """Names that are not UTF-8 come as bytes."""
    containers = (proto, *proto.functions)
    scopes = (*graphs_of(proto), *proto.functions)
    names = [
        *(entry.domain for container in containers for entry in container.opset_import),
        *(scope.name for scope in scopes),
        *(tensor.name for graph in graphs_of(proto) for tensor in graph.initializer),
        *(name for node in all_nodes(proto) for name in (node.name, node.op_type, node.domain)),
        *(name for node in all_nodes(proto) for name in (*node.input, *node.output)),
    ]
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise ModelError(f"{where} is damaged: the name {wrong!r} is no text. Export or copy it again.")


def _free_initializers(proto: onnx.ModelProto) -> Iterator[str]:
    """Before IR version 4 every initializer had to be an input as well: that did not make it one to be fed."""
    if not 0 < proto.ir_version < FIRST_IR_WITH_CONSTANTS:
        return
    found, proto.ir_version = proto.ir_version, FIRST_IR_WITH_CONSTANTS
    lacking = set()
    for graph in graphs_of(proto):
        names = {tensor.name for tensor in graph.initializer}
        lacking |= names - {info.name for info in graph.input}
        fed = [info for info in graph.input if info.name not in names]
        del graph.input[:]
        graph.input.extend(fed)
    if lacking:
        yield (
            f"its initializers {_quoted(sorted(lacking))} are no inputs, which IR version {found} does not know; it is "
            f"{FIRST_IR_WITH_CONSTANTS} now"
        )


def _domains(proto: onnx.ModelProto) -> Iterator[str]:
    spelt = [node for node in all_nodes(proto) if node.domain == "ai.onnx"]
    for node in spelt:
        node.domain = ""
    if not spelt:
        return
    for container in (proto, *proto.functions):
        version = version_of(container, "")
        others = [entry for entry in container.opset_import if not is_default(entry.domain)]
        del container.opset_import[:]
        container.opset_import.extend(others)
        if version is not None:
            container.opset_import.add(domain="", version=version)
    yield "nodes spell the default domain as 'ai.onnx', and it is written as '' now"


def _own_domain(proto: onnx.ModelProto) -> Iterator[str]:
    """Functions of others in the domain of onnxpq's operators, of which one has the name of such an operator."""
    sizes = {name: len(inputs) for name, inputs in INPUTS_OF.items()}
    functions = [function for function in proto.functions if function.domain == DOMAIN]
    if not any(len(f.input) != sizes[f.name] for f in functions if f.name in sizes):
        return
    names = {function.name for function in functions}
    calls = [node for node in all_nodes(proto) if node.domain == DOMAIN and node.op_type in names]
    for part in (*functions, *calls):
        part.domain = _USERS_DOMAIN
    for container in (proto, *proto.functions):
        if version_of(container, DOMAIN) is not None:
            container.opset_import.add(domain=_USERS_DOMAIN, version=version_of(container, DOMAIN))
    yield f"its functions in the domain '{DOMAIN}', which is that of onnxpq's operators, are in '{_USERS_DOMAIN}' now"


def _imports(proto: onnx.ModelProto) -> Iterator[str]:
    """A domain that is not imported is taken at its newest version, as onnxruntime takes it."""
    if not proto.opset_import:
        return
    functions = {(function.domain, function.name) for function in proto.functions}
    for container in (proto, *proto.functions):
        nodes = list(nodes_of(container.node if isinstance(container, onnx.FunctionProto) else container.graph.node))
        for domain in dict.fromkeys(node.domain for node in nodes):
            if version_of(container, domain) is not None:
                continue
            own = {node.op_type for node in nodes if node.domain == domain and (domain, node.op_type) not in functions}
            version = version_of(proto, domain) or _version(domain, own)
            container.opset_import.add(domain=domain, version=version)
            where = "" if container is proto else f" in function '{container.name}'"
            yield f"the operator set '{domain or 'ai.onnx'}' was not imported{where}; version {version} is taken"


def _version(domain: str, operators: Iterable[str]) -> int:
    """The lowest version of a domain in which operators mean what they do in the newest; 1 of others than ONNX's."""
    known = [op_type for op_type in operators if onnx.defs.has(op_type, domain)]
    return max((onnx.defs.get_schema(op_type, domain).since_version for op_type in known), default=1)


def _functions(proto: onnx.ModelProto) -> Iterator[str]:
    """Onnxruntime reads the body of a function in the operator sets of the model, whatever the function imports."""
    for function in proto.functions:
        used = list(nodes_of(function.node))
        for entry in function.opset_import:
            version = version_of(proto, entry.domain)
            if version is None or version == entry.version:
                continue
            own = {node.op_type for node in used if node.domain == entry.domain}
            others = sorted(name for name in own if _may_differ(name, entry.domain, entry.version, version))
            found, entry.version = entry.version, version
            yield (
                f"function '{function.name}' imports version {found} of '{entry.domain or 'ai.onnx'}' and the model "
                f"{version}, in which {_quoted(others)} may differ; the model's is taken, as by onnxruntime"
                if others
                else ""
            )


def _may_differ(op_type: str, domain: str, *versions: int) -> bool:
    """Whether an operator is another one in these versions of its domain; those of other domains than ONNX's may be."""
    name = "" if is_default(domain) else domain
    known = [version for version in versions if onnx.defs.has(op_type, version, name)]
    since = {onnx.defs.get_schema(op_type, version, name).since_version for version in known}
    return len(known) < len(versions) or len(since) > 1


def _names(proto: onnx.ModelProto) -> Iterator[str]:
    nameless = [graph for graph in graphs_of(proto) if not graph.name]
    for graph in nameless:
        graph.name = _GRAPH_NAME
    if nameless:
        yield f"a graph without a name is called '{_GRAPH_NAME}' now"
    shared: dict[str, None] = {}
    for scope in (*graphs_of(proto), *proto.functions):
        counts = Counter(node.name for node in scope.node if node.name)
        for node in scope.node:
            if counts[node.name] > 1:
                shared[node.name] = None
                node.name = ""
    if shared:
        yield f"several nodes had the name {_quoted(shared)}; they have none now"


def _initializers(proto: onnx.ModelProto) -> Iterator[str]:
    """Of initializers of one name but of different values onnxruntime 1.32 takes the first or the last, by size."""
    for graph in graphs_of(proto):
        last = {tensor.name: number for number, tensor in enumerate(graph.initializer)}
        if len(last) == len(graph.initializer):
            continue
        kept = [tensor for number, tensor in enumerate(graph.initializer) if last[tensor.name] == number]
        others = [tensor for number, tensor in enumerate(graph.initializer) if last[tensor.name] != number]
        values = {tensor.name: _content(tensor) for tensor in kept}
        for tensor in others:
            if _content(tensor) != values[tensor.name]:
                raise ModelError(
                    f"The graph '{graph.name}' has two initializers '{tensor.name}' of different values: which of "
                    "them counts is open. Remove one."
                )
        del graph.initializer[:]
        graph.initializer.extend(kept)
        yield f"the initializers {_quoted(sorted({tensor.name for tensor in others}))} were there twice"


def _content(tensor: onnx.TensorProto) -> bytes:
    """What a tensor is, without what is said of it."""
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.ClearField("doc_string")
    del copy.metadata_props[:]
    return bytes(copy.SerializeToString(deterministic=True))


def _sparse(proto: onnx.ModelProto) -> Iterator[str]:
    names = []
    for graph in graphs_of(proto):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, sparse.values.name))
            names.append(sparse.values.name)
        del graph.sparse_initializer[:]
    for node in all_nodes(proto):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
                dense = _dense(attribute.sparse_tensor, node.output[0])
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
                names.append(node.output[0])
    if names:
        yield f"the sparse tensors {_quoted(names)} are dense now"


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """A sparse tensor with its zeros.

    Raises:
        ModelError: its parts do not fit each other, or are not in the file.
    """
    count = prod(sparse.dims)
    if count > _MOST_VALUES:
        raise ModelError(
            f"The sparse tensor '{name}' has {count} values with its zeros; onnxpq makes up to {_MOST_VALUES} of them "
            "dense. Export the model again, with dense weights."
        )
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), tuple(sparse.dims))
        dense = np.zeros(count, values.dtype)
        dense[flat] = values
        return numpy_helper.from_array(dense.reshape(tuple(sparse.dims)), name)
    # numpy's, and onnx's for values in external data, of which neither names the tensor.
    except Exception as error:
        raise ModelError(
            f"The sparse tensor '{name}' cannot be read: {error}. Export the model again, with dense weights."
        ) from error


def _training(proto: onnx.ModelProto) -> Iterator[str]:
    if proto.training_info:
        del proto.training_info[:]
        yield "its training information, which is of no use to a runtime, is left out"


def _old_operators(proto: onnx.ModelProto) -> Iterator[str]:
    """MeanVarianceNormalization had other attributes before opset 9, which ONNX has forgotten."""
    nodes = [node for node in private.private_nodes(proto) if node.op_type == "MeanVarianceNormalization"]
    for node in nodes:
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        if not settings.get("normalize_variance", 1):
            raise ModelError(
                f"Node '{node.name or node.output[0]}' (MeanVarianceNormalization) has normalize_variance = 0, which "
                "no operator set since 9 has, and onnxpq needs 9 or newer. Write it as ReduceMean and Sub."
            )
        axes = [0, 1, 2, 3] if settings.get("across_channels", 0) else [0, 2, 3]
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("axes", axes))
    if nodes:
        yield "MeanVarianceNormalization is spelt as in opset 9"


def _order(proto: onnx.ModelProto) -> Iterator[str]:
    names = ordering.sort(proto)
    if names:
        yield f"the nodes of {_quoted(names)} were not in topological order, and are sorted now"


def _outputs(proto: onnx.ModelProto) -> Iterator[str]:
    """Types and shapes of outputs that have none, as far as ONNX infers them."""
    bare = [info for info in proto.graph.output if not _is_shaped(info)]
    if not bare:
        return
    seen = hollow(proto)
    private.set_aside(seen)
    for info in seen.graph.output:
        if not _is_shaped(info):
            info.ClearField("type")
    try:
        inferred = {info.name: info for info in onnx.shape_inference.infer_shapes(seen).graph.output}
    # Whatever is wrong with the model, the checker says it better.
    except Exception:
        return
    for info in bare:
        if inferred[info.name].HasField("type"):
            info.type.CopyFrom(inferred[info.name].type)
            yield f"output '{info.name}' had no type or no shape; it was inferred"


def _is_shaped(info: onnx.ValueInfoProto) -> bool:
    kind = info.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or info.type.tensor_type.HasField("shape"))


def _quoted(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return ", ".join(f"'{name}'" for name in known[:_NAMED]) + more
