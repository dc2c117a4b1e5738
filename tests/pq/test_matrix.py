import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.pq.matrix import from_matrix, to_matrix

W = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def test_by_hand():
    assert to_matrix(W, 3, is_in_out=False).tolist() == W.tolist()
    assert to_matrix(W, 2, is_in_out=True).tolist() == [[1, 4], [2, 5], [3, 6]]
    stack = torch.stack([W, W + 10])
    assert to_matrix(stack, 2, is_in_out=True).tolist() == [[1, 4], [2, 5], [3, 6], [11, 14], [12, 15], [13, 16]]
    assert to_matrix(W.reshape(2, 3, 1, 1), 3, is_in_out=False).tolist() == W.tolist()


@given(st.lists(st.integers(1, 4), max_size=2), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_there_and_back(stack, rows, columns, is_in_out):
    weight = torch.arange(rows * columns * torch.Size(stack).numel()).reshape(*stack, rows, columns)
    matrix = to_matrix(weight, rows if is_in_out else columns, is_in_out=is_in_out)
    assert matrix.shape[1] == (rows if is_in_out else columns)
    assert torch.equal(from_matrix(matrix, weight.shape, is_in_out=is_in_out), weight)


@pytest.mark.parametrize("ones", [1, 2, 3])
def test_kernels_there_and_back(ones):
    kernel = torch.arange(6).reshape(2, 3, *[1] * ones)
    assert torch.equal(from_matrix(to_matrix(kernel, 3, is_in_out=False), kernel.shape, is_in_out=False), kernel)
