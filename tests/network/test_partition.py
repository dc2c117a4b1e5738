import re
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier

from onnxpq.data import Dataset
from onnxpq.errors import ConfigError, DataError, TrainingError, UnsupportedOperatorError
from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.network.importing import check_forward, import_model
from onnxpq.network.partition import cut, with_open_batch
from onnxpq.runtime.activations import capture, fixed_batch

FLOAT, INT64, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.UINT8
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def node(op_type, inputs, outputs, **attributes):
    return onnx.helper.make_node(op_type, inputs, outputs, name=f"n_{outputs[0]}", **attributes)


def make(nodes, inputs, outputs, initializers, opset=17, domains=()) -> ir.Model:
    """`inputs` and `outputs`: name -> shape, or (type, shape)."""
    h = onnx.helper

    def info(name, kind):
        return h.make_tensor_value_info(name, *(kind if isinstance(kind, tuple) else (FLOAT, kind)))

    graph = h.make_graph(
        nodes,
        "g",
        [info(*entry) for entry in inputs.items()],
        [info(*entry) for entry in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()],
    )
    imports = [h.make_opsetid("", opset), *[h.make_opsetid(domain, 1) for domain in domains]]
    return normalise(ir.from_proto(h.make_model(graph, opset_imports=imports, ir_version=8)))


def ops(model):
    return [n.op_type for n in model.graph]


def assert_parts_equal_the_whole(model, parts, feeds, tolerance=1e-5):
    """Prefix in onnxruntime, then suffix in torch and in onnxruntime: both give what the whole model gives."""
    names = [value.name for value in parts.suffix.graph.outputs]
    whole = capture(model, names, Dataset(feeds), cache_dir=None, batch_size=3)
    boundary = capture(parts.prefix or model, parts.boundary, Dataset(feeds), cache_dir=None, batch_size=3)
    suffix = with_open_batch(parts.suffix, boundary.places) or parts.suffix
    network = import_model(suffix)
    assert set(network.input_names) == set(parts.boundary)
    found = network({name: torch.from_numpy(array) for name, array in boundary.feeds.items()})
    again = capture(suffix, names, boundary, cache_dir=None, batch_size=3)
    for name in names:
        np.testing.assert_allclose(found[name].numpy(), whole.feeds[name], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(again.feeds[name], whole.feeds[name], rtol=tolerance, atol=tolerance)
    assert check_forward(network, suffix, boundary.feeds).max_rel < tolerance


def lenet(batch="N") -> ir.Model:
    return make(
        [
            node("Conv", ["x", "conv_w"], ["c"]),
            node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "w1"], ["a"], transB=1),
            node("Relu", ["a"], ["h"]),
            node("Gemm", ["h", "w2"], ["logits"], transB=1),
            node("ArgMax", ["logits"], ["label"], axis=1),
        ],
        {"x": [batch, 1, 8, 8]},
        {"label": (INT64, None), "logits": [batch, 3]},
        {"conv_w": normal(4, 1, 3, 3), "w1": normal(6, 36), "w2": normal(3, 6)},
    )


@pytest.mark.parametrize("batch", ["N", 1])
def test_the_convolutions_are_prefix_and_the_boundary_is_flat(batch):
    model = lenet(batch)
    parts = cut(model, ["w1", "w2"])
    assert parts.boundary == ["f"]
    assert ops(parts.prefix) == ["Conv", "MaxPool", "Flatten"]
    assert ops(parts.suffix) == ["Gemm", "Relu", "Gemm"]
    assert [value.name for value in parts.suffix.graph.outputs] == ["logits"]
    assert list(parts.suffix.graph.initializers) == ["w1", "w2"]
    assert list(parts.prefix.graph.initializers) == ["conv_w"]
    (boundary,) = parts.prefix.graph.outputs
    assert boundary.dtype == ir.DataType.FLOAT
    assert list(boundary.shape)[1:] == [36]
    onnx.checker.check_model(ir.to_proto(parts.prefix))
    onnx.checker.check_model(ir.to_proto(parts.suffix))
    assert_parts_equal_the_whole(model, parts, {"x": normal(7, 1, 8, 8)})


def test_a_fixed_batch_is_opened_only_where_nothing_depends_on_it():
    assert fixed_batch(lenet(1)) == 1
    assert fixed_batch(cut(lenet(1), ["w1"]).prefix) == 1
    assert fixed_batch(with_open_batch(cut(lenet(1), ["w1"]).suffix, {})) is None
    assert with_open_batch(cut(lenet(), ["w1"]).suffix, {}) is None  # it is open already
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Reshape", ["a", "to"], ["y"])]
    for sizes, opens in (([1, 2, 3], False), ([0, 2, 3], True)):
        model = make(nodes, {"x": [1, 4]}, {"y": None}, {"w": normal(4, 6), "to": np.array(sizes)})
        assert (with_open_batch(cut(model, ["w"]).suffix, {}) is not None) == opens


def test_only_the_last_layer():
    parts = cut(lenet(), ["w2"])
    assert parts.boundary == ["h"]
    assert ops(parts.suffix) == ["Gemm"]


