"""Inputs in different units: found, brought to one scale, and quantized as well as those of one unit."""

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_forms import FORMS
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnxpq
from onnxpq import rewriting, runtime
from onnxpq.config.settings import Config, PQConfig, TrainingConfig
from onnxpq.config.target import TargetConfig
from onnxpq.data import Dataset, input_specs
from onnxpq.data.reading import Reading, load
from onnxpq.graph import files
from onnxpq.graph.layers import Layer
from onnxpq.graph.normalising import normalise
from onnxpq.graph.preparing import prepare
from onnxpq.pq.statistics import ColumnStatistics
from onnxpq.quantization import scaling
from onnxpq.rewriting.rescaling import Group, Place, Scale

IN, HIDDEN, OUT = 32, 256, 8
MODELS = Path(__file__).resolve().parents[2] / "models"

LIKE_ONE_UNIT = 1.25
"""The error with inputs in different units, relative to that with a scaler in front: both are chance, too."""

LIBRARY_BUDGET = 1e-2
"""Relative difference of native operator and function body."""

PLAIN = TrainingConfig(epochs=0)


def units_of(decades: float, seed: int = 0) -> NDArray[np.float64]:
    units = np.logspace(-decades / 2, decades / 2, IN)
    np.random.default_rng(seed).shuffle(units)
    return units


def samples(units: NDArray[np.float64], offset: float = 0.0, count: int = 1200, seed: int = 1) -> NDArray[np.float32]:
    z = np.random.default_rng(seed).standard_normal((count, IN))
    return ((z + offset) * units).astype(np.float32)


def network(units: NDArray[np.float64], offset: float = 0.0, *, in_front: bool = False) -> onnx.ModelProto:
    """Two layers behind a scaler, which is folded into the first of them or not; the same function."""
    rng = np.random.default_rng(2)
    first, second = rng.standard_normal((IN, HIDDEN)) / math.sqrt(IN), rng.standard_normal((HIDDEN, OUT))
    bias, tensors = rng.standard_normal(HIDDEN), {}
    nodes = [
        helper.make_node("Gemm", ["x", "W1", "b1"], ["h"], name="fc1"),
        helper.make_node("Relu", ["h"], ["r"], name="act"),
        helper.make_node("Gemm", ["r", "W2"], ["y"], name="fc2"),
    ]
    if in_front:
        nodes[0].input[0] = "z"
        nodes.insert(0, helper.make_node("Div", ["c", "unit"], ["z"], name="scale"))
        nodes.insert(0, helper.make_node("Sub", ["x", "mean"], ["c"], name="centre"))
        tensors = {"W1": first, "b1": bias, "mean": offset * units, "unit": units}
    else:
        tensors = {"W1": first / units[:, None], "b1": bias - offset * first.sum(0)}
    tensors["W2"] = second
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s]) for n, s in (("x", IN), ("y", OUT)))
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def one_layer(weight: NDArray[np.floating]) -> onnx.ModelProto:
    """x @ weight."""
    sizes = zip(("x", "y"), weight.shape, strict=True)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in sizes)
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight.astype(np.float32), "W")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def group(size: int = IN, out: int = HIDDEN, *, can_be_centred: bool = True) -> Group:
    layer = Layer("fc", "Gemm", "W", out, size, True, None)
    return (Place(layer, "x", 0, -1, -2, np.dtype(np.float32), can_be_centred),)


def seen(x: NDArray[np.floating]) -> ColumnStatistics:
    statistics = ColumnStatistics(x.shape[1])
    statistics.add(x)
    return statistics


def found(proto: onnx.ModelProto | Path, data: dict[str, NDArray[np.float32]] | None) -> list[tuple[list[str], Scale]]:
    """The layers that are scaled, and how."""
    prepared = prepare(files.load(proto))
    layers, _ = rewriting.find(prepared)
    dataset = None if data is None else Dataset(data)
    scales = scaling.scales(prepared, normalise(prepared), layers, dataset, seed=0)
    return [([place.layer.node for place in own], scale) for own, scale in scales]


