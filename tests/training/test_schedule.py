"""Steps and batch sizes for trainings of known cost, and the counting of the cost against a count by hand."""

import math

import pytest
import torch

from onnxpq.config.settings import TrainingConfig
from onnxpq.training import schedule
from onnxpq.training.schedule import Schedule, plan


def planned(
    samples: tuple[int, int],
    sample: float,
    *,
    fixed: float = 0.0,
    fixed_batch: int | None = None,
    share: float = 1.0,
    **settings: object,
) -> Schedule:
    """For a step that takes `fixed` seconds and `sample` more per sample."""
    return plan(TrainingConfig(**settings), samples, fixed_batch, lambda size: fixed + sample * size, share)


def test_counts_products_numbers_and_calls_forward_and_backward() -> None:
    x, w = torch.ones(3, 4), torch.ones(5, 4, requires_grad=True)
    work = schedule.Work()
    with work:
        (x @ w.T).sum().backward()
    # Forward 3*4*5 multiply-adds, backward as many for the gradient of w; none for x.
    assert work.operations == 2 * 2 * 3 * 4 * 5
    # The product [3, 5], its sum, a gradient of ones for the sum, and the gradient of w.
    assert 15 + 1 + 1 + 20 <= work.numbers <= 15 + 1 + 1 + 20 + 15
    assert work.seconds == pytest.approx(
        work.operations / schedule.OPERATIONS + work.numbers / schedule.NUMBERS + work.calls / schedule.CALLS
    )


def test_the_same_work_counts_the_same_twice() -> None:
    def step() -> torch.Tensor:
        return torch.nn.functional.gelu(torch.ones(64, 64) @ torch.ones(64, 64))

    assert schedule.count(step) == schedule.count(step)


@pytest.mark.parametrize("sample", [1e-4, 1e-3, 1e-2, 0.1, 1.0])
@pytest.mark.parametrize("samples", [100, 4000, 10**6])
def test_a_training_fills_its_time_and_no_more(sample: float, samples: int) -> None:
    found = planned((samples, 200), sample, minutes=10.0)
    seconds = found.steps * found.batch * sample + schedule.ROUNDS * 200 * sample / 3
    least = schedule.FEW_STEPS * schedule.SMALLEST_BATCH * sample + schedule.ROUNDS * 200 * sample / 3
    assert seconds <= max(600, least) * 1.1
    # Less than its time is only for a small data set or for the steps that are enough.
    assert seconds > 500 or found.steps >= schedule.MANY_STEPS or math.isclose(found.batch, 8)


def test_the_batch_fits_data_and_cost() -> None:
    assert planned((60000, 2000), 1e-4).batch == schedule.LARGEST_BATCH
    assert planned((100, 10), 1e-4).batch == 16  # at least four batches
    assert planned((60000, 2000), 0.02).batch < 32  # an expensive sample
    assert planned((5, 1), 0.02).batch == 5
    assert planned((60000, 2000), 1e-4, batch_size=50).batch == 50
    assert planned((60000, 2000), 1e-4, batch_size=50, fixed_batch=3).batch == 3


def test_steps_and_batch_of_a_plan_repeat_it() -> None:
    for sample in (1e-4, 3e-3, 0.05):
        found = planned((3600, 400), sample)
        other_cost = 10 * sample
        assert planned((3600, 400), other_cost, steps=found.steps, batch_size=found.batch) == found


def test_an_epoch_is_a_pass_over_the_samples() -> None:
    found = planned((1000, 100), 1e-3, epochs=8, batch_size=64, regularized=0.75)
    assert found == Schedule(batch=64, steps=8 * 15, round=15, regularized=6 * 15)


def test_no_epochs_no_steps() -> None:
    assert planned((1000, 100), 1e-3, epochs=0).steps == 0


def test_steps_are_kept_to_the_number() -> None:
    found = planned((1000, 100), 1e-3, steps=100)
    assert found.steps == 100
    assert found.round == 4
    assert found.regularized % found.round == 0 or found.regularized == found.steps


def test_what_does_not_grow_with_the_batch_leaves_fewer_steps() -> None:
    assert planned((4000, 100), 1e-3, fixed=1.0).steps < planned((4000, 100), 1e-3).steps


@pytest.mark.parametrize("settings", [{}, {"steps": 1200}, {"epochs": 16}])
def test_a_share_of_a_training_has_as_long_rounds_and_as_large_batches(settings: dict[str, object]) -> None:
    whole, part = (planned((3600, 400), 1e-3, share=share, **settings) for share in (1.0, 0.125))
    assert (part.batch, part.round) == (whole.batch, whole.round)
    assert part.steps == pytest.approx(whole.steps / 8, abs=whole.round)
    assert 0 < part.regularized < part.steps


def test_a_share_of_few_epochs_still_has_both_phases() -> None:
    assert planned((1000, 100), 1e-3, share=0.125, epochs=4, batch_size=50).steps == 2 * 20
    assert planned((1000, 100), 1e-3, share=0.125, epochs=1, batch_size=50).steps == 20
