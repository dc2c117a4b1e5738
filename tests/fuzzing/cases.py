"""A random model, data for it and settings, all from one seed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from fuzzing import control, layers, shapes
from fuzzing.graphs import Builder, Dim, Value, cast, unsqueeze
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Arrays = dict[str, NDArray[Any]]

OPSETS = (11, 13, 14, 17, 17, 18, 19, 21, 22)
IR_VERSIONS = {11: 6, 13: 7, 14: 8, 17: 8, 18: 8, 19: 9, 21: 10, 22: 10}
LEAST_WEIGHTS = 7000
"""With fewer the function body takes more bytes than the codes save."""

BLOCKS: tuple[tuple[int, Callable[[Builder, Value], Value | None]], ...] = (
    (14, layers.dense),
    (5, layers.convolution),
    (2, layers.transposed_convolution),
    (4, layers.recurrent),
    (3, layers.attention),
    (2, layers.lookup),
    (2, layers.tied),
    (2, layers.merged_steps),
    (1, layers.with_image),
    (1, layers.ensemble),
    (1, layers.integer_layer),
    (2, control.branch),
    (1, control.loop),
    (2, control.scan),
    (10, shapes.elementwise),
    (3, shapes.normalization),
    (2, shapes.pooling),
    (2, shapes.reduction),
    (4, shapes.rearranged),
    (2, shapes.squeezed),
    (2, shapes.part),
    (1, shapes.chosen),
    (1, shapes.retyped),
    (1, shapes.rounded),
    (1, shapes.expanded),
)
ALL_BLOCKS = [block for share, block in BLOCKS for _ in range(share)]

MODES = ["plain"] * 9 + ["test"] * 9 + ["data"] * 10 + ["ratio", "plain ratio"]


@dataclass(frozen=True)
class Case:
    """What one run is given.

    Attributes:
        seed: repeats it.
        mode: "plain" without samples, "test" with some to verify on, "data" with some to train on; "ratio" and "plain
            ratio" have a target of bytes.
        model: the original.
        outputs: of the model, as they grew.
        settings: of `onnxpq.Config`, as plain values.
        data: samples to train on, or None.
        test: samples to verify on, or None.
        labels: key of the labels in both, or None.
        batch: the samples that the model takes at a time; None for any.
        source: how the model is passed: "proto", "bytes", "file", "external" or "ir".
    """

    seed: int
    mode: str
    model: onnx.ModelProto
    outputs: tuple[Value, ...]
    settings: dict[str, Any]
    data: Arrays | None
    test: Arrays | None
    labels: str | None
    batch: int | None
    source: str


def draw(seed: int) -> Case:
    """The case of a seed."""
    rng = np.random.default_rng([25, 8, seed])
    opset = OPSETS[int(rng.integers(len(OPSETS)))]
    b = Builder(rng, opset)
    b.prefix = b.pick(["v", "v", "/block.0/out_", "dense:", "été "])
    batch = None if b.chance(0.85) else b.pick([1, 1, 2, 4])
    mode = b.pick(MODES)
    inputs = _inputs(b, "H" if "plain" not in mode or b.chance(0.05) else 8)
    sizes: dict[str, int] = {} if batch is None else {"N": batch}
    outputs = _grown(b, inputs)
    model = _model(b, inputs, outputs, sizes)
    size = {"T": b.pick([1, 3, 5]), "H": b.pick([6, 8, 9])}
    settings = _settings(b, mode)
    needed = batch or 1
    test = None if mode in ("plain", "plain ratio") else _samples(b, inputs, size, needed * b.pick([2, 4, 6]))
    data = _samples(b, inputs, size, needed * b.pick([8, 12])) if mode in ("data", "ratio") else None
    labels = None
    if data is not None and test is not None:
        labels = _labels(b, outputs, settings, data, test)
        if b.chance(0.2) and batch is None:
            test = None
    return Case(
        seed,
        mode,
        model,
        outputs,
        settings,
        data,
        test,
        labels,
        batch,
        b.pick(["proto", "bytes", "file", "external", "ir"]),
    )


def _inputs(b: Builder, open_side: Dim) -> list[Value]:
    """The main input, and now and then another one like it."""
    x = _input(b, open_side)
    inputs = [x]
    if x.is_float and b.chance(0.2):
        inputs.append(Value(b.fresh("x"), x.shape, b.pick([x.dtype, "bool", "float32"])))
    return inputs


def _input(b: Builder, open_side: Dim) -> Value:
    name = b.pick(["x", "input.1", "serving_default_x:0"])
    steps: Dim = b.pick(["T", 2, 4, 6, 1])
    side: Dim = b.pick([open_side, 6, 8])
    width, channels = b.pick([16, 24, 32, 48, 64]), b.pick([1, 3, 4, 8])
    shape, dtype = b.pick(
        [
            (("N", width), "float32"),
            (("N", width), "float32"),
            (("N", width), "float32"),
            (("N", steps, width), "float32"),
            (("N", steps, width), "float32"),
            (("N", channels, 16), "float32"),
            (("N", channels, side, side), "float32"),
            (("N", channels, 8, 6), "float32"),
            (("N", channels, 4, 4, 4), "float32"),
            (("N", steps), "int64"),
            (("N", steps), "int32"),
            (("N",), "int64"),
            (("N", 3, 6, 6), "uint8"),
            (("N", width), "float16"),
            (("N", width), "float64"),
            (("N", 2, 3, width), "float32"),
            (("N",), "float32"),
        ]
    )
    return Value(name, shape, dtype)


def _as_floats(b: Builder, v: Value) -> Value:
    if v.dtype in ("int64", "int32"):
        found = layers.lookup(b, v)
        assert found is not None
        return found
    if v.dtype == "uint8":
        floats = cast(b, v, "float32")
        return b.node("Mul", [floats, b.constant(1 / 255, "float32")], v.shape)
    if v.rank == 1:
        return unsqueeze(b, v, 1)
    return cast(b, v, "float32") if v.dtype == "bool" else v


def _grown(b: Builder, inputs: Sequence[Value]) -> tuple[Value, ...]:
    """Blocks upon blocks; what the model gives is of the last ones."""
    pool = [_as_floats(b, v) for v in inputs]
    if b.chance(0.1) and (found := layers.from_units(b, inputs[0])) is not None:
        pool = [found]
    wanted = int(b.rng.integers(2, 11))
    tries = 0
    while (wanted > 0 and tries < 60) or (b.weights < LEAST_WEIGHTS and tries < 90):
        tries += 1
        v = pool[-1] if b.chance(0.65) else b.pick(pool)
        found = _wide(b, pool) if wanted <= 0 else _block(b, v, pool)
        if found is not None:
            wanted -= 1
            pool.append(found)
    used = {name for node in b.nodes for name in node.input}
    left = [v for v in pool if v.name not in used]
    outputs = shapes.output(b, pool[-1])
    for _ in range(b.pick([0, 0, 0, 1, 1, 2])):
        outputs += shapes.output(b, b.pick(left if b.chance(0.7) else pool))
    unique = list({v.name: v for v in outputs}.values())
    given = {v.name for v in inputs}
    return tuple(_named(b, v) if v.name in given else v for v in unique)


def _named(b: Builder, v: Value) -> Value:
    found: Value = b.node("Identity", [v], v.shape)
    return found


def _block(b: Builder, v: Value, pool: Sequence[Value]) -> Value | None:
    nodes, tensors = len(b.nodes), set(b.tensors)
    found = shapes.joined(b, v, b.pick(pool)) if b.chance(0.1) else b.pick(ALL_BLOCKS)(b, v)
    if found is None:
        del b.nodes[nodes:]
        for name in set(b.tensors) - tensors:
            del b.tensors[name]
        b.exposed = [name for name in b.exposed if name in b.tensors]
    return found


def _wide(b: Builder, pool: Sequence[Value]) -> Value | None:
    """A large layer, so that something can be gained."""
    able = [v for v in pool if v.is_float and v.rank > 1 and isinstance(v.last, int) and v.last > 0]
    if not able:
        return None
    v = able[-1] if b.chance(0.7) else b.pick(able)
    found = layers.dense(b, v, b.pick(layers.WIDE))
    return None if found is None else b.node("Tanh", [found], found.shape)


def _model(b: Builder, inputs: Sequence[Value], outputs: Sequence[Value], sizes: dict[str, int]) -> onnx.ModelProto:
    names = [v.name for v in outputs]
    nodes = b.nodes if b.chance(0.1) else _needed(b.nodes, names)
    used = {name for node in nodes for name in _read(node)} | set(names)
    tensors = {name: array for name, array in b.tensors.items() if name in used}
    exposed = [Value(name, tensors[name].shape, str(tensors[name].dtype)) for name in b.exposed if name in tensors]
    graph = helper.make_graph(
        nodes,
        "random",
        [control.info(v.name, v.dtype, v.shape, sizes) for v in (*inputs, *exposed)],
        [control.info(v.name, v.dtype, v.shape, sizes) for v in outputs],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", b.opset), *(helper.make_opsetid(d, 1) for d in ("com.microsoft", "local"))]
    version = IR_VERSIONS[b.opset]
    model = helper.make_model(
        graph,
        opset_imports=imports,
        functions=list(b.functions.values()),
        ir_version=max(8, version) if b.functions else version,
    )
    return onnx.shape_inference.infer_shapes(model) if b.chance(0.3) else model


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those of its subgraphs among them."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _read(inner)
        yield from (value.name for value in attribute.g.output)


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(_read(node))
            kept.append(node)
    return kept[::-1]


def _samples(b: Builder, inputs: Sequence[Value], size: dict[str, int], count: int) -> Arrays:
    """Samples of all inputs."""
    found: Arrays = {}
    for v in inputs:
        shape = (count, *(size[dim] if isinstance(dim, str) else dim for dim in v.shape[1:]))
        if v.is_float:
            found[v.name] = (b.rng.standard_normal(shape) * b.units.get(v.name, 1)).astype(v.dtype)
        else:
            most = {"bool": 2, "uint8": 256}.get(v.dtype, 100)
            found[v.name] = b.rng.integers(0, most, shape).astype(v.dtype)
    return found


def _labels(b: Builder, outputs: Sequence[Value], settings: dict[str, Any], data: Arrays, test: Arrays) -> str | None:
    """Labels of an output of scores, now and then; the output is named then."""
    able = [v for v in outputs if v.is_float and v.rank == 2 and v.shape[0] == "N" and isinstance(v.last, int)]
    if not able or b.chance(0.6):
        return None
    v = b.pick(able)
    classes = int(v.last)
    is_class = classes > 1 and b.chance(0.7)
    for samples in (data, test):
        count = len(next(iter(samples.values())))
        labels = b.rng.integers(0, classes, count) if is_class else b.rng.standard_normal((count, classes))
        samples["labels"] = labels if is_class else labels.astype(np.float32)
    settings["output"] = v.name
    return "labels"


def _settings(b: Builder, mode: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "min_weights": b.pick([1, 1, 1, 256, 1024]),
        "conv1x1": b.chance(0.4),
        "tables": b.pick([None, True, True, False]),
        "floor": b.pick([None, None, 1.0, 0.01]),
        "seed": int(b.rng.integers(100)),
        "pq": {"fast": b.chance(0.1), "reorder": b.chance(0.1)},
        "training": _training(b),
    }
    if "ratio" in mode:
        target = b.pick([{"ratio": 2.0}, {"ratio": 3.0}, {"fc_ratio": 6.0}, {"size": 16_000}])
        found["target"] = {**target, "max_codewords": 16}
    else:
        codewords = 16 if found["pq"]["fast"] else b.pick([16, 16, 16, 4, 11, 32, 256])
        sub_vector = b.pick([None, None, 1, 2, 3, 4, 8, 16] if codewords < 256 else [1, 1, 2])
        codebooks = b.pick(["auto"] * 6 + ["layer", "layer", "position", "position", 2])
        found["pq"] |= {"codewords": codewords, "sub_vector": sub_vector, "codebooks": codebooks}
    return found


def _training(b: Builder) -> dict[str, Any]:
    """Few steps."""
    if b.chance(0.25):
        return {"epochs": 0}
    return {
        "steps": int(b.rng.integers(1, 4)),
        "batch_size": b.pick([4, 8]),
        "regularizer": b.pick(["codebook", "codebook", "none", "l1", "murray-ng"]),
        "mixup": b.pick([0.0, 1.0]),
        "features": b.pick([0.0, 0.0, 1.0]),
    }
