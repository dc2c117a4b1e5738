"""The forms of a weight: by hand, and the file's own arithmetic against `matrix()`."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from benchmarks.paper import forms
from benchmarks.paper.graph import Builder, model_bytes
from onnxpq import runtime

NODE_BYTES = 400
"""What the small constants of the decoding nodes may take."""


def some_forms() -> dict[str, forms.Form]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def codes(columns: int, count: int) -> torch.Tensor:
        return torch.randint(0, count, (40, columns), generator=generator)

    return {
        "dense": forms.Dense(random(40, 32)),
        "pq": forms.Coded([codes(4, 16)], [random(4, 16, 8)], 32),
        "pq, shared by two": forms.Coded([codes(8, 4)], [random(4, 4, 4)], 32),
        "pq, filled up": forms.Coded([codes(7, 256)], [random(7, 256, 5)], 32),
        "scalar": forms.Coded([codes(32, 2)], [random(1, 2, 1)], 32),
        "residual": forms.Coded([codes(8, 16), codes(8, 16)], [random(1, 16, 4), random(1, 16, 4)], 32),
        "sign": forms.Sign(random(40, 32)),
        "low rank": forms.LowRank(random(40, 3), random(3, 32)),
        "hashed": forms.Hashed.random((40, 32), 50, 7),
    }


@pytest.mark.parametrize("name", some_forms())
def test_file_computes_the_matrix(task, name):
    form, layer = some_forms()[name], task.layers[0]
    builder = Builder(task.proto())
    form.write(builder, layer)
    content = builder.finish()
    matrix = form.matrix().detach().numpy()
    plain = task.proto()
    tensor = next(t for t in plain.graph.initializer if t.name == layer.weight)
    tensor.CopyFrom(numpy_helper.from_array(matrix.T.copy() if layer.weight_is_in_out else matrix, layer.weight))
    images = {"x": task.test[0]}
    (found,) = runtime.session(content).run(None, images)
    (wanted,) = runtime.session(plain).run(None, images)
    # Numbers are stored as float16: 2^-11 of each, and sums of 32 of them.
    assert np.linalg.norm(found - wanted) < 1e-3 * np.linalg.norm(wanted)
    spent = model_bytes(onnx.load_from_string(content)) - (model_bytes(task.proto()) - task.weight_bytes)
    assert form.nbytes <= spent <= form.nbytes + NODE_BYTES


@pytest.mark.parametrize("name", some_forms())
def test_gradients_reach_every_parameter(name):
    form = some_forms()[name]
    form.matrix().square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in form.parameters)
    assert all(0.1 < float(p.detach().square().mean().sqrt()) < 2 for p in form.parameters)


def test_coded_by_hand():
    book = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    form = forms.Coded([torch.tensor([[0, 1], [1, 0]])], [book], 3)
    torch.testing.assert_close(form.matrix().detach(), torch.tensor([[1.0, 2.0, 7.0], [3.0, 4.0, 5.0]]))
    assert form.nbytes == 1 + 2 * 8


def test_stages_are_summed():
    one = torch.zeros(1, 2, dtype=torch.int64)
    form = forms.Coded([one, one], [torch.tensor([[[1.0], [9.0]]]), torch.tensor([[[0.5], [9.0]]])], 2)
    torch.testing.assert_close(form.matrix().detach(), torch.tensor([[1.5, 1.5]]))


def test_sign_by_hand():
    form = forms.Sign(torch.tensor([[1.0, -3.0], [-0.5, -0.5]]))
    torch.testing.assert_close(form.matrix().detach(), torch.tensor([[2.0, -2.0], [-0.5, -0.5]]))
    assert form.nbytes == 1 + 2 * 2


def test_low_rank_is_exact_for_its_rank_and_the_best_below():
    u, s, vh = torch.linalg.svd(torch.randn(9, 6, generator=torch.Generator().manual_seed(1)), full_matrices=False)
    s = torch.tensor([5.0, 3.0, 2.0, 0.0, 0.0, 0.0])
    matrix = (u * s) @ vh
    torch.testing.assert_close(forms.LowRank.truncated(matrix, 3).matrix().detach(), matrix, atol=1e-5, rtol=1e-5)
    missed = matrix - forms.LowRank.truncated(matrix, 1).matrix().detach()
    assert float(missed.square().sum()) == pytest.approx(3**2 + 2**2, rel=1e-4)
    assert forms.LowRank.truncated(matrix, 3).nbytes == 2 * 3 * (9 + 6)


def test_polynomial_by_hand():
    x = np.array([0, 2, forms.HASH_PRIME - 1])
    # 1 x^3 + 2 x^2 + 3 x + 4; the last x is -1.
    assert forms._polynomial(x, [1, 2, 3, 4]).tolist() == [4, 26, 2]


def test_hashing_is_deterministic_even_and_differs_between_seeds():
    one, again, other = (forms.Hashed.random((100, 80), 50, seed) for seed in (1, 1, 2))
    assert torch.equal(one.index, again.index)
    assert torch.equal(one.matrix(), again.matrix())
    assert not torch.equal(one.index, other.index)
    counts = torch.bincount(one.index.flatten(), minlength=50)
    # 160 per bucket, standard deviation 12.5.
    assert 100 < int(counts.min()) <= int(counts.max()) < 220
    assert abs(float(one.signs.mean())) < 0.05
    assert one.nbytes == 100


def test_hashed_weights_of_a_bucket_differ_by_sign_only():
    form = forms.Hashed(torch.arange(1.0, 5.0), (6, 7), 3)
    expected = (form.index + 1).float() * form.signs
    torch.testing.assert_close(form.matrix().detach(), expected)


def test_zeros_are_kept():
    assert not forms.Dense(torch.zeros(2, 2)).matrix().detach().any()