def test_no_prefix_where_the_first_layer_is_trained():
    model = lenet()
    parts = cut(model, ["conv_w"])
    assert parts.boundary == ["x"]
    assert parts.prefix is None
    assert_parts_equal_the_whole(model, parts, {"x": normal(7, 1, 8, 8)})


def test_the_model_is_not_changed():
    model = lenet()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    cut(model, ["w1"])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_wanted_outputs_may_be_labels():
    assert ops(cut(lenet(), ["w2"], ["label"]).suffix) == ["Gemm", "ArgMax"]


def test_what_is_computed_from_initializers_belongs_to_the_suffix():
    model = make(
        [
            node("Relu", ["x"], ["h"]),
            node("Transpose", ["w"], ["wt"]),
            node("Exp", ["s"], ["e"]),
            node("MatMul", ["h", "wt"], ["a"]),
            node("Mul", ["a", "e"], ["y"]),
        ],
        {"x": ["N", 4]},
        {"y": None},
        {"w": normal(3, 4), "s": normal(3)},
    )
    parts = cut(model, ["w"])
    assert parts.boundary == ["h"]
    assert ops(parts.suffix) == ["Transpose", "Exp", "MatMul", "Mul"]
    assert_parts_equal_the_whole(model, parts, {"x": normal(7, 4)})


def test_integers_are_spread_out_to_classes_in_the_suffix():
    model = make(
        [
            node("Unsqueeze", ["ids", "last"], ["column"]),
            node("Equal", ["column", "classes"], ["hits"]),
            node("Cast", ["hits"], ["hot"], to=FLOAT),
            node("MatMul", ["hot", "w"], ["y"]),
        ],
        {"ids": (INT64, ["N", 6])},
        {"y": ["N", 6, 5]},
        {"last": np.array([2]), "classes": np.arange(40), "w": normal(40, 5)},
    )
    parts = cut(model, ["w"])
    assert parts.boundary == ["ids"]
    assert parts.prefix is None
    assert_parts_equal_the_whole(model, parts, {"ids": rng.integers(0, 40, (7, 6))})


def test_a_picture_of_integers_becomes_numbers_in_the_prefix():
    model = make(
        [
            node("Cast", ["picture"], ["numbers"], to=FLOAT),
            node("Flatten", ["numbers"], ["flat"]),
            node("MatMul", ["flat", "w"], ["y"]),
        ],
        {"picture": (UINT8, ["N", 2, 3])},
        {"y": ["N", 5]},
        {"w": normal(6, 5)},
    )
    parts = cut(model, ["w"])
    assert parts.boundary == ["flat"]
    assert_parts_equal_the_whole(model, parts, {"picture": rng.integers(0, 255, (7, 2, 3)).astype(np.uint8)})


def test_two_paths_into_the_suffix_and_an_input_used_on_both_sides():
    model = make(
        [
            node("Relu", ["x"], ["h"]),
            node("Tanh", ["h"], ["t"]),
            node("MatMul", ["h", "w"], ["a"]),
            node("Add", ["a", "t"], ["b"]),
            node("Mul", ["b", "x"], ["y"]),
        ],
        {"x": ["N", 4]},
        {"y": None},
        {"w": normal(4, 4)},
    )
    parts = cut(model, ["w"])
    assert sorted(parts.boundary) == ["h", "t", "x"]
    assert_parts_equal_the_whole(model, parts, {"x": normal(7, 4)})


def test_a_tied_weight_is_trained_from_its_first_use():
    model = make(
        [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["h"]), node("MatMul", ["h", "w"], ["y"])],
        {"x": ["N", 4]},
        {"y": None},
        {"w": normal(4, 4)},
    )
    assert ops(cut(model, ["w"]).suffix) == ["MatMul", "Relu", "MatMul"]


def test_sizes_are_computed_in_the_suffix():
    """A reshape to the batch of an earlier value, as exporters write it: Shape, Gather, Concat, Reshape."""
    model = make(
        [
            node("Relu", ["x"], ["h"]),
            node("Shape", ["h"], ["shape"]),
            node("Gather", ["shape", "zero"], ["n"]),
            node("Concat", ["n", "rest"], ["to"], axis=0),
            node("MatMul", ["h", "w"], ["a"]),
            node("Reshape", ["a", "to"], ["y"]),
        ],
        {"x": ["N", 4]},
        {"y": None},
        {"w": normal(4, 6), "zero": np.array([0]), "rest": np.array([2, 3])},
    )
    parts = cut(model, ["w"])
    assert parts.boundary == ["h"]
    assert ops(parts.suffix) == ["Shape", "Gather", "Concat", "MatMul", "Reshape"]
    assert_parts_equal_the_whole(model, parts, {"x": normal(7, 4)})


