"""Models that ONNX's tools refuse or misread, and what is made of them; onnxruntime says what they mean."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny_models as tiny
from onnx import helper, numpy_helper

import onnxpq
from onnxpq.errors import ModelError
from onnxpq.graph import files, opset, opsets
from onnxpq.graph.forms import MENDED_ALONE
from onnxpq.runtime import refusal

MS = "com.microsoft"
Change = Callable[[onnx.ModelProto], None]


def with_act(op_type: str, domain: str = "", **attributes: object) -> Change:
    """The node between the two layers is another one."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node[1].CopyFrom(helper.make_node(op_type, ["h"], ["a"], "act", domain=domain, **attributes))

    return change


def turn_around(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


def no_default_import(model: onnx.ModelProto) -> None:
    model.opset_import[0].CopyFrom(helper.make_opsetid(MS, 1))


def no_default_import_but_an_old_operator(model: onnx.ModelProto) -> None:
    no_default_import(model)
    with_act("Softmax")(model)


def spelt_out(model: onnx.ModelProto) -> None:
    for entry in (*model.graph.node, *model.opset_import):
        entry.domain = "ai.onnx"


def spelt_out_in_nodes(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.domain = "ai.onnx"


def scaled(model: onnx.ModelProto) -> None:
    model.graph.node[2].output[0] = "unscaled"
    settings = {"offset": [0.5], "scale": [2.0]}
    model.graph.node.append(helper.make_node("Scaler", ["unscaled"], ["logits"], domain="ai.onnx.ml", **settings))


def no_graph_name(model: onnx.ModelProto) -> None:
    model.graph.name = ""


def ir_3(model: onnx.ModelProto) -> None:
    model.ir_version, model.opset_import[0].version = 3, 8


def output_without_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].ClearField("type")


def output_without_shape(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.ClearField("shape")


def initializer_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(model.graph.initializer[1])


def training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.name = "descent"


def sparse(model: onnx.ModelProto, rank: int = 1) -> None:
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "W1")
    array = np.array(numpy_helper.to_array(weight))
    array[np.abs(array) < 0.2] = 0
    model.graph.initializer.remove(weight)
    model.graph.sparse_initializer.append(sparse_tensor(array, "W1", rank))


def sparse_by_rows(model: onnx.ModelProto) -> None:
    sparse(model, rank=2)


def sparse_constant(model: onnx.ModelProto) -> None:
    sparse(model)
    (tensor,) = model.graph.sparse_initializer
    model.graph.node.insert(0, helper.make_node("Constant", [], ["W1"], sparse_value=tensor))
    del model.graph.sparse_initializer[:]


def sparse_tensor(array: np.ndarray, name: str, rank: int) -> onnx.SparseTensorProto:
    places = np.argwhere(array) if rank == 2 else np.flatnonzero(array)
    values = numpy_helper.from_array(array[array != 0], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places, f"{name} places"), array.shape)


def called(version: int, *nodes: onnx.NodeProto, imports: tuple[onnx.OperatorSetIdProto, ...] = ()) -> Change:
    """The node between the two layers is a call of a function of these nodes, from x to y."""

    def change(model: onnx.ModelProto) -> None:
        own = [helper.make_opsetid("", version), *imports]
        model.functions.append(helper.make_function("own", "Act", ["x"], ["y"], nodes, own))
        model.opset_import.append(helper.make_opsetid("own", 1))
        with_act("Act", "own")(model)

    return change


