"""Random whole models through inspect and compress: the report's figures against whole outputs, compared by themselves.

Each session draws other models. What fails names its seed; ``python -m benchmarks fuzz --seed N`` repeats it alone.
"""

import os
import random

import pytest
from fuzzing import running

pytestmark = pytest.mark.floor

PARTS, RUNS = 10, 20
"""So many tests, which may run side by side, of so many models each."""

SEEDS = 10**9


@pytest.mark.parametrize("part", range(PARTS))
def test_reports_say_what_whole_outputs_say(part: int) -> None:
    given = os.environ.get("ONNXPQ_FUZZ_SEED")
    first = random.SystemRandom().randrange(SEEDS) if given is None else int(given) + part * RUNS
    print(f"Seeds {first} to {first + RUNS - 1}.")
    outcomes = [running.run(seed) for seed in range(first, first + RUNS)]
    faults = [running.described(outcome) for outcome in outcomes if outcome.faults]
    assert not faults, "\n\n".join(faults)
    assert any(outcome.layers for outcome in outcomes)
