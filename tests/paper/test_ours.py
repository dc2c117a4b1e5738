"""onnxpq as the evaluation calls it."""

import onnx
import pytest

from benchmarks.paper import ours
from benchmarks.paper.graph import model_bytes
from benchmarks.paper.tuning import Effort


@pytest.mark.parametrize("factor", [4, 8])
def test_layers_are_as_small_as_asked_for(task, factor):
    content, words = ours.onnxpq(task, factor, 0, Effort(ours=0))
    left = model_bytes(task.proto()) - task.weight_bytes
    assert (model_bytes(onnx.load_from_string(content)) - left) * factor <= 1.02 * task.weight_bytes
    assert words.startswith("d=")


def test_what_the_scales_alone_exceed_is_none(task):
    # 40 scales of 4 bytes are 1/32 of the layer.
    assert ours.onnxpq(task, 32, 0, Effort(ours=0)) is None