# What is decided


@pytest.mark.parametrize("decades", [2, 3, 6, 8])
def test_different_units_are_made_equal(decades: float) -> None:
    units = units_of(decades)
    scale = scaling.by_data(1 / units, seen(samples(units)), group())
    assert scale is not None
    assert scale.origin is None
    assert scale.factors is not None
    left = samples(units).std(0) * scale.factors
    weights = 1 / units / scale.factors
    # Powers of two are off by the root of two at most, and so is what is left of both.
    assert left.max() / left.min() < 2.1
    assert weights.max() / weights.min() < 2.1
    mantissas, _ = np.frexp(scale.factors.astype(np.float64))
    assert set(mantissas) == {0.5}


def test_one_input_in_another_unit_is_found_among_many() -> None:
    for unit in (1e-3, 1e3):
        units = np.ones(IN)
        units[5] = unit
        scale = scaling.by_data(1 / units, seen(samples(units)), group())
        assert scale is not None
        assert scale.factors is not None
        assert scale.factors[5] / scale.factors[6] == pytest.approx(1 / unit, rel=0.5)


def test_a_mean_far_from_zero_is_taken_off() -> None:
    x = samples(np.ones(IN), 1e4)
    scale = scaling.by_data(np.ones(IN), seen(x), group())
    assert scale is not None
    assert scale.factors is None
    assert scale.origin is not None
    assert np.abs(x.mean(0) - scale.origin).max() <= scaling.NEAR
    assert scaling.by_data(np.ones(IN), seen(x), group(can_be_centred=False)) is None
    assert scaling.by_data(np.ones(IN), seen(x[: scaling.LEAST_ROWS - 1]), group()) is None


def test_what_is_of_one_unit_stays() -> None:
    rng = np.random.default_rng(0)
    for x in (samples(np.ones(IN)), np.maximum(samples(np.ones(IN)), 0) * (rng.random(IN) < 0.7), np.zeros((50, IN))):
        assert scaling.by_data(np.ones(IN), seen(x), group()) is None
    # Large inputs that the network was trained on as they are: their weights are no smaller.
    one = np.where(np.arange(IN) < 1, 50.0, 1.0)
    assert scaling.by_data(np.ones(IN), seen(samples(one)), group()) is None
    # Nor is a class of another unit that is seen more often than the others.
    hot = np.eye(IN)[np.minimum(rng.geometric(0.4, 4000), IN) - 1]
    assert scaling.by_data(rng.uniform(0.5, 1, IN), seen(hot), group()) is None
    # An input that the output hardly depends on.
    assert scaling.by_data(1 / one, seen(samples(np.ones(IN))), group()) is None
    assert scaling.by_weights(np.zeros(IN), group()) is None
    assert scaling.by_weights(rng.random(IN), group()) is None


def test_inputs_that_no_sample_shows_get_a_unit_by_their_weights() -> None:
    units = units_of(4)
    x = samples(units)
    x[:, :3] = 7 * units[:3].astype(np.float32)  # always the same
    x[:, 3] = 0
    size = 1 / units
    size[4] = 0
    scale = scaling.by_data(size, seen(x), group())
    assert scale is not None
    assert scale.factors is not None
    assert np.isfinite(scale.factors).all()
    weights = size / scale.factors
    assert 0.05 < weights[:4].max() / np.median(weights) < 1


def test_without_data_large_weights_mean_small_inputs() -> None:
    for decades in (2, 4, 8):
        scale = scaling.by_weights(1 / units_of(decades), group())
        assert scale is not None
        assert scale.factors is not None
        weights = 1 / units_of(decades) / scale.factors
        assert weights.max() / weights.min() < 2.1
    one = np.ones(IN)
    one[3] = 1e4
    assert scaling.by_weights(one, group()) is not None


