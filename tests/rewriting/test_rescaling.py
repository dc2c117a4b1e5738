"""Inputs in other units, from other origins: the same function, in whatever form a layer is written."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_forms import FORMS, Form
from numpy.typing import NDArray

from onnxpq import rewriting, runtime
from onnxpq.graph import files
from onnxpq.graph.layers import Layer
from onnxpq.graph.preparing import prepare
from onnxpq.rewriting import rescaling
from onnxpq.rewriting.rescaling import Group, Scale

SAME_BUDGET, HALF_BUDGET = 2e-6, 2e-3
"""Relative difference between a model and the same one in other units; and where it computes in float16."""

COMPRESSED = [
    name
    for name, form in FORMS.items()
    if form.layers and form.runs and "Gather" not in form.text and "only" not in form.settings
]


def scale_of(group: Group, seed: int = 0) -> Scale:
    """Units over three decades, and origins of about a unit."""
    rng, size = np.random.default_rng(seed), group[0].layer.in_features
    scale = Scale.by(2.0 ** rng.integers(-5, 5, size), group[0].dtype)
    if all(place.can_be_centred for place in group):
        scale = replace(scale, origin=Scale.at(rng.standard_normal(size), np.full(size, 0.1)).origin)
    return scale


def layers_of(form: Form) -> tuple[ir.Model, list[Layer]]:
    model = prepare(files.load(form.model()))
    settings: dict[str, Any] = {key: value for key, value in form.settings.items() if key in ("conv1x1", "tables")}
    return model, rewriting.find(model, **settings)[0]


def outputs(model: ir.Model | onnx.ModelProto, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return runtime.run(runtime.session(model, use_library=False), inputs)


@pytest.mark.parametrize("name", COMPRESSED)
def test_the_function_stays(name: str) -> None:
    form = FORMS[name]
    model, layers = layers_of(form)
    groups = rescaling.groups(model, layers)
    assert [place.layer for group in groups for place in group]
    changed = rescaling.rescaled(model, [(group, scale_of(group)) for group in groups])
    inputs = form.inputs(seed=1)
    expected, found = outputs(model, inputs), outputs(changed, inputs)
    budget = HALF_BUDGET if "float16" in name else SAME_BUDGET
    for key, value in expected.items():
        missed = np.linalg.norm(found[key].astype(np.float64) - value)
        assert missed <= budget * np.linalg.norm(value.astype(np.float64)), key
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    again, _ = rewriting.find(changed, conv1x1=True)
    assert [(layer.node, layer.out_features, layer.in_features) for layer in again] == [
        (layer.node, layer.out_features, layer.in_features) for layer in layers
    ]


# What the layers of a group share, and what others share with them


def model_of(text: str, **tensors: NDArray[Any]) -> ir.Model:
    """A prepared model of x [N, 24] and y, in ONNX's text form."""
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    proto = onnx.parser.parse_model(f"{head}\ng (float[N, 24] x) => (float[N, M] y) {{ {text} }}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in tensors.items())
    return prepare(files.load(proto))


def matrix(rows: int = 24, columns: int = 48, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


W, V, B = matrix(), matrix(seed=1), matrix(1, 48, 2)[0]


@pytest.mark.parametrize(
    ("text", "tensors", "nodes"),
    [
        ("[fc] y = Gemm(x, w)", {}, ["Sub", "Mul", "Gemm"]),
        ("[fc] y = Gemm<beta = 0.0>(x, w, b)", {"b": B}, ["Sub", "Mul", "Gemm"]),
        ("[fc] y = Gemm<alpha = 0.5, beta = 3.0>(x, w, b)", {"b": B}, ["Sub", "Mul", "Gemm"]),
        ("[fc] y = Gemm<alpha = 2.0>(x, w, b)", {"b": B[:1]}, ["Sub", "Mul", "Gemm"]),
        ("c = MatMul(x, v) [fc] y = Gemm(x, w, c)", {"v": V}, ["MatMul", "Sub", "Mul", "Gemm", "Add"]),
        ("[fc] y = MatMul(x, w)", {}, ["Sub", "Mul", "MatMul", "Add"]),
        ("[fc] p = MatMul(x, w) y = Add(b, p)", {"b": B}, ["Sub", "Mul", "MatMul", "Add"]),
        ("[fc] p = MatMul(x, w) y = Relu(p)", {}, ["Sub", "Mul", "MatMul", "Add", "Relu"]),
        # What the bias is for another node, too, stays as it is there.
        ("[fc] p = MatMul(x, w) q = Add(p, b) y = Mul(q, b)", {"b": B}, ["Sub", "Mul", "MatMul", "Add", "Mul"]),
    ],
)
def test_the_origin_goes_into_what_is_added(text: str, tensors: dict[str, NDArray[Any]], nodes: list[str]) -> None:
    model = model_of(text, w=W, **tensors)
    layers, _ = rewriting.find(model, exclude=() if "v" not in tensors else ("c",))
    (group,) = rescaling.groups(model, layers)
    assert group[0].can_be_centred
    changed = rescaling.rescaled(model, [(group, scale_of(group))])
    assert [node.op_type for node in changed.graph if node.op_type != "Cast"] == nodes
    inputs = {"x": matrix(7, seed=5)[:, :24]}
    expected, found = outputs(model, inputs)["y"], outputs(changed, inputs)["y"]
    assert np.linalg.norm(found - expected) <= SAME_BUDGET * np.linalg.norm(expected)
    assert [layer.node for layer in rewriting.find(changed)[0]] == [layer.node for layer in rewriting.find(model)[0]]


def test_layers_of_one_input_have_one_scale() -> None:
    model = model_of("[q] a = MatMul(x, w) [k] b = MatMul(x, v) y = Add(a, b)", w=W, v=V)
    (group,) = rescaling.groups(model, rewriting.find(model)[0])
    assert [place.layer.node for place in group] == ["q", "k"]
    scale = scale_of(group)
    changed = rescaling.rescaled(model, [(group, scale)])
    assert [node.op_type for node in changed.graph].count("Mul") == 1
    stored = [value.const_value for name, value in changed.graph.initializers.items() if name.startswith("x.")]
    assert rescaling.nbytes(group, scale) == sum(tensor.nbytes for tensor in stored if tensor is not None)


def test_inputs_of_one_weight_have_one_scale() -> None:
    model = model_of("r = Relu(x) [one] a = MatMul(x, w) [two] b = MatMul(r, w) y = Sub(a, b)", w=W)
    (group,) = rescaling.groups(model, rewriting.find(model)[0])
    scale = scale_of(group)
    changed = rescaling.rescaled(model, [(group, scale)])
    inputs = {"x": matrix(7, seed=5)[:, :24]}
    expected, found = outputs(model, inputs)["y"], outputs(changed, inputs)["y"]
    assert np.linalg.norm(found - expected) <= SAME_BUDGET * np.linalg.norm(expected)
    assert [layer.weight for layer in rewriting.find(changed)[0]] == ["w", "w"]
    stored = [v.const_value for name, v in changed.graph.initializers.items() if name[:2] in ("x.", "r.")]
    assert rescaling.nbytes(group, scale) == sum(tensor.nbytes for tensor in stored if tensor is not None)


def test_rows_and_columns_of_one_input_have_scales_of_their_own() -> None:
    text = "[rows] a = MatMul(x, w) [columns] b = MatMul(v, x) c = MatMul(b, w) y = Sub(a, c)"
    model = model_of(text, w=W, v=matrix(7, 7))
    layers = [layer for layer in rewriting.find(model, min_weights=1)[0] if layer.node in ("rows", "columns")]
    groups = rescaling.groups(model, layers)
    assert [[place.layer.node for place in group] for group in groups] == [["rows"], ["columns"]]
    changed = rescaling.rescaled(model, [(group, scale_of(group)) for group in groups])
    inputs = {"x": matrix(7, 24, 5)}
    expected, found = outputs(model, inputs)["y"], outputs(changed, inputs)["y"]
    assert np.linalg.norm(found - expected) <= SAME_BUDGET * np.linalg.norm(expected)


def test_what_a_table_shares_is_left_out() -> None:
    text = "t = Transpose<perm = [1, 0]>(w) i = Cast<to = 7>(x) [look] e = Gather(w, i) [fc] y = MatMul(e, t)"
    model = model_of(text, w=matrix(300, 24))
    layers, _ = rewriting.find(model, tables=True)
    assert [layer.node for layer in layers] == ["look", "fc"]
    assert rescaling.groups(model, layers) == []


def test_a_scale_takes_few_bytes() -> None:
    far = np.array([1e-3, 123456.7])
    assert Scale.at(far, np.array([1e-4, 100.0])).origin == pytest.approx(far, abs=100)
    kinds = {
        np.dtype(np.float16): (far, [1e-4, 100]),
        np.dtype(np.float32): (far, [1e-9, 0.02]),
        np.dtype(np.float64): (far, [0, 0]),
    }
    kinds[np.dtype(np.float16)] = (far / 10, [1e-4, 10])
    for dtype, (origin, near) in kinds.items():
        found = Scale.at(origin, np.array(near)).origin
        assert found is not None
        assert found.dtype == dtype
    for units, dtype in (([0.3, 5000.0], np.float16), ([1e-9, 1.0], np.float32)):
        factors = Scale.by(np.array(units), np.dtype(np.float32)).factors
        assert factors is not None
        assert factors.dtype == dtype
        assert np.abs(np.log2(factors.astype(np.float64)) + np.log2(units)).max() <= 0.5
    half = Scale.by(np.array([1e-9, 1.0, 1e9]), np.dtype(np.float16)).factors
    assert half is not None
    assert half.tolist() == [2.0**14, 1.0, 2.0**-14]
