"""Settings of all tests: one thread each, since tests run side by side."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    import torch  # noqa: PLC0415 -- after the environment is set

    torch.set_num_threads(1)
