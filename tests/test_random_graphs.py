"""Random well-formed graphs of a dozen operators: imported, compressed and run, each step against onnxruntime."""

from dataclasses import dataclass, field

import numpy as np
import onnx
from form_checks import quantized, reference, worst_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxpq import rewriting, runtime
from onnxpq.config.settings import Config, PQConfig
from onnxpq.graph import files, preparing
from onnxpq.graph.normalising import normalise
from onnxpq.network import importing

FORWARD_BUDGET = 1e-4
"""Relative L2 difference between torch and onnxruntime."""

STOCK_BUDGET = 1e-4
"""Between the function body and the decoded weights: only the order of float32 sums differs."""

HALF_BUDGET = 5e-3
"""The same where a weight is stored as float16, which the decoded weights then are rounded to."""

LIBRARY_BUDGET = 2e-2
"""Between the operator library and stock operators: tables of 2e-3 a layer, a dozen layers, sums that may cancel."""

WIDTHS = (8, 12, 16)


@dataclass
class Builder:
    """A graph that grows; every value is [N, width]."""

    draw: st.DrawFn
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    count: int = 0

    def new(self, width: int) -> str:
        self.count += 1
        name = f"v{self.count}"
        self.widths[name] = width
        return name

    def any_value(self) -> str:
        return self.draw(st.sampled_from(sorted(self.widths)))

    def tensor(self, *shape: int) -> str:
        name = f"t{len(self.tensors)}"
        rng = np.random.default_rng(self.draw(st.integers(0, 10**6)))
        self.tensors[name] = (rng.standard_normal(shape) / np.sqrt(max(shape[:1] or (1,)))).astype(np.float32)
        return name

    def integers(self, *numbers: int) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = np.array(numbers, np.int64)
        return name

    def matrix(self, rows: int, columns: int) -> str:
        """A constant matrix: new or used before, an initializer or behind what rearranges one."""
        floats = {name: array for name, array in self.tensors.items() if array.dtype == np.float32}
        same = [name for name, array in floats.items() if array.shape == (rows, columns)]
        kind = self.draw(st.sampled_from(["new", "old", "transposed", "reshaped", "sliced", "cast"]))
        if kind == "old" and same:
            return self.draw(st.sampled_from(same))
        result = f"w{self.count}_{len(self.tensors)}"
        if kind == "transposed":
            node = helper.make_node("Transpose", [self.tensor(columns, rows)], [result], perm=[1, 0])
        elif kind == "reshaped":
            inputs = [self.tensor(2, rows // 2, columns), self.integers(rows, columns)]
            node = helper.make_node("Reshape", inputs, [result])
        elif kind == "sliced":
            inputs = [self.tensor(rows + 4, columns), self.integers(1), self.integers(rows + 1), self.integers(0)]
            node = helper.make_node("Slice", inputs, [result])
        elif kind == "cast":
            name = self.tensor(rows, columns)
            self.tensors[name] = self.tensors[name].astype(np.float16)
            node = helper.make_node("Cast", [name], [result], to=TensorProto.FLOAT)
        else:
            return self.tensor(rows, columns)
        self.nodes.append(node)
        return result

    def add(self, op_type: str, inputs: list[str], width: int, **attributes: object) -> str:
        result = self.new(width)
        self.nodes.append(helper.make_node(op_type, inputs, [result], name=f"n{self.count}", **attributes))
        return result


def layer(b: Builder, x: str) -> str:
    width, out = b.widths[x], b.draw(st.sampled_from(WIDTHS))
    kind = b.draw(st.sampled_from(["MatMul", "MatMul + Add", "Gemm", "Gemm transB", "left", "function"]))
    if kind == "MatMul":
        return b.add("MatMul", [x, b.matrix(width, out)], out)
    if kind == "MatMul + Add":
        product = b.add("MatMul", [x, b.matrix(width, out)], out)
        shape = b.draw(st.sampled_from([(), (out,), (1, out)]))
        return b.add("Add", b.draw(st.permutations([product, b.tensor(*shape)])), out)
    if kind == "Gemm":
        return b.add("Gemm", [x, b.matrix(width, out), b.tensor(out)], out, alpha=b.draw(st.sampled_from([1.0, -0.5])))
    if kind == "Gemm transB":
        return b.add("Gemm", [x, b.matrix(out, width)], out, transB=1)
    if kind == "left":
        columns = b.add("Transpose", [x], width, perm=[1, 0])
        product = b.add("MatMul", [b.matrix(out, width), columns], out)
        del b.widths[columns], b.widths[product]
        return b.add("Transpose", [product], out, perm=[1, 0])
    if not b.functions:
        body = [helper.make_node("MatMul", ["x", "w"], ["p"], name="fc"), helper.make_node("Tanh", ["p"], ["y"])]
        b.functions.append(helper.make_function("f", "Dense", ["x", "w"], ["y"], body, [helper.make_opsetid("", 17)]))
    return b.add("Dense", [x, b.matrix(width, out)], out, domain="f")


def branch(b: Builder, x: str) -> str:
    """An If by a constant or by the data, with a layer in each branch, of a weight inside or outside."""
    width, out = b.widths[x], b.draw(st.sampled_from(WIDTHS))
    graphs = []
    for name in ("p", "q"):
        weight = b.matrix(width, out)
        inner = []
        if weight in b.tensors and b.tensors[weight].dtype == np.float32 and b.draw(st.booleans()):
            inner = [numpy_helper.from_array(b.tensors[weight] + 0.5, "own")]
        nodes = [helper.make_node("MatMul", [x, "own" if inner else weight], [name], name="inner")]
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", out])
        graphs.append(helper.make_graph(nodes, name, [], [info], inner))
    total = b.add("ReduceSum", [x], 0, keepdims=0)
    condition = b.add("Greater", [total, b.tensor()], 0)
    del b.widths[total], b.widths[condition]
    return b.add("If", [condition], out, then_branch=graphs[0], else_branch=graphs[1])


def elementwise(b: Builder, x: str) -> str:
    return b.add(b.draw(st.sampled_from(["Relu", "Tanh", "Sigmoid", "Neg", "Softmax"])), [x], b.widths[x])


def joined(b: Builder, x: str) -> str:
    other = b.any_value()
    if b.widths[other] == b.widths[x] and b.draw(st.booleans()):
        return b.add(b.draw(st.sampled_from(["Add", "Mul"])), [x, other], b.widths[x])
    sizes = b.widths[x] + b.widths[other]
    both = b.add("Concat", [x, other], sizes, axis=1)
    del b.widths[both]
    width = b.draw(st.sampled_from(WIDTHS[:2]))
    return b.add("MatMul", [both, b.matrix(sizes, width)], width)


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    b = Builder(draw, widths={"x": 12})
    last = layer(b, "x")
    for _ in range(draw(st.integers(0, 8))):
        last = draw(st.sampled_from([layer, layer, elementwise, joined, branch]))(b, b.any_value())
    b.nodes.append(helper.make_node("Identity", [last], ["y"]))
    graph = helper.make_graph(
        b.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", b.widths[last]])],
        [numpy_helper.from_array(array, name) for name, array in b.tensors.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=b.functions, ir_version=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(proto=models(), rows=st.integers(1, 5))
def test_random_graphs(proto, rows):
    model = preparing.prepare(files.load(proto))
    inputs = {"x": np.random.default_rng(rows).standard_normal((rows, 12)).astype(np.float32)}
    normal = normalise(model)
    checked = importing.check_forward(importing.import_model(normal), normal, inputs)
    assert checked.max_rel <= FORWARD_BUDGET
    layers, skipped = rewriting.find(model, min_weights=1)
    assert not {entry.node for entry in skipped} & {entry.node for entry in layers}
    if not layers:
        return
    config = Config(pq=PQConfig(sub_vector=4, codewords=8))
    tensors = {layer.weight: quantized(normal, layer, config) for layer in layers}
    rewritten = rewriting.rewrite(model, layers, tensors)
    found = {node.name.split(".")[0] for node in rewritten.graph.all_nodes() if node.op_type == "PQMatMul"}
    assert found == {layer.node for layer in layers}
    expected = runtime.run(runtime.session(reference(normal, layers, tensors), use_library=False), inputs)
    stock = runtime.run(runtime.session(rewritten, use_library=False), inputs)
    is_half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in proto.graph.initializer)
    assert_close(stock, expected, HALF_BUDGET if is_half else STOCK_BUDGET)
    if runtime.library_available():
        assert_close(runtime.run(runtime.session(rewritten), inputs), stock, LIBRARY_BUDGET)


def assert_close(found, expected, budget):
    """By the relative L2 difference, or that of the largest element where sums cancelled."""
    assert worst_error(found, expected) <= budget or np.abs(found["y"] - expected["y"]).max() <= budget
