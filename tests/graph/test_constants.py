"""Constants behind what rearranges them: against onnxruntime, over operator sets and random chains."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxpq import runtime
from onnxpq.graph.constants import constant, element_type, matrix_base, rearranges, roots, values_of

SHAPE = (2, 3, 4)
W = np.arange(24, dtype=np.float32).reshape(SHAPE)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def chain(*steps, opset: int = 17, w: np.ndarray = W, outputs: int = 1) -> ir.Model:
    """w through nodes (operator, further inputs, attributes) one after another; the last one has `outputs`."""
    nodes, tensors, last = [], [numpy_helper.from_array(w, "w")], "w"
    for number, (op_type, further, attributes) in enumerate(steps):
        names = []
        for place, array in enumerate(further):
            names.append("" if array is None else f"c{number}_{place}")
            if array is not None:
                tensors.append(numpy_helper.from_array(array, names[-1]))
        count = outputs if number == len(steps) - 1 else 1
        results = [f"v{number}_{i}" for i in range(count)]
        nodes.append(helper.make_node(op_type, [last, *names], results, **attributes))
        last = results[0]
    names = list(nodes[-1].output)
    types = [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in names]
    graph = helper.make_graph(nodes, "g", [], types, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def assert_equals_onnxruntime(model: ir.Model) -> None:
    expected = runtime.run(runtime.session(model, use_library=False), {})
    for output in model.graph.outputs:
        found = values_of(output)
        assert found is not None
        np.testing.assert_array_equal(found, expected[output.name])
        assert element_type(output).numpy() == found.dtype


STEPS = {
    "Identity": [("Identity", (), {}, 1)],
    "Transpose": [("Transpose", (), {"perm": [2, 0, 1]}, 1), ("Transpose", (), {}, 1)],
    "Reshape": [("Reshape", (ints(0, -1),), {}, 1), ("Reshape", (ints(6, 4),), {}, 1)],
    "Flatten": [("Flatten", (), {}, 1), ("Flatten", (), {"axis": 0}, 1), ("Flatten", (), {"axis": 2}, 1)],
    "Concat": [("Concat", (W + 100, W - 100), {"axis": 1}, 1)],
    "Gather": [
        ("Gather", (np.array(1),), {"axis": 1}, 1),
        ("Gather", (ints(2, 0),), {"axis": 2}, 1),
        ("Gather", (ints(1),), {}, 1),
    ],
    "Cast": [("Cast", (), {"to": 11}, 1), ("Cast", (), {"to": 10}, 1)],
}


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
@pytest.mark.parametrize("name", STEPS)
def test_each_operator(name, opset):
    for op_type, further, attributes, outputs in STEPS[name]:
        assert_equals_onnxruntime(chain((op_type, further, attributes), opset=opset, outputs=outputs))


def by_version(opset: int, op_type: str, name: str, numbers: tuple[int, ...] | None, first: int, **attributes: int):
    """A step whose numbers are an attribute below opset `first`, an input from there on."""
    if numbers is None:
        return op_type, (), attributes
    if opset < first:
        return op_type, (), {**attributes, name: list(numbers)}
    return op_type, (ints(*numbers),), attributes


@pytest.mark.parametrize("opset", [9, 12, 13, 17, 21])
def test_axes_and_sizes_are_attributes_or_inputs(opset):
    wide = W.reshape(1, 2, 12)
    for numbers in ((0,), None):
        assert_equals_onnxruntime(chain(by_version(opset, "Squeeze", "axes", numbers, 13), opset=opset, w=wide))
    assert_equals_onnxruntime(chain(by_version(opset, "Unsqueeze", "axes", (0, 2), 13), opset=opset))
    for numbers in ((1, 3), None):
        count = {"num_outputs": 2} if numbers is None and opset >= 18 else {}
        split = by_version(opset, "Split", "split", numbers, 13, axis=2, **count)
        assert_equals_onnxruntime(chain(split, opset=opset, outputs=2))


def test_the_last_part_of_a_split_may_be_smaller():
    assert_equals_onnxruntime(chain(("Split", (), {"axis": 2, "num_outputs": 3}), opset=18, outputs=3))


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(-6, 6), end=st.integers(-6, 6), step=st.sampled_from([-3, -2, -1, 1, 2]), axis=st.integers(-3, 2)
)
def test_slices(start, end, step, axis):
    assert_equals_onnxruntime(chain(("Slice", (ints(start), ints(end), ints(axis), ints(step)), {})))


def test_slices_by_attributes_and_of_omitted_axes():
    assert_equals_onnxruntime(chain(("Slice", (), {"starts": [1], "ends": [2**62], "axes": [2]}), opset=9))
    assert_equals_onnxruntime(chain(("Slice", (ints(0, 1), ints(1, 9)), {})))
    assert_equals_onnxruntime(chain(("Slice", (ints(0, 1), ints(2, 9), None, ints(1, 2)), {})))


PERMUTATIONS = st.permutations(range(3))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(PERMUTATIONS, st.sampled_from([(24,), (6, 4), (2, 3, 4), (4, 1, 6)])), max_size=5))
def test_random_chains(moves):
    steps, rank = [], 3
    for move in moves:
        if sorted(move) == list(range(len(move))):
            if rank == 3:
                steps.append(("Transpose", (), {"perm": list(move)}))
        else:
            steps.append(("Reshape", (ints(*move),), {}))
            rank = len(move)
    assert_equals_onnxruntime(chain(*steps or [("Identity", (), {})]))


@pytest.mark.parametrize("step", [("Abs", (), {}), ("Mul", (np.float32(2),), {}), ("Cast", (), {"to": 7})])
def test_what_computes_other_numbers_is_no_rearrangement(step):
    model = chain(step)
    assert not rearranges(model.graph.node(0))
    assert values_of(model.graph.outputs[0]) is None


def test_numbers_that_do_not_fit_are_no_constant():
    model = chain(("Identity", (), {}))
    model.graph.node(0).op_type = "Flatten"
    model.graph.node(0).attributes["axis"] = ir.AttrInt64("axis", 2)
    assert values_of(model.graph.outputs[0]) is not None
    broken = chain(("Reshape", (ints(24),), {}))
    broken.graph.initializers["c0_0"].const_value = ir.tensor(ints(5, 5))
    assert values_of(broken.graph.outputs[0]) is None


def test_what_callers_may_replace_is_no_constant():
    model = chain(("Transpose", (), {}))
    model.graph.inputs.append(model.graph.initializers["w"])
    assert values_of(model.graph.outputs[0]) is None


def test_values_are_views():
    model = chain(("Reshape", (ints(4, 3, 2),), {}), ("Slice", (ints(1), ints(3)), {}), ("Transpose", (), {}))
    model.graph.initializers["w"].const_value = ir.tensor(W)
    assert np.shares_memory(values_of(model.graph.outputs[0]), W)


def test_bfloat16_keeps_its_type():
    model = chain(("Reshape", (ints(6, 4),), {}), w=W.astype(ml_dtypes.bfloat16))
    assert values_of(model.graph.outputs[0]).dtype == ml_dtypes.bfloat16
    assert element_type(model.graph.outputs[0]) == ir.DataType.BFLOAT16


@pytest.mark.parametrize(
    ("steps", "base", "transposed"),
    [
        ([("Identity", (), {})], "w", False),
        ([("Transpose", (), {"perm": [0, 2, 1]})], "w", True),
        ([("Transpose", (), {"perm": [0, 2, 1]}), ("Transpose", (), {"perm": [0, 2, 1]})], "w", False),
        ([("Transpose", (), {"perm": [0, 1, 2]}), ("Cast", (), {"to": 10})], "w", False),
        ([("Transpose", (), {"perm": [2, 0, 1]})], "v0_0", False),
        ([("Transpose", (), {})], "v0_0", False),
        ([("Reshape", (ints(6, 4),), {}), ("Transpose", (), {})], "v0_0", True),
        ([("Transpose", (), {"perm": [0, 2, 1]}), ("Flatten", (), {}), ("Transpose", (), {})], "v1_0", True),
    ],
)
def test_the_base_of_a_matrix(steps, base, transposed):
    value, found = matrix_base(chain(*steps).graph.outputs[0])
    assert (value.name, found) == (base, transposed)


def test_roots_are_the_constants_that_are_moved():
    model = chain(("Concat", (W,), {"axis": 0}), ("Reshape", (ints(8, 6),), {}))
    assert [value.name for value in roots(model.graph.outputs[0])] == ["w", "c0_0"]


def test_constants_of_nodes():
    text = "m () => (float[2] y) { y = Constant<value_floats = [1.0, 2.0]>() }"
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}'))
    assert constant(model.graph.outputs[0]).numpy().tolist() == [1, 2]
    assert constant(None) is None
