import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from skl2onnx import to_onnx
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler

from onnxpq import runtime
from onnxpq.errors import ForwardMismatchError, ModelError, UnsupportedOperatorError
from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.graph.walking import used_values
from onnxpq.network import importing
from onnxpq.network.importing import FORWARD_TOLERANCE, check_forward, import_model
from onnxpq.network.ops import registry

FLOAT = onnx.TensorProto.FLOAT
AGREEMENT = 1e-5  # of float32 with float32, far below what check_forward refuses
rng = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


def mlp() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3), torch.nn.Softmax(-1))


def cnn() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(36, 10),
        torch.nn.Dropout(),
        torch.nn.Linear(10, 3),
    )


def exported(tmp_path_factory, build, shape, dynamo) -> ir.Model:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters warn about themselves
        example = (torch.zeros(2, *shape),)
        if dynamo:
            batch = {0: torch.export.Dim("batch")}
            torch.onnx.export(build().eval(), example, path, dynamo=True, dynamic_shapes=[batch], verbose=False)
        else:
            axes = {"x": {0: "batch"}}
            torch.onnx.export(
                build().eval(), example, path, dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=17
            )
    return files.load(path)


@pytest.fixture(scope="module", params=[False, True], ids=["torchscript", "dynamo"])
def exports(request, tmp_path_factory):
    return {
        "mlp": (exported(tmp_path_factory, mlp, (6,), request.param), normal(5, 6)),
        "cnn": (exported(tmp_path_factory, cnn, (1, 8, 8), request.param), normal(5, 1, 8, 8)),
    }


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_torch_exports(exports, name):
    model, x = exports[name]
    network = import_model(model)
    feeds = {network.input_names[0]: x}
    result = check_forward(network, model, feeds)
    assert result.max_rel < AGREEMENT
    assert result.node
    matrices = [name for name, weight in network.named_initializers() if weight.ndim == 2]
    assert len(matrices) == 2
    weights = network.trainable(matrices)
    outputs = network({k: torch.from_numpy(v) for k, v in feeds.items()})
    next(iter(outputs.values())).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in weights.values())


def sklearn_models():
    x = normal(60, 5)
    y = rng.integers(0, 3, 60)
    small = {"hidden_layer_sizes": (7,), "max_iter": 5, "random_state": 0}
    yield "classes", MLPClassifier(**small), x, y
    yield "binary", MLPClassifier(**small, activation="tanh"), x, y % 2
    yield "words", MLPClassifier(**small, activation="logistic"), x, np.array(["a", "b", "c"])[y]
    yield "multilabel", MLPClassifier(**small), x, np.eye(3, dtype=int)[y]
    yield "scaled", make_pipeline(StandardScaler(), MLPClassifier(**small)), x, y
    yield "normalized", make_pipeline(MinMaxScaler(), Normalizer("l1"), MLPClassifier(**small)), x, y
    yield "regression", MLPRegressor(**small), x, x[:, :2]
    yield "doubles", MLPRegressor(**small), x.astype(np.float64), x[:, 0].astype(np.float64)


@pytest.mark.parametrize(
    ("kind", "estimator", "x", "y"), list(sklearn_models()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_sklearn_exports(kind, estimator, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = files.load(to_onnx(estimator.fit(x, y), x[:1]))
    network = import_model(model)
    (name,) = network.input_names
    assert check_forward(network, model, {name: x[:20]}).max_rel < AGREEMENT
    outputs = network({name: torch.from_numpy(x[:20])})
    expected = runtime.run(runtime.session(model, use_library=False), {name: x[:20]})
    assert set(outputs) == set(expected)
    for output, value in outputs.items():
        if isinstance(value, np.ndarray):
            assert value.tolist() == expected[output].tolist()
        else:
            np.testing.assert_allclose(value.numpy(), expected[output], rtol=AGREEMENT, atol=AGREEMENT)
    matrices = [w for w, weight in network.named_initializers() if weight.ndim == 2 and min(weight.shape) > 1]
    weights = network.trainable(matrices)
    scores = list(network({name: torch.from_numpy(x)}).values())[-1]
    scores.square().sum().backward()
    assert all(weight.grad is not None for weight in weights.values())


def node(op_type, inputs, outputs, **attributes):
    return onnx.helper.make_node(op_type, inputs, outputs, name=f"n_{outputs[0]}", **attributes)


def make(nodes, initializers=(), inputs=("x",), outputs=("y",), functions=(), opset=17, extra_inputs=()) -> ir.Model:
    h = onnx.helper
    graph = h.make_graph(
        nodes,
        "g",
        [*[h.make_tensor_value_info(name, FLOAT, ["N", 2]) for name in inputs], *extra_inputs],
        [h.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in dict(initializers).items()],
    )
    imports = [h.make_opsetid("", opset), *[h.make_opsetid(f.domain, 1) for f in functions]]
    return ir.from_proto(h.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8))


W = [[1.0, -2.0], [3.0, 4.0]]
X = {"x": normal(4, 2)}


def names(model: ir.Model) -> list[str]:
    return list(model.graph.initializers)


def test_constants_become_parameters():
    value = onnx.numpy_helper.from_array(np.array(W, np.float32))
    constants = [node("Constant", [], ["w"], value=value), node("Constant", [], ["b"], value_floats=[1.0, 2.0])]
    model = make([*constants, node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["y"])])
    network = import_model(model)
    assert [name for name, _ in network.named_initializers()] == ["w", "b"]
    assert check_forward(network, model, X).max_rel < AGREEMENT
    assert "Constant" in {n.op_type for n in model.graph}, "the original must not change"


def test_a_constant_that_is_an_output_stays():
    model = make([node("Constant", [], ["c"], value_float=2.0), node("Mul", ["x", "c"], ["y"])], outputs=("y", "c"))
    assert check_forward(import_model(model), model, X).max_rel < AGREEMENT


def test_an_identity_of_a_weight_is_the_weight():
    nodes = [node("Identity", ["w"], ["v"]), node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "v"], ["y"])]
    model = make(nodes, {"w": W})
    assert {n.op_type for n in normalise(model).graph} == {"MatMul"}
    weights = import_model(model).trainable(["w"])
    assert len(weights) == 1
    exposed = make(nodes, {"w": W}, outputs=("y", "v"))
    assert check_forward(import_model(exposed), exposed, X).max_rel < AGREEMENT


