"""Local functions put in the place of their calls."""

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes import common

from onnxpq.errors import ModelError


def inline(model: ir.Model, functions: Collection[ir.OperatorIdentifier] | None = None) -> None:
    """Inlines local functions, in place.

    Args:
        model: the model.
        functions: which ones; all by default.

    Raises:
        ModelError: they call each other in a circle, or import another opset than the model.
    """
    wanted = set(model.functions) if functions is None else functions
    try:
        common.InlinePass(lambda function: function.identifier() in wanted)(model)
    except (ValueError, ir.passes.PassError) as error:
        raise ModelError(f"The functions of the model cannot be inlined: {error.__cause__ or error}.") from error
