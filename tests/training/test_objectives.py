import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from onnxpq.config.settings import TrainingConfig
from onnxpq.errors import ConfigError, DataError, OnnxpqError
from onnxpq.training.objectives import choose, relative_error

pytestmark = pytest.mark.rounding

ROUNDING = 1e-5
"""Relative, of float32 logarithms and sums."""

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, -3.0]], np.float32)
OTHER = np.array([[1.0, 1.0, 0.5], [0.5, -2.0, 3.0]], np.float32)
LABELS = np.array([2, 0])


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def loss(settings: TrainingConfig, output: np.ndarray, teacher: np.ndarray, labels: np.ndarray | None) -> float:
    return float(
        choose(settings, teacher, labels)(tensor(output), tensor(teacher), None if labels is None else tensor(labels))
    )


def divergence(output: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T^2 KL(teacher || output), by scipy."""
    theirs, ours = (softmax(scores.astype(np.float64) / temperature, -1) for scores in (teacher, output))
    return temperature**2 * float(rel_entr(theirs, ours).sum(-1).mean())


def test_cross_entropy_by_hand() -> None:
    settings = TrainingConfig(distillation=0.0)
    scores = np.array([[0.0, 0.0], [math.log(3), 0.0]], np.float32)
    # probabilities of the labels 1/2 and 3/4
    expected = (math.log(2) + math.log(4 / 3)) / 2
    found = loss(settings, scores, scores, np.array([1, 0]))
    assert found == pytest.approx(expected, rel=ROUNDING)
    assert 1.02 * expected != pytest.approx(found, rel=ROUNDING)


def test_cross_entropy_of_probabilities_takes_their_logarithm() -> None:
    settings = TrainingConfig(distillation=0.0)
    shares = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    assert loss(settings, shares, shares, np.array([0, 0])) == pytest.approx(math.log(4) / 2, rel=ROUNDING)
    assert math.isfinite(loss(settings, shares, shares, np.array([0, 1])))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_of_scores_against_scipy(temperature: float) -> None:
    settings = TrainingConfig(distillation=1.0, temperature=temperature)
    found = loss(settings, OTHER, LOGITS, LABELS)
    assert found == pytest.approx(divergence(OTHER, LOGITS, temperature), rel=ROUNDING)
    assert loss(settings, LOGITS, LOGITS, LABELS) == pytest.approx(0, abs=1e-6)


def test_probabilities_are_distilled_as_the_scores_they_came_from() -> None:
    settings = TrainingConfig(temperature=2.0)
    shares, others = (softmax(scores, -1).astype(np.float32) for scores in (LOGITS, OTHER))
    found = loss(settings, others, shares, None)
    assert found == pytest.approx(divergence(log_softmax(OTHER, -1), log_softmax(LOGITS, -1), 2.0), rel=1e-4)
    assert choose(settings, shares, None).describe == "distillation from the original model"


def test_two_losses_are_mixed_by_their_shares() -> None:
    parts = [loss(TrainingConfig(distillation=share), OTHER, LOGITS, LABELS) for share in (0.0, 1.0, 0.25)]
    assert parts[2] == pytest.approx(0.75 * parts[0] + 0.25 * parts[1], rel=ROUNDING)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_is_ignored_is_not_learned(share: float) -> None:
    settings = TrainingConfig(distillation=share)
    labels = np.array(LABELS)
    labels[1:] = -100
    assert loss(settings, OTHER, LOGITS, labels) == pytest.approx(
        loss(settings, OTHER[:1], LOGITS[:1], labels[:1]), rel=ROUNDING
    )
    # A batch in which nothing counts has no loss, and no gradient that is NaN.
    objective = choose(settings, LOGITS, labels)
    output = torch.from_numpy(OTHER).requires_grad_()
    none = objective(output, torch.from_numpy(LOGITS), torch.full((len(LOGITS),), -100))
    none.backward()
    assert none.item() == 0
    assert output.grad is not None
    assert not output.grad.any()


def test_squared_error_is_relative_to_the_variance() -> None:
    teacher = np.array([[1.0], [3.0], [2.0], [2.0]], np.float32)  # variance 0.5
    output = np.array([[1.0], [3.0], [2.0], [3.0]], np.float32)
    labels = np.array([2.0, 3.0, 2.0, 1.0])
    assert loss(TrainingConfig(), output, teacher, None) == pytest.approx(0.25 / 0.5, rel=ROUNDING)
    assert loss(TrainingConfig(distillation=0.0), output, teacher, labels) == pytest.approx(1.25 / 0.5, rel=ROUNDING)
    assert loss(TrainingConfig(loss="mse"), output, teacher, labels) == pytest.approx(
        0.7 * 0.5 + 0.3 * 2.5, rel=ROUNDING
    )


def test_an_output_that_never_changes_has_a_finite_loss() -> None:
    constant = np.ones((4, 1), np.float32)
    assert loss(TrainingConfig(), constant, constant, None) == 0
    assert math.isfinite(loss(TrainingConfig(), constant + 1, constant, None))


def test_without_labels_in_the_batch_it_is_distillation() -> None:
    objective = choose(TrainingConfig(), LOGITS, LABELS)
    mixed = float(objective(tensor(OTHER), tensor(LOGITS), None))
    assert mixed == pytest.approx(divergence(OTHER, LOGITS, 2.0), rel=ROUNDING)


@pytest.mark.parametrize(
    ("settings", "teacher", "labels", "expected"),
    [
        (TrainingConfig(), LOGITS, LABELS, "0.3 cross-entropy + 0.7 distillation from the original model"),
        (TrainingConfig(distillation=0), LOGITS, LABELS.astype(np.uint8), "cross-entropy"),
        (TrainingConfig(), LOGITS, LOGITS, "0.3 squared error + 0.7 distillation from the original model"),
        (TrainingConfig(loss="mse", distillation=0), LOGITS[:, :1], LABELS, "squared error"),
        (TrainingConfig(), LOGITS, None, "distillation from the original model"),
        (TrainingConfig(loss="distillation"), LOGITS, LABELS, "distillation from the original model"),
    ],
)
def test_choice(settings: TrainingConfig, teacher: np.ndarray, labels: np.ndarray | None, expected: str) -> None:
    assert choose(settings, teacher, labels).describe == expected


@pytest.mark.parametrize(
    ("name", "teacher", "labels", "kind", "message"),
    [
        ("cross-entropy", LOGITS, None, ConfigError, "Loss 'cross-entropy' needs labels, and the data has none. Name"),
        (
            "mse",
            LOGITS,
            None,
            ConfigError,
            "Loss 'mse' needs labels, and the data has none. Name their key with --labels",
        ),
        (
            "cross-entropy",
            LOGITS,
            LABELS.astype(np.float32),
            DataError,
            "Cross-entropy needs integer class labels; found float32[2]: use --loss mse.",
        ),
        (
            "auto",
            LOGITS[:, :1],
            LABELS,
            ConfigError,
            "Cross-entropy needs an output of class scores [N, ..., C]; found shape [2, 1]. Name another output with "
            "--output-name, or use --loss mse.",
        ),
        ("auto", LOGITS, LABELS + 1, DataError, "Labels are out of range: found 1 to 3 (the first wrong one"),
        ("auto", LOGITS, np.array([0, -1]), DataError, "Labels are out of range: found -1 to 0 (the first wrong one"),
        (
            "auto",
            LOGITS,
            LABELS[:, None],
            DataError,
            "Labels of shape [2, 1] do not fit scores of shape [2, 3]: [2] is",
        ),
        (
            "auto",
            LOGITS,
            LOGITS[:, :2],
            DataError,
            "Labels of shape [2, 2] do not fit the output of shape [2, 3]: as many",
        ),
        ("mse", LOGITS, np.array(["a", "b"]), DataError, "Labels to be compared with an output must be numbers; found"),
    ],
)
def test_what_does_not_fit(
    name: str, teacher: np.ndarray, labels: np.ndarray | None, kind: type[OnnxpqError], message: str
) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        choose(TrainingConfig(loss=name), teacher, labels)


@given(st.integers(0, 999), st.integers(2, 6), st.booleans())
def test_the_teacher_has_the_least_loss_of_distillation(seed: int, classes: int, probabilities: bool) -> None:
    teacher, other = np.random.default_rng(seed).standard_normal((2, 5, classes)).astype(np.float32)
    if probabilities:
        teacher, other = softmax(teacher, -1), softmax(other, -1)
    assert loss(TrainingConfig(), teacher, teacher, None) == pytest.approx(0, abs=1e-6)
    assert loss(TrainingConfig(), other, teacher, None) > 0


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_sequences_are_flattened(scale: float) -> None:
    rng = np.random.default_rng(0)
    scores, teacher = rng.standard_normal((2, 4, 3, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (4, 3))
    flat = loss(TrainingConfig(), scale * scores.reshape(12, 5), teacher.reshape(12, 5), labels.reshape(12))
    assert loss(TrainingConfig(), scale * scores, teacher, labels) == pytest.approx(flat, rel=ROUNDING)


def test_gradients_reach_the_output_alone() -> None:
    output, teacher = tensor(OTHER).requires_grad_(), tensor(LOGITS).requires_grad_()
    choose(TrainingConfig(), LOGITS, LABELS)(output, teacher.detach(), tensor(LABELS)).backward()
    assert output.grad is not None
    assert bool(torch.isfinite(output.grad).all())
    # Scores may be shifted as one: the gradient of each row sums to zero.
    assert float(output.grad.sum(-1).abs().max()) == pytest.approx(0, abs=1e-6)


def test_columns_of_unknown_kind_are_distilled_both_ways() -> None:
    """Without labels: the squared error relative to the variance, and the divergence that class scores have."""
    settings = TrainingConfig(distillation=1.0)
    both = loss(settings, OTHER, LOGITS, None)
    divergence = loss(settings, OTHER, LOGITS, LABELS)
    squared = float(np.square(OTHER - LOGITS).mean() / LOGITS.var(axis=0).mean())
    assert both == pytest.approx(divergence + squared, rel=ROUNDING)
    column = loss(settings, OTHER[:, :1], LOGITS[:, :1], None)
    assert column == pytest.approx(float(np.square(OTHER - LOGITS)[:, :1].mean() / LOGITS[:, :1].var()), rel=ROUNDING)


def test_relative_error_by_hand() -> None:
    wanted = torch.tensor([[[1.0, 10.0]], [[3.0, 10.0]]])  # variances 1 and 0: 0.5 on average
    found = wanted + torch.tensor([1.0, 3.0])  # squares 1 and 9: 5 on average
    assert relative_error(found, wanted) == pytest.approx(10.0)
    assert relative_error(wanted, wanted) == 0
    assert torch.isfinite(relative_error(found, torch.ones_like(wanted)))