def test_initializers_that_are_graph_inputs():
    w = onnx.helper.make_tensor_value_info("w", FLOAT, [2, 2])
    model = make([node("MatMul", ["x", "w"], ["y"])], {"w": W}, extra_inputs=[w])
    network = import_model(model)
    assert network.input_names == ("x",)
    assert check_forward(network, model, X).max_rel < AGREEMENT


def test_local_functions_are_inlined_and_the_weights_of_the_graph_stay_shared():
    h = onnx.helper
    body = [h.make_node("MatMul", ["a", "b"], ["m"], name="inner"), h.make_node("Relu", ["m"], ["r"])]
    dense = h.make_function("my", "Dense", ["a", "b"], ["r"], body, [h.make_opsetid("", 17)])
    calls = [node("Dense", ["x", "w"], ["h"], domain="my"), node("Dense", ["h", "w"], ["y"], domain="my")]
    model = make(calls, {"w": W}, functions=[dense])
    network = import_model(model)
    assert [name for name, _ in network.named_initializers()] == ["w"]
    assert {"h", "y"} <= {value.name for n in normalise(model).graph for value in n.outputs}
    assert check_forward(network, model, X).max_rel < AGREEMENT


def test_a_function_of_another_opset_is_refused():
    h = onnx.helper
    dense = h.make_function("my", "F", ["a"], ["r"], [h.make_node("Relu", ["a"], ["r"])], [h.make_opsetid("", 13)])
    model = make([node("F", ["x"], ["y"], domain="my")], functions=[dense])
    with pytest.raises(ModelError, match="Opset mismatch when inlining function 'my::F'"):
        normalise(model)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])],
        [node("MatMul", ["a", "w"], ["y"]), node("Relu", ["x"], ["a"])],
    ],
    ids=["cycle", "order"],
)
def test_a_graph_out_of_order_is_refused(nodes):
    with pytest.raises(ModelError, match="graph 'g' are not in topological order, or form a cycle"):
        normalise(make(nodes, {"w": W}))


def test_used_values_look_into_subgraphs():
    h = onnx.helper
    info = [h.make_tensor_value_info("o", FLOAT, None)]
    then = h.make_graph([h.make_node("MatMul", ["x", "w"], ["o"])], "then", [], info)
    other = h.make_graph([h.make_node("Identity", ["x"], ["o"])], "else", [], info)
    cond = h.make_tensor_value_info("cond", onnx.TensorProto.BOOL, [])
    model = make([node("If", ["cond"], ["y"], then_branch=then, else_branch=other)], {"w": W}, extra_inputs=[cond])
    assert [v.name for n in model.graph for v in used_values(n)] == ["cond", "x", "x", "w"]
    network = import_model(model)
    assert check_forward(network, model, {**X, "cond": np.array(True)}).max_rel < AGREEMENT


MIXED = make(
    [node("MatMul", ["x", "w"], ["a"]), node("Gelu", ["a"], ["h"]), node("Add", ["h", "a"], ["y"])], {"w": W}, opset=20
)


def test_the_node_that_differs_is_named(monkeypatch):
    right = registry._built_in["", "Gelu"][20]
    monkeypatch.setitem(registry._built_in["", "Gelu"], 20, lambda x: 1.02 * right(x))
    with pytest.raises(ForwardMismatchError) as error:
        check_forward(import_model(MIXED), MIXED, X)
    message = str(error.value)
    for part in (
        "Node 'n_h' (Gelu)",
        "'h'",
        "0.02",
        f"more than {FORWARD_TOLERANCE:g}",
        "Found",
        "expected",
        "exclude",
    ):
        assert part in message


