"""Sizes of inputs that a model leaves open: by a function in the place of onnxruntime, and by onnxruntime."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_models as tiny
from numpy.typing import NDArray
from onnx import helper

import onnxpq
from onnxpq.data import sizes
from onnxpq.data.inputs import input_specs
from onnxpq.errors import DataError, ModelError

Inputs = Mapping[str, NDArray[np.generic]]


def open_images(side: int) -> onnx.ModelProto:
    """A convolution of stride 2, and a head that fits images of `side` x `side` alone."""
    nodes = [
        helper.make_node("Conv", ["x", "K"], ["c"], name="conv", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "W"], ["y"], name="fc"),
    ]
    out = (side + 1) // 2
    weights = [tiny.initializer("K", 4, 3, 3, 3, seed=0), tiny.initializer("W", 4 * out * out, 40, seed=1, scale=0.1)]
    return tiny.build(nodes, {"x": ["N", 3, "H", "W"]}, {"y": ["N", 40]}, weights)


def unshaped(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input[0].type.tensor_type.ClearField("shape")
    return model


def loaded(model: onnx.ModelProto) -> ir.Model:
    return ir.from_proto(model)


def only(*shape: int) -> sizes.Run:
    """Takes images of one shape alone."""

    def run(inputs: Inputs) -> Inputs:
        (array,) = inputs.values()
        if array.shape[1:] != shape:
            raise ModelError(f"found {list(array.shape)}")
        return {"y": np.ones(1)}

    return run


@pytest.mark.parametrize("side", [1, 224, 28, 48, 17, 104])
def test_the_size_that_runs_is_found(side: int) -> None:
    specs, (note,) = sizes.found(loaded(open_images(side)), only(3, side, side), 0)
    assert [spec.shape for spec in specs] == [(None, 3, side, side)]
    assert note.startswith(
        f"Sizes that the model leaves open were made up: 'x' float32 [N, 3, {side}, {side}]. --test gives"
    )


def test_a_size_of_a_constant_is_tried_early() -> None:
    model = tiny.build(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        {"x": ["N", "C"]},
        {"y": ["N", 7]},
        [tiny.initializer("W", 1531, 7, seed=0)],
    )
    assert sizes.found(loaded(model), only(1531), 0)[0][0].shape == (None, 1531)


def test_a_second_of_sound_is_tried_though_no_image_is_as_large() -> None:
    kernel = tiny.initializer("K", 4, 1, 3, seed=0)
    model = tiny.build(
        [helper.make_node("Conv", ["x", "K"], ["y"])], {"x": ["N", 1, "T"]}, {"y": ["N", 4, "S"]}, [kernel]
    )
    assert sizes.found(loaded(model), only(1, 16000), 0)[0][0].shape == (None, 1, 16000)
    with pytest.raises(DataError, match="from 1 to 2048"):
        sizes.found(loaded(open_images(1)), only(3, 16000, 16000), 0)


def test_a_rank_that_is_not_told_is_tried_too() -> None:
    specs, _ = sizes.found(loaded(unshaped(open_images(64))), only(64, 64, 64), 0)
    assert [spec.shape for spec in specs] == [(None, 64, 64, 64)]
    with pytest.raises(DataError, match=r"open \('x' float32\), and with made-up ones from 1 to"):
        sizes.found(loaded(unshaped(open_images(64))), only(3, 64, 64), 0)


def test_where_nothing_is_open_nothing_is_made_up() -> None:
    def run(_: Inputs) -> Inputs:
        raise AssertionError("it was run")

    specs, notes = sizes.found(loaded(tiny.mlp()), run, 0)
    assert (specs, notes) == (input_specs(loaded(tiny.mlp())), [])


def test_an_empty_output_does_not_count() -> None:
    def run(inputs: Inputs) -> Inputs:
        return {"y": np.ones(0 if inputs["x"].shape[2] < 100 else 1)}

    assert sizes.found(loaded(open_images(1)), run, 0)[0][0].shape == (None, 3, 224, 224)


def test_where_no_size_runs_the_error_says_what_was_tried_and_what_to_do() -> None:
    with pytest.raises(DataError) as error:
        sizes.found(loaded(open_images(5)), only(3, 5, 6), 0)
    assert str(error.value) == (
        "The model leaves sizes of its inputs open ('x' float32 [N, 3, ?, ?]), and with made-up ones from 1 to 2048 it "
        "does not run. Give inputs that it takes with --test, or with --data. The first failure: found [1, 3, 1, 1]"
    )


def test_it_does_not_take_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "SECONDS", 0.0)
    with pytest.raises(DataError, match=r"from 1 to 1 it does not run"):
        sizes.found(loaded(open_images(5)), only(3, 5, 6), 0)


def test_ranks_of_data() -> None:
    model = loaded(unshaped(open_images(16)))
    assert sizes.ranks(model, [None, {"x": np.ones((2, 3, 16, 16)), "labels": np.ones(2)}]) == {"x": 4}
    assert sizes.ranks(model, [iter([{"x": np.ones((2, 3))}])]) == {}, "it can be gone through once"
    assert sizes.ranks(loaded(open_images(16)), [{"x": np.ones((2, 3))}]) == {}, "the model tells it"


def test_a_network_of_open_images_is_compressed_without_data() -> None:
    report = onnxpq.compress(open_images(17)).report
    assert any("were made up: 'x' float32 [N, 3, 17, 17]" in note for note in report.notes)


@pytest.mark.parametrize("given", ["data", "test", "file"])
def test_an_input_without_shape_has_that_of_the_data(given: str, tmp_path: Path) -> None:
    arrays = {"x": np.random.default_rng(0).standard_normal((40, 3, 16, 16)).astype(np.float32)}
    model = unshaped(open_images(16))
    if given == "test":
        report = onnxpq.compress(model, test=arrays).report
    else:
        path = tiny.save_data(tmp_path / "d.npz", **arrays)
        config = onnxpq.Config(training=onnxpq.TrainingConfig(steps=2))
        report = onnxpq.compress(model, path if given == "file" else arrays, config=config).report
    assert not any("made up" in note for note in report.notes)
    assert len(report.layers) == 1
