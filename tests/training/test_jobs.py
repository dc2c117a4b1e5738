"""Training of layers by themselves, on hand-made models."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny_models import CLASSES, FEATURES, HIDDEN, build, initializer, mlp

import onnxpq
from onnxpq import rewriting
from onnxpq.config.settings import Config, TrainingConfig
from onnxpq.data import Dataset
from onnxpq.errors import DataError, UnalignedError
from onnxpq.graph import files
from onnxpq.graph.layers import Layer
from onnxpq.graph.normalising import normalise
from onnxpq.network import partition
from onnxpq.quantization import calibration
from onnxpq.quantization.subject import UNREACHED
from onnxpq.runtime.activations import capture, capture_rows

pytestmark = pytest.mark.rounding

QUICK = Config(training=TrainingConfig(epochs=40, batch_size=64))
TIMES = 5


@pytest.fixture(autouse=True)
def quantized_for_the_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without statistics of the layers' inputs, the few steps of these tests have something to gain."""

    def none(_model: object, layers: Sequence[Layer], *_: object, **__: object) -> Iterator[tuple[str, None]]:
        return ((layer.weight, None) for layer in layers)

    monkeypatch.setattr(calibration, "collect", none)


def correlated(*shape: int, seed: int = 0) -> np.ndarray:
    """Vectors of 64 in a space of 12 dimensions: there training has something to gain."""
    directions = np.random.default_rng(1).standard_normal((12, FEATURES))
    return (np.random.default_rng(seed).standard_normal((*shape, 12)) @ directions / 3).astype(np.float32)


def sequence_model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """`x [N, T, 64] -> MatMul w1 -> Add b1 -> Round -> ReduceSum -> MatMul w2`: no gradient reaches w1."""
    chain = [
        helper.make_node("MatMul", ["x", "w1"], ["m"], name="fc1"),
        helper.make_node("Add", ["m", "b1"], ["h"], name="bias1"),
        helper.make_node("Round", ["h"], ["r"], name="round"),
        helper.make_node("ReduceSum", ["r", "axis"], ["s"], name="sum", keepdims=0),
        *nodes,
        helper.make_node("MatMul", ["s", "w2"], ["y"], name="fc2"),
    ]
    weights = [
        initializer("w1", FEATURES, HIDDEN, seed=0),
        initializer("b1", HIDDEN, seed=1),
        initializer("w2", HIDDEN, CLASSES, seed=2, scale=0.1),
        numpy_helper.from_array(np.array([1]), "axis"),
    ]
    return build(chain, {"x": ["N", "T", FEATURES]}, {"y": ["N", CLASSES]}, weights)


def test_a_layer_over_a_sequence_is_trained_on_its_vectors() -> None:
    data = {"x": correlated(200, TIMES)}
    result = onnxpq.compress(sequence_model(), data, config=QUICK)
    (alone,) = result.report.layer_wise
    assert alone.reason == "node 'round' (Round) lets no gradient through"
    assert alone.rows + alone.validation_rows == 180 * TIMES  # a tenth of the samples is set aside
    assert alone.best < 0.6 * alone.quantized
    assert [layer.training.partition(":")[0] for layer in result.report.layers] == ["layer-wise", "end to end"]
    bias = {value.name: value.const_value.numpy() for value in result.model.graph.initializers.values()}.get("b1")
    assert bias is None or not np.array_equal(bias, numpy_helper.to_array(sequence_model().graph.initializer[1]))


def test_a_model_that_gives_labels_alone() -> None:
    model = mlp(labels=True)
    del model.graph.output[0]
    labels = np.random.default_rng(0).integers(0, CLASSES, 300)
    data = {"x": correlated(300), "y": labels}
    report = onnxpq.compress(model, data, labels="y", config=QUICK).report
    reason = "layer-wise: output 'label' holds INT64, which has no gradient"
    assert [layer.training for layer in report.layers] == [reason] * 2
    assert report.training is None
    assert report.verification.outputs[0].agreement > 0.3
    assert report.verification.accuracy is not None
    assert report.verification.accuracy.output == "label"


def test_a_weight_of_two_layers_is_trained_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Round", ["a"], ["r"], name="round"),
        helper.make_node("MatMul", ["r", "w"], ["b"], name="two"),
        helper.make_node("Ceil", ["b"], ["y"], name="ceil"),
    ]
    model = build(nodes, {"x": ["N", FEATURES]}, {"y": ["N", FEATURES]}, [initializer("w", FEATURES, FEATURES, seed=0)])
    report = onnxpq.compress(model, {"x": correlated(200)}, config=QUICK).report
    assert [entry.node for entry in report.layer_wise] == ["one"]
    assert len({layer.training for layer in report.layers}) == 1


