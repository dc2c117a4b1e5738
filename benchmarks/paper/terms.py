"""The paper's recipe as far as it is known: an extra term in the cost while training, then product quantization.

The float weights of the trained network are trained on with ``cost + alpha(t) * R(W)``, alpha growing geometrically,
and then quantized as `candidates.Clusterer.block` does; nothing is trained after. R is a term of
`onnxpq.training.regularizers`: one of the binarising family, which is our reading of the paper, or the distance to a
codebook.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from benchmarks.paper.candidates import Clusterer
from benchmarks.paper.forms import Coded, Dense, Form
from benchmarks.paper.tasks import Task
from benchmarks.paper.tuning import Student, tune
from onnxpq.pq import kmeans
from onnxpq.training.regularizers import BINARY_TERMS, binary_term, codebook_term

ALPHA: Final = {"none": 0.0, "murray-ng": 100.0, "l1": 1000.0, "l2": 1000.0, "quartic": 1000.0, "codebook": 1000.0}
"""Weight of each term at the end: the best of 10, 100, 1000 and 10000 at 16x on the first network (`alphas.py`)."""

RATE: Final = 1e-2
"""Peak learning rate of the weights under a term."""

GROWTH: Final = 1000.0
"""alpha begins at its end divided by this."""

CODEBOOK_STEPS: Final = 100
"""Codewords become the means of their sub-vectors after so many steps."""

LLOYD_STEPS: Final = 10
"""Steps of k-means after training under the codebook term."""

Watch = Callable[[float, Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Regularized:
    """A network trained under a term.

    Attributes:
        matrices: the layers' weights [out, in], by name.
        biases: by name.
    """

    matrices: dict[str, Tensor]
    biases: dict[str, Tensor]


def dense(task: Task) -> dict[str, Form]:
    """The layers' weights themselves, by name."""
    return {layer.weight: Dense(task.matrix(layer)) for layer in task.layers}


def regularize(
    task: Task,
    term: str,
    *,
    steps: int,
    seed: int,
    alpha: float | None = None,
    coded: Mapping[str, Coded] | None = None,
    watch: Watch | None = None,
) -> Regularized:
    """Train the float weights under a term.

    Args:
        task: the network.
        term: of `ALPHA`.
        steps: updates.
        seed: of the training.
        alpha: at the end; default: that of `ALPHA`.
        coded: for the codebook term, the quantized form of each weight; its codewords follow the weights.
        watch: is given the share of the steps that is done, and the matrices, at every step.
    """
    forms = dense(task)
    student = Student.of(task, forms)
    final = ALPHA[term] if alpha is None else alpha
    pull = _codebook_pull(coded) if term == "codebook" and coded is not None else _binary_pull(term)

    def cost(done: float) -> Tensor:
        matrices = {name: form.matrix() for name, form in forms.items()}
        if watch is not None:
            watch(done, {name: matrix.detach() for name, matrix in matrices.items()})
        return final * GROWTH ** (done - 1) * pull(matrices)

    tune(student, steps, rate=RATE, seed=seed, term=cost, keep_best=False)
    matrices = {name: form.matrix().detach() for name, form in forms.items()}
    return Regularized(matrices, {name: value.detach() for name, value in student.others.items()})


@lru_cache(maxsize=1)
def _without_codebook(task: Task, term: str, steps: int, seed: int, alpha: float | None) -> Regularized:
    """Such terms know nothing of the factor: all factors share one training."""
    return regularize(task, term, steps=steps, seed=seed, alpha=alpha)


def then_pq(
    task: Task, term: str, coded: Mapping[str, Coded], *, steps: int, seed: int, alpha: float | None = None
) -> tuple[dict[str, Coded], dict[str, Tensor]]:
    """Train under a term, then quantize to codebooks of the sizes of `coded`, which the codebook term changes.

    Returns:
        The quantized weights and the biases, by name.
    """
    if term != "codebook":
        trained = _without_codebook(task, term, steps, seed, alpha)
        return {name: _again(trained.matrices[name], own, seed) for name, own in coded.items()}, trained.biases
    trained = regularize(task, term, steps=steps, seed=seed, alpha=alpha, coded=coded)
    for _ in range(LLOYD_STEPS):
        for name, matrix in trained.matrices.items():
            reassign(coded[name], matrix, refit=True)
    return dict(coded), trained.biases


def _again(matrix: Tensor, like: Coded, seed: int) -> Coded:
    """A matrix in codebooks of the same sizes."""
    _, codewords, d = like.parameters[0].shape
    return Clusterer(matrix, seed).block(d, codewords)


Pull = Callable[[Mapping[str, Tensor]], Tensor]


def _binary_pull(term: str) -> Pull:
    if term == "none":
        return lambda _matrices: torch.zeros(())
    if term not in BINARY_TERMS:
        raise SystemExit(f"The term '{term}' needs codebooks to pull to.")
    return lambda matrices: torch.stack([binary_term(term, matrix) for matrix in matrices.values()]).sum()


def _codebook_pull(coded: Mapping[str, Coded]) -> Pull:
    """The squared distance to the nearest codewords, which follow their sub-vectors."""
    count = 0

    def pull(matrices: Mapping[str, Tensor]) -> Tensor:
        nonlocal count
        total = torch.zeros(())
        for name, matrix in matrices.items():
            reassign(coded[name], matrix.detach(), refit=count % CODEBOOK_STEPS == 0)
            total = total + codebook_term(matrix, coded[name].matrix().detach())
        count += 1
        return total

    return pull


@torch.no_grad()
def reassign(coded: Coded, matrix: Tensor, *, refit: bool) -> None:
    """Give each sub-vector of a matrix its nearest codeword, with `refit` after moving the codewords to the means."""
    (book,), (codes,) = coded.parameters, coded.codes
    groups, codewords, d = book.shape
    missing = -matrix.shape[1] % d
    points = torch.nn.functional.pad(matrix / coded.size, (0, missing)).reshape(len(matrix), groups, d)
    points = points.transpose(0, 1).contiguous()
    if refit:
        index = codes.T.unsqueeze(2)
        sums = torch.zeros_like(book).scatter_add_(1, index.expand(-1, -1, d), points)
        counts = torch.zeros(groups, codewords, 1).scatter_add_(1, index, torch.ones_like(points[:, :, :1]))
        book.copy_(torch.where(counts > 0, sums / counts.clamp_min(1), book))
    coded.codes[0] = kmeans.nearest(points, book).T.long().contiguous()
