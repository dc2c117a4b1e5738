from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as ort_state
import pytest
import torch
from node_check import ABSOLUTE, RELATIVE, normal, positive
from onnx import helper

from onnxpq.graph.private import PRIVATE
from onnxpq.network.module import Network
from onnxpq.network.ops import registry
from onnxpq.network.ops.registry import attributes_of, registered, resolve

X = normal(2, 3, 4, 4)


@dataclass(frozen=True)
class Case:
    """A node of an operator set in which ONNX has no such operator."""

    op_type: str
    opset: int
    inputs: list[np.ndarray] = field(default_factory=lambda: [X])
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def __str__(self) -> str:
        return f"{self.op_type}-{self.opset} {self.attributes} {self.outputs}"


CASES = [
    *(Case("LayerNormalization", opset, [X, positive(4), normal(4)]) for opset in (9, 13, 16)),
    Case("LayerNormalization", 13, [X, positive(4, 4)], {"axis": -2, "epsilon": 0.1}, 3),
    Case("SimplifiedLayerNormalization", 17, [X, positive(4)]),
    Case("SimplifiedLayerNormalization", 21, [X, positive(4)], {"axis": 3, "epsilon": 0.1}, 2),
    Case("Affine", 9, attributes={"alpha": 0.5, "beta": 0.1}),
    Case("Affine", 9),
    Case("ImageScaler", 9, attributes={"scale": 0.5, "bias": [0.1, 0.2, -0.3]}),
    Case("ParametricSoftplus", 9, attributes={"alpha": 0.5, "beta": 2.0}),
    Case("ScaledTanh", 9, attributes={"alpha": 1.7, "beta": 0.66}),
    Case("ThresholdedRelu", 9, attributes={"alpha": 0.5}),
]


def model_of(case: Case) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    feeds = {f"x{number}": array for number, array in enumerate(case.inputs)}
    outputs = [f"y{number}" for number in range(case.outputs)]
    graph = helper.make_graph(
        [helper.make_node(case.op_type, list(feeds), outputs, **case.attributes)],
        "one_node",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape) for name, array in feeds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8), feeds


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_network_computes_what_onnxruntime_does(case: Case) -> None:
    assert not onnx.defs.has(case.op_type, case.opset)
    model, feeds = model_of(case)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    tensors = {name: torch.from_numpy(array).clone().requires_grad_() for name, array in feeds.items()}
    found = Network(ir.from_proto(model))(tensors)
    for name, expected in zip(names, session.run(names, feeds), strict=True):
        np.testing.assert_allclose(found[name].detach().numpy(), expected, rtol=RELATIVE, atol=ABSOLUTE)
    found["y0"].sum().backward()
    assert tensors["x0"].grad is not None


def test_every_rule_has_a_case() -> None:
    claimed = {op_type for domain, op_type, _ in registered() if domain == registry.ONNXRUNTIME}
    assert claimed == {case.op_type for case in CASES}
    assert claimed <= PRIVATE


def test_attributes_and_defaults_are_those_of_onnxruntime() -> None:
    schemas = {(s.name, s.since_version): s for s in ort_state.get_all_operator_schema() if s.domain == ""}
    for (domain, op_type, version), handler in registered().items():
        if domain != registry.ONNXRUNTIME:
            continue
        taken = attributes_of(handler)
        assert set(taken) == set(schemas[op_type, version].attributes)
        for name, attribute in schemas[op_type, version].attributes.items():
            default = onnx.AttributeProto.FromString(attribute._default_value)
            if default.name:
                assert taken[name] == pytest.approx(onnx.helper.get_attribute_value(default))


def test_the_list_is_that_of_onnxruntime() -> None:
    """Its own schemas, but for TensorRT's and the copies between devices, which no file has."""
    known = {s.name for s in ort_state.get_all_operator_schema() if s.domain == ""}
    of_onnx = {(s.name, s.since_version) for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    own = {
        s.name
        for s in ort_state.get_all_operator_schema()
        if s.domain == "" and (s.name, s.since_version) not in of_onnx and not s.name.endswith("_TRT")
    }
    assert known >= PRIVATE
    assert own - {"MemcpyFromHost", "MemcpyToHost"} == PRIVATE


def test_the_operator_of_onnx_has_precedence_where_there_is_one() -> None:
    assert resolve("", "LayerNormalization", 17, "n") is registered()["", "LayerNormalization", 17]
    assert resolve("", "LayerNormalization", 16, "n") is registered()[registry.ONNXRUNTIME, "LayerNormalization", 1]
