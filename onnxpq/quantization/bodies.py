"""How runtimes without the operator library multiply: in int8 where that costs little, else in float32."""

from typing import Final

from onnxpq.config import AUTO, INT8
from onnxpq.operators import MAX_MAGNITUDE
from onnxpq.operators.body import MIN_INTEGER_OPSET
from onnxpq.pq import Layout
from onnxpq.pq.quantized import MAX_INT8
from onnxpq.report import Verification

MOST_INPUT_ERROR: Final = 0.02
"""What rounding a layer's inputs to 8 bits may add to its outputs, relative to them: .9 % of Gaussian inputs, 1.5 % of
Laplacian ones, 5 to 8 % where some inputs are 40 times the others."""

MOST_OF_THE_FLOOR: Final = 0.2
"""What all such layers together may lose, as a share of what the floor lets a model lose."""


def magnitude(body: str, *, has_data: bool) -> int:
    """The largest of int8 codewords: 7 bits where a body may multiply in int8.

    Args:
        body: the setting.
        has_data: whether samples tell what goes into the layers; without any, "auto" is "float".
    """
    return MAX_MAGNITUDE if body == INT8 or (body == AUTO and has_data) else MAX_INT8


def multiplies_int8(layout: Layout, input_error: float | None, body: str, *, has_data: bool, opset: int) -> bool:
    """Whether a layer's function body is to multiply in int8.

    Args:
        layout: of its weight.
        input_error: what rounding its inputs adds to its outputs, relative to them; None unknown.
        body: the setting.
        has_data: whether samples tell what goes into the layers.
        opset: of the model.
    """
    if opset < MIN_INTEGER_OPSET or layout.codebook_bytes > 1 or magnitude(body, has_data=has_data) > MAX_MAGNITUDE:
        return False
    return body == INT8 or (input_error is not None and input_error <= MOST_INPUT_ERROR)


def costs_too_much(proof: Verification, body: str) -> bool:
    """Whether "auto" has to go back to float32: the bodies lose clearly more of the model than the operator does."""
    floor, stock = proof.floor, proof.stock_floor
    if body != AUTO or stock is None:
        return False
    # Written so that NaN, which is above and below nothing, costs too much.
    return not (stock.loss <= floor.loss + MOST_OF_THE_FLOOR * floor.limit and (stock.kept or not floor.kept))
