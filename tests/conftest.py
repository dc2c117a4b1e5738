"""Settings of all tests: one thread each, since tests run side by side, and as much time as a test needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

HERE = Path(__file__).resolve().parent

os.environ.setdefault("OMP_NUM_THREADS", "1")

# For benchmarks/. At the end: the installed onnxpq has the operator library, the one in this folder has not.
sys.path.append(str(HERE.parent))

# A slow or busy processor is no error of what is tested.
hypothesis.settings.register_profile(
    "any processor",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any processor")


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    import torch  # noqa: PLC0415 -- after the environment is set

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _without_floor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of random weights, compressed roughly and quickly, lose more than may be written.

    That is beside the point of most tests. Those with the marker `floor` have it.
    """
    if request.node.get_closest_marker("floor") is None:
        from onnxpq import verification  # noqa: PLC0415 -- after the environment is set

        monkeypatch.setattr(verification, "above_floor", lambda result: result)


@pytest.fixture(scope="session")
def leaky_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`leaky_library.cpp`, built: a user's library with the operator my::Leaky."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    target = tmp_path_factory.mktemp("library") / "leaky.so"
    include = HERE.parent / "custom_ops" / "include"
    command = [
        compiler,
        "-std=c++17",
        "-shared",
        "-fPIC",
        f"-I{include}",
        str(HERE / "leaky_library.cpp"),
        "-o",
        target,
    ]
    subprocess.run(command, check=True)
    return target
