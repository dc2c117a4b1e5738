"""A session with external data takes the size of its file, and only once it runs."""

import sys

import pytest

import onnxpq
from benchmarks.memory import operator_memory

pytestmark = [
    pytest.mark.skipif(not onnxpq.library_available(), reason="onnxpq was built without a C++ compiler"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps_rollup"),
]

LAYER = 8.39
"""MB of codes of 64 million weights at d = 4, K = 16."""


def test_nothing_is_copied_and_pages_are_read_when_used() -> None:
    forms = operator_memory.FORMS[:3]
    external, shared, embedded = (operator_memory.measure(form, operator_memory.SIZE) for form in forms)
    assert LAYER < external["file"] < LAYER + 1
    assert external["made"]["resident"] < 1
    assert external["ran"]["private"] + external["ran"]["shared"] <= external["file"] + 5
    assert external["ran"]["anonymous"] < 1
    assert shared["ran"]["shared"] > LAYER - 0.5
    assert shared["ran"]["private"] < 2
    # A copy would be seen.
    assert embedded["made"]["anonymous"] > LAYER
