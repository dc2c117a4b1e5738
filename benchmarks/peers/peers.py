"""ONNX's own node tests through other importers, to set beside our count.

Run it in an environment of the peer, which needs no onnxpq:

    python -m venv peer && peer/bin/pip install onnx==1.23.2 torch && peer/bin/pip install --no-deps onnx2pytorch==0.6.0
    peer/bin/python -m benchmarks peers onnx2pytorch

Where torchvision is not installed an empty module stands for it: of the operators only NonMaxSuppression, RoiAlign and
ImageDecoder need it. A case passes as it does for us (`tests/network/ops/test_node_conformance.py`): each output has
the reference's shape, is of floats where that is, and is within the same tolerances. `python -m benchmarks conformance`
writes the counts into docs/importer.md.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Final
from unittest import mock

import numpy as np
import onnx
import torch
from onnx.backend.test import loader
from onnx.backend.test.case.test_case import TestCase

from benchmarks.common.store import Results

RESULTS: Final = Results.of(__name__)
RELATIVE, ABSOLUTE, HALF_RELATIVE = 1e-3, 1e-6, 2e-2
SECONDS: Final = 30
"""For one case."""

NOT_USABLE: Final = (
    *("float8", "float4", "int4", "int2", "e4m3", "e5m2", "e8m0", "string", "strnorm", "regex", "image_decoder"),
    *("training", "adagrad", "adam", "momentum", "preview", "bernoulli", "random", "tfidf", "flex_attention"),
)


def is_usable(case: TestCase) -> bool:
    return not any(part in case.name.lower() for part in NOT_USABLE)


def is_expanded(case: TestCase) -> bool:
    return "_expanded" in case.name


def sets(cases: Iterable[TestCase]) -> dict[str, list[str]]:
    """The names of the cases in the three selections that are counted."""
    every = list(cases)
    plain = [case for case in every if not is_expanded(case)]
    chosen = {"all": every, "plain": plain, "usable": [case for case in plain if is_usable(case)]}
    return {name: [case.name for case in part] for name, part in chosen.items()}


def _onnx2torch(model: onnx.ModelProto) -> Callable[..., Any]:
    converted: Callable[..., Any] = importlib.import_module("onnx2torch").convert(model)
    return converted


def _onnx2pytorch(model: onnx.ModelProto) -> Callable[..., Any]:
    converted: Callable[..., Any] = importlib.import_module("onnx2pytorch").ConvertModel(model, experimental=True)
    return converted


PEERS: Final = {"onnx2torch": _onnx2torch, "onnx2pytorch": _onnx2pytorch}


def passes(convert: Callable[[onnx.ModelProto], Callable[..., Any]], case: TestCase) -> bool:
    """Whether a peer imports a case and computes what it should, on all its data."""
    try:
        module = convert(case.model)
        for given, expected in case.data_sets:
            with torch.no_grad():
                found = module(*[_tensor(_array(value)) for value in given])
            values = list(found) if isinstance(found, tuple | list) and len(expected) != 1 else [found]
            if isinstance(found, tuple) and len(expected) == 1:
                values = list(found)
            for value, reference in zip(values, map(_array, expected), strict=True):
                _compare(value, reference, case)
    # Whatever a peer raises, the case did not pass.
    except Exception:
        return False
    return True


def _array(value: Any) -> Any:
    if isinstance(value, list):
        return [_array(element) for element in value]
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _tensor(array: Any) -> Any:
    if isinstance(array, list):
        return [_tensor(element) for element in array]
    if str(array.dtype) == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _compare(value: Any, reference: Any, case: TestCase) -> None:
    if isinstance(reference, list):
        for element, expected in zip(value, reference, strict=True):
            _compare(element, expected, case)
        return
    array = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    half = str(reference.dtype) in ("float16", "bfloat16")
    relative = HALF_RELATIVE if half else max(case.rtol, RELATIVE)
    wrong_kind = (array.dtype.kind == "f") != (reference.dtype.kind == "f" or half)
    if array.shape != reference.shape or wrong_kind:
        raise ValueError("another shape or type")
    exact = reference.astype(np.float64)
    np.testing.assert_allclose(array.astype(np.float64), exact, relative, max(case.atol, ABSOLUTE))


def _too_long(_signal: int, _frame: object) -> None:
    raise TimeoutError


def _stand_in_for_torchvision() -> None:
    if importlib.util.find_spec("torchvision") is not None:
        return
    for name in ("torchvision", "torchvision.io", "torchvision.ops", "torchvision.transforms"):
        sys.modules[name] = mock.MagicMock()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    peer = parser.parse_args().peer
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _stand_in_for_torchvision()
    importlib.import_module(peer)
    cases = loader.load_model_tests(kind="node")
    signal.signal(signal.SIGALRM, _too_long)
    passed = set()
    for case in cases:
        signal.alarm(SECONDS)
        if passes(PEERS[peer], case):
            passed.add(case.name)
        signal.alarm(0)
    counts = {name: [len(passed & set(part)), len(part)] for name, part in sets(cases).items()}
    row = {"version": importlib.metadata.version(peer), "onnx": onnx.__version__, **counts}
    RESULTS.add(row, peer)
    print(peer, row)
