"""Regularize, then quantize."""

import pytest
import torch

from benchmarks.paper import methods, terms
from benchmarks.paper.forms import Coded

pytestmark = pytest.mark.rounding


def test_reassign_by_hand():
    coded = Coded([torch.tensor([[0], [0], [1]])], [torch.tensor([[[0.0, 0.0], [4.0, 4.0]]])], 2)
    matrix = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 4.0]])
    terms.reassign(coded, matrix, refit=False)
    assert coded.codes[0].flatten().tolist() == [0, 1, 1]
    terms.reassign(coded, matrix, refit=True)
    torch.testing.assert_close(coded.matrix().detach(), torch.tensor([[1.0, 0.0], [4.0, 4.0], [4.0, 4.0]]))


def test_a_codeword_that_nobody_has_stays():
    coded = Coded([torch.tensor([[0], [0]])], [torch.tensor([[[1.0], [9.0]]])], 1)
    terms.reassign(coded, torch.tensor([[2.0], [4.0]]), refit=True)
    torch.testing.assert_close(coded.parameters[0].detach() * coded.size, torch.tensor([[[3.0], [9.0]]]))


def test_reassign_takes_layers_that_are_filled_up():
    coded = Coded([torch.zeros(2, 2, dtype=torch.int64)], [torch.tensor([[[1.0, 2.0]], [[3.0, 9.0]]])], 3)
    terms.reassign(coded, torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 7.0]]), refit=True)
    torch.testing.assert_close(coded.matrix().detach()[0], torch.tensor([1.0, 2.0, 6.0]))


def distance(task, matrices, term: str) -> float:
    """Mean distance of |u| from 1."""
    matrix = matrices[task.layers[0].weight]
    u = matrix / matrix.abs().mean(1, keepdim=True)
    return float((u.abs() - 1).abs().mean())


@pytest.mark.parametrize("task", ["gemm"], indirect=True)
@pytest.mark.parametrize("term", ["murray-ng", "l1", "l2", "quartic"])
def test_binary_terms_pull_to_two_values(task, term):
    plain = terms.regularize(task, "none", steps=150, seed=0)
    pulled = terms.regularize(task, term, steps=150, seed=0)
    assert distance(task, pulled.matrices, term) < 0.7 * distance(task, plain.matrices, term)


@pytest.mark.parametrize("task", ["gemm"], indirect=True)
def test_codebook_term_pulls_to_codewords(task):
    def missed(term: str) -> float:
        coded = methods.codebooks_of(task, 16, 0)
        forms, _ = terms.then_pq(task, term, coded, steps=150, seed=0)
        trained = terms.regularize(task, term, steps=150, seed=0, coded=methods.codebooks_of(task, 16, 0))
        (name,) = forms
        exact = trained.matrices[name]
        return float((exact - forms[name].matrix().detach()).square().sum() / exact.square().sum())

    assert missed("codebook") < 0.5 * missed("none")


def test_watch_sees_every_step(task):
    seen = []
    terms.regularize(task, "l2", steps=5, seed=0, watch=lambda done, matrices: seen.append((done, list(matrices))))
    assert seen == [(step / 5, ["w0"]) for step in range(5)]


def test_the_codebook_term_needs_codebooks(task):
    with pytest.raises(SystemExit, match="'codebook' needs codebooks"):
        terms.regularize(task, "codebook", steps=1, seed=0)
