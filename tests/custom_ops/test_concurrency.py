"""Same bits whoever runs a session, with how many threads, beside what else."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from pq_layers import PQLayer, model_of, normal_rows, random_layer

import onnxpq

pytestmark = pytest.mark.skipif(not onnxpq.library_available(), reason="onnxpq was built without a C++ compiler")

# Large enough for several tasks: below 128 K lookups there is one.
LAYERS = {
    "K=16": random_layer(1, 1030, 800),
    "K=16, two stages": random_layer(2, 700, 515, d=3, groups=2, stages=2),
    "K=256": random_layer(3, 600, 512, d=8, codewords=256),
    "K=256, few outputs": random_layer(4, 40, 1500, codewords=256, groups=1),
}
ROWS = (1, 3, 9, 65)


def session(layer: PQLayer, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxpq.session(model_of(layer, with_body=False), options=options)


def outputs(layer: PQLayer, threads: int) -> list[np.ndarray]:
    runner = session(layer, threads)
    return [runner.run(None, {"X": normal_rows(rows, rows, layer.in_features)})[0] for rows in ROWS]


def assert_same_bits(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [y.tobytes() for y in found] == [y.tobytes() for y in expected]


@pytest.mark.parametrize("name", LAYERS)
def test_number_of_threads_changes_no_bit(name: str) -> None:
    expected = outputs(LAYERS[name], 1)
    for threads in (2, 4):
        assert_same_bits(outputs(LAYERS[name], threads), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_sessions_made_and_run_at_once_give_the_same_bits(threads: int) -> None:
    layers = list(LAYERS.values()) * 4
    expected = [outputs(layer, 1) for layer in LAYERS.values()] * 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda layer: outputs(layer, threads), layers))
    for found, alone in zip(together, expected, strict=True):
        assert_same_bits(found, alone)


@pytest.mark.parametrize("name", LAYERS)
def test_one_session_run_by_eight_threads_gives_the_same_bits(name: str) -> None:
    layer, expected = LAYERS[name], outputs(LAYERS[name], 1)
    runner = session(layer, 2)
    batches = [normal_rows(rows, rows, layer.in_features) for rows in ROWS] * 8
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # more meetings inside of the session
    try:
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda x: runner.run(None, {"X": x})[0], batches))
    finally:
        sys.setswitchinterval(interval)
    assert_same_bits(together, expected * 8)
