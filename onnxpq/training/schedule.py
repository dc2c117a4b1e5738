"""How long a training takes: batch size and steps, from the work that a step is.

Work is counted in floating-point operations and in numbers written, and turned into seconds of a reference machine: the
same data and settings give the same steps, and so the same result, on a fast machine and on a busy one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from onnxpq.config import TrainingConfig

OPERATIONS, NUMBERS, CALLS = 150e9, 2e9, 1e5
"""What the reference machine does in a second: floating-point operations of products and convolutions, numbers that
other operators write, operators. Set by eye to trainings on two cores with AVX-512, which were not quiet."""

ROUNDS: Final = 30
"""Validations in a training whose epochs the user does not name, at most."""

MANY_STEPS: Final = 4000
"""Most steps that a training gets by itself."""

FEW_STEPS: Final = 200
"""Steps that even the most expensive model gets; fewer hardly make up for the noise that training begins with."""

WANTED_STEPS: Final = 1500
"""The batch is made so small that there is time for these."""

SMALLEST_BATCH, LARGEST_BATCH = 8, 256

_FORWARD_SHARE: Final = 1 / 3
"""Of the work of a step: its forward pass, which is what validation does."""


@dataclass(frozen=True)
class Schedule:
    """What a training does.

    Attributes:
        batch: samples per step.
        steps: in all.
        round: steps between two validations.
        regularized: steps of the first phase; whole rounds.
    """

    batch: int
    steps: int
    round: int
    regularized: int


class Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what torch does inside of it, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: int = 0
        self.numbers: int = 0
        self.calls: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operator."""
        found = func(*args, **(kwargs or {}))
        self.calls += 1
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=found)
        if not func.is_view:
            self.numbers += sum(leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, Tensor))
        return found

    @property
    def seconds(self) -> float:
        """On the reference machine."""
        return self.operations / OPERATIONS + self.numbers / NUMBERS + self.calls / CALLS


def count(call: Callable[[], object]) -> float:
    """Seconds that a call takes on the reference machine."""
    work = Work()
    with work:
        call()
    return work.seconds


def plan(
    settings: TrainingConfig,
    samples: tuple[int, int],
    fixed_batch: int | None,
    cost: Callable[[int], float],
    share: float = 1.0,
) -> Schedule:
    """Fit a training to its data and to the time that the settings give it.

    Args:
        settings: epochs or steps as the user wants them, or else the minutes to fill; the batch size, or None.
        samples: to train on, and to validate on.
        fixed_batch: the number of samples that the network takes at a time; None for any.
        cost: seconds on the reference machine of a training step on that many samples (`count`).
        share: of the steps, in rounds of the same length, for a training that only tells what a whole one may reach.

    Returns:
        With `epochs` a round is a pass over the samples; else they are up to `ROUNDS` equal parts of the steps.
    """
    learn, choose = samples
    small, large = (fixed_batch or min(learn, size) for size in (2, SMALLEST_BATCH))
    costs = cost(small), cost(large)
    sample = costs[1] / large if small == large else max(0.0, costs[1] - costs[0]) / (large - small)
    fixed = max(0.0, costs[1] - sample * large)
    validation = ROUNDS * choose * sample * _FORWARD_SHARE
    seconds = max(0.0, 60 * settings.minutes - validation)
    batch = fixed_batch or min(learn, settings.batch_size or _batch(seconds, sample, fixed, learn))
    if settings.epochs is not None:
        size = max(1, learn // batch)
        rounds = settings.epochs
    else:
        fitting = round(seconds / (fixed + sample * batch)) if settings.steps is None else 0
        steps = settings.steps or min(MANY_STEPS, max(FEW_STEPS, fitting))
        size = -(-steps // ROUNDS)
        rounds = -(-steps // size)
    total = size * rounds if settings.steps is None else settings.steps
    rounds = min(rounds, max(2, round(share * rounds)))
    total = min(total, size * rounds)
    return Schedule(batch, total, size, min(total, size * round(rounds * settings.regularized)))


def _batch(seconds: float, sample: float, fixed: float, learn: int) -> int:
    """The largest power of two that leaves time for `WANTED_STEPS`, and a data set in several batches."""
    room = (seconds / WANTED_STEPS - fixed) / max(sample, 1e-12)
    wanted = min(room, LARGEST_BATCH, learn / 4)
    size = SMALLEST_BATCH
    while size * 2 <= wanted:
        size *= 2
    return size