def texts_of_many_lengths(*, known: bool) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Repeats a row as often as its first number says; then a layer, whose input so has no row per sample.

    Args:
        known: whether the importer has a rule for the operator in between.
    """
    between = ("Relu", "") if known else ("Trilu", "com.microsoft")
    nodes = [
        helper.make_node("Cast", ["count"], ["n"], name="cast", to=7),
        helper.make_node("Reshape", ["n", "one"], ["times"], name="times"),
        helper.make_node("Concat", ["times", "one"], ["repeats"], name="repeats", axis=0),
        helper.make_node("Tile", ["x", "repeats"], ["t0"], name="tile"),
        helper.make_node(between[0], ["t0"], ["t"], name="between", domain=between[1]),
        helper.make_node("Gemm", ["t", "w"], ["h"], name="fc"),
        helper.make_node("ReduceMean", ["h"], ["y"], name="mean", axes=[0], keepdims=1),
    ]
    weights = [initializer("w", FEATURES, HIDDEN, seed=0), numpy_helper.from_array(np.array([1]), "one")]
    domains = ("com.microsoft",) if between[1] else ()
    model = build(nodes, {"x": [1, FEATURES], "count": [1]}, {"y": [1, HIDDEN]}, weights, domains=domains)
    count = 1 + np.arange(60) % 5
    return model, {"x": correlated(60), "count": count.astype(np.float32)}


def test_a_value_without_an_entry_per_sample_is_computed_in_the_trained_part() -> None:
    model, data = texts_of_many_lengths(known=True)
    report = onnxpq.compress(model, data, config=QUICK).report
    assert report.layer_wise == ()
    assert (report.training.prefix, report.training.batch) == (2, 1)  # how often is known before
    assert report.training.best < report.training.quantized


def test_an_input_without_a_row_per_sample() -> None:
    model, data = texts_of_many_lengths(known=False)
    (alone,) = onnxpq.compress(model, data, config=QUICK).report.layer_wise
    assert "com.microsoft::Trilu" in alone.reason
    assert alone.rows + alone.validation_rows > 100


def test_rows_are_bounded_and_come_from_many_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = normalise(files.load(sequence_model()))
    x = np.broadcast_to(np.arange(2000, dtype=np.float32)[:, None, None], (2000, TIMES, FEATURES)).copy()
    rows = capture_rows(model, "x", Dataset({"x": x}), limit=400, flatten=True, cache_dir=tmp_path)
    assert rows.shape == (400, FEATURES)
    assert len(np.unique(rows[:, 0])) > 200
    assert not np.array_equal(rows[:, 0], np.sort(rows[:, 0]))
    again = capture_rows(model, "x", Dataset({"x": x}), limit=400, flatten=True, cache_dir=tmp_path)
    np.testing.assert_array_equal(rows, again)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("onnxpq.runtime.activations.ROWS_BYTES", 4 * FEATURES * 10)
    assert len(capture_rows(model, "m", Dataset({"x": x}), limit=400, flatten=True, cache_dir=None)) <= 10


def test_a_layer_alone_gives_what_it_gives_in_the_model() -> None:
    model = normalise(files.load(sequence_model()))
    layers, _ = rewriting.find(files.load(sequence_model()))
    x = {"x": correlated(20, TIMES)}
    alone = partition.alone(model, layers[0])
    assert (alone.input, alone.output, alone.by_rows) == ("x", "h", True)
    whole = capture(model, ["h"], Dataset(x), cache_dir=None).inputs["h"].reshape(-1, HIDDEN)
    rows = {"x": x["x"].reshape(-1, FEATURES)}
    found = capture(alone.model, ["h"], Dataset(rows), cache_dir=None).inputs["h"]
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)


def test_a_value_that_has_no_rows() -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["s"], name="sum", keepdims=0)]
    model = normalise(files.load(build(nodes, {"x": ["N", 4]}, {"s": []}, [])))
    with pytest.raises(UnalignedError, match="Value 's' is a scalar and has no rows"):
        capture_rows(model, "s", Dataset({"x": np.ones((9, 4), np.float32)}), limit=5, flatten=True, cache_dir=None)
    with pytest.raises(DataError, match="lacks the inputs x"):
        capture_rows(model, "s", Dataset({}), limit=5, flatten=True, cache_dir=None)


def test_a_layer_in_a_branch_that_no_gradient_reaches_is_trained_by_itself() -> None:
    info = [helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, None)]
    branches = [
        helper.make_graph(
            [
                helper.make_node("Tanh", ["x"], [f"t_{name}"], name=f"tanh_{name}"),
                helper.make_node("MatMul", [f"t_{name}", name], ["o"], name=f"fc_{name}"),
            ],
            name,
            [],
            info,
        )
        for name in ("w1", "w2")
    ]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], name="top", keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["flag"], name="flag"),
        helper.make_node("If", ["flag"], ["h"], name="choice", then_branch=branches[0], else_branch=branches[1]),
        # Of large numbers: those that the tables' error carries over to the next integer are then few beside them.
        helper.make_node("Mul", ["h", "hundred"], ["large"], name="large"),
        helper.make_node("Round", ["large"], ["y"], name="round"),
    ]
    weights = [initializer(name, FEATURES, HIDDEN, seed=seed) for seed, name in enumerate(("w1", "w2"))]
    model = build(nodes, {"x": ["N", FEATURES]}, {"y": ["N", HIDDEN]}, weights)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(100), "hundred"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    report = onnxpq.compress(model, {"x": correlated(200)}, config=QUICK).report
    assert {layer.node: layer.training.partition(":")[0] for layer in report.layers} == {"fc_w1": "layer-wise"}
    # No sample reaches the other branch, so it is left as it is.
    assert {entry.node: entry.reason for entry in report.skipped} == {"fc_w2": UNREACHED}
    assert any(note.startswith("No sample of the data reaches the layers 'fc_w2', so") for note in report.notes)
    (alone,) = report.layer_wise
    assert alone.reason == "node 'round' (Round) lets no gradient through"
    assert alone.rows + alone.validation_rows == 180
    assert alone.best < 0.8 * alone.quantized
    assert report.training is None


def test_what_shifts_and_scales_is_trained_along_unless_it_is_used_elsewhere() -> None:
    nodes = [
        helper.make_node("Sub", ["x", "shared"], ["centred"], name="before"),
        helper.make_node("Add", ["centred", "shared"], ["shifted"], name="again"),
        helper.make_node("MatMul", ["shifted", "w1"], ["a"], name="fc1"),
        helper.make_node("Mul", ["a", "scale"], ["b"], name="scaled"),
        helper.make_node("Add", ["shift", "b"], ["c"], name="own"),
        helper.make_node("Add", ["c", "shared"], ["d"], name="common"),
        helper.make_node("MatMul", ["d", "w2"], ["y"], name="fc2"),
    ]
    weights = [
        initializer("w1", FEATURES, FEATURES, seed=0),
        initializer("w2", FEATURES, HIDDEN, seed=1),
        *(initializer(name, FEATURES, seed=seed) for seed, name in enumerate(("shared", "scale", "shift"))),
    ]
    model = build(nodes, {"x": ["N", FEATURES]}, {"y": ["N", HIDDEN]}, weights)
    result = onnxpq.compress(model, {"x": correlated(300)}, config=QUICK)
    assert [layer.training for layer in result.report.layers] == ["end to end"] * 2
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    after = {name: value.const_value.numpy() for name, value in result.model.graph.initializers.items()}
    changed = {name for name in ("shared", "scale", "shift") if not np.array_equal(before[name], after[name])}
    assert changed == {"scale", "shift"}
    training = result.report.training
    assert training is not None
    assert training.steps == len(training.epochs) * (270 * 9 // 10 // training.batch)


def test_a_layer_in_a_branch_that_no_sample_takes_is_not_called_trained() -> None:
    info = [helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, None)]
    branches = [
        helper.make_graph([helper.make_node("MatMul", ["x", name], ["o"], name=f"fc_{name}")], name, [], info)
        for name in ("w1", "w2")
    ]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], name="top", keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["flag"], name="flag"),
        helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=branches[0], else_branch=branches[1]),
    ]
    weights = [initializer(name, FEATURES, HIDDEN, seed=seed) for seed, name in enumerate(("w1", "w2"))]
    model = build(nodes, {"x": ["N", FEATURES]}, {"y": ["N", HIDDEN]}, weights)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    report = onnxpq.compress(model, {"x": correlated(200)}, config=QUICK).report
    assert {layer.node: layer.training for layer in report.layers} == {
        "fc_w1": "end to end",
        "fc_w2": "not trained: no sample reaches it: it lies in a branch that is not taken",
    }


def with_output(model: onnx.ModelProto, name: str, size: int) -> onnx.ModelProto:
    model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size]))
    return model


@pytest.mark.parametrize(
    ("model", "name", "data"),
    [
        pytest.param(with_output(mlp(), "b2", CLASSES), "b2", correlated(200), id="end to end"),
        pytest.param(with_output(sequence_model(), "b1", HIDDEN), "b1", correlated(200, TIMES), id="layer by layer"),
    ],
)
def test_a_bias_that_is_an_output_stays(model: onnx.ModelProto, name: str, data: np.ndarray) -> None:
    result = onnxpq.compress(model, {"x": data}, config=QUICK)
    (given,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    kept = result.model.graph.initializers[name].const_value
    assert kept is not None
    np.testing.assert_array_equal(kept.numpy(), numpy_helper.to_array(given))
    assert {layer.training.partition(":")[0] for layer in result.report.layers} >= {"end to end"}


def test_a_bias_that_is_used_elsewhere_too_stays() -> None:
    """Where it is trained with a layer by itself, nobody sees what else depends on it."""
    model = sequence_model()
    model.graph.node.append(helper.make_node("Neg", ["b1"], ["minus"], name="minus"))
    with_output(model, "minus", HIDDEN)
    result = onnxpq.compress(model, {"x": correlated(200, TIMES)}, config=QUICK)
    kept = result.model.graph.initializers["b1"].const_value
    assert kept is not None
    np.testing.assert_array_equal(kept.numpy(), numpy_helper.to_array(model.graph.initializer[1]))