def test_a_scale_of_more_bytes_than_it_saves_is_not_taken() -> None:
    units = units_of(1.5)
    assert scaling.by_data(1 / units, seen(samples(units)), group(out=64)) is not None
    assert scaling.by_data(1 / units, seen(samples(units)), group(out=4)) is None
    assert scaling.by_data(np.ones(IN), seen(samples(np.ones(IN), 1.5)), group(out=4)) is None


def test_the_repository_s_models_stay_as_they_are() -> None:
    model = MODELS / "digits_mlp.onnx"
    assert found(model, dict(load(MODELS / "digits_train.npz", Reading(input_specs(files.load(model)))).inputs)) == []
    for path in MODELS.glob("*.onnx"):
        assert found(path, None) == []


# Which values are looked at


def test_values_behind_layers_are_only_looked_at_where_their_weights_differ() -> None:
    """What a layer gives may be far from zero; to look at it in every model would take as long as to calibrate."""
    data = {"x": samples(np.ones(IN))}
    for units, expected in ((np.full(HIDDEN, 9), []), (np.logspace(-3, 3, HIDDEN), [["fc2"]])):
        proto = network(np.ones(IN))
        for tensor in proto.graph.initializer:
            values = numpy_helper.to_array(tensor)
            changed = values / units[:, None] if tensor.name == "W2" else values * units
            tensor.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), tensor.name))
        assert [nodes for nodes, _ in found(proto, data)] == expected


