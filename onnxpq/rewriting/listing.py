"""Which nodes of a model are layers that can be compressed, and why the others with large constants are not."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

import onnx_ir as ir

from onnxpq.config import SUB_VECTOR, Config
from onnxpq.errors import ConfigError, NothingToCompressError
from onnxpq.graph import Layer, Skipped, prepare, roots, tensor_bytes, values_of
from onnxpq.operators import MAX_NIBBLE_CODEWORDS
from onnxpq.pq import packed_bytes
from onnxpq.rewriting.rules import candidates
from onnxpq.rewriting.rules.context import Context, describe
from onnxpq.rewriting.rules.unmatched import explain
from onnxpq.support.kinds import CONVOLUTION, FULLY_CONNECTED, OTHER, RECURRENT, TABLE

_WEIGHT_INPUTS: Final = (0, 1)
"""Where a layer's node has its weight, to the right or to the left; one in both places is no layer."""

LEAST_GAIN: Final = 0.4
"""Codes of a layer take at most this share of its bytes: one row of 1041 weights would take half of them."""

_IN_FRONT: Final = (RECURRENT, OTHER)
"""Kinds of weights that are decoded in front of their node, whichever of its inputs they are."""

CONV1X1_REASON: Final = (
    "It is a convolution with a kernel of one point: a fully-connected layer over its channels. --conv1x1 takes it."
)

NAMES: Final = {
    FULLY_CONNECTED: "a fully-connected layer",
    CONVOLUTION: "a convolution",
    RECURRENT: "a recurrent layer",
    OTHER: "an operator of another kind",
}

NOT_WANTED: Final = "It is {name}. --only {kind} takes it."

TABLE_REASON: Final = "It is a table that is looked up, as an embedding is. --tables takes it."


def find(
    model: ir.Model,
    *,
    min_weights: int = 1024,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    conv1x1: bool = False,
    tables: bool = False,
    kinds: Collection[str] = (FULLY_CONNECTED,),
) -> tuple[list[Layer], list[Skipped]]:
    """Lists the layers that can be compressed, and every other node with a large constant, with the reason.

    Args:
        model: the model; not changed.
        min_weights: layers with fewer weights are left as they are, and those whose rows are too few to gain; 0 takes
            all.
        include: globs over node names; only layers that one of them matches are taken.
        exclude: globs over node names; layers that one of them matches are left as they are.
        conv1x1: take convolutions with a kernel of one point as layers over their channels, too.
        tables: take matrices whose rows are looked up, too.
        kinds: of weights that are taken besides (`onnxpq.support.kinds`).

    Returns:
        The layers, and the nodes that are left as they are, both in the order of the graph and its subgraphs. They are
        those of the prepared model (`onnxpq.graph.preparing.prepare`).

    Raises:
        ConfigError: a glob matches no node that is listed; the message lists the names there are.
    """
    prepared = prepare(model)
    context = describe(prepared)
    wanted = _Wanted(frozenset(kinds), conv1x1, tables)
    listed: list[Layer | Skipped] = []
    nodes: list[ir.Node] = []
    for node in prepared.graph.all_nodes():
        for entry in _entries(node, context, prepared, wanted):
            listed.append(entry)
            nodes.append(node)
    _check_globs(listed, include, exclude)
    chosen = [_choose(entry, min_weights, include, exclude) if isinstance(entry, Layer) else entry for entry in listed]
    # What is left alone for one reason may be the reason to leave others alone.
    while blocked := _blocked([entry for entry in chosen if isinstance(entry, Layer)], context):
        chosen = [_skip(e, blocked[e.weight]) if isinstance(e, Layer) and e.weight in blocked else e for e in chosen]
    return [e for e in chosen if isinstance(e, Layer)], list(_counted(chosen, nodes, context))


@dataclass(frozen=True)
class _Wanted:
    """What is to be compressed."""

    kinds: frozenset[str]
    conv1x1: bool
    tables: bool

    def takes(self, layer: Layer) -> bool:
        if layer.kind == FULLY_CONNECTED and layer.op_type == "Conv":
            return self.conv1x1
        return layer.kind in self.kinds or (layer.kind == TABLE and self.tables)


def _entries(node: ir.Node, context: Context, model: ir.Model, wanted: _Wanted) -> Iterator[Layer | Skipped]:
    """What is compressed at a node: by one rule, or constants in front of it; or why it is left alone, if it is."""
    by_rule: list[Layer | Skipped] = []
    in_front: list[Layer | Skipped] = []
    for rule, entry in candidates(node, context):
        (in_front if rule is None else by_rule).append(entry)
    taken = [entry for entry in by_rule if isinstance(entry, Layer) and wanted.takes(entry)][:1]
    taken = taken or [entry for entry in in_front if isinstance(entry, Layer) and wanted.takes(entry)]
    if taken:
        yield from taken
        return
    reasons = [entry if isinstance(entry, Skipped) else _skip(entry, _not_wanted(entry)) for entry in by_rule[:1]]
    reason = reasons[0] if reasons else explain(node, context, model)
    could_be = next((entry for entry in in_front if isinstance(entry, Layer)), None)
    if reason is not None:
        yield reason if reasons or could_be is None else _skip(could_be, _not_wanted(could_be))


def _not_wanted(layer: Layer) -> str:
    if layer.op_type == "Conv" and layer.kind == FULLY_CONNECTED:
        return CONV1X1_REASON
    if layer.kind == TABLE:
        return TABLE_REASON
    return NOT_WANTED.format(kind=layer.kind, name=NAMES[layer.kind])


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


def find_by(model: ir.Model, config: Config) -> tuple[list[Layer], list[Skipped]]:
    """What `find` lists with the settings.

    Raises:
        ConfigError: a glob matches no node.
    """
    return find(
        model,
        min_weights=config.min_weights,
        include=config.include,
        exclude=config.exclude,
        conv1x1=config.conv1x1,
        tables=config.takes_tables,
        kinds=config.kinds,
    )


def find_layers(model: ir.Model, config: Config) -> tuple[list[Layer], list[Skipped]]:
    """The layers that the settings let be compressed, and the other nodes with large constants.

    Raises:
        NothingToCompressError: there is no such layer; the message gives the reason for each node.
        ConfigError: a glob matches no node.
    """
    layers, skipped = find_by(model, config)
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
    sub_vectors = -(-layer.in_features // SUB_VECTOR)
    codes = packed_bytes(layer.out_features, 1, sub_vectors, MAX_NIBBLE_CODEWORDS)
    if min_weights > 0 and codes > LEAST_GAIN * layer.weight_bytes:
        return _skip(layer, f"Its {layer.out_features} rows do not fill a block of codes: it would gain too little.")
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
    in_front = {layer.node for layer in users if layer.kind in _IN_FRONT or layer.op_type == "ConvTranspose"}
    for constant in roots(weight):
        if constant.is_graph_output():
            return f"The weight '{constant.name}' is a graph output too, and would stay in the file."
        for node, index in _uses(constant):
            label = context.labels.get(node)
            if label not in in_front and (label not in compressed or index not in _WEIGHT_INPUTS):
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
