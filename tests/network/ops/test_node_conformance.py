"""ONNX's own node tests, for every operator that is registered."""

import fnmatch
import warnings

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.backend.test import loader

from onnxpq.errors import OnnxpqError
from onnxpq.network.importing import import_model
from onnxpq.network.ops.registry import canonical_domain, registered

RELATIVE = 1e-3  # of ONNX's own runner
ABSOLUTE = 1e-6
HALF_RELATIVE = 2e-2  # the network computes float16 and bfloat16 models in float32

EXPECTED_PASSES = 1636
"""At least so many, so that the test cannot pass by running nothing."""

SMALL_TYPES = "float8 and smaller types, 4-bit and smaller integers are not computed with"
TRAINING = "random or training mode; models are exported for inference"
FRACTIONS = "ONNX's case takes the size of the result before it is rounded; onnxruntime and onnxpq take the size itself"
EXCEPTIONS = {
    "test_cast*FLOAT8*": SMALL_TYPES,
    "test_cast*FLOAT4*": SMALL_TYPES,
    "test_cast*INT4*": SMALL_TYPES,
    "test_cast*INT2*": SMALL_TYPES,
    "test_cast*e8m0*": SMALL_TYPES,
    "test_*quantizelinear_e[45]m*": SMALL_TYPES,
    "test_*quantizelinear_float4e2m1": SMALL_TYPES,
    "test_*quantizelinear_*int[24]": SMALL_TYPES,
    "test_batchnorm_*training_mode": TRAINING,
    "test_training_dropout*": TRAINING,
    "test_resize_downsample_scales_*_align_corners": FRACTIONS,
}
STILL_PASSING = {"test_training_dropout_zero_ratio*": "a ratio of zero drops nothing"}


def cases():
    known = {(domain, op_type) for domain, op_type, _ in registered()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators of the cases overflow on purpose
        every = loader.load_model_tests(kind="node")
    return [
        case
        for case in every
        if all((canonical_domain(node.domain), node.op_type) in known for node in case.model.graph.node)
    ]


def as_array(value):
    if isinstance(value, list):
        return [as_array(element) for element in value]
    if value is None:
        return None
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def as_tensor(array):
    if isinstance(array, list):
        return [as_tensor(element) for element in array]
    if array is None:
        return None
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array)) if array.dtype.kind in "biuf" else array


def in_half(arrays):
    return any(array.dtype in (np.float16, ml_dtypes.bfloat16) for array in arrays)


def flat(values):
    """Sequences laid out flat, for their types and values; an optional without a value stays None."""
    for value in values:
        yield from flat(value) if isinstance(value, list) else (value,)


def run(case):
    network = import_model(ir.from_proto(case.model))
    for given, expected in case.data_sets:
        inputs, outputs = list(map(as_array, given)), list(map(as_array, expected))
        found = network(dict(zip(network.input_names, map(as_tensor, inputs), strict=True)))
        half = in_half(array for array in flat((*inputs, *outputs)) if array is not None)
        relative = HALF_RELATIVE if half else max(case.rtol, RELATIVE)
        for value, reference in zip(found.values(), outputs, strict=True):
            compare(value, reference, relative, max(case.atol, ABSOLUTE))


def compare(value, reference, relative, absolute):
    if isinstance(reference, list):
        assert isinstance(value, list)
        for element, expected in zip(value, reference, strict=True):
            compare(element, expected, relative, absolute)
        return
    if reference is None or value is None:
        assert value is reference
        return
    array = value.numpy() if isinstance(value, torch.Tensor) else value
    assert array.shape == reference.shape
    if reference.dtype.kind in "OU":
        assert array.tolist() == reference.tolist()
        return
    assert (array.dtype.kind == "f") == (reference.dtype.kind == "f" or in_half([reference]))
    np.testing.assert_allclose(array.astype(np.float64), reference.astype(np.float64), relative, absolute)


def reason(name):
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in STILL_PASSING):
        return None
    return next((why for pattern, why in EXCEPTIONS.items() if fnmatch.fnmatchcase(name, pattern)), None)


def outcome(case):
    """None if the case passes, else what went wrong."""
    try:
        run(case)
    except (OnnxpqError, AssertionError, NotImplementedError, TypeError) as error:
        return f"{case.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


@pytest.fixture(scope="module")
def outcomes():
    return {case.name: outcome(case) for case in cases()}


def test_every_case_passes_or_is_listed(outcomes):
    failures = [found for name, found in outcomes.items() if found and not reason(name)]
    assert failures == []


def test_no_listed_case_passes(outcomes):
    assert [name for name, found in outcomes.items() if reason(name) and not found] == []


def test_enough_cases_are_run(outcomes):
    assert sum(found is None for found in outcomes.values()) >= EXPECTED_PASSES