def in_branches(model: onnx.ModelProto) -> None:
    """An If whose branches read a value of the main graph, before the node that computes it."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Gelu", ["h"], [f"{name} a"], domain=MS)],
            name,
            [],
            [onnx.ValueInfoProto(name=f"{name} a")],
        )
        for name in ("then", "else")
    }
    model.graph.node[1].CopyFrom(helper.make_node("If", ["yes"], ["a"], "act", **branches))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    turn_around(model)


RUN_BY_ONNXRUNTIME: dict[str, tuple[Change, str]] = {
    "unsorted": (turn_around, r"the nodes of 'tiny' were not in topological order, and are sorted now"),
    "com.microsoft is not imported": (with_act("Gelu", MS), r"'com.microsoft' was not imported; version 1 is taken"),
    "ai.onnx.ml is not imported": (scaled, r"'ai.onnx.ml' was not imported; version 1 is taken"),
    "ai.onnx is not imported": (no_default_import, r"'ai.onnx' was not imported; version 14 is taken"),
    "of an old and a new Softmax": (no_default_import_but_an_old_operator, r"'ai.onnx' was not imported; version 13"),
    "unsorted and not imported, in branches": (in_branches, r"'com.microsoft' was not imported"),
    "the domain is spelt out": (spelt_out, r"nodes spell the default domain as 'ai.onnx', and it is written as '' now"),
    "nodes spell the domain out": (spelt_out_in_nodes, r"nodes spell the default domain as 'ai.onnx'"),
    "no name": (no_graph_name, r"a graph without a name is called 'graph' now"),
    "IR 3": (
        ir_3,
        r"its initializers 'W1', 'W2', 'b1', 'b2' are no inputs, which IR version 3 does not know; it is 4 now",
    ),
    "output without type": (output_without_type, r"output 'logits' had no type or no shape; it was inferred"),
    "output without shape": (output_without_shape, r"output 'logits' had no type or no shape; it was inferred"),
    "two initializers of a name": (
        initializer_twice,
        r"the initializers 'b1' were there twice",
    ),
    "training information": (training, r"its training information, which is of no use to a runtime, is left out"),
    "sparse": (sparse, r"the sparse tensors 'W1' are dense now"),
    "sparse by rows": (sparse_by_rows, r"the sparse tensors 'W1' are dense now"),
    "sparse constant": (sparse_constant, r"the sparse tensors 'W1' are dense now"),
    "function of an older opset": (
        called(11, helper.make_node("Softmax", ["x"], ["y"], axis=0)),
        r"function 'Act' imports version 11 of 'ai.onnx' and the model 17, in which 'Softmax' may differ; the model's",
    ),
}


def same_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = "same"


def opset_6(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 6
    for node in model.graph.node:
        if node.op_type == "Gemm":
            node.attribute.append(helper.make_attribute("broadcast", 1))


def private_in_function(model: onnx.ModelProto) -> None:
    """onnxruntime 1.32 dies of it."""
    ones = numpy_helper.from_array(np.ones(tiny.HIDDEN, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["one"], value=ones),
        helper.make_node("SimplifiedLayerNormalization", ["x", "one"], ["y"], axis=-1),
    ]
    called(17, *nodes)(model)


def another_com_microsoft(model: onnx.ModelProto) -> None:
    gelu = helper.make_node("Gelu", ["x"], ["y"], domain=MS)
    called(17, gelu, imports=(helper.make_opsetid(MS, 2),))(model)
    model.opset_import.append(helper.make_opsetid(MS, 1))


REFUSED_BY_ONNXRUNTIME: dict[str, tuple[Change, str]] = {
    "nodes of a name": (same_names, r"several nodes had the name 'same'; they have none now"),
    "unsorted function": (
        called(17, helper.make_node("Neg", ["b"], ["y"]), helper.make_node("Relu", ["x"], ["b"])),
        r"the nodes of 'Act' were not in topological order",
    ),
    "function without com.microsoft": (
        called(17, helper.make_node("Gelu", ["x"], ["y"], domain=MS)),
        r"'com.microsoft' was not imported in function 'Act'; version 1 is taken",
    ),
    "function of another com.microsoft": (another_com_microsoft, r"'Act' imports version 2 of 'com.microsoft'"),
    "opset 6": (opset_6, r"its operator set is older than those that onnxruntime runs, and was raised"),
    "private operator in a function": (private_in_function, r"the functions 'Act' hold operators that onnxruntime has"),
}


def changed(change: Change) -> onnx.ModelProto:
    model = tiny.mlp()
    change(model)
    return model


def outputs(content: bytes) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": tiny.samples(7)})[0]
    return found


def mended(model: onnx.ModelProto, note: str) -> bytes:
    """The model as it is read, of which a note tells."""
    before = model.SerializeToString()
    found = files.read(model)
    assert found.mended
    assert [entry for entry in found.notes if re.match(f"The model was mended: .*{note}", entry)], found.notes
    assert model.SerializeToString() == before, "what is passed is not changed"
    assert not files.read(found.model).mended, "it is in order now"
    return files.to_bytes(found.model)


@pytest.mark.parametrize("name", RUN_BY_ONNXRUNTIME)
def test_what_onnxruntime_runs_is_valid_afterwards_and_means_the_same(name: str) -> None:
    change, note = RUN_BY_ONNXRUNTIME[name]
    model = changed(change)
    content = mended(model, note)
    onnx.checker.check_model(content)
    np.testing.assert_array_equal(outputs(content), outputs(model.SerializeToString()))


@pytest.mark.parametrize("name", REFUSED_BY_ONNXRUNTIME)
def test_what_onnxruntime_refuses_loads_afterwards(name: str) -> None:
    change, note = REFUSED_BY_ONNXRUNTIME[name]
    model = changed(change)
    assert refusal(model) is not None
    assert np.isfinite(outputs(mended(model, note))).all()


def test_a_model_in_order_is_left_as_it_is() -> None:
    found = files.read(tiny.mlp())
    assert not found.mended
    assert found.notes == ()


def test_an_onnx_ir_model_is_mended_too() -> None:
    found = files.read(ir.from_proto(changed(turn_around)))
    assert [node.name for node in found.model.graph] == ["fc1", "act", "fc2"]
    assert "not in topological order" in found.notes[0]


@pytest.mark.parametrize("version", [13, 18])
def test_a_function_of_another_opset_is_taken_at_the_models_without_a_word_where_that_is_the_same(version: int) -> None:
    model = changed(called(version, helper.make_node("Tanh", ["x"], ["y"])))
    found = files.read(model)
    assert found.notes == ()
    assert found.mended
    np.testing.assert_array_equal(outputs(files.to_bytes(found.model)), outputs(model.SerializeToString()))


def test_a_cycle_is_named() -> None:
    model = tiny.mlp()
    model.graph.node[0].input[0] = "logits"
    with pytest.raises(ModelError, match=r"The nodes of 'tiny' form a cycle: 'fc1' -> 'act' -> 'fc2' -> 'fc1'. Each"):
        files.read(model)


def test_functions_of_others_in_our_domain_move_out_of_the_way() -> None:
    model = tiny.mlp()
    body = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model.functions.append(
        helper.make_function("onnxpq", "PQMatMul", ["x", "w"], ["y"], body, [helper.make_opsetid("", 17)])
    )
    model.opset_import.append(helper.make_opsetid("onnxpq", 1))
    model.graph.node[1].CopyFrom(helper.make_node("PQMatMul", ["h", "square"], ["a"], "own", domain="onnxpq"))
    model.graph.initializer.append(tiny.initializer("square", tiny.HIDDEN, tiny.HIDDEN, seed=5))
    expected = outputs(model.SerializeToString())
    np.testing.assert_array_equal(outputs(mended(model, "its functions in the domain 'onnxpq'")), expected)
    assert len(onnxpq.compress(model).report.layers) == 3


def test_our_own_functions_stay() -> None:
    result = onnxpq.compress(tiny.mlp())
    found = files.read(result.model)
    assert not found.mended
    assert {domain for domain, _, _ in found.model.functions} == {"onnxpq"}


@pytest.mark.parametrize(("across", "axes"), [(0, [0, 2, 3]), (1, [0, 1, 2, 3])], ids=["each channel", "all channels"])
def test_the_normalization_of_before_opset_9(across: int, axes: list[int]) -> None:
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"], across_channels=across)
    model = tiny.build([node], {"x": ["N", 3, 4, 5]}, {"y": ["N", 3, 4, 5]}, [])
    model.ir_version, model.opset_import[0].version = 4, 8
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = files.read(model)
    assert list(found.model.graph[0].attributes.get_ints("axes")) == axes
    again = onnxruntime.InferenceSession(files.to_bytes(found.model), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(again.run(None, {"x": x})[0], session.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)


def test_what_no_newer_opset_has_is_refused_with_what_to_do() -> None:
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"], "mean", normalize_variance=0)
    model = tiny.build([node], {"x": ["N", 3, 4, 5]}, {"y": ["N", 3, 4, 5]}, [])
    model.ir_version, model.opset_import[0].version = 4, 8
    with pytest.raises(ModelError, match=r"Node 'mean' .* normalize_variance = 0, .* Write it as ReduceMean and Sub"):
        files.read(model)


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("Affine", {"alpha": 0.5, "beta": 0.1}),
        ("ScaledTanh", {"alpha": 1.7, "beta": 0.66}),
        ("ParametricSoftplus", {"alpha": 0.5, "beta": 2.0}),
        ("ThresholdedRelu", {"alpha": 0.1}),
    ],
)
def test_operators_that_onnxruntime_has_below_opset_10_only(op_type: str, attributes: dict[str, float]) -> None:
    model = changed(with_act(op_type, **attributes))
    model.ir_version, model.opset_import[0].version = 4, 8
    found = files.load(model)
    assert opset(found) == 9
    assert [node.op_type for node in found.graph] == ["Gemm", op_type, "Gemm"]
    np.testing.assert_allclose(outputs(files.to_bytes(found)), outputs(model.SerializeToString()), rtol=1e-5, atol=1e-6)


def test_an_unknown_operator_of_an_old_opset_is_named() -> None:
    model = changed(with_act("Nonsense"))
    model.ir_version, model.opset_import[0].version = 4, 8
    with pytest.raises(ModelError, match=r"opset 8, in which ONNX has no operator 'Nonsense' \(node 'act'\), so that"):
        opsets.raised(model, 8, "the model")


def test_a_sparse_tensor_that_would_fill_the_memory_is_refused() -> None:
    model = changed(sparse)
    del model.graph.sparse_initializer[0].dims[:]
    model.graph.sparse_initializer[0].dims.extend([2**20, 2**20])
    with pytest.raises(ModelError, match=r"'W1' has 1099511627776 values with its zeros; onnxpq makes up to"):
        files.read(model)
    model.graph.sparse_initializer[0].dims[:] = [2, 2]
    with pytest.raises(ModelError, match=r"The sparse tensor 'W1' cannot be read: .* with dense weights"):
        files.read(model)


def test_names_that_are_no_text_are_damage() -> None:
    content = changed(with_act("Gelu", MS)).SerializeToString().replace(MS.encode(), b"com.micros\xffft")
    with pytest.raises(ModelError, match=r"is damaged: the name b'com.micros.*' is no text. Export or copy it again"):
        files.read(content)


def test_two_initializers_of_one_name_and_different_values_are_refused() -> None:
    model = tiny.mlp()
    model.graph.initializer.append(tiny.initializer("b1", tiny.HIDDEN, seed=9))
    with pytest.raises(ModelError, match=r"'tiny' has two initializers 'b1' of different values: .* Remove one"):
        files.read(model)


def test_notes_reach_the_report_and_the_original_is_the_users_file(tmp_path: Path) -> None:
    path = tiny.save_model(tmp_path / "unsorted.onnx", changed(turn_around))
    report = onnxpq.compress(path).report
    assert (
        "The model was mended: the nodes of 'tiny' were not in topological order, and are sorted now." in report.notes
    )
    assert MENDED_ALONE not in report.notes


def test_where_onnxruntime_refuses_the_users_file_the_mended_model_is_the_original(tmp_path: Path) -> None:
    path = tiny.save_model(tmp_path / "same.onnx", changed(same_names))
    result = onnxpq.compress(path)
    assert MENDED_ALONE in result.report.notes
    assert result.report.verification.bytes_before == path.stat().st_size
    onnx.checker.check_model(files.to_bytes(result.model), full_check=True)
