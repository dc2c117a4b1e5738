"""Outputs of all ranks, types and sizes: compressed in every way, and told whole."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import FEATURES, HIDDEN, build, initializer, samples

import onnxpq
from onnxpq.errors import FloorError, TargetError

CLASSES = 24


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], name=f"n_{output}", **attributes)


def tensor(name: str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


KINDS: dict[str, tuple[list[onnx.NodeProto], list[onnx.ValueInfoProto]]] = {
    "a loss first": ([node("ReduceMean", "y", "loss", keepdims=0)], [tensor("loss"), tensor("y")]),
    "a loss alone": ([node("ReduceSumSquare", "y", "loss", keepdims=0)], [tensor("loss")]),
    "a size": ([node("Size", "y", "size")], [tensor("y"), tensor("size", TensorProto.INT64)]),
    "places": (
        [node("Greater", "y half", "g"), node("NonZero", "g", "found")],
        [tensor("found", TensorProto.INT64)],
    ),
    "rows that are left": (
        [
            node("ReduceMax", "y", "m", axes=[1], keepdims=0),
            node("Greater", "m half", "g"),
            node("Compress", "y g", "kept", axis=0),
        ],
        [tensor("kept")],
    ),
    "a sequence": (
        [node("SplitToSequence", "y", "parts", axis=1)],
        [helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)],
    ),
    "flags": ([node("Greater", "y half", "flags")], [tensor("flags", TensorProto.BOOL)]),
    "text": (
        [node("Cast", "y", "whole", to=TensorProto.INT64), node("Cast", "whole", "text", to=TensorProto.STRING)],
        [tensor("text", TensorProto.STRING)],
    ),
}


def model(kind: str) -> onnx.ModelProto:
    """``x [N, 64] -> fc1 -> Relu -> fc2 -> y [N, 24]``, and outputs of some kind."""
    nodes, outputs = KINDS[kind]
    found = build(
        [node("MatMul", "x w1", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "y"), *nodes],
        {"x": ["N", FEATURES]},
        {},
        [initializer("w1", FEATURES, HIDDEN, seed=0, scale=0.2), initializer("w2", HIDDEN, CLASSES, seed=1, scale=0.2)],
    )
    found.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
    found.graph.output.extend(outputs)
    return found


def report_of(compressed: onnx.ModelProto, config: onnxpq.Config) -> onnxpq.Report:
    """The report, also of what is not good enough: the weights are noise, which no codes keep well."""
    try:
        return onnxpq.compress(compressed, {"x": samples(80)}, test={"x": samples(20, seed=8)}, config=config).report
    except (FloorError, TargetError) as error:
        if isinstance(error.result, onnxpq.Result):
            return error.result.report
        raise


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {"training": {"epochs": 0}},
        {"training": {"steps": 5}},
        {"training": {"epochs": 0}, "target": {"ratio": 3.0}},
        {"training": {"epochs": 0}, "target": {"max_drop": 0.9}},
    ],
    ids=["plain", "trained", "ratio", "drop"],
)
def test_every_kind_is_compressed_and_told_whole(kind: str, settings: dict[str, Any]) -> None:
    report = report_of(model(kind), onnxpq.Config.from_dict(settings))
    names = [value.name for value in KINDS[kind][1]]
    assert [output.name for output in report.verification.outputs] == names
    for output in report.verification.outputs:
        assert not output.is_empty
        assert output.values >= 1
        # A figure there is in any case: of what is alike, or that nothing is.
        assert output.relative_error is not None or output.agreement is not None or output.reshaped > 0
    assert len(report.layers) == 2
