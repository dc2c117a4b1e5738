"""How far a training is, and how it is saved and taken up again: with the same steps to come, bit for bit."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxpq.pq.quantized import Quantized
from onnxpq.report import Epoch
from onnxpq.workspace import Piece, checkpoints

Kept: TypeAlias = tuple[dict[str, Quantized], dict[str, NDArray[np.float32]]]
"""The best state so far: quantized layers by weight name, and biases by name."""


@dataclass
class Course:
    """How far a training is.

    Attributes:
        before: validation loss of the original.
        start: validation loss after product quantization alone.
        best: validation loss of the state that is kept.
        stale: epochs since that one.
        epochs: those that are done.
        step: number of steps that are done.
        order: samples of each step of the epoch under way, [steps, batch]; None between two epochs.
        losses: sum over the steps of that epoch.
        finished: nothing is left to do.
    """

    before: float = math.nan
    start: float = math.nan
    best: float = math.nan
    stale: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    step: int = 0
    order: NDArray[np.intp] | None = None
    losses: float = 0.0
    finished: bool = False


@dataclass(frozen=True, eq=False)
class Live:
    """All that changes while a network is trained; what comes next depends on nothing else.

    Attributes:
        course: how far it is.
        quantized: the layers, of which the codes are saved here.
        tensors: everything that is trained, in one order.
        optimizers: of these.
        random: what draws samples and their mixtures.
    """

    course: Course
    quantized: Mapping[str, Quantized]
    tensors: Sequence[Tensor]
    optimizers: Sequence[torch.optim.Optimizer]
    random: np.random.Generator


def save(piece: Piece, live: Live, kept: Kept) -> None:
    """Save a training; of one that is finished, only what came of it.

    Raises:
        WorkspaceError: it cannot be written.
    """
    course, (quantized, biases) = live.course, kept
    state: dict[str, object] = {
        "course": {**asdict(course), "order": None if course.order is None else torch.from_numpy(course.order)},
        "quantized": {name: checkpoints.pack(part) for name, part in quantized.items()},
        "biases": {name: torch.from_numpy(value) for name, value in biases.items()},
    }
    if not course.finished:
        state |= {
            "codes": {name: part.codes for name, part in live.quantized.items()},
            "tensors": [tensor.detach() for tensor in live.tensors],
            "optimizers": [optimizer.state_dict() for optimizer in live.optimizers],
            "random": json.dumps(live.random.bit_generator.state),
        }
    checkpoints.save(piece, state)


@torch.no_grad()
def resume(piece: Piece, live: Live) -> Kept | None:
    """Bring everything to where it was saved, in place.

    Returns:
        What was kept then; None, with nothing changed, where nothing was saved.

    Raises:
        WorkspaceError: it cannot be read.
    """
    state = checkpoints.load(piece)
    if state is None:
        return None
    course = state["course"]
    course["epochs"] = [Epoch(**epoch) for epoch in course["epochs"]]
    course["order"] = None if course["order"] is None else course["order"].numpy()
    vars(live.course).update(course)
    if not live.course.finished:
        for name, codes in state["codes"].items():
            live.quantized[name].codes = codes.to(live.quantized[name].codes)
        for tensor, saved in zip(live.tensors, state["tensors"], strict=True):
            tensor.copy_(saved)
        for optimizer, saved in zip(live.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        live.random.bit_generator.state = json.loads(state["random"])
    quantized = {name: checkpoints.unpack(part) for name, part in state["quantized"].items()}
    return quantized, {name: value.numpy().copy() for name, value in state["biases"].items()}
