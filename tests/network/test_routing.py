"""Which layers a gradient reaches, on hand-made graphs."""

import re
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tiny_models import CLASSES, FEATURES, HIDDEN, build, initializer, mlp, samples

from onnxpq import rewriting
from onnxpq.data import Dataset
from onnxpq.errors import ForwardMismatchError
from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.network import routing
from onnxpq.network.ops import registry

X = {"x": samples(8)}


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return onnx.helper.make_node(op_type, inputs, outputs, name=f"n_{outputs[0]}", **attributes)


def three(*between: onnx.NodeProto, outputs: dict | None = None, **kinds: object) -> onnx.ModelProto:
    """`x -> n_h -> between (h to a) -> n_b -> Relu n_c -> n_y`: three layers."""
    nodes = [
        node("MatMul", ["x", "w1"], ["h"]),
        *between,
        node("MatMul", ["a", "w2"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("MatMul", ["c", "w3"], ["y"]),
    ]
    weights = [
        initializer("w1", FEATURES, HIDDEN, seed=0, scale=0.1),
        initializer("w2", HIDDEN, HIDDEN, seed=1, scale=0.1),
        initializer("w3", HIDDEN, CLASSES, seed=2, scale=0.1),
    ]
    return build(nodes, {"x": ["N", FEATURES]}, outputs or {"y": ["N", CLASSES]}, weights, **kinds)


def plan_of(model: onnx.ModelProto, output: str = "y", few: dict | None = None) -> routing.Plan:
    loaded = files.load(model)
    layers, _ = rewriting.find(loaded)
    return routing.plan(normalise(loaded), layers, output, Dataset(few or X))


def end_to_end(plan: routing.Plan) -> list[str]:
    return [] if plan.part is None else [layer.weight for layer in plan.part.layers]


def test_all_layers_of_a_plain_network() -> None:
    plan = plan_of(mlp(), "logits")
    assert end_to_end(plan) == ["W1", "W2"]
    assert plan.layer_wise == {}
    assert plan.part.cut.prefix is None
    assert not any(parameter.requires_grad for parameter in plan.part.network.parameters())


def test_an_operator_without_a_rule_stops_what_is_before_it() -> None:
    # onnxruntime has the operator, the importer has not.
    nodes = [
        node("MatMul", ["x", "w1"], ["h"]),
        node("RandomNormalLike", ["h"], ["picked"]),
        node("ReduceMean", ["picked"], ["m"], axes=[1], keepdims=1),
        node("Add", ["x", "m"], ["a"]),
        node("MatMul", ["a", "w2"], ["y"]),
    ]
    weights = [
        initializer("w1", FEATURES, HIDDEN, seed=0),
        initializer("w2", FEATURES, CLASSES, seed=1),
    ]
    plan = plan_of(build(nodes, {"x": ["N", FEATURES]}, {"y": ["N", CLASSES]}, weights))
    assert end_to_end(plan) == []  # w2 is too small to be a layer
    assert plan.layer_wise == {"w1": "operator ai.onnx::RandomNormalLike version 1 at node 'n_picked' has no rule"}


@pytest.mark.parametrize(
    ("between", "op_type"),
    [
        ([node("Round", ["h"], ["a"])], "Round"),
        ([node("Sign", ["h"], ["s"]), node("Tanh", ["s"], ["a"])], "Sign"),
        (
            [
                node("ArgMax", ["h"], ["i"], axis=1),
                node("Cast", ["i"], ["f"], to=1),
                node("Add", ["f", "other"], ["a"]),
            ],
            "ArgMax",
        ),
    ],
)
def test_an_operator_without_gradient_stops_what_is_before_it(between: list[onnx.NodeProto], op_type: str) -> None:
    model = three(*between)
    model.graph.initializer.append(initializer("other", HIDDEN, seed=4))
    plan = plan_of(model)
    assert end_to_end(plan) == ["w2", "w3"]
    assert list(plan.layer_wise) == ["w1"]
    assert re.fullmatch(rf"node 'n_\w' \({op_type}\) lets no gradient through", plan.layer_wise["w1"])


def test_one_path_with_a_gradient_is_enough() -> None:
    plan = plan_of(three(node("Round", ["h"], ["r"]), node("Add", ["r", "h"], ["a"])))
    assert end_to_end(plan) == ["w1", "w2", "w3"]


def test_quantize_and_dequantize() -> None:
    quantize = [
        node("QuantizeLinear", ["h", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["a"]),
    ]
    model = three(*quantize)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name)
        for name, array in (("scale", np.float32(0.05)), ("zero", np.uint8(128)))
    )
    plan = plan_of(model)
    assert end_to_end(plan) == ["w2", "w3"]
    assert plan.layer_wise == {"w1": "node 'n_q' (QuantizeLinear) lets no gradient through"}


def test_layers_that_the_output_does_not_depend_on() -> None:
    outputs = {"y": ["N", CLASSES], "h": ["N", HIDDEN]}
    plan = plan_of(three(node("Relu", ["h"], ["a"]), outputs=outputs), "h")
    assert end_to_end(plan) == ["w1"]
    assert plan.layer_wise == dict.fromkeys(["w2", "w3"], "output 'h' does not depend on it")


def test_an_output_of_integers_has_no_gradient() -> None:
    plan = plan_of(mlp(labels=True), "label")
    assert plan.part is None
    assert set(plan.layer_wise.values()) == {"output 'label' holds INT64, which has no gradient"}


@pytest.fixture
def users_operators() -> Iterator[None]:
    yield
    registry._users.clear()


def test_a_wrong_value_stops_what_is_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of the importer that is 2 % off is not trusted: its node is a barrier, with the sentence of the check."""
    right = registry.resolve("", "Elu", 17, "")
    monkeypatch.setitem(registry._built_in["", "Elu"], 6, lambda x, *, alpha=1.0: 1.02 * right(x, alpha=alpha))
    plan = plan_of(three(node("Elu", ["h"], ["a"])))
    assert end_to_end(plan) == ["w2", "w3"]
    assert plan.layer_wise["w1"].startswith(
        "Node 'n_a' (Elu) computes 'a' in torch with a relative L2 difference of 0.02"
    )


def test_a_refusal_at_run_time_stops_what_is_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
        raise ValueError("not today")

    monkeypatch.setitem(registry._built_in["", "Elu"], 6, refuse)
    plan = plan_of(three(node("Elu", ["h"], ["a"])))
    assert end_to_end(plan) == ["w2", "w3"]
    assert plan.layer_wise == {"w1": "Node 'n_a' (ai.onnx::Elu) failed on h: float32[8, 128]: not today"}


def test_an_operator_of_the_user_is_an_error_where_it_is_wrong(users_operators: None) -> None:
    """Who teaches an operator wants it to be trained through: no falling back."""
    model = three(node("Trilu", ["h"], ["a"], domain="com.microsoft"), domains=("com.microsoft",))
    reason = "operator com.microsoft::Trilu version 1 at node 'n_a' has no rule"
    assert plan_of(model).layer_wise == {"w1": reason}
    registry.register_op("com.microsoft", "Trilu", lambda x, **_: 1.02 * x.triu())
    with pytest.raises(ForwardMismatchError, match=r"Node 'n_a' \(Trilu\) computes 'a' in torch with a relative"):
        plan_of(model)
    registry._users.clear()
    registry.register_op("com.microsoft", "Trilu", lambda x, **_: x.triu())
    assert end_to_end(plan_of(model)) == ["w1", "w2", "w3"]


def test_names_in_subgraphs_lead_to_the_node_that_holds_them() -> None:
    h = onnx.helper
    info = [h.make_tensor_value_info("o", onnx.TensorProto.FLOAT, None)]
    inner = h.make_node("Relu", ["h"], ["o"], name="inner")
    branch = h.make_graph([inner], "then", [], info)
    graph = normalise(
        ir.from_proto(
            build(
                [
                    node("Relu", ["x"], ["h"]),
                    h.make_node("If", ["flag"], ["y"], name="outer", then_branch=branch, else_branch=branch),
                ],
                {"x": ["N", 4]},
                {"y": ["N", 4]},
                [onnx.numpy_helper.from_array(np.array(True), "flag")],
            )
        )
    ).graph
    assert routing._outermost(graph, "inner").name == "outer"
    assert routing._outermost(graph, "n_h").name == "n_h"
    assert routing._outermost(graph, "nowhere") is None
    assert routing._outermost(graph, None) is None