def test_a_difference_below_the_tolerance_is_reported(monkeypatch):
    right = registry._built_in["", "Gelu"][20]
    monkeypatch.setitem(registry._built_in["", "Gelu"], 20, lambda x: 1.0005 * right(x))
    result = check_forward(import_model(MIXED), MIXED, X)
    assert result.node == "n_h"
    assert result.value == "h"
    assert 3e-4 < result.max_rel < FORWARD_TOLERANCE
    assert 0 < result.max_abs < 1


def test_a_wrong_shape_is_named(monkeypatch):
    monkeypatch.setitem(registry._built_in["", "Gelu"], 20, lambda x: x[:, :1])
    with pytest.raises(
        ForwardMismatchError, match=r"Node 'n_h' \(Gelu\) computes 'h' with shape \[4, 1\] in torch, \[4, 2\]"
    ):
        check_forward(import_model(MIXED), MIXED, X)


def test_a_rule_that_fails_is_named(monkeypatch):
    def broken(x):
        raise ValueError("boom")

    monkeypatch.setitem(registry._built_in["", "Gelu"], 20, broken)
    with pytest.raises(ForwardMismatchError, match=r"Node 'n_h' \(ai.onnx::Gelu\) failed on a: float32\[4, 2\]: boom"):
        check_forward(import_model(MIXED), MIXED, X)


def test_infinities_and_nan_agree_with_themselves_only():
    graph = next(iter(MIXED.graph))
    same = np.array([np.inf, -np.inf, np.nan, 1.0], np.float32)
    assert importing._difference(same, same, graph, "v") == (0.0, 0.0, 0.0)
    for other in (0.0, -np.inf, np.nan):
        assert importing._difference(same, np.array([other, -np.inf, np.nan, 1.0], np.float32), graph, "v")[1] == np.inf


def test_differences_by_hand():
    graph = next(iter(MIXED.graph))
    found, expected = np.array([3.0, 4.5], np.float32), np.array([3.0, 4.0], np.float32)
    assert importing._difference(found, expected, graph, "v") == (0.5, 0.1, pytest.approx(0.5 / np.sqrt(2)))
    zero = np.zeros(4, np.float32)
    assert importing._difference(zero + 1e-9, zero, graph, "v")[1] == pytest.approx(1e-3)


@pytest.mark.parametrize(("offset", "fits"), [(1.5e-8, True), (1e-6, False)])
def test_rounding_near_zero_is_no_defect(monkeypatch, offset, fits):
    """A sigmoid of 2e-6 that is off by 1.5e-8 is off by nearly 1 %."""
    model = make(
        [node("MatMul", ["x", "w"], ["a"]), node("Sub", ["a", "low"], ["l"]), node("Sigmoid", ["l"], ["y"])],
        {"w": W, "low": np.float32(15)},
    )
    right = registry._built_in["", "Sigmoid"][13]
    monkeypatch.setitem(registry._built_in["", "Sigmoid"], 13, lambda x: right(x) + offset)
    if fits:
        assert check_forward(import_model(model), model, X).max_rel < FORWARD_TOLERANCE
    else:
        with pytest.raises(ForwardMismatchError, match=r"Node 'n_y' \(Sigmoid\) computes 'y' in torch with a relative"):
            check_forward(import_model(model), model, X)


@pytest.mark.parametrize("factor", [1.02, 0.98])
def test_two_percent_of_a_sigmoid_are_a_defect(monkeypatch, factor):
    model = make([node("MatMul", ["x", "w"], ["a"]), node("Sigmoid", ["a"], ["y"])], {"w": W})
    right = registry._built_in["", "Sigmoid"][13]
    monkeypatch.setitem(registry._built_in["", "Sigmoid"], 13, lambda x: factor * right(x))
    with pytest.raises(ForwardMismatchError, match=r"difference of 0.02 to onnxruntime"):
        check_forward(import_model(model), model, X)


def test_float16_models():
    h = onnx.helper
    graph = h.make_graph(
        [node("MatMul", ["x", "w"], ["a"]), node("Tanh", ["a"], ["y"])],
        "g",
        [h.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["N", 2])],
        [h.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, ["N", 2])],
        [onnx.numpy_helper.from_array(np.array(W, np.float16), "w")],
    )
    model = ir.from_proto(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8))
    assert check_forward(import_model(model), model, {"x": normal(4, 2, dtype=np.float16)}).max_rel < 2e-3


def test_an_operator_without_a_rule_is_named():
    model = make([node("Relu", ["x"], ["a"]), node("RandomNormalLike", ["a"], ["y"])])
    with pytest.raises(UnsupportedOperatorError, match=r"Node 'n_y' uses operator ai.onnx::RandomNormalLike version 1"):
        import_model(model)


def test_the_original_is_not_changed():
    before = ir.to_proto(MIXED).SerializeToString(deterministic=True)
    check_forward(import_model(MIXED), MIXED, X)
    assert ir.to_proto(MIXED).SerializeToString(deterministic=True) == before
