import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from node_check import Case, assert_all_covered, cases_of_versions, check, ints, normal

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops import shape

FLOAT, INT64, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT16
NEW_AXES = (13, 21, 23, 24, 25)
PAD_INPUT = (11, 13, 18, 19, 21, 23, 24, 25)
VALUE = onnx.numpy_helper.from_array(np.array([2.5], dtype=np.float32))

CASES = [
    Case("Identity", [normal(2, 3)]),
    Case("Dropout", [normal(2, 3)]),
    Case("Dropout", [normal(2, 3)], outputs=2),
    Case("Dropout", [normal(2, 3), np.float32(0.4), np.array(False)], versions=(12, 13, 22)),
    Case("Constant", [], {"value": VALUE}),
    Case("Constant", [], {"value_float": 1.5}, (12, 13)),
    Case("Constant", [], {"value_floats": [1.5, 2.5]}, (12, 13)),
    Case("Constant", [], {"value_int": 3}, (12, 13)),
    Case("Constant", [], {"value_ints": [3, 4]}, (12, 13)),
    Case("ConstantOfShape", [ints(2, 3)]),
    Case("ConstantOfShape", [ints(2, 3)], {"value": VALUE}),
    Case("Shape", [normal(2, 3, 4)]),
    Case("Shape", [normal(2, 3, 4)], {"start": 1, "end": -1}, (15, 19, 21, 23, 24, 25)),
    Case("Shape", [normal(2, 3, 4)], {"start": -9, "end": 9}, (15, 19)),
    Case("Size", [normal(2, 3, 4)]),
    Case("Reshape", [normal(2, 3, 4), ints(0, -1)]),
    Case("Reshape", [np.zeros((0, 3), np.float32), ints(3, 0)], {"allowzero": 1}, (14, 19, 21)),
    Case("Flatten", [normal(2, 3, 4)]),
    Case("Flatten", [normal(2, 3, 4)], {"axis": 0}),
    Case("Flatten", [normal(2, 3, 4)], {"axis": -1}, (11, 13)),
    Case("Transpose", [normal(2, 3, 4)]),
    Case("Transpose", [normal(2, 3, 4)], {"perm": [1, 2, 0]}),
    Case("Squeeze", [normal(2, 1, 3, 1)], {"axes": [1]}, (1, 11)),
    Case("Squeeze", [normal(2, 1, 3, 1)], versions=(1, 11)),
    Case("Squeeze", [normal(2, 1, 3, 1), ints(1, -1)], versions=NEW_AXES),
    Case("Squeeze", [normal(2, 1, 3, 1)], versions=NEW_AXES),
    Case("Unsqueeze", [normal(2, 3)], {"axes": [0, 3]}, (1, 11)),
    Case("Unsqueeze", [normal(2, 3), ints(3, 0)], versions=NEW_AXES),
    Case("Unsqueeze", [normal(2, 3), ints(-1)], versions=NEW_AXES),
    Case("Expand", [normal(3, 1), ints(2, 1, 4)]),
    Case("Tile", [normal(2, 3), ints(2, 3)]),
    Case("Concat", [normal(2, 3), normal(2, 1)], {"axis": 1}),
    Case("Concat", [normal(2, 3), normal(1, 3)], {"axis": -2}, (11, 13)),
    Case("Split", [normal(6, 4)], outputs=3, versions=(2, 11)),
    Case("Split", [normal(6, 4)], {"axis": 1, "split": [1, 3]}, (2, 11), outputs=2),
    Case("Split", [normal(6, 4)], outputs=3, versions=(13,)),
    Case("Split", [normal(6, 4), ints(1, 3)], {"axis": -1}, (13, 18), outputs=2),
    Case("Split", [normal(7, 4)], {"num_outputs": 3}, (18,), outputs=3),
    Case("Slice", [normal(5, 6)], {"starts": [1, -4], "ends": [9, -1]}, (1,)),
    Case("Slice", [normal(5, 6)], {"starts": [1], "ends": [3], "axes": [1]}, (1,)),
    Case("Slice", [normal(5, 6), ints(1), ints(3)], versions=(10, 11, 13)),
    Case("Slice", [normal(5, 6), ints(0, 5), ints(9, -9), ints(0, 1), ints(2, -2)], versions=(10, 11, 13)),
    Case("Gather", [normal(4, 3), ints(2, 0).reshape(1, 2)]),
    Case("Gather", [normal(4, 3), np.int64(1)], {"axis": 1}),
    Case("Gather", [normal(4, 3), ints(-1, 0)], {"axis": -1}, (11, 13)),
    Case("Gather", [ints(4, 5, 6), np.int64(2)]),
    Case("GatherElements", [normal(3, 3), ints(0, -1, 2).reshape(1, 3)]),
    Case("GatherElements", [normal(3, 3), ints(0, 1, 2).reshape(3, 1)], {"axis": 1}),
    Case("GatherND", [normal(2, 3, 4), ints(0, 1, 1, -1).reshape(2, 2)]),
    Case("GatherND", [normal(2, 3, 4), ints(0, 2).reshape(2, 1)], {"batch_dims": 1}, (12, 13)),
    Case("Pad", [normal(2, 3)], {"pads": [0, 1, 2, 0], "value": 1.5}, (2,)),
    Case("Pad", [normal(4, 5)], {"pads": [1, -1, 2, 2]}, (2,)),
    *[Case("Pad", [normal(4, 5)], {"pads": [1, 2, 2, 0], "mode": mode}, (2,)) for mode in ("reflect", "edge")],
    Case("Pad", [normal(2, 3), ints(0, 1, 2, 0), np.float32(1.5)], versions=PAD_INPUT),
    *[Case("Pad", [normal(4, 5), ints(1, 2, 2, 0)], {"mode": m}, PAD_INPUT) for m in ("reflect", "edge")],
    Case("Pad", [normal(4, 5), ints(1, 2), None, ints(-1)], {"mode": "wrap"}, (19, 21)),
    Case("Pad", [normal(4, 5), ints(1, 2), None, ints(-1)], versions=(18, 19, 21)),
    Case("Cast", [3 * normal(2, 3)], {"to": INT64}),
    Case("Cast", [ints(0, 1, 2)], {"to": FLOAT}),
    Case("Cast", [normal(2, 3)], {"to": onnx.TensorProto.BOOL}),
    Case("CastLike", [3 * normal(2, 3), ints(1)]),
    Case("Range", [np.int64(1), np.int64(8), np.int64(3)]),
    Case("Range", [np.float32(2), np.float32(-1), np.float32(-0.75)]),
    Case("Trilu", [normal(2, 3, 4)]),
    Case("Trilu", [normal(3, 4), np.int64(-1)], {"upper": 0}),
    Case("CenterCropPad", [normal(5, 4), ints(2, 7)]),
    Case("CenterCropPad", [normal(2, 3, 6), ints(4, 5)], {"axes": [1, -1]}),
    Case("DepthToSpace", [normal(2, 8, 2, 3)], {"blocksize": 2}),
    Case("DepthToSpace", [normal(2, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}, (11, 13, 28)),
    Case("SpaceToDepth", [normal(2, 2, 4, 6)], {"blocksize": 2}),
    Case("TopK", [normal(3, 5)], {"k": 2}, (1,), outputs=2),
    Case("TopK", [normal(3, 5), ints(2)], outputs=2, versions=(10, 11, 24)),
    Case("TopK", [normal(5, 3), ints(2)], {"axis": 0, "largest": 0}, (11, 24), outputs=2),
    Case("TopK", [np.array([1, 3, 3, 2, 3], dtype=np.float32), ints(3)], outputs=2, versions=(10, 11, 24)),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_as_in_onnxruntime(case, version):
    check(case, version)


def test_every_claimed_version_is_tried():
    assert_all_covered(shape, CASES)


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 6),
    start=st.integers(-8, 8),
    end=st.integers(-8, 8),
    step=st.sampled_from([-3, -2, -1, 1, 2, 3]),
)
def test_any_slice_as_in_onnxruntime(size, start, end, step):
    check(Case("Slice", [normal(2, size), ints(start), ints(end), ints(1), ints(step)]), 13)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: shape.cast(np.array(["a"], dtype=object), to=FLOAT), "Cast of strings is not supported"),
        (lambda: shape.cast_like(np.array(["a"], dtype=object), torch.ones(1)), "CastLike of strings"),
        (lambda: shape.cast(torch.ones(1), to=onnx.TensorProto.FLOAT8E5M2), "Element type FLOAT8E5M2"),
        (lambda: shape.dropout(torch.ones(1), None, torch.tensor(True)), "Dropout in training mode is random"),
        (lambda: shape.constant(sparse_value=1), "sparse value"),
        (lambda: shape.pad_by_attribute(torch.ones(1), mode="circle", pads=[1, 1]), "Pad in mode 'circle'"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(UnsupportedOperatorError, match=sentence):
        call()


def test_strings_pass_through():
    words = np.array(["a", "b", "c"], dtype=object)
    assert shape.reshape(words, torch.tensor([3, 1])).tolist() == [["a"], ["b"], ["c"]]
    assert shape.gather(words, torch.tensor([2, 0])).tolist() == ["c", "a"]
    assert shape.transpose(words.reshape(1, 3)).shape == (3, 1)
    assert shape.constant(value_strings=["x"]).tolist() == ["x"]


def test_cast_to_half_rounds_but_the_network_stays_in_float32():
    check_value = 1 / 3
    assert shape.cast(torch.tensor([check_value]), to=FLOAT16).dtype is torch.float16
