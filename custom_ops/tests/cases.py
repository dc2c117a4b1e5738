"""Models with the outputs that they must give, as files: for places where onnxpq itself is not installed.

    python custom_ops/tests/cases.py FOLDER       # then, anywhere: python custom_ops/tests/run_cases.py FOLDER

A case is a model of one input and an .npz file with, for each batch i: `X_i`, what goes in; `exact_i`, what it means;
`bits_i`, what the operator library gives on this machine, which every other one must give bit for bit (it is left out
where no operator of the library computes anything); two budgets of relative error; and `ends`, the operators that
onnxruntime may make of the function body, as it folds all that depends on constants. Or it has only `refusal`, the
sentence with which the library must refuse the model.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT)]

from pq_layers import IR_VERSION, PQLayer, lookup_model_of, model_of, normal_rows, random_layer  # noqa: E402 -- its folder is no package

import onnxpq  # noqa: E402 -- from the checkout where it is not installed
from onnxpq import rewriting  # noqa: E402
from onnxpq.graph import files  # noqa: E402
from onnxpq.operators.schema import ATTR_FAST, INTEGER_OP_TYPE, MAX_NIBBLE_CODEWORDS, OP_TYPE  # noqa: E402
from onnxpq.pq import PQTensor  # noqa: E402
from onnxpq.pq.reference import decode, pq_matmul  # noqa: E402
from onnxpq.support.kinds import KINDS as KINDS_OF_WEIGHTS  # noqa: E402

TABLE_BUDGET = 4e-3
"""rms error of a layer through the tables of K <= 16, relative to the rms of y."""

FAST_BUDGET = 0.018
"""The same through fast tables."""

HALF_BUDGET = 1e-3
"""What outputs of float16 add to it."""

FLOAT_BUDGET = 1e-5
"""The same for sums of float32."""

LAYERS: dict[str, tuple[PQLayer, int, list[str | int | None], list[list[int]]]] = {
    # weight; opset; leading sizes as the model declares them, and as X has them
    "K16": (random_layer(1, 300, 257), 17, ["N"], [[1], [5], [0]]),
    "K16-large": (random_layer(2, 1024, 1000), 17, ["N"], [[1], [9]]),
    "K16-G2-R3": (random_layer(3, 33, 70, d=3, groups=2, stages=3), 13, ["N", "T"], [[2, 3], [1, 1]]),
    "K5-half-scales": (random_layer(4, 40, 33, codewords=5, scale_type=np.float16), 9, [None], [[4]]),
    "K256-G1-R2": (random_layer(5, 300, 64, d=8, codewords=256, groups=1, stages=2), 11, ["N"], [[1], [3], [70]]),
    "K256-large": (random_layer(6, 1024, 512, d=8, codewords=256), 17, ["N"], [[1], [9]]),
    "K100-G5-fixed": (random_layer(7, 16, 60, codewords=100, groups=5, codebook_type=np.float32), 15, [7], [[7]]),
}

HALF, FAST = "K16-half", "K16-fast"
LAYERS[HALF] = LAYERS[FAST] = LAYERS["K16"]

TABLES: dict[str, tuple[PQLayer, int, int]] = {
    # table; opset; type of the rows
    "table-K256": (random_layer(9, 700, 61, codewords=256, groups=1), 17, TensorProto.INT64),
    "table-K13-R2": (random_layer(10, 90, 33, d=3, codewords=13, groups=2, stages=2), 11, TensorProto.INT32),
}

INTEGER = "int8-body"
LAYERS[INTEGER] = (random_layer(11, 300, 257, codebook_type=np.int8), 15, ["N"], [[1], [9]])

INTEGER_BUDGET = 0.02
"""rms error of a body that multiplies in int8, of normal inputs, relative to the rms of y."""

PRODUCTS = ("Gemm", "MatMul", "Add", "Cast", "FusedMatMul", "FusedGemm")
"""What a decoded layer may end as."""

KINDS: dict[str, tuple[str, dict[str, tuple[int, ...]], tuple[int, ...], int, tuple[str, ...]]] = {
    # text, shapes of the constants, of X, opset, operators that it may end as; layouts are the compiler's own
    "conv": (
        "(float[N,16,9,9] x) => (float[N,24,9,9] y) { y = Conv<pads = [1, 1, 1, 1]>(x, w, b) }",
        {"w": (24, 16, 3, 3), "b": (24,)},
        (2, 16, 9, 9),
        9,
        ("Conv", "FusedConv", "ReorderInput", "ReorderOutput"),
    ),
    "conv-transpose": (
        "(float[N,16,5,5] x) => (float[N,24,11,11] y) { y = ConvTranspose<strides = [2, 2]>(x, w) }",
        {"w": (16, 24, 3, 3)},
        (1, 16, 5, 5),
        13,
        ("ConvTranspose",),
    ),
    "lstm": (
        "(float[T,2,32] x) => (float[T,1,2,32] y) { y, h, c = LSTM<hidden_size = 32>(x, w, r) }",
        {"w": (1, 128, 32), "r": (1, 128, 32)},
        (5, 2, 32),
        15,
        ("LSTM",),
    ),
}

NETWORK_INPUTS = 96
NETWORK_LAYERS = 2


def network() -> onnx.ModelProto:
    """Two dense layers, as a user has them, compressed."""
    rng = np.random.default_rng(8)
    sizes = [NETWORK_INPUTS, 128, 40]
    weights = {f"W{i}": rng.standard_normal(sizes[i : i + 2]).astype(np.float32) / 8 for i in range(NETWORK_LAYERS)}
    biases = {f"b{i}": rng.standard_normal(sizes[i + 1]).astype(np.float32) for i in range(NETWORK_LAYERS)}
    nodes = [
        helper.make_node("Gemm", ["X", "W0", "b0"], ["h"], name="fc0"),
        helper.make_node("Relu", ["h"], ["a"], name="relu"),
        helper.make_node("Gemm", ["a", "W1", "b1"], ["Y"], name="fc1"),
    ]
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", sizes[0]])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", sizes[-1]])
    initializers = [numpy_helper.from_array(value, name) for name, value in {**weights, **biases}.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "network", [x], [y], initializers),
        opset_imports=[helper.make_opsetid("", 9)],
        ir_version=IR_VERSION,
    )
    compressed = onnx.ModelProto.FromString(files.to_bytes(onnxpq.compress(model).model))
    kinds = [node.op_type for node in compressed.graph.node]
    if kinds.count("PQMatMul") != NETWORK_LAYERS:
        raise SystemExit(f"The network's layers were not all compressed: its nodes are {kinds}.")
    return compressed


def compressed(text: str, constants: dict[str, tuple[int, ...]], opset: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model with random codes for its weights, of whatever kind, and one with the weights that these stand for."""
    rng = np.random.default_rng(12)
    proto = onnx.parser.parse_model(f'<ir_version: {IR_VERSION}, opset_import: ["" : {opset}]>\nmain {text}')
    proto.graph.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in constants.items()
    )
    model = files.load(proto)
    layers, _ = rewriting.find(model, min_weights=0, kinds=KINDS_OF_WEIGHTS)
    tensors, values = {}, {}
    for layer in layers:
        codes = rng.integers(0, 16, (layer.out_features, 1, -(-layer.in_features // 4))).astype(np.uint8)
        books = rng.integers(-9, 10, (1, 1, 16, 4)).astype(np.int8)
        tensor = PQTensor(books, codes, np.full(layer.out_features, 0.02, np.float32), layer.in_features)
        weight = decode(books, codes, tensor.scales, layer.in_features).astype(np.float32)
        tensors[layer.weight], values[layer.weight] = tensor, weight.reshape(constants[layer.weight])
    rewritten = rewriting.rewrite(model, layers, tensors)
    decoded = rewriting.update_initializers(model, values)
    return onnx.ModelProto.FromString(files.to_bytes(rewritten)), onnx.ModelProto.FromString(files.to_bytes(decoded))


def write(folder: Path) -> None:
    """Write all cases."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (layer, opset, declared, leading) in LAYERS.items():
        x_type = TensorProto.FLOAT16 if name == HALF else TensorProto.FLOAT
        shape = [*declared, layer.in_features]
        op_type = INTEGER_OP_TYPE if name == INTEGER else OP_TYPE
        model = model_of(layer, opset=opset, x_shape=shape, x_type=x_type, fast=name == FAST, op_type=op_type)
        numpy_type = helper.tensor_dtype_to_np_dtype(x_type)
        batches = [normal_rows(i, *sizes, layer.in_features).astype(numpy_type) for i, sizes in enumerate(leading)]
        exact = [pq_matmul(x, *layer.arguments) for x in batches]
        budget = TABLE_BUDGET if layer.codewords <= MAX_NIBBLE_CODEWORDS else FLOAT_BUDGET
        budget = FAST_BUDGET if name == FAST else budget
        half = HALF_BUDGET if name == HALF else 0
        body = INTEGER_BUDGET if name == INTEGER else FLOAT_BUDGET
        budgets = {"library_budget": budget + half, "body_budget": body + half}
        ends = ("DynamicQuantizeMatMul",) if name == INTEGER else PRODUCTS
        _write(folder / name, model, batches, exact, budgets, ends)
    for name, (table, opset, rows_type) in TABLES.items():
        size = len(table.scales)
        weight = decode(table.codebooks, table.codes, table.scales, table.in_features)
        numpy_type = helper.tensor_dtype_to_np_dtype(rows_type)
        batches = [np.random.default_rng(i).integers(-size, size, (i, 40)).astype(numpy_type) for i in (1, 20)]
        model = lookup_model_of(table, opset=opset, rows_shape=["N", 40], rows_type=rows_type)
        budgets = {"library_budget": FLOAT_BUDGET, "body_budget": FLOAT_BUDGET}
        _write(folder / name, model, batches, [weight[rows] for rows in batches], budgets)
    model = network()
    budgets = {"library_budget": NETWORK_LAYERS * TABLE_BUDGET, "body_budget": FLOAT_BUDGET}
    session = onnxpq.session(model, use_library=False)
    batches = [normal_rows(i, rows, NETWORK_INPUTS) for i, rows in enumerate([1, 6])]
    exact = [session.run(None, {"X": x})[0] for x in batches]
    _write(folder / "compressed-network", model, batches, exact, budgets, (*PRODUCTS, "Relu"))
    for name, (text, constants, sizes, opset, ends) in KINDS.items():
        model, decoded = compressed(text, constants, opset)
        x = normal_rows(3, *sizes)
        exact = [onnxpq.session(decoded, use_library=False).run(None, {"x": x})[0]]
        budgets = {"library_budget": FLOAT_BUDGET, "body_budget": FLOAT_BUDGET}
        _write(folder / name, model, [x], exact, budgets, ends, has_kernel=False)
    _write_refused(folder / "mistyped-fast")


def _write(
    path: Path,
    model: onnx.ModelProto,
    batches: list[np.ndarray],
    exact: list[np.ndarray],
    budgets: dict[str, float],
    ends: tuple[str, ...] = (),
    *,
    has_kernel: bool = True,
) -> None:
    session = onnxpq.session(model)
    arrays: dict[str, np.ndarray | float] = {**budgets, "ends": np.array(ends, dtype=str)}
    for i, (x, y) in enumerate(zip(batches, exact, strict=True)):
        bits = session.run(None, {session.get_inputs()[0].name: x})[0]
        arrays |= {f"X_{i}": x, f"exact_{i}": y}
        if has_kernel:
            arrays[f"bits_{i}"] = bits
    onnx.save(model, f"{path}.onnx")
    np.savez(f"{path}.npz", **arrays)


def _write_refused(path: Path) -> None:
    """Each onnxruntime has its own words for an attribute of the wrong type; the library must understand them."""
    model = model_of(LAYERS[FAST][0], with_body=False)
    model.graph.node[0].ClearField("attribute")
    model.graph.node[0].attribute.append(helper.make_attribute(ATTR_FAST, 1.0))
    onnx.save(model, f"{path}.onnx")
    np.savez(f"{path}.npz", refusal="attribute 'fast' is no integer; expected 0 or 1.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
