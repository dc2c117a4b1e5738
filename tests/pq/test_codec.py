import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpq.pq import codec, reference
from onnxpq.pq.layout import Layout
from onnxpq.pq.quantized import Quantized

pytestmark = pytest.mark.rounding

FLOAT16_BUDGET = 2e-3
"""Relative L2 error of float16 codewords."""


def layouts() -> st.SearchStrategy[Layout]:
    def build(out: int, columns: int, d: int, codewords: int, share: float) -> Layout:
        sub_vectors = -(-columns // d)
        return Layout(out, columns, d, codewords, 1 + int(share * (sub_vectors - 1)))

    return st.builds(
        build, st.integers(1, 40), st.integers(1, 30), st.integers(1, 9), st.integers(2, 20), st.floats(0, 1)
    )


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 99))
def test_round_trip_against_the_reference(layout: Layout, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(layout.out_features, layout.in_features, generator=generator)
    codebooks, codes, scales = codec.encode(matrix, layout, generator=generator)
    assert codes.shape == (layout.out_features, layout.sub_vectors)
    decoded = codec.decode(codebooks, codes, scales, layout)
    quantized = Quantized(layout, codebooks, codes.to(torch.uint8), scales)
    stored = quantized.freeze()
    expected = reference.decode(stored.codebooks, stored.codes, stored.scales, stored.in_features)
    assert np.linalg.norm(quantized.matrix().numpy() - expected) <= FLOAT16_BUDGET * max(np.linalg.norm(expected), 1e-6)
    if stored.codebooks.dtype == np.int8:
        # Each entry is rounded by half a step at most, in units of its row's scale.
        step = float(codebooks.abs().max()) / quantized.magnitude
        assert (np.abs(decoded.numpy() - expected) <= (0.5001 * step * scales.numpy())[:, None]).all()
    assert float((matrix - decoded).norm()) <= float(matrix.norm()) * 1.0001
    assert stored.nbytes == layout.nbytes or layout.groups != -(-layout.sub_vectors // layout.per_group)


@settings(max_examples=30, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 99))
def test_codes_and_indices_are_inverse(layout: Layout, seed: int) -> None:
    codes = torch.randint(
        0, layout.codewords, (layout.out_features, layout.sub_vectors), generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(codec.to_codes(codec.to_index(codes, layout), layout), codes)


def test_by_hand() -> None:
    layout = Layout(out_features=2, in_features=3, sub_vector=2, codewords=2, groups=1)
    codebooks = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    codes = torch.tensor([[0, 1], [1, 0]])
    matrix = codec.decode(codebooks, codes, torch.tensor([1.0, 10.0]), layout)
    assert matrix.tolist() == [[1.0, 2.0, 3.0], [30.0, 40.0, 10.0]]
    units = matrix[:, :3] / torch.tensor([[1.0], [10.0]])
    assert torch.equal(codec.assign(units, codebooks, layout)[:, 0], codes[:, 0])


def test_gradients_reach_codebooks_and_scales() -> None:
    layout = Layout(4, 6, 3, 2, 2)
    codebooks = torch.randn(2, 2, 3, requires_grad=True)
    scales = torch.ones(4, requires_grad=True)
    codec.decode(codebooks, torch.randint(0, 2, (4, 2)), scales, layout).square().sum().backward()
    assert codebooks.grad is not None
    assert scales.grad is not None
    assert float(codebooks.grad.abs().sum()) > 0


def test_rows_of_zeros_and_tiny_rows() -> None:
    matrix = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    matrix[2] = 0
    matrix[3] *= 1e-12
    layout = Layout(8, 16, 4, 16, 4)
    decoded = codec.decode(*codec.encode(matrix, layout, generator=torch.Generator().manual_seed(0)), layout)
    assert torch.isfinite(decoded).all()
    assert float(decoded[2].abs().max()) == pytest.approx(0, abs=1e-6)
    assert float(decoded[3].abs().max()) < 1e-10