def test_own_values_in_part_are_looked_at() -> None:
    """As in a network of embeddings beside numbers."""
    table = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((32, HIDDEN)).astype(np.float32)
    weight[16:] /= 1e4
    nodes = [
        helper.make_node("Gather", ["T", "ids"], ["e"], name="table"),
        helper.make_node("Concat", ["e", "x"], ["c"], name="both", axis=1),
        helper.make_node("MatMul", ["c", "W"], ["y"], name="fc"),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", HIDDEN])
    constants = [numpy_helper.from_array(table, "T"), numpy_helper.from_array(weight, "W")]
    graph = helper.make_graph(nodes, "g", inputs, [y], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rng = np.random.default_rng(2)
    data = {"ids": rng.integers(0, 300, 600), "x": (1e4 * rng.standard_normal((600, 16))).astype(np.float32)}
    assert [nodes for nodes, _ in found(proto, data)] == [["fc"]]


# What comes of it


def compressed(
    proto: onnx.ModelProto, x: NDArray[np.float32] | None, test: NDArray[np.float32], **settings: Any
) -> onnxpq.Result:
    config = Config(**{"pq": PQConfig(2), "training": PLAIN, **settings})
    return onnxpq.compress(proto, None if x is None else {"x": x}, test={"x": test}, config=config)


def error(result: onnxpq.Result) -> float:
    (output,) = result.report.verification.outputs
    assert output.relative_error is not None
    return output.relative_error


@pytest.mark.parametrize("codewords", [16, 256])
@pytest.mark.parametrize(("decades", "offset"), [(3, 0), (6, 3), (8, 0), (0, 1e3)])
def test_the_error_is_that_of_inputs_of_one_unit(decades: float, offset: float, codewords: int) -> None:
    units = units_of(decades)
    x, test = samples(units, offset), samples(units, offset, 300, 9)
    pq = PQConfig(2, codewords, "layer")
    expected, result = (
        compressed(network(units, offset, in_front=in_front), x, test, pq=pq) for in_front in (True, False)
    )
    assert error(result) < LIKE_ONE_UNIT * error(expected)
    assert (result.report.verification.library_agreement or 0) < LIBRARY_BUDGET
    assert any("'fc1'" in note for note in result.report.notes)
    assert not any("one scale" in note for note in expected.report.notes)


def test_without_data_units_are_read_off_the_weights() -> None:
    units = units_of(6)
    test = samples(units, count=300)
    expected = compressed(network(units, in_front=True), None, test)
    assert error(compressed(network(units), None, test)) < LIKE_ONE_UNIT * error(expected)


def test_training_goes_through_the_scale() -> None:
    units = units_of(6)
    x, test = samples(units, 3), samples(units, 3, 300, 9)
    training = TrainingConfig(steps=200, batch_size=64)
    expected, result = (
        compressed(network(units, 3, in_front=in_front), x, test, pq=PQConfig(4), training=training)
        for in_front in (True, False)
    )
    assert result.report.training is not None
    assert result.report.training.best < 0.9 * result.report.training.quantized
    assert {layer.training for layer in result.report.layers} == {"end to end"}
    assert error(result) < LIKE_ONE_UNIT * error(expected)


def test_the_bytes_of_the_scale_are_the_layer_s() -> None:
    units = units_of(4)
    x, test = samples(units, 3), samples(units, 3, 300, 9)
    expected, result = (compressed(network(units, 3, in_front=in_front), x, test) for in_front in (True, False))
    pairs = zip(result.report.layers, expected.report.layers, strict=True)
    more = [layer.bytes_after - other.bytes_after for layer, other in pairs]
    stored = {name: value.const_value for name, value in result.model.graph.initializers.items()}
    own = [tensor for name, tensor in stored.items() if name.startswith("x.") and tensor is not None]
    assert len(own) == 2
    assert more == [sum(tensor.nbytes for tensor in own), 0]


def test_a_size_counts_the_scale_too(tmp_path: Path) -> None:
    units = units_of(4)
    files.save(ir.from_proto(network(units, 3)), tmp_path / "m.onnx")
    for size in (9_000, 16_000):
        result = onnxpq.compress(
            tmp_path / "m.onnx",
            {"x": samples(units, 3)},
            test={"x": samples(units, 3, 300, 9)},
            config=Config(training=PLAIN, target=TargetConfig(size=size)),
        )
        result.save(tmp_path / "o.onnx")
        assert 0.8 * size < (tmp_path / "o.onnx").stat().st_size <= size
        assert any("one scale" in note for note in result.report.notes)


def test_an_order_comes_behind_the_scale() -> None:
    units = units_of(4)
    z = np.random.default_rng(0).standard_normal((1500, IN)) * np.where(np.arange(IN) < IN // 3, 1.0, 0.02)
    x = (z * units).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((IN, HIDDEN)) / units[:, None]
    plain, ordered = (
        compressed(one_layer(weight), x[:1200], x[1200:], pq=PQConfig(4, reorder=reorder)) for reorder in (False, True)
    )
    assert any("another order" in note for note in ordered.report.notes)
    assert any("one scale" in note for note in ordered.report.notes)
    assert error(ordered) < error(plain)
    more = ordered.report.layers[0].bytes_after - plain.report.layers[0].bytes_after
    assert more == 2 * IN


def test_the_user_s_model_stays(tmp_path: Path) -> None:
    units = units_of(4)
    proto = network(units)
    before = proto.SerializeToString()
    result = compressed(proto, samples(units), samples(units, count=200, seed=9))
    assert proto.SerializeToString() == before
    assert [value.name for value in result.model.graph.inputs] == ["x"]
    result.save(tmp_path / "o.onnx")
    session = runtime.session(tmp_path / "o.onnx")
    assert session.run(None, {"x": samples(units, count=3)})[0].shape == (3, OUT)


def test_a_model_of_bfloat16_is_left_with_a_note() -> None:
    proto = FORMS["bfloat16"].model()
    weight = next(tensor for tensor in proto.graph.initializer if tensor.dims == [96, 160])
    values = numpy_helper.to_array(weight) * np.logspace(-3, 3, 96).astype(np.float32)[:, None]
    weight.CopyFrom(numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), weight.name))
    notes = onnxpq.compress(proto).report.notes
    assert any("stay as they are, as the model computes in bfloat16" in note for note in notes)
