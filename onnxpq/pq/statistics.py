"""What is known of a layer's inputs, summed up batch by batch: their second moment, or their means and deviations."""

import numpy as np
from numpy.typing import NDArray

from onnxpq.errors import DataError

MIN_SHRINKAGE, MAX_SHRINKAGE = 0.1, 0.4
"""Share of the identity in the regularized moment: least and most."""

BUFFERED_ROWS = 512
"""So many rows are multiplied at once: adding the product up takes longer than the product of a few rows."""

MAX_SQUARE = 1e32
"""Largest sum of squares of a row: those of a million such rows together still are a float32."""


SOME_ROWS = 256
"""Rows of a weight that tell what rounded inputs do to its outputs."""

LEVELS = 255
"""Steps of a uint8 between the smallest and the largest number of a call (ONNX's DynamicQuantizeLinear)."""


class InputStatistics:
    """H = E[x x^T] of the inputs of a layer, from rows that need not be kept.

    Attributes:
        rows: number of rows seen so far.
    """

    def __init__(self, in_features: int) -> None:
        self.rows = 0
        self._sum = np.zeros((in_features, in_features))
        self._rounding = 0.0
        self._buffer: list[NDArray[np.float32]] = []

    @classmethod
    def of_total(cls, rows: int, total: NDArray[np.float64], rounding: float = 0.0) -> "InputStatistics":
        """What others found: the number of rows, `total` of them [in, in], and their `rounding`."""
        found = cls(len(total))
        found.rows, found._sum, found._rounding = rows, total, rounding * rows
        return found

    @property
    def rounding(self) -> float:
        """Mean square error of an input that is rounded to uint8 call by call, as the rows came; 0 before any."""
        return self._rounding / max(1, self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes that the moment takes in memory."""
        return self._sum.nbytes

    @property
    def second_moment(self) -> NDArray[np.float64]:
        """H [in, in]; zeros before the first row."""
        return self.total() / max(1, self.rows)

    def add(self, inputs: NDArray[np.floating], name: str) -> None:
        """Count rows of inputs.

        Args:
            inputs: [N, in].
            name: what errors call the value.

        Raises:
            DataError: the rows have another length, or hold NaN or infinity.
        """
        expected = len(self._sum)
        if inputs.ndim != 2 or inputs.shape[1] != expected:
            raise DataError(f"Value '{name}' has rows of shape {list(inputs.shape[1:])}; its layer takes [{expected}].")
        rows = np.array(inputs, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ni,ni->n", rows, rows)
        # Written so that NaN, which is above and below nothing, is refused.
        if not (squares <= MAX_SQUARE).all():
            raise DataError(
                f"Value '{name}', which the original model computes from the data, holds NaN, infinity, or numbers "
                "whose squares are too large for float32. Look for the samples that cause it and leave them out."
            )
        step = (float(rows.max(initial=0)) - float(rows.min(initial=0))) / LEVELS
        self._rounding += len(rows) * step**2 / 12
        self._buffer.append(rows)
        self.rows += len(rows)
        if sum(map(len, self._buffer)) >= BUFFERED_ROWS:
            self.total()

    def total(self) -> NDArray[np.float64]:
        """The sum of x x^T over all rows, [in, in]."""
        if self._buffer:
            rows = np.concatenate(self._buffer)
            self._sum += rows.T @ rows
            self._buffer = []
        return self._sum

    def reordered(self, order: NDArray[np.intp]) -> "InputStatistics":
        """The same for inputs in another order.

        Args:
            order: [in], the input that comes to each place.
        """
        return InputStatistics.of_total(self.rows, self.total()[np.ix_(order, order)], self.rounding)

    def rounding_error(self, matrix: NDArray[np.floating]) -> float | None:
        """What the rounding of the inputs adds to the outputs of a weight [out, in], relative to them; None unknown."""
        some = np.asarray(matrix[:: max(1, len(matrix) // SOME_ROWS)], np.float64)
        power = float(np.einsum("oi,oi->", some @ self.total(), some)) / max(1, self.rows)
        if self._rounding <= 0 or power <= 0:
            return None
        return float(np.sqrt(self.rounding * np.square(some).sum() / power))

    def regularized(self) -> NDArray[np.float32]:
        """H shrunk towards the identity and scaled to a mean of 1 on its diagonal: positive definite.

        What the rows did not show still counts; how much of it is best was measured with few and with many rows: a
        share of in / (4 * rows), between `MIN_SHRINKAGE` and `MAX_SHRINKAGE` (`python -m benchmarks quantizer --rows`).
        Without any rows, or if all are zero, it is the identity.
        """
        size = len(self._sum)
        total = self.total()
        mean = float(np.trace(total)) / size
        if mean <= 0:
            return np.eye(size, dtype=np.float32)
        share = min(MAX_SHRINKAGE, max(MIN_SHRINKAGE, size / (4 * self.rows)))
        moment = np.empty((size, size), np.float32)
        np.multiply(total, (1 - share) / mean, out=moment, casting="same_kind")
        moment[np.diag_indices(size)] += share
        return moment


class ColumnStatistics:
    """Mean and standard deviation of each input of a layer, from rows that need not be kept.

    Attributes:
        rows: number of rows seen so far.
        mean: [in].
    """

    def __init__(self, in_features: int) -> None:
        self.rows = 0
        self.mean = np.zeros(in_features)
        self._squares = np.zeros(in_features)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """[in]; zeros before the first row."""
        return np.sqrt(self._squares / max(1, self.rows))

    @property
    def is_finite(self) -> bool:
        """Whether no row held NaN, infinity, or numbers whose squares are."""
        return bool(np.isfinite(self._squares).all())

    def add(self, inputs: NDArray[np.floating]) -> None:
        """Count rows of inputs, [N, in]."""
        if not len(inputs):
            return
        # Around the mean of these rows, and then merged (Chan, Golub, LeVeque 1979): means may be large.
        with np.errstate(over="ignore", invalid="ignore"):
            own = inputs.mean(0, dtype=np.float64)
            step = own - self.mean
            both = self.rows + len(inputs)
            self._squares += np.square(inputs - own).sum(0) + step**2 * (self.rows * len(inputs) / both)
            self.mean += step * (len(inputs) / both)
        self.rows = both
