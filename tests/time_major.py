"""A reader of digits whose outputs are time-major, [T, N, C], as those of `batch_first=False` are; and data for it.

Pictures are strings of digits of scikit-learn's, side by side: small enough to learn to read in seconds.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

DIGITS, SIDE = 4, 8
"""Digits of a string, and pixels of a digit's side."""

WIDTH = DIGITS * SIDE + 4
STEPS = WIDTH // 2
BLANK, CLASSES = 0, 11
"""Class 0 is no digit, class d + 1 is digit d."""

TRAINING_STEPS = 250


@dataclass(frozen=True)
class Lines:
    """Pictures [N, 1, 8, WIDTH], what each of their steps shows [N, STEPS], and the strings."""

    x: NDArray[np.float32]
    steps: NDArray[np.int64]
    texts: list[str]


def lines(count: int, seed: int) -> Lines:
    """Strings of digits, each somewhat to the left or right of its place."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(digits.images), (count, DIGITS))
    x = np.zeros((count, 1, SIDE, WIDTH), np.float32)
    steps = np.full((count, STEPS), BLANK, np.int64)
    for row, index in enumerate(chosen):
        start = int(rng.integers(0, 5))
        for place, digit in enumerate(index):
            left = start + place * SIDE
            x[row, 0, :, left : left + SIDE] = digits.images[digit] / 16
            steps[row, (left + 2) // 2 : (left + 6) // 2] = 1 + digits.target[digit]
    x += rng.normal(0, 0.05, x.shape).astype(np.float32)
    return Lines(x, steps, ["".join(str(digits.target[digit]) for digit in index) for index in chosen])


class Reader(nn.Module):
    """``x [N, 1, 8, W] -> convolution -> GRU over the steps -> two layers -> [T, N, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 16, 3, stride=(1, 2), padding=1)
        self.recurrent = nn.GRU(16 * SIDE, 32, bidirectional=True)
        self.hidden, self.head = nn.Linear(64, 128), nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.relu(self.convolution(x))  # [N, 16, 8, T]
        states, _ = self.recurrent(seen.flatten(1, 2).permute(2, 0, 1))
        return torch.log_softmax(self.head(torch.relu(self.hidden(states))), -1)


@cache
def trained() -> Reader:
    """A reader that has learned to read."""
    torch.manual_seed(0)
    reader, data = Reader(), lines(2000, seed=1)
    x, wanted = torch.from_numpy(data.x), torch.from_numpy(data.steps)
    optimizer = torch.optim.AdamW(reader.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING_STEPS)
    for _ in range(TRAINING_STEPS):
        index = torch.randint(0, len(x), (64,))
        loss = nn.functional.nll_loss(reader(x[index]).permute(1, 2, 0), wanted[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return reader.eval()


def export(path: Path, *, batch: int | None) -> Path:
    """The reader as a file: ``x [batch, 1, 8, W] -> scores [T, batch, C]``; None leaves the batch open."""
    axes = None if batch else {"x": {0: "N"}, "scores": {1: "N"}}
    example = torch.from_numpy(lines(batch or 2, seed=0).x)
    with warnings.catch_warnings():
        # That the exporter is the old one, and that recurrent layers may hold the batch: here they do not.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            trained(), (example,), path, input_names=["x"], output_names=["scores"], dynamic_axes=axes, dynamo=False
        )
    return path
