"""Which nodes of a model are layers that can be compressed, and why the others with large constants are not."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

import onnx_ir as ir

from onnxpq.config import Config
from onnxpq.errors import ConfigError, NothingToCompressError
from onnxpq.graph import Layer, Skipped, prepare, roots, tensor_bytes, values_of
from onnxpq.rewriting.rules import matching_rule
from onnxpq.rewriting.rules.context import Context, describe
from onnxpq.rewriting.rules.unmatched import explain

_WEIGHT_INPUTS: Final = (0, 1)
"""Where a layer's node has its weight, to the right or to the left; one in both places is no layer."""

CONV1X1_REASON: Final = (
    "It is a convolution with a kernel of one point: a fully-connected layer over its channels. --conv1x1 takes it."
)

TABLE_REASON: Final = "It is a table that is looked up, as an embedding is. --tables takes it."


def find(
    model: ir.Model,
    *,
    min_weights: int = 1024,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    conv1x1: bool = False,
    tables: bool = False,
) -> tuple[list[Layer], list[Skipped]]:
    """Lists the layers that can be compressed, and every other node with a large constant, with the reason.

    Args:
        model: the model; not changed.
        min_weights: layers with fewer weights are left as they are.
        include: globs over node names; only layers that one of them matches are taken.
        exclude: globs over node names; layers that one of them matches are left as they are.
        conv1x1: take convolutions with a kernel of one point, too.
        tables: take matrices whose rows are looked up, too.

    Returns:
        The layers, and the nodes that are left as they are, both in the order of the graph and its subgraphs. They are
        those of the prepared model (`onnxpq.graph.preparing.prepare`).

    Raises:
        ConfigError: a glob matches no node that is listed; the message lists the names there are.
    """
    prepared = prepare(model)
    context = describe(prepared)
    listed: list[Layer | Skipped] = []
    nodes: list[ir.Node] = []
    for node in prepared.graph.all_nodes():
        rule = matching_rule(node, context)
        entry = explain(node, context, prepared) if rule is None else rule.check(node, context)
        if entry is not None:
            listed.append(entry)
            nodes.append(node)
    _check_globs(listed, include, exclude)
    chosen = [_choose(entry, min_weights, include, exclude) if isinstance(entry, Layer) else entry for entry in listed]
    if not conv1x1:
        chosen = [_skip(e, CONV1X1_REASON) if isinstance(e, Layer) and e.op_type == "Conv" else e for e in chosen]
    if not tables:
        chosen = [_skip(e, TABLE_REASON) if isinstance(e, Layer) and e.is_table else e for e in chosen]
    # What is left alone for one reason may be the reason to leave others alone.
    while blocked := _blocked([entry for entry in chosen if isinstance(entry, Layer)], context):
        chosen = [_skip(e, blocked[e.weight]) if isinstance(e, Layer) and e.weight in blocked else e for e in chosen]
    return [e for e in chosen if isinstance(e, Layer)], list(_counted(chosen, nodes, context))


def _counted(chosen: Sequence[Layer | Skipped], nodes: Sequence[ir.Node], context: Context) -> Iterator[Skipped]:
    """What is left alone, with the bytes of its constants, each of which is counted once."""
    seen: set[ir.Value] = set()
    for is_left in (False, True):
        for entry, node in zip(chosen, nodes, strict=True):
            if isinstance(entry, Skipped) is not is_left:
                continue
            origins = [origin for origin in map(context.origin, node.inputs) if origin is not None]
            own = {origin.value: tensor_bytes(origin.tensor) for origin in origins if origin.value not in seen}
            seen |= own.keys()
            if isinstance(entry, Skipped):
                yield replace(entry, nbytes=sum(own.values()))


def find_layers(model: ir.Model, config: Config) -> tuple[list[Layer], list[Skipped]]:
    """The layers that the settings let be compressed, and the other nodes with large constants.

    Raises:
        NothingToCompressError: there is no such layer; the message gives the reason for each node.
        ConfigError: a glob matches no node.
    """
    layers, skipped = find(
        model,
        min_weights=config.min_weights,
        include=config.include,
        exclude=config.exclude,
        conv1x1=config.conv1x1,
        tables=config.takes_tables,
    )
    if not layers:
        reasons = "".join(f"\n  {entry.node} ({entry.op_type}): {entry.reason}" for entry in skipped)
        raise NothingToCompressError(
            "The model has no fully-connected layer that can be compressed."
            + (reasons or " It has no large constants at all.")
        )
    return layers, skipped


def _choose(layer: Layer, min_weights: int, include: Sequence[str], exclude: Sequence[str]) -> Layer | Skipped:
    excluding = next((glob for glob in exclude if _matches(layer.node, glob)), None)
    if excluding is not None:
        return _skip(layer, f"Excluded by '{excluding}'.")
    if not any(_matches(layer.node, glob) for glob in include):
        return _skip(layer, f"Not included by {_quoted(include)}.")
    weights = layer.out_features * layer.in_features
    if weights < min_weights:
        return _skip(layer, f"It has fewer than {min_weights} weights (--min-weights), and would gain too little.")
    return layer


def _skip(layer: Layer, reason: str) -> Skipped:
    return Skipped(layer.node, layer.op_type, layer.weight, reason)


def _matches(name: str, glob: str) -> bool:
    # Names that exporters write hold brackets, which a glob reads as a set of characters.
    return name == glob or fnmatchcase(name, glob)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def _check_globs(listed: Sequence[Layer | Skipped], include: Sequence[str], exclude: Sequence[str]) -> None:
    names = [entry.node for entry in listed]
    for kind, globs in (("include", include), ("exclude", exclude)):
        for glob in globs:
            if glob != "*" and not any(_matches(name, glob) for name in names):
                raise ConfigError(
                    f"The '{kind}' pattern '{glob}' matches no node with a weight. Names there are: {_quoted(names)}."
                )


def _blocked(layers: Sequence[Layer], context: Context) -> dict[str, str]:
    """By weight: why it would stay in the file, so that compressing its layers would make the file larger."""
    values = {value.name: value for value in context.origins}
    weights = {layer.weight for layer in layers}
    return {name: reason for name in weights if (reason := _blocker(values[name], layers, context))}


def _blocker(weight: ir.Value, layers: Sequence[Layer], context: Context) -> str | None:
    users = [layer for layer in layers if layer.weight == weight.name]
    if len({layer.weight_is_in_out for layer in users}) > 1:
        return (
            f"The weight '{weight.name}' is used as it is and transposed by {_quoted(layer.node for layer in users)}."
        )
    compressed = {layer.node for layer in layers}
    for constant in roots(weight):
        if constant.is_graph_output():
            return f"The weight '{constant.name}' is a graph output too, and would stay in the file."
        for node, index in _uses(constant):
            label = context.labels.get(node)
            if label not in compressed or index not in _WEIGHT_INPUTS:
                name = label or node.name
                return (
                    f"The weight '{constant.name}' is used by node '{name}' ({node.op_type}) too, which is left as it "
                    "is: the weight would stay in the file."
                )
    return None


def _uses(weight: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The nodes that use a weight, and as which input; what only passes it on counts by the nodes behind it."""
    for node, index in weight.uses():
        if values_of(node.outputs[0]) is not None and not any(value.is_graph_output() for value in node.outputs):
            for output in node.outputs:
                yield from _uses(output)
        else:
            yield node, index
