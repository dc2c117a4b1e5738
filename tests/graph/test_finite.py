import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxpq.errors import ModelError
from onnxpq.graph.finite import check_weights


def model(weight: np.ndarray) -> ir.Model:
    kind = {np.dtype(np.float64): "double", np.dtype(np.float32): "float"}[weight.dtype]
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        main ({kind}[N, 2] x) => ({kind}[N, 2] y) {{ y = MatMul (x, w) }}"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return ir.from_proto(proto)


@pytest.mark.parametrize("largest", [1e40, 1e200, 1e-39, 1e-200])
def test_double_weights_that_float32_does_not_hold(largest: float) -> None:
    with pytest.raises(
        ModelError,
        match=rf"'w' of node 'fc' has double-precision values up to {re.escape(f'{largest:.1e}')}; .* --exclude 'fc'",
    ):
        check_weights(model(np.array([[largest, 0.0], [-largest / 2, largest / 3]])), {"w": "fc"})


@pytest.mark.parametrize(
    "weight",
    [
        np.array([[3e38, 1e-300], [0.0, 1.0]]),
        np.zeros((2, 2)),
        np.array([[1e-40, 0.0], [0.0, 1e-42]], np.float32),
        np.zeros((0, 2)),
    ],
    ids=["up to its largest", "zeros", "small and float32 already", "empty"],
)
def test_weights_that_it_holds(weight: np.ndarray) -> None:
    check_weights(model(weight), {"w": "fc"})


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_no_numbers(value: float) -> None:
    with pytest.raises(ModelError, match=r"The weight 'w' of node 'fc' has \d NaN and \d infinite values of 4"):
        check_weights(model(np.array([[1.0, value], [0.0, 1.0]], np.float32)), {"w": "fc"})