def time_major(length, batch="N") -> ir.Model:
    return make(
        [
            node("Relu", ["x"], ["h"]),
            node("Transpose", ["h"], ["t"], perm=[1, 0, 2]),
            node("MatMul", ["t", "w"], ["a"]),
            node("Transpose", ["a"], ["y"], perm=[1, 0, 2]),
        ],
        {"x": [batch, length, 4]},
        {"y": None},
        {"w": normal(4, 3)},
    )


@pytest.mark.parametrize("length", [5, "S"])
@pytest.mark.parametrize("batch", ["N", 1])
def test_a_boundary_need_not_start_with_the_batch(length, batch):
    model = time_major(length, batch)
    parts = cut(model, ["w"])
    assert parts.boundary == ["t"]
    assert ops(parts.suffix) == ["MatMul", "Transpose"]
    assert_parts_equal_the_whole(model, parts, {"x": normal(7, 5, 4)})


def test_a_value_that_is_known_to_lack_the_batch_moves_up():
    model = time_major(5)
    parts = cut(model, ["w"], inner=["t"])
    assert parts.boundary == ["h"]
    assert ops(parts.suffix) == ["Transpose", "MatMul", "Transpose"]
    assert_parts_equal_the_whole(model, parts, {"x": normal(7, 5, 4)})


def test_a_value_over_the_whole_batch_moves_up():
    model = make(
        [
            node("ReduceSum", ["x"], ["s"], keepdims=0),
            node("MatMul", ["x", "w"], ["a"]),
            node("Mul", ["a", "s"], ["y"]),
        ],
        {"x": ["N", 4]},
        {"y": None},
        {"w": normal(4, 3)},
    )
    parts = cut(model, ["w"])
    assert parts.boundary == ["x"]
    assert "ReduceSum" in ops(parts.suffix)


def test_an_input_that_does_not_start_with_the_batch_is_refused():
    model = make(
        [node("MatMul", ["x", "w"], ["a"]), node("Mul", ["a", "factor"], ["y"])],
        {"x": ["N", 4], "factor": []},
        {"y": None},
        {"w": normal(4, 3)},
    )
    with pytest.raises(
        DataError, match=r"Input 'factor' of the graph has shape \[\], no dimension of which is the batch"
    ):
        cut(model, ["w"])


def unsupported(before: bool) -> ir.Model:
    odd = [node("Odd", ["x"], ["h"], domain="my"), node("MatMul", ["h", "w"], ["y"])]
    last = [node("MatMul", ["x", "w"], ["a"]), node("Odd", ["a"], ["y"], domain="my")]
    return make(odd if before else last, {"x": ["N", 4]}, {"y": None}, {"w": normal(4, 3)}, domains=["my"])


def test_an_operator_without_a_rule_does_not_matter_in_the_prefix():
    parts = cut(unsupported(before=True), ["w"])
    assert ops(parts.prefix) == ["Odd"]
    assert parts.prefix.opset_imports["my"] == 1


def test_an_operator_without_a_rule_in_the_suffix_is_named():
    with pytest.raises(UnsupportedOperatorError) as error:
        cut(unsupported(before=False), ["w"])
    for part in ("Node 'n_y'", "my::Odd version 1", "Exclude the layers", "register_op", "without data"):
        assert part in str(error.value)


def test_weights_used_in_a_branch_make_the_branch_suffix():
    h = onnx.helper
    info = [h.make_tensor_value_info("o", FLOAT, None)]
    then = h.make_graph([h.make_node("MatMul", ["h", "w"], ["o"])], "then", [], info)
    other = h.make_graph([h.make_node("Identity", ["h"], ["o"])], "else", [], info)
    model = make(
        [node("Relu", ["x"], ["h"]), node("If", ["flag"], ["y"], then_branch=then, else_branch=other)],
        {"x": ["N", 4]},
        {"y": None},
        {"w": normal(4, 4), "flag": np.array(True)},
    )
    parts = cut(model, ["w"])
    assert parts.boundary == ["h"]
    assert ops(parts.suffix) == ["If"]
    assert_parts_equal_the_whole(model, parts, {"x": normal(7, 4)})


@pytest.mark.parametrize(
    ("weights", "outputs", "error", "sentence"),
    [
        (["w9"], None, ConfigError, "The model has no initializer 'w9'. It has conv_w, w1, w2."),
        (["w1"], ["nothing"], ConfigError, "The model has no output 'nothing'. It has label, logits."),
        ([], None, TrainingError, "No floating-point output of the model depends on the weights to train."),
        ([], ["logits"], ConfigError, "Output 'logits' depends on none of the weights to train. Leave it out."),
    ],
)
def test_bad_requests(weights, outputs, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        cut(lenet(), weights, outputs)


def test_a_classifier_of_scikit_learn():
    x, y = normal(50, 5), rng.integers(0, 3, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = normalise(files.load(to_onnx(MLPClassifier((7,), max_iter=3).fit(x, y), x[:1])))
    parts = cut(model, ["coefficient1"])
    assert ops(parts.suffix) == ["MatMul", "Add", "Softmax", "ZipMap"]
    assert parts.boundary == ["next_activations"]
    assert_parts_equal_the_whole(model, parts, {"X": x})
