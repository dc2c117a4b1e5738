"""Training of the comparators."""

import numpy as np
import pytest
import torch

from benchmarks.paper import forms, tuning
from benchmarks.paper.candidates import Clusterer

pytestmark = pytest.mark.rounding


def student_of(task) -> tuning.Student:
    coded = Clusterer(task.matrix(task.layers[0]), seed=0).block(8, 4)
    return tuning.Student.of(task, {task.layers[0].weight: coded})


def test_student_has_the_forms_and_the_biases(task):
    student = student_of(task)
    assert set(student.weights()) == {"w0", "b0", "b1"}
    plain = tuning.Student.of(task, {"w0": forms.Dense(task.matrix(task.layers[0]))})
    features, _ = tuning.batch(task, np.arange(9))
    teacher = torch.from_numpy(task.teacher[:9])
    torch.testing.assert_close(plain.scores(features).detach(), teacher, rtol=1e-4, atol=1e-4)


def test_tuning_lowers_the_held_out_loss_and_repeats(task):
    losses = []
    for _ in range(2):
        student = student_of(task)
        trainer = tuning._Trainer(student, 1, 2e-3, 0, None)
        before = trainer.validate()
        tuning.tune(student, 60, rate=1e-2, seed=0)
        losses.append(trainer.validate())
        assert losses[-1] < 0.9 * before
    assert losses[0] == losses[1]


def test_states_are_compared_by_mixtures_of_the_held_out_images(task):
    student, rows = student_of(task), task.rows[1]
    objective = tuning._objective(task)
    features, labels = tuning.batch(task, rows)
    random = np.random.default_rng(0)
    share, other = float(random.beta(1.0, 1.0)), random.permutation(len(rows))
    assert 0.02 < share < 0.98, "the mixture is one"
    mixed = share * features + (1 - share) * features[other]
    with torch.no_grad():
        scores, teacher = student.scores(mixed), task.head({task.feature: mixed})[task.output]
        own, others = objective(scores, teacher, labels), objective(scores, teacher, labels[other])
    wanted = share * float(own) + (1 - share) * float(others)
    assert tuning.held_out_loss(student) == pytest.approx(wanted, rel=1e-5)
    assert tuning.held_out_loss(student) == tuning.held_out_loss(student)


def test_no_steps_change_nothing(task):
    student = student_of(task)
    before = [value.detach().clone() for value in student.parameters()]
    tuning.tune(student, 0, rate=1e-2, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_the_best_epoch_is_kept(task, monkeypatch):
    student, seen = student_of(task), []

    def validate(self) -> float:
        seen.append([value.detach().clone() for value in student.parameters()])
        return [4.0, 3.0, 1.0, 2.0][len(seen) - 1]

    monkeypatch.setattr(tuning._Trainer, "validate", validate)
    tuning.tune(student, 3, rate=1e-2, seed=0)
    assert len(seen) == 4, "the 405 images are one batch of 256 an epoch"
    assert all(torch.equal(a, b) for a, b in zip(seen[2], student.parameters(), strict=True))
    assert not torch.equal(seen[2][0], seen[3][0])


def test_where_it_began_is_kept_if_nothing_is_better(task, monkeypatch):
    student, losses = student_of(task), iter([1.0, 3.0, 2.0])
    before = [value.detach().clone() for value in student.parameters()]
    monkeypatch.setattr(tuning._Trainer, "validate", lambda _: next(losses))
    tuning.tune(student, 2, rate=1e-2, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_the_term_is_told_how_far_it_is(task):
    student, told = student_of(task), []

    def term(done: float) -> torch.Tensor:
        told.append(done)
        return student.parameters()[0].square().sum() * 1000

    size = float(student.parameters()[0].detach().norm())
    tuning.tune(student, 4, rate=1e-1, seed=0, term=term, keep_best=False)
    assert told == [0, 0.25, 0.5, 0.75]
    assert float(student.parameters()[0].detach().norm()) < size


@pytest.mark.parametrize("effort", [tuning.QUICK, tuning.NONE])
def test_smoke_runs_are_short(effort):
    assert effort.tuned < tuning.FULL.tuned / 10
    assert effort.scratch < tuning.FULL.scratch / 10
