"""What makes native operator and function body differ: a layer, or what the model makes of rounding."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny_models import FEATURES, build, initializer, samples

import onnxpq
from onnxpq import runtime
from onnxpq.data.datasets import Dataset
from onnxpq.errors import VerificationError
from onnxpq.verification import layerwise

pytestmark = pytest.mark.skipif(not runtime.library_available(), reason="needs the operator library")

WIDTH = 64
PLAIN = onnxpq.Config(pq=onnxpq.PQConfig(2), min_weights=1, floor=1e6)
MANY = {"x": samples(200)}


def folded() -> onnx.ModelProto:
    """A layer whose numbers a periodic function folds: what is a thousandth of them is a tenth of a period."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Mul", ["h", "much"], ["m"], name="more"),
        helper.make_node("Sin", ["m"], ["y"], name="folded"),
    ]
    tensors = [
        initializer("w", FEATURES, WIDTH, seed=0, scale=0.1),
        numpy_helper.from_array(np.float32(100), "much"),
    ]
    return build(nodes, {"x": ["N", FEATURES]}, {"y": ["N", WIDTH]}, tensors)


def in_branches() -> onnx.ModelProto:
    """The same in an If."""
    graphs = []
    for name in ("then", "other"):
        body = [
            helper.make_node("MatMul", ["x", "w"], [f"{name}_h"], name=f"{name}_fc"),
            helper.make_node("Mul", [f"{name}_h", "much"], [f"{name}_m"], name=f"{name}_more"),
            helper.make_node("Sin", [f"{name}_m"], [f"{name}_y"], name=f"{name}_folded"),
        ]
        info = helper.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, ["N", WIDTH])
        graphs.append(helper.make_graph(body, name, [], [info]))
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], name="sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"], name="greater"),
        helper.make_node("If", ["c"], ["y"], name="choice", then_branch=graphs[0], else_branch=graphs[1]),
    ]
    tensors = [
        initializer("w", FEATURES, WIDTH, seed=0, scale=0.1),
        numpy_helper.from_array(np.float32(100), "much"),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    return build(nodes, {"x": ["N", FEATURES]}, {"y": ["N", WIDTH]}, tensors)


@pytest.mark.parametrize("model", [folded(), in_branches()], ids=["main graph", "branches"])
def test_what_a_model_makes_of_rounding_is_no_defect(model: onnx.ModelProto) -> None:
    result = onnxpq.compress(model, test=MANY, config=PLAIN)
    (note,) = [note for note in result.report.notes if "native operator and function body differ" in note]
    assert "No layer by itself differs by more than" in note
    found = result.report.verification.library_agreement
    assert found is not None
    assert found > 2e-2


def broken(path: Path, factor: float) -> None:
    """Another function body: all weights are a factor larger than those that the codes stand for."""
    model = onnx.load(path)
    (body,) = [function for function in model.functions if function.name == "PQMatMul"]
    last = body.node[-1]
    result = last.output[0]
    last.output[0] = "unscaled"
    value = numpy_helper.from_array(np.array(factor, np.float32))
    body.node.append(helper.make_node("Constant", [], ["factor"], value=value))
    body.node.append(helper.make_node("Mul", ["unscaled", "factor"], [result]))
    onnx.save(model, path)


@pytest.mark.parametrize("factor", [1.0, 1.05])
def test_the_layer_that_differs_is_found(tmp_path: Path, factor: float) -> None:
    path = tmp_path / "out.onnx"
    onnxpq.compress(folded(), config=PLAIN).save(path)
    broken(path, factor)
    found = layerwise.worst(path, Dataset(MANY), ())
    assert found is not None
    assert found.node == "fc"
    assert found.relative == pytest.approx(abs(factor - 1), abs=5e-3)


def test_a_layer_that_nobody_can_look_at_may_be_one(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    onnxpq.compress(folded(), config=PLAIN).save(path)
    assert layerwise.worst(path, Dataset({"x": samples(3)[:, :5]}), ()) == layerwise.Gap("fc", math.inf)


def test_a_defect_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerwise, "worst", lambda *_: layerwise.Gap("fc", 0.05))
    with pytest.raises(VerificationError, match=r"at most 1e-02 is expected. Node 'fc' alone differs by 5.00e-02"):
        onnxpq.compress(folded(), test=MANY, config=PLAIN)
