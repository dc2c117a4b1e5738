"""Random product-quantized layers, and models made of one node, `PQMatMul` or `PQGather`: for tests of both."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxpq.operators import body
from onnxpq.operators.schema import DOMAIN, LOOKUP_INPUTS, LOOKUP_OP_TYPE, MAX_MAGNITUDE, OP_TYPE, VERSION
from onnxpq.pq.packing import pack_codes
from onnxpq.pq.reference import pq_matmul

IR_VERSION = 8  # the first with functions, and one that all supported runtimes read

FLOAT_BUDGET = 5e-6
"""Largest float32 error, relative to the sum of the magnitudes of what is summed."""


@dataclass(frozen=True)
class PQLayer:
    """codebooks [R, G, K, d], codes [out, R, M], scales [out], bias [out]."""

    codebooks: NDArray[Any]
    codes: NDArray[np.uint8]
    scales: NDArray[Any]
    bias: NDArray[Any]
    in_features: int

    @property
    def arguments(self) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
        """What the reference functions take after x."""
        return self.codebooks, self.codes, self.scales, self.bias

    @property
    def codewords(self) -> int:
        return int(self.codebooks.shape[2])

    @property
    def sizes(self) -> body.Sizes:
        """What attributes and function bodies are made for."""
        stages, groups, codewords, d = self.codebooks.shape
        return body.Sizes(len(self.scales), self.in_features, stages, groups, codewords, d)

    def constants(self) -> dict[str, NDArray[Any]]:
        """The constant inputs of the node, by their names in the operator's schema."""
        packed = pack_codes(self.codes, self.codewords)
        return {"codebooks": self.codebooks, "codes": packed, "scales": self.scales, "bias": self.bias}

    def magnitude(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """[..., out]: sum of the magnitudes of all that is summed for an output, the measure of float32 errors."""
        absolute = replace(
            self, codebooks=abs(self.codebooks.astype(np.float64)), scales=abs(self.scales), bias=abs(self.bias)
        )
        return pq_matmul(abs(x), *absolute.arguments)


def random_layer(
    seed: int,
    out: int,
    in_features: int,
    *,
    d: int = 4,
    codewords: int = 16,
    groups: int | None = None,
    stages: int = 1,
    codebook_type: type = np.float16,
    scale_type: type = np.float32,
) -> PQLayer:
    """A layer of normally distributed codewords; `groups` = None means one codebook for each sub-vector position."""
    rng = np.random.default_rng(seed)
    sub_vectors = -(-in_features // d)
    shape = (stages, groups or sub_vectors, codewords, d)
    is_int8 = codebook_type is np.int8
    codebooks = rng.integers(-MAX_MAGNITUDE, MAX_MAGNITUDE + 1, shape) if is_int8 else rng.standard_normal(shape)
    return PQLayer(
        codebooks.astype(codebook_type),
        rng.integers(0, codewords, (out, stages, sub_vectors)).astype(np.uint8),
        (rng.normal(1, 0.3, out) / (MAX_MAGNITUDE if is_int8 else 1)).astype(scale_type),
        rng.standard_normal(out).astype(scale_type),
        in_features,
    )


@st.composite
def layers(draw: st.DrawFn, codewords: st.SearchStrategy[int], max_out: int = 70, max_in: int = 40) -> PQLayer:
    """Layers of any d, G, R and element types."""
    in_features, d = draw(st.integers(1, max_in)), draw(st.integers(1, 9))
    return random_layer(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(1, max_out)),
        in_features,
        d=d,
        codewords=draw(codewords),
        groups=draw(st.integers(1, -(-in_features // d))),
        stages=draw(st.integers(1, 3)),
        codebook_type=draw(st.sampled_from([np.float16, np.float32, np.int8])),
        scale_type=draw(st.sampled_from([np.float16, np.float32])),
    )


def model_of(
    layer: PQLayer,
    *,
    opset: int = 17,
    x_shape: list[str | int | None] | None = None,
    constants: dict[str, NDArray[Any]] | None = None,
    as_inputs: tuple[str, ...] = (),
    with_body: bool = True,
    x_type: int = TensorProto.FLOAT,
    fast: bool = False,
    op_type: str = OP_TYPE,
) -> onnx.ModelProto:
    """Y = PQMatMul(X), node 'fc'.

    Args:
        layer: the weight.
        opset: of the model and the function body.
        x_shape: of X; default ["N", in].
        constants: replace constant inputs of the node, to make bad ones.
        as_inputs: constant inputs that become graph inputs instead.
        with_body: whether the model carries the function body.
        x_type: of X and Y.
        fast: the attribute.
        op_type: `PQMatMul`, or its sister that multiplies in int8.
    """
    values = layer.constants() | (constants or {})
    dialect = body.Dialect.of(opset, [layer.sizes], has_fast=fast, any_float=x_type != TensorProto.FLOAT)
    node = helper.make_node(op_type, ["X", *values], ["Y"], name="fc", domain=DOMAIN)
    node.attribute.extend(ir.to_proto(a) for a in body.attributes(op_type, layer.sizes, dialect, fast=fast))
    x_shape = ["N", layer.in_features] if x_shape is None else x_shape
    x_info = helper.make_tensor_value_info("X", x_type, x_shape)
    y_shape = [*x_shape[:-1], len(layer.scales)]
    y_info = helper.make_tensor_value_info("Y", x_type, y_shape)
    initializers, inputs = _given(values, as_inputs)
    graph = helper.make_graph([node], "one_layer", [x_info, *inputs], [y_info], initializers)
    functions = [ir.to_proto(made) for made in body.functions([op_type], dialect)] if with_body else []
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=IR_VERSION)


def lookup_model_of(
    table: PQLayer,
    *,
    opset: int = 17,
    rows_shape: list[str | int | None] | None = None,
    rows_type: int = TensorProto.INT64,
    constants: dict[str, NDArray[Any]] | None = None,
    as_inputs: tuple[str, ...] = (),
    with_body: bool = True,
) -> onnx.ModelProto:
    """Y = PQGather(rows), node 'table'.

    Args:
        table: its weight; the bias is not used.
        opset: of the model and the function body.
        rows_shape: of the rows; default ["N"].
        rows_type: of the rows.
        constants: replace constant inputs of the node, to make bad ones.
        as_inputs: constant inputs that become graph inputs instead.
        with_body: whether the model carries the function body.
    """
    values = {name: array for name, array in table.constants().items() if name in LOOKUP_INPUTS} | (constants or {})
    node = helper.make_node(LOOKUP_OP_TYPE, ["rows", *values], ["Y"], name="table", domain=DOMAIN)
    dialect = body.Dialect.of(opset, [table.sizes], lookups=[table.sizes])
    node.attribute.extend(ir.to_proto(a) for a in body.attributes(LOOKUP_OP_TYPE, table.sizes, dialect))
    rows_shape = ["N"] if rows_shape is None else rows_shape
    rows_info = helper.make_tensor_value_info("rows", rows_type, rows_shape)
    y_info = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [*rows_shape, table.in_features])
    initializers, inputs = _given(values, as_inputs)
    graph = helper.make_graph([node], "one_table", [rows_info, *inputs], [y_info], initializers)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    functions = [ir.to_proto(made) for made in body.functions([LOOKUP_OP_TYPE], dialect)] if with_body else []
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=IR_VERSION)


def _given(
    values: dict[str, NDArray[Any]], as_inputs: tuple[str, ...]
) -> tuple[list[onnx.TensorProto], list[onnx.ValueInfoProto]]:
    """Initializers, and graph inputs in the place of some of them."""
    initializers = [numpy_helper.from_array(v, name) for name, v in values.items() if name not in as_inputs]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype), values[name].shape)
        for name in as_inputs
    ]
    return initializers, inputs


def normal_rows(seed: int, *shape: int) -> NDArray[np.float32]:
    """Standard normal float32 of the shape."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rms(values: NDArray[Any]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
