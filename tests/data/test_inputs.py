"""What is read off a model's inputs: types and sizes, where the samples lie, what is a state."""

import re

import numpy as np
import onnx_ir as ir
import pytest

from onnxpq.config.axes import parse_axes
from onnxpq.data import inputs
from onnxpq.data.inputs import InputSpec
from onnxpq.errors import DataError, ModelError

FLOAT32 = np.dtype(np.float32)
X = InputSpec("x", FLOAT32, (None, 2))
IDS = InputSpec("ids", np.dtype(np.int64), (None, 3))


def model_of(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {text}')


def test_input_specs_leave_initializers_out() -> None:
    model = model_of(
        "(float[N,2] x, int64[3,S] ids, float[2] w) => (float[N,2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }"
    )
    assert [value.name for value in model.graph.inputs] == ["x", "ids", "w"]
    specs = inputs.input_specs(model)
    assert specs == [X, InputSpec("ids", np.dtype(np.int64), (3, None))]
    assert [spec.describe() for spec in specs] == ["float32 [N, 2]", "int64 [3, ?]"]


def test_input_without_shape() -> None:
    model = model_of("(float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    model.graph.inputs[0].shape = None
    with pytest.raises(ModelError, match=r"Input 'x' has type FLOAT and shape None: onnxpq needs tensors of known"):
        inputs.input_specs(model)


@pytest.mark.parametrize(("kind", "called"), [("seq", "a sequence"), ("optional", "optional")])
def test_inputs_that_are_no_tensors(kind: str, called: str) -> None:
    model = model_of(f"({kind}(float[N,2]) s, float[N,2] x) => (float[N,2] y) {{ y = Identity(x) }}")
    with pytest.raises(
        ModelError, match=rf"^Input 's' is {called} \(.*\): onnxpq gives models tensors alone, .*Export"
    ):
        inputs.input_specs(model)


def test_fixed_batch() -> None:
    assert inputs.fixed_batch([X, IDS]) is None
    assert inputs.fixed_batch([X, InputSpec("b", FLOAT32, (3, 1)), InputSpec("s", FLOAT32, ())]) == 3
    with pytest.raises(DataError, match=re.escape("different fixed batch dimensions: {'a': 2, 'b': 3}. Where")):
        inputs.fixed_batch([InputSpec("a", FLOAT32, (2,)), InputSpec("b", FLOAT32, (3,))])


# Where the samples lie


PLACED = {
    "first": ("float[N,2] x, float[N,3] z", (0, 0)),
    "a state of layers": ("float[N,2] x, float[2,N,3] h", (0, 1)),
    "a state without names": ("float[?,?] x, float[2,?,128] h", (0, 1)),
    "a batch of one": ("float[1,80] x, float[2,1,64] h", (0, 1)),
    "listed first": ("float[2,1,64] h, float[1,80] x", (1, 0)),
    "steps first": ("float[20,1,64] x, float[2,1,64] h", (1, 1)),
    "a flag": ("int64[N,S] ids, bool[1] flag", (0, 0)),
    "a mask": ("int64[N,S] ids, int64[S,S] mask", (0, 0)),
    "other names": ("int64[a,b] ids, int64[c,d] mask", (0, 0)),
    "nothing in common": ("float[1,80] x, float[64] h", (0, 0)),
    "sizes": ("float[N,3,H,W] x, float[2] size", (0, 0)),
}


def specs_of(text: str, batch_axis: int | str | None = None, outputs: str = "float[N] y") -> list[InputSpec]:
    names = [entry.split()[-1] for entry in text.split(", ")]
    results = [entry.split()[-1] for entry in outputs.split(", ")]
    body = " ".join(f"{result} = Identity({names[0]})" for result in results)
    model = model_of(f"({text.replace('?', 'unnamed')}) => ({outputs}) {{ {body} }}")
    for value in model.graph.inputs:
        if "unnamed" in str(value.shape):
            value.shape = ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape or ()])
    return inputs.input_specs(model, axes=parse_axes(batch_axis))


@pytest.mark.parametrize("kind", PLACED)
def test_where_the_samples_lie_is_read_off_names_and_sizes(kind: str) -> None:
    text, axes = PLACED[kind]
    assert tuple(spec.axis for spec in specs_of(text)) == axes


def test_the_user_knows_better() -> None:
    assert [spec.axis for spec in specs_of("float[T,N,8] x, int64[N] lengths, float[2,N,8] h", 1)] == [1, 0, 1]
    assert [spec.axis for spec in specs_of("float[T,N,8] x, float[N,T,8] z", "x=1")] == [1, 0]
    with pytest.raises(DataError, match=r"Input 'x' is float32 \[N, 2\] and has no axis 2, which --batch-axis names"):
        specs_of("float[N,2] x", "x=2")
    assert specs_of("float[T,N,8] x", 1)[0].describe() == "float32 [?, N, 8]"


def test_inputs_without_samples_in_common() -> None:
    assert not inputs.has_samples([X, InputSpec("rate", np.dtype(np.int64), ())])
    assert not inputs.has_samples(specs_of("float[1,80] x, float[64] h"))
    assert inputs.has_samples(specs_of("float[1,80] x, float[2,1,64] h"))
    assert inputs.has_samples([X, IDS])


# States


STATES = {
    "the state of a stream": (
        "float[1,80] x, float[2,1,64] h",
        "float[1,5] y, float[2,1,64] hn",
        {"h": ((2, None, 64), "hn")},
    ),
    "a cache that grows": (
        "int64[N,S] ids, float[N,4,P,8] past",
        "float[N,S,9] y, float[N,4,total,8] present",
        {"past": ((None, 4, 0, 8), "present")},
    ),
    "the size of another input": (
        "float[N,S] x, float[N,S,8] h",
        "float[N,5] y, float[N,S,8] hn",
        {"h": ((None, "S", 8), "hn")},
    ),
    "one output is what the model is for": ("float[N,8] x, float[N,8] z", "float[N,8] y", {}),
    "so is one input": ("float[N,8] x", "float[N,8] y, float[N,2] z", {}),
    "numbers of words are no state": ("float[N,8] x, int64[N,3] ids", "float[N,2] y, int64[N,3] next", {}),
    "another size": ("float[N,8] x, float[N,7] z", "float[N,2] y, float[N,6] w", {}),
}


@pytest.mark.parametrize("kind", STATES)
def test_states(kind: str) -> None:
    text, outputs, expected = STATES[kind]
    found = specs_of(text, outputs=outputs)
    assert {spec.name: (spec.start, spec.follower) for spec in found if spec.start is not None} == expected


def test_a_state_begins_with_zeros_of_the_sizes_that_other_inputs_have() -> None:
    specs = specs_of("float[N,S] x, float[N,S,P,8] h", outputs="float[N,5] y, float[N,S,Q,8] hn")
    begun = inputs.begin(specs[1], 3, {"x": np.ones((3, 7), np.float32)}, specs)
    assert (begun.shape, begun.dtype, begun.any()) == ((3, 7, 0, 8), FLOAT32, np.False_)
