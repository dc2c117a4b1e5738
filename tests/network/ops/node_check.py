"""One check for all operator families: a single node in the network against onnxruntime."""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime
import torch
from far_device import AVAILABLE, FAR, Far

from onnxpq.network.module import Network
from onnxpq.network.ops.registry import ONNXRUNTIME, registered, version_in_force

FIRST_OPSET = 7  # the oldest that onnxruntime runs
RELATIVE = 1e-4
ABSOLUTE = 1e-5

rng = np.random.default_rng(0)


@dataclass(frozen=True)
class Case:
    """A node: its type, inputs and attributes, and the versions that they are valid for (None: all registered)."""

    op_type: str
    inputs: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    versions: tuple[int, ...] | None = None
    outputs: int = 1
    domain: str = ""
    differentiable: bool = True

    def __str__(self) -> str:
        attributes = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op_type}({attributes}){[list(np.shape(x)) for x in self.inputs]}"


def normal(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return rng.uniform(0.5, 2, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def cases_of_versions(cases: list[Case]) -> list[tuple[Case, int]]:
    known = registered()
    return [
        (case, version)
        for case in cases
        for version in (case.versions or [v for d, o, v in known if (d, o) == (case.domain, case.op_type)])
    ]


def assert_all_covered(family: ModuleType, cases: list[Case]) -> None:
    """Every operator and version that a family registers has a case.

    What onnxruntime's own operators borrow from other families is tried in test_private.py.
    """
    covered = {(case.domain, case.op_type, version) for case, version in cases_of_versions(cases)}
    own = {key: handler for key, handler in registered().items() if key[0] != ONNXRUNTIME}
    claimed = {key for key, handler in own.items() if handler.__module__ == family.__name__}
    assert claimed
    assert claimed - covered == set()


def check(case: Case, version: int) -> None:
    """Values, shapes and element types of the network equal onnxruntime's, and gradients pass."""
    model, feeds = single_node_model(case, version)
    expected = _expected(model, feeds)
    network = Network(ir.from_proto(model))
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
    floats = [tensor.requires_grad_() for tensor in tensors.values() if tensor.is_floating_point()]
    found = network(tensors)
    for name, reference in expected.items():
        array = found[name].detach().numpy()
        assert array.shape == reference.shape
        assert array.dtype == reference.dtype
        np.testing.assert_allclose(array, reference, rtol=RELATIVE, atol=ABSOLUTE)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.detach().numpy(), feeds[name], f"{name} was changed")
    first = found["y0"]
    if case.differentiable and floats and first.is_floating_point():
        first.sum().backward()
        assert floats[0].grad is not None
    if AVAILABLE:
        _check_elsewhere(network, feeds, found)


def _check_elsewhere(network: Network, feeds: dict[str, np.ndarray], here: dict[str, torch.Tensor]) -> None:
    """On a device that stands for a GPU the results are the same, but for rounding.

    Tensors may be laid out in memory in another way there, and a product may then be summed in another order: so it is
    with Intel's library on processors with AVX2 or AVX-512.
    """
    with Far():
        network.to(FAR)
        there = network({name: torch.from_numpy(np.array(array)).to(FAR) for name, array in feeds.items()})
        for name, value in here.items():
            found = there[name].detach().cpu()
            torch.testing.assert_close(found, value.detach(), rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)


def single_node_model(case: Case, version: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    opset = version if case.domain else _opset_with(case.op_type, version)
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(case.inputs)]
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = onnx.helper.make_node(case.op_type, names, outputs, domain=case.domain, **case.attributes)
    feeds = {name: np.asarray(x) for name, x in zip(names, case.inputs, strict=True) if x is not None}
    graph = onnx.helper.make_graph(
        [node],
        "one_node",
        [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feeds.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    imports = [onnx.helper.make_opsetid("", 17 if case.domain else opset)]
    imports += [onnx.helper.make_opsetid(case.domain, version)] if case.domain else []
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8), feeds


def _opset_with(op_type: str, version: int) -> int:
    newest = onnx.defs.onnx_opset_version()
    return next(o for o in range(FIRST_OPSET, newest + 1) if version_in_force("", op_type, o) == version)


def _expected(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By onnxruntime; by ONNX's reference where onnxruntime has no kernel, which concerns the newest opsets."""
    names = [output.name for output in model.graph.output]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        results = onnx.reference.ReferenceEvaluator(model).run(names, feeds)
    else:
        results = session.run(names, feeds)
    return dict(zip(names, results, strict=True))
