"""Every method from file to file."""

import numpy as np
import onnx
import pytest

from benchmarks.paper import candidates, methods, running, tasks
from benchmarks.paper.methods import METHODS
from benchmarks.paper.tuning import Effort
from onnxpq import runtime

BRIEF = Effort(tuned=2, scratch=2, ours=2)
OVERHEAD = 500
"""Bytes of the small constants that decode; onnxpq's padding to 32 outputs is within them here."""


@pytest.mark.parametrize("name", METHODS)
def test_a_file_that_runs_and_is_as_small_as_said(task, name):
    method = METHODS[name]
    # onnxpq cannot make this little network 16 times smaller.
    factor = 8.0 if name.startswith("onnxpq") else min(method.factors)
    made = method.make(task, factor, 0, BRIEF)
    assert made is not None
    sizes = running.sizes(task, made)
    if name not in {"int8", "int4", "int2"}:  # their size is their own
        assert sizes["layer_bytes"] <= candidates.TOLERANCE * task.weight_bytes / factor + OVERHEAD
    (scores,) = runtime.session(made.model).run(None, {"x": task.test[0][:3]})
    assert scores.shape == (3, 5)
    assert np.isfinite(scores).all()
    onnx.checker.check_model(onnx.load_from_string(made.model))


@pytest.mark.parametrize("name", ["pq", "hashed", "smaller", "sign", "svd"])
def test_the_same_seed_gives_the_same_file(task, name):
    factor = min(METHODS[name].factors)
    one, again = (METHODS[name].make(task, factor, 0, BRIEF) for _ in range(2))
    assert one.model == again.model


def test_tuning_leaves_what_other_rows_begin_with(task):
    before = METHODS["pq"].make(task, 8.0, 0, BRIEF).model
    tuned = METHODS["pq-tuned"].make(task, 8.0, 0, BRIEF).model
    METHODS["codebook-pq"].make(task, 8.0, 0, BRIEF)
    assert tuned != before
    assert METHODS["pq"].make(task, 8.0, 0, BRIEF).model == before


def test_original_is_the_file(task):
    made = METHODS["original"].make(task, 1.0, 0, BRIEF)
    assert made.model == task.path.read_bytes()
    assert running.sizes(task, made)["layer_factor"] == 1
    assert tasks.error_of(made.model, task) == 0


def test_scalar_codes_cannot_go_below_a_bit(task):
    assert METHODS["kmeans"].make(task, 64.0, 0, BRIEF) is None


def test_sizes_of_a_smaller_network_by_hand(task):
    # 20 hidden values: 2 * (20 * 32 + 5 * 20) = 1480 bytes, of which 800 are what the last layer takes now.
    share = methods._largest_share(task, 680)
    assert methods._sizes(task, share) == [(20, 32), (5, 20)]
    assert methods._sizes(task, methods._largest_share(task, 679)) == [(19, 32), (5, 19)]
    assert methods._largest_share(task, -800) is None


def test_hashed_buckets_by_hand(task):
    assert METHODS["hashed"].make(task, 16.0, 0, BRIEF).settings == f"{40 * 32 * 4 // 16 // 2} buckets"
