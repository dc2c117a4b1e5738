"""Other orders of layers' inputs: the same function, and a smaller error where inputs differ."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnxpq
from onnxpq import cli, rewriting, runtime
from onnxpq.config.settings import Config, PQConfig, TrainingConfig
from onnxpq.config.target import TargetConfig
from onnxpq.data.datasets import Dataset
from onnxpq.graph import files, preparing
from onnxpq.graph.layers import Layer
from onnxpq.graph.normalising import normalise
from onnxpq.network import matrices, partition
from onnxpq.pq.statistics import InputStatistics
from onnxpq.quantization import calibration, ordering

IN, OUT = 48, 256

SAME_BUDGET = 1e-5
"""Relative difference between a model and the same one in another order: float32, summed in another order."""

PLAIN = TrainingConfig(epochs=0)


def uneven(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Inputs of which the first third has nearly all of the power."""
    size = np.where(np.arange(IN) < IN // 3, 1.0, 0.02)
    return (np.random.default_rng(seed).standard_normal((rows, IN)) * size).astype(np.float32)


def weight(out: int, seed: int = 1, *, in_out: bool = False) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal((out, IN)).astype(np.float32)
    return np.ascontiguousarray(values.T) if in_out else values


def build(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], **weights: NDArray[np.float32]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", IN])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in outputs]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def gemm() -> onnx.ModelProto:
    nodes = [helper.make_node("Gemm", ["x", "W", "b"], ["y"], name="fc", transB=1)]
    return build(nodes, ["y"], W=weight(OUT), b=np.arange(OUT, dtype=np.float32))


def pair() -> onnx.ModelProto:
    """Two layers with one input, in the two orders of axes, and one behind them."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="act"),
        helper.make_node("Gemm", ["r", "Wq"], ["q"], name="fq", transB=1),
        helper.make_node("MatMul", ["r", "Wk"], ["k"], name="fk"),
        helper.make_node("Add", ["q", "k"], ["y"], name="sum"),
    ]
    return build(nodes, ["y"], Wq=weight(OUT), Wk=weight(OUT, 2, in_out=True))


MODELS = {"gemm": gemm, "pair": pair}


def prepared(proto: onnx.ModelProto) -> tuple[ir.Model, list[Layer]]:
    model = preparing.prepare(ir.from_proto(proto))
    return model, rewriting.find(model)[0]


def outputs(model: Any, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    return runtime.run(runtime.session(model, use_library=False), {"x": x})


def assert_same(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.linalg.norm(found[name] - value) <= SAME_BUDGET * np.linalg.norm(value)


# The order


def test_dealt_by_hand() -> None:
    # Ranks 0..6 of sizes 7..1; three sub-vectors of 3: ranks 0 1 2 go out, 5 4 3 come back, 6 is left for the first.
    size = np.array([7.0, 6, 5, 4, 3, 2, 1])
    assert ordering.dealt(size, 3).tolist() == [0, 5, 6, 1, 4, 2, 3]


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 90), d=st.integers(1, 20), seed=st.integers(0, 9))
def test_full_sub_vectors_have_one_input_of_each_class(count: int, d: int, seed: int) -> None:
    size = np.random.default_rng(seed).random(count)
    order = ordering.dealt(size, d)
    assert sorted(order) == list(range(count))
    ranks = np.empty(count, int)
    ranks[np.argsort(-size)] = np.arange(count)
    sub_vectors = -(-count // d)
    for m in range(sub_vectors - d):  # the last ones make up for the one that is not full
        assert [int(ranks[i]) // sub_vectors for i in order[m * d : (m + 1) * d]] == list(range(d))


# What may be put in order


def test_layers_with_one_input_are_a_group() -> None:
    model, layers = prepared(pair())
    assert {x: [layer.node for layer in group] for x, group in ordering.groups(model, layers).items()} == {
        "r": ["fq", "fk"]
    }


def test_what_is_no_plain_product_is_left_out() -> None:
    shared = [
        helper.make_node("Relu", ["x"], ["r"], name="act"),
        helper.make_node("MatMul", ["x", "W"], ["a"], name="one"),
        helper.make_node("MatMul", ["r", "W"], ["b"], name="two"),
        helper.make_node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    two_inputs = build(shared, ["y"], W=weight(OUT, in_out=True))
    left = build(
        [
            helper.make_node("Transpose", ["x"], ["t"], name="t", perm=[1, 0]),
            helper.make_node("MatMul", ["W", "t"], ["y"], name="fc"),
        ],
        ["y"],
        W=weight(OUT),
    )
    behind = build(
        [
            helper.make_node("Transpose", ["W"], ["t"], name="t", perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"], name="fc"),
        ],
        ["y"],
        W=weight(OUT),
    )
    for proto in (two_inputs, left, behind):
        model, layers = prepared(proto)
        assert layers
        assert ordering.groups(model, layers) == {}


# The model


@pytest.mark.rounding
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wide", [False, True])
def test_the_function_stays(name: str, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if wide:
        monkeypatch.setattr(ordering, "_SIXTEEN_BITS", 1)
    proto = MODELS[name]()
    model, layers = prepared(proto)
    grouped = ordering.groups(model, layers)
    x = uneven(20)
    expected = outputs(proto, x)
    ready, names = ordering.orderable(model, grouped, grouped)
    assert_same(outputs(ready, x), expected)
    order = np.random.default_rng(3).permutation(IN)
    for form in (ready, normalise(ready)):
        arranged = ordering.arranged(form, dict.fromkeys(names.values(), order))
        onnx.checker.check_model(ir.to_proto(arranged), full_check=True)
        assert_same(outputs(arranged, x), expected)
        assert_same(outputs(form, x), expected)  # which stays as it is
        (index,) = (v.const_value for v in arranged.graph.initializers.values() if (v.name or "").endswith(".order"))
        assert index is not None
        assert index.nbytes == ordering.order_bytes(IN)
    assert rewriting.find(ready)[0] == layers


def test_what_is_spread_out_is_not_kept_in_order_but_computed_again() -> None:
    """One number per class takes hundreds of times the room of the class: magika's inputs took 12 GB."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5, OUT])
    nodes = [
        helper.make_node("OneHot", ["ids", "depth", "values"], ["hot"], name="hot"),
        helper.make_node("MatMul", ["hot", "W"], ["y"], name="fc"),
    ]
    constants = {"depth": np.array(IN), "values": np.array([0, 1], np.float32), "W": weight(OUT, in_out=True)}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [ids], [y], tensors)
    model, layers = prepared(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    ready, _ = ordering.orderable(model, ordering.groups(model, layers), ["hot"])
    assert list(partition.cut(normalise(ready), ["W"]).boundary) == ["ids"]


# Where it pays


def found(x: NDArray[np.float32], proto: onnx.ModelProto) -> dict[str, NDArray[np.floating]]:
    model, layers = prepared(proto)
    normal = normalise(model)
    statistics = calibration.collect(normal, layers, Dataset({"x": x}), seed=0)
    grouped = ordering.groups(model, layers)
    return ordering.gaining(grouped, statistics, lambda layer: matrices.weight(normal, layer), seed=0)


def test_it_pays_where_inputs_differ() -> None:
    assert list(found(uneven(2000), gemm())) == ["x"]
    even = np.random.default_rng(0).standard_normal((2000, IN)).astype(np.float32)
    assert found(even, gemm()) == {}


def test_an_order_of_more_bytes_than_it_saves_is_not_taken() -> None:
    nodes = [helper.make_node("Gemm", ["x", "W"], ["y"], name="fc", transB=1)]
    narrow = build(nodes, ["y"], W=weight(22))  # above the fewest weights that are compressed
    assert found(uneven(2000), narrow) == {}


def test_moments_in_another_order() -> None:
    x, order = uneven(30), np.random.default_rng(0).permutation(IN)
    given, expected = InputStatistics(IN), InputStatistics(IN)
    given.add(x, "x")
    expected.add(x[:, order], "x")
    reordered = given.reordered(order)
    assert reordered.rows == 30
    np.testing.assert_allclose(reordered.second_moment, expected.second_moment, rtol=1e-5, atol=1e-9)


# All of it


def errors(report: onnxpq.Report) -> list[float]:
    return [o.relative_error for o in report.verification.outputs if o.relative_error is not None]


@pytest.mark.rounding
@pytest.mark.parametrize("name", MODELS)
def test_compressing_gives_a_smaller_error_at_the_same_layout(name: str) -> None:
    x = uneven(2000)
    given, ordered = (
        onnxpq.compress(
            MODELS[name](),
            {"x": x},
            test={"x": uneven(500, 9)},
            config=Config(pq=PQConfig(4, reorder=o), training=PLAIN),
        ).report
        for o in (False, True)
    )
    assert errors(ordered)[0] < 0.85 * errors(given)[0]
    assert any("another order" in note for note in ordered.notes)
    assert not any("another order" in note for note in given.notes)
    more = sum(layer.bytes_after for layer in ordered.layers) - sum(layer.bytes_after for layer in given.layers)
    assert more == ordering.order_bytes(IN)
    assert ordered.verification.library_agreement is None or ordered.verification.library_agreement < 1e-2


def test_a_size_counts_the_order_too(tmp_path: Path) -> None:
    files.save(ir.from_proto(pair()), tmp_path / "m.onnx")
    for size in (10_500, 13_000, 20_000):
        config = Config(pq=PQConfig(reorder=True), training=PLAIN, target=TargetConfig(size=size))
        result = onnxpq.compress(tmp_path / "m.onnx", {"x": uneven(2000)}, test={"x": uneven(200, 9)}, config=config)
        result.save(tmp_path / "o.onnx")
        assert 0.8 * size < (tmp_path / "o.onnx").stat().st_size <= size
        assert any("another order" in note for note in result.report.notes)


def test_a_drop_tries_models_with_orders_of_their_own_and_continues(tmp_path: Path) -> None:
    training = TrainingConfig(epochs=2, batch_size=64)
    target = TargetConfig(max_drop=0.2, metric="mse", attempts=2)
    config = Config(pq=PQConfig(reorder=True), training=training, target=target)
    written = []
    for _ in range(2):
        result = onnxpq.compress(
            pair(), {"x": uneven(800)}, test={"x": uneven(200, 9)}, config=config, work_dir=tmp_path / "work"
        )
        assert result.report.target is not None
        assert result.report.target.proof is not None
        assert result.report.target.proof.value <= 0.2
        written.append(files.to_bytes(result.model))
    assert written[0] == written[1]


@pytest.mark.rounding
def test_training_goes_through_the_order() -> None:
    config = Config(pq=PQConfig(8, reorder=True), training=TrainingConfig(epochs=6, batch_size=64))
    report = onnxpq.compress(pair(), {"x": uneven(2000)}, test={"x": uneven(200, 9)}, config=config).report
    assert report.training is not None
    assert report.training.best < 0.9 * report.training.quantized
    assert {layer.training for layer in report.layers} == {"end to end"}


def test_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(gemm(), "m.onnx")
    np.savez("d.npz", x=uneven(2000))
    for flags, expected in (([], False), (["--reorder"], True)):
        assert cli.main(["compress", "m.onnx", "-o", "o.onnx", "--data", "d.npz", "--epochs", "0", *flags]) == 0
        assert ("another order" in capsys.readouterr().out) == expected
        assert any(node.op_type == "Gather" for node in onnx.load("o.onnx").graph.node) == expected


def test_where_the_order_stays_the_report_says_why() -> None:
    config = Config(pq=PQConfig(reorder=True), training=PLAIN)
    even = np.random.default_rng(0).standard_normal((1000, IN)).astype(np.float32)
    for data, reason in ((None, "data tell which is better"), ({"x": even}, "no other one saves enough")):
        notes = onnxpq.compress(gemm(), data, config=config).report.notes
        assert any(reason in note for note in notes)


def test_a_layer_keeps_its_identity() -> None:
    _, (layer,) = prepared(gemm())
    assert replace(layer, input_bytes=96) == layer
