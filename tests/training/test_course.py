"""A training that is stopped anywhere and taken up again ends in the same bits."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from four_classes import LAYERS, start

from onnxpq.config.settings import TrainingConfig
from onnxpq.errors import TrainingError
from onnxpq.network.module import Network
from onnxpq.training import finetuning
from onnxpq.training.finetuning import Finetuned, Problem, Samples
from onnxpq.workspace import pieces
from onnxpq.workspace.pieces import Piece, opened

pytestmark = pytest.mark.rounding

SETTINGS = TrainingConfig(epochs=8, batch_size=64, patience=2)
STEPS = 500 // 64
"""Steps of an epoch of the 500 samples."""


class Stop(BaseException):
    """As Ctrl-C, at a chosen moment."""


@pytest.fixture(autouse=True)
def every_step_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(pieces, "SAVE_SHARE", 0.0)


def tune(
    network: Network,
    data: tuple[Samples, Samples],
    folder: Path | None,
    progress: Callable[[int, int], None] | None = None,
    settings: TrainingConfig = SETTINGS,
) -> Finetuned:
    with opened(folder) as space:
        space.bind({})
        piece = space.piece("training", [])
        problem = Problem(network, LAYERS, "scores")
        return finetuning.finetune(problem, start(network), data, settings, seed=0, progress=progress, piece=piece)


def stop_after(steps: int) -> Callable[[int, int], None]:
    calls = count(1)

    def tell(done: int, of: int) -> None:
        if next(calls) == steps:
            raise Stop

    return tell


def assert_same(one: Finetuned, other: Finetuned) -> None:
    assert (one.epochs, one.before, one.start, one.best) == (other.epochs, other.before, other.start, other.best)
    for name, part in one.quantized.items():
        found = other.quantized[name]
        assert torch.equal(part.codes, found.codes)
        assert torch.equal(part.codebooks, found.codebooks)
        assert torch.equal(part.scales, found.scales)
    assert one.values.keys() == other.values.keys()
    assert all(np.array_equal(value, other.values[name]) for name, value in one.values.items())


@pytest.fixture(scope="module")
def whole(network: Network, data: tuple[Samples, Samples]) -> Finetuned:
    return tune(network, data, None)


@pytest.mark.parametrize(
    "steps",
    [1, 3, STEPS, STEPS + 1, 6 * STEPS - 1, 6 * STEPS, 6 * STEPS + 1, 7 * STEPS + 2],
    ids=lambda steps: f"{steps // STEPS} epochs and {steps % STEPS} steps",
)
def test_stopped_once(
    network: Network, data: tuple[Samples, Samples], whole: Finetuned, tmp_path: Path, steps: int
) -> None:
    """The second phase begins after six epochs of eight."""
    with pytest.raises(Stop):
        tune(network, data, tmp_path / "w", stop_after(steps))
    told: list[int] = []
    assert_same(tune(network, data, tmp_path / "w", lambda done, _of: told.append(done)), whole)
    # The state is saved before a step: the last one is done again.
    assert told[0] == steps


def test_stopped_again_and_again(
    network: Network, data: tuple[Samples, Samples], whole: Finetuned, tmp_path: Path
) -> None:
    stops = 0
    while True:
        try:
            found = tune(network, data, tmp_path / "w", stop_after(5))
        except Stop:
            stops += 1
        else:
            break
    # Each call gets four steps further; the fifth is done again.
    assert stops >= len(whole.epochs) * STEPS // 5
    assert_same(found, whole)


def test_one_that_ended_early_has_ended(network: Network, data: tuple[Samples, Samples], tmp_path: Path) -> None:
    settings = TrainingConfig(epochs=60, batch_size=64, patience=1, regularized=0.1, learning_rate=1.0)
    found = tune(network, data, tmp_path / "w", settings=settings)
    assert len(found.epochs) < 60

    def tell(done: int, of: int) -> None:
        raise AssertionError

    assert_same(tune(network, data, tmp_path / "w", tell, settings), found)


def test_what_is_finished_takes_little_room(network: Network, data: tuple[Samples, Samples], tmp_path: Path) -> None:
    sizes: list[int] = []

    def tell(done: int, of: int) -> None:
        sizes.extend(path.stat().st_size for path in (tmp_path / "w" / pieces.PIECES).iterdir())

    tune(network, data, tmp_path / "w", tell)
    (piece,) = (tmp_path / "w" / pieces.PIECES).iterdir()
    assert piece.stat().st_size < sizes[-1] / 2
    assert len(sizes) == 8 * STEPS, "one file at a time"


def test_a_loss_that_runs_away_runs_away_again(network: Network, data: tuple[Samples, Samples], tmp_path: Path) -> None:
    """An error is no end: the same call meets it again, at the same step."""
    train, validation = data
    teacher = train.teacher.copy()
    teacher[train.rows[7]] = np.inf
    broken = Samples(train.inputs, teacher, train.labels, train.rows), validation
    settings = replace(SETTINGS, mixup=0.0)
    told: list[int] = []
    for _ in range(2):
        with pytest.raises(TrainingError, match="nothing to learn from it"):
            tune(network, broken, tmp_path / "w", lambda done, _of: told.append(done), settings)
    assert told == list(range(1, len(told) + 1)), "the second call begins with the step that failed"
    assert told


def test_nothing_is_saved_without_a_folder(network: Network, data: tuple[Samples, Samples], whole: Finetuned) -> None:
    assert not Piece().due()
    assert_same(tune(network, data, None), whole)
