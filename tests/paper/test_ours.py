"""onnxpq as the evaluation calls it."""

import pytest

from benchmarks.paper import ours
from onnxpq import allocation


@pytest.mark.parametrize("factor", [8, 16, 32, 64])
def test_layout_is_small_enough_and_no_smaller_than_needed(task, factor):
    def size(config) -> int:
        return sum(allocation.layout_of(layer, config).nbytes for layer in task.layers)

    try:
        config = ours.layout(task, factor)
    except SystemExit as error:
        assert f"factor of {factor}" in str(error)  # noqa: PT017 -- whether it can be depends on the factor
        config = ours.PQConfig(sub_vector=ours.WIDTHS[-1])
        assert size(config) * factor > task.weight_bytes
        return
    assert size(config) * factor <= task.weight_bytes
    before = ours.WIDTHS.index(config.sub_vector) - 1
    if before >= 0:
        assert size(ours.PQConfig(sub_vector=ours.WIDTHS[before])) * factor > task.weight_bytes
