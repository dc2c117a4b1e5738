import numpy as np
import onnx
import pytest
import torch
from tiny_models import build, initializer, samples

import onnxpq
from onnxpq.config.settings import Config, TrainingConfig
from onnxpq.pq import codec
from onnxpq.quantization.clustering import SPANS


@pytest.mark.parametrize(("decades", "spans"), [(0, False), (30, False), (35, False), (37, True), (60, True)], ids=str)
def test_rows_that_float32_does_not_hold_in_common_units(decades: int, spans: bool) -> None:
    rows = torch.ones(4, 8) * torch.logspace(-decades / 2, decades / 2, 4).unsqueeze(1)
    assert codec.spans_float32(rows) is spans
    assert codec.spans_float32(torch.cat([rows, torch.zeros(1, 8)])) is spans, "rows of zeros do not count"


def test_rows_of_zeros_span_nothing() -> None:
    assert not codec.spans_float32(torch.zeros(4, 8))


def test_a_weight_whose_rows_span_too_much_is_quantized_for_itself_and_a_note_says_so() -> None:
    """Small enough in sum for the outputs to be compared, at ranges where statistics would underflow."""
    weights = [initializer("W", 64, 64, seed=1)]
    scaled = onnx.numpy_helper.to_array(weights[0]) * np.logspace(-37, 1, 64, dtype=np.float32)
    weights[0].CopyFrom(onnx.numpy_helper.from_array(scaled.astype(np.float32), "W"))
    node = onnx.helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")
    model = build([node], {"x": ["N", 64]}, {"y": ["N", 64]}, weights)
    config = Config(training=TrainingConfig(epochs=0))
    report = onnxpq.compress(model, {"x": samples(200)}, config=config).report
    assert SPANS.format(weight="W") in report.notes
