"""onnxpq as the evaluation calls it."""

import pytest

from benchmarks.paper import ours
from benchmarks.paper.tuning import Effort
from onnxpq import PQConfig, allocation


def size(task, config: PQConfig) -> int:
    return sum(allocation.layout_of(layer, config).nbytes for layer in task.layers)


@pytest.mark.parametrize("factor", [4, 8, 12])
def test_layout_is_small_enough_and_no_smaller_than_needed(task, factor):
    config = ours.layout(task, factor)
    assert size(task, config) * factor <= task.weight_bytes
    shorter = [PQConfig(sub_vector=width) for width in ours.WIDTHS if width < config.sub_vector]
    assert all(size(task, other) * factor > task.weight_bytes for other in shorter)


def test_what_the_scales_alone_exceed_is_none(task):
    # 40 scales of 4 bytes are 1/32 of the layer.
    assert ours.layout(task, 32) is None
    assert ours.onnxpq(task, 32, 0, Effort(epochs=0)) is None
