"""The trained tensors: what they start from, and how codes follow the float weights."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxpq.graph.layers import Layer
from onnxpq.network import importing
from onnxpq.network.module import Network
from onnxpq.pq.layout import Layout
from onnxpq.pq.quantized import Quantized
from onnxpq.training import student as student_module
from onnxpq.training.student import REGULARIZED, TUNED, Student

pytestmark = pytest.mark.rounding

OUT, IN = 4, 6
LAYERS = [Layer("product", "MatMul", "w", OUT, IN, True, "b")]
LAYOUT = Layout(OUT, IN, sub_vector=4, codewords=8, groups=1)
"""in is no multiple of d: the last two numbers of a row's second codeword are padding."""


@pytest.fixture
def network() -> Network:
    model = ir.from_onnx_text(f"""<ir_version: 8, opset_import: ["" : 13]>
        net (float[N,{IN}] x) => (float[N,{OUT}] y) {{
            h = MatMul (x, w)
            y = Add (h, b)
        }}""")
    arrays = {"w": np.random.default_rng(0).standard_normal((IN, OUT)), "b": np.arange(OUT)}
    for name, array in arrays.items():
        value = next(i for node in model.graph for i in node.inputs if i is not None and i.name == name)
        value.const_value = ir.tensor(array.astype(np.float32), name=name)
        model.graph.initializers[name] = value
    return importing.import_model(model)


@pytest.fixture
def student(network: Network) -> Student:
    generator = torch.Generator().manual_seed(1)
    codebooks = torch.randn(1, LAYOUT.codewords, LAYOUT.sub_vector, generator=generator)
    codes = torch.randint(LAYOUT.codewords, (OUT, LAYOUT.sub_vectors), generator=generator, dtype=torch.uint8)
    part = Quantized(LAYOUT, codebooks, codes, torch.rand(OUT, generator=generator) + 0.5)
    return Student(network, LAYERS, {"w": part}, ["b"])


def nearest_codes(student: Student) -> torch.Tensor:
    """By comparing each sub-vector with each codeword, in the plainest way; what is missing counts as 0."""
    part = student.quantized["w"]
    latent = torch.nn.functional.pad(student.latent["w"].detach(), (0, 2))
    points = latent.reshape(OUT, -1, LAYOUT.sub_vector)
    return (points.unsqueeze(2) - part.rounded.detach()[0]).square().sum(-1).argmin(-1).to(torch.uint8)


def test_starts_as_the_quantized_network(network: Network, student: Student) -> None:
    part = student.quantized["w"]
    for phase in (REGULARIZED, TUNED):
        weights = student.weights(phase)
        assert torch.allclose(weights["w"].T, part.matrix(), atol=1e-6)
        assert torch.equal(weights["b"], network.parameter("b"))


def test_codes_that_are_not_the_nearest_survive_the_start(network: Network, student: Student) -> None:
    part = student.quantized["w"]
    exact = network.parameter("w").detach().T / part.scales.unsqueeze(1)
    nearest = (exact[:, None, :4] - part.rounded.detach()[0]).square().sum(-1).argmin(-1)
    before = part.codes.clone()
    assert not torch.equal(nearest, before[:, 0])
    student.reassign(0)
    assert torch.equal(part.codes[:, 0], before[:, 0])  # the others have padding, which anything may fill


def test_codes_follow_the_float_weights(student: Student) -> None:
    with torch.no_grad():
        student.latent["w"].normal_(generator=torch.Generator().manual_seed(2))
    student.reassign(0)
    assert torch.equal(student.quantized["w"].codes, nearest_codes(student))


def test_with_many_codewords_rows_take_turns(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_module, "COMPARED", 4)  # of the 8 codewords: half of the rows in a step
    with torch.no_grad():
        student.latent["w"].normal_(generator=torch.Generator().manual_seed(2))
    before = student.quantized["w"].codes.clone()
    student.reassign(3)
    assert torch.equal(student.quantized["w"].codes[::2], before[::2])
    assert torch.equal(student.quantized["w"].codes[1::2], nearest_codes(student)[1::2])
    student.reassign(4)
    assert torch.equal(student.quantized["w"].codes, nearest_codes(student))


def test_gradients_reach_everything_while_codes_move_and_what_is_stored_after(student: Student) -> None:
    for phase, tensors in ((TUNED, student.stored()), (REGULARIZED, [*student.stored(), student.latent["w"]])):
        weights = student.weights(phase)
        (weights["w"].square().sum() + weights["b"].square().sum()).backward()
        assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in tensors)
        assert (student.latent["w"].grad is None) == (phase == TUNED)
        for tensor in tensors:
            tensor.grad = None


def test_distances_by_hand(network: Network, student: Student) -> None:
    exact, found = network.parameter("w").detach().T, student.quantized["w"].matrix().detach()
    expected = (exact - found).square().sum() / exact.square().sum()
    assert student.distances["w"] == pytest.approx(float(expected))


def test_what_was_kept_comes_back(student: Student) -> None:
    student.keep()
    before = {name: tensor.detach().clone() for name, tensor in student.weights(TUNED).items()}
    with torch.no_grad():
        for tensor in [*student.stored(), student.latent["w"]]:
            tensor.add_(1)
    student.reassign(0)
    assert not torch.allclose(student.weights(TUNED)["w"], before["w"])
    student.restore()
    for name, tensor in student.weights(TUNED).items():
        assert torch.allclose(tensor, before[name], atol=1e-6)
