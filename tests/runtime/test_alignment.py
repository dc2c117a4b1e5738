"""Where models of all layouts have their samples, found by running them."""

from functools import partial

import numpy as np
import onnx
import pytest
from tiny_models import build, initializer

from onnxpq import runtime
from onnxpq.data import Alignment, Dataset, Place, of_objects
from onnxpq.runtime import alignment

T, F, C = 3, 4, 5


def node(op_type: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return onnx.helper.make_node(op_type, inputs.split(), [output], name=f"n_{output}", **attributes)


def constant(name: str, *values: float, kind: type = np.int64) -> onnx.TensorProto:
    array = np.array(values if len(values) > 1 else values[0], kind)
    return onnx.numpy_helper.from_array(array, name)


def model(*nodes: onnx.NodeProto, batch: int | str = "N", **outputs: list[int | str | None] | None) -> onnx.ModelProto:
    """``x [batch, T, F] -> MatMul -> z [batch, T, C]`` -> `nodes` -> outputs."""
    found = build(
        [node("MatMul", "x w", "z"), *nodes],
        {"x": [batch, T, F]},
        {name: [] for name in outputs},
        [
            initializer("w", F, C, seed=1),
            constant("rows", -1, C),
            constant("half", 0.5, kind=np.float32),
            constant("first", 0),
        ],
        output_types={name: kind for name, kind in (("where", 7), ("top", 7)) if name in outputs},
    )
    for value in found.graph.output:
        value.type.tensor_type.ClearField("shape")
    return found


def measured(graph: onnx.ModelProto, fixed: int | None = None, samples: int = 40) -> Alignment:
    x = np.random.default_rng(0).standard_normal((samples, T, F)).astype(np.float32)
    run = partial(runtime.run, runtime.session(graph, use_library=False))
    found, values, count = alignment.measure(run, Dataset({"x": x}), fixed)
    assert count == (fixed or max(4, min(8, samples)))
    assert all(len(values[name]) == count for name in found.places)
    return found


LAYOUTS = {
    "samples first": ((node("Relu", "z", "y"),), Place(0)),
    "time major": ((node("Transpose", "z", "y", perm=[1, 0, 2]),), Place(1)),
    "samples last": ((node("Transpose", "z", "y", perm=[1, 2, 0]),), Place(2)),
    "flattened": ((node("Reshape", "z rows", "y"),), Place(0, 1, T)),
    "flattened, time major": (
        (node("Transpose", "z", "t", perm=[1, 0, 2]), node("Reshape", "t rows", "y")),
        Place(0, T, 1),
    ),
    "a new dimension": (
        (node("Transpose", "z", "t", perm=[1, 0, 2]), node("Concat", "t t", "y", axis=0)),
        Place(1),
    ),
    "classes": ((node("ArgMax", "z", "top", axis=-1, keepdims=0), node("Transpose", "top", "y")), Place(1)),
    "of the whole": ((node("ReduceMean", "z", "y", keepdims=0),), None),
    "of the batch": ((node("ReduceMean", "z", "y", axes=[0]),), None),
    "a threshold": ((node("Greater", "z half", "g"), node("NonZero", "g", "y")), None),
    "a constant": ((node("Identity", "half", "y"),), None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fixed", [None, 4, 5])
@pytest.mark.parametrize("samples", [1, 3, 40])
def test_layouts(layout: str, fixed: int | None, samples: int) -> None:
    nodes, expected = LAYOUTS[layout]
    kind = 7 if layout in ("classes", "a threshold") else 1
    graph = model(*nodes, batch=fixed or "N", y=None)
    graph.graph.output[0].type.tensor_type.elem_type = kind
    found = measured(graph, fixed, samples)
    assert found.mixed == {}
    if layout.startswith("flattened") and samples == 1:
        # Of one sample several times nothing tells T steps of N from N of T.
        assert found.places["y"] in (Place(0, 1, T), Place(0, T, 1))
    elif layout in ("a threshold", "of the batch", "a constant") and fixed is not None:
        # A size of 4 or 5 may be there by chance; it then tells no samples apart.
        assert found.places.get("y") in (None, Place(0), Place(1), Place(2))
    else:
        assert found.places.get("y") == expected


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("samples first", Place(0)),
        ("time major", Place(1)),
        ("samples last", Place(2)),
        ("flattened", Place(0, 1, T)),
        ("of the batch", Place(0)),
        ("of the whole", None),
        ("a threshold", None),
    ],
)
def test_a_batch_of_one_is_a_sample(layout: str, expected: Place | None) -> None:
    nodes, _ = LAYOUTS[layout]
    graph = model(*nodes, batch=1, y=None)
    graph.graph.output[0].type.tensor_type.elem_type = 7 if layout == "a threshold" else 1
    assert measured(graph, 1).places.get("y") == expected


MIXING = {
    "the mean of a batch": (node("ReduceMean", "z", "m", axes=[0]), node("Sub", "z m", "y")),
    "sums along the samples": (node("CumSum", "z first", "y"),),
    "sums from the end": (node("CumSum", "z first", "y", reverse=1),),
    "attention along the samples": (
        node("Transpose", "z", "k", perm=[1, 2, 0]),
        node("Transpose", "z", "q", perm=[1, 0, 2]),
        node("MatMul", "q k", "s"),
        node("Softmax", "s", "p"),
        node("MatMul", "p q", "c"),
        node("Transpose", "c", "y", perm=[1, 0, 2]),
    ),
}


@pytest.mark.parametrize("kind", MIXING)
@pytest.mark.parametrize("fixed", [None, 4, 5])
def test_samples_that_influence_each_other(kind: str, fixed: int | None) -> None:
    found = measured(model(*MIXING[kind], batch=fixed or "N", y=None), fixed)
    assert found.places == {"y": Place(0)}
    assert found.mixed["y"] > alignment.FLOAT_BUDGET


@pytest.mark.parametrize("fixed", [None, 4])
@pytest.mark.parametrize("samples", [2, 3])
def test_few_samples_show_it_too(fixed: int | None, samples: int) -> None:
    """Each of them several times: that makes other company only where the same ones are side by side."""
    found = measured(model(*MIXING["attention along the samples"], batch=fixed or "N", y=None), fixed, samples)
    assert found.mixed["y"] > alignment.FLOAT_BUDGET


def test_what_is_random_is_no_influence() -> None:
    nodes = (node("RandomNormalLike", "z", "r"), node("Add", "z r", "y"))
    assert measured(model(*nodes, y=None)).mixed == {}


def test_a_scale_of_the_batch_is_no_influence() -> None:
    """Dynamic quantization rounds by the largest value of a batch."""
    nodes = (
        onnx.helper.make_node("DynamicQuantizeLinear", ["z"], ["q", "s", "p"], name="quantize"),
        node("DequantizeLinear", "q s p", "y"),
    )
    found = measured(model(*nodes, y=None))
    assert (found.places, found.mixed) == ({"y": Place(0)}, {})


def test_whole_calls_are_left_as_they_are() -> None:
    calls = [np.ones((n, T, F), np.float32) for n in (2, 5)]
    run = partial(runtime.run, runtime.session(model(*LAYOUTS["time major"][0], y=None), use_library=False))
    found, values, count = alignment.measure(run, Dataset({"x": of_objects(calls)}, whole=True), None)
    assert (found, count, values["y"].shape) == (Alignment(), 1, (T, 2, C))
