"""The small problem of `four_classes`, made once for the tests of a file."""

import four_classes
import pytest

from onnxpq.network.module import Network
from onnxpq.training.finetuning import Samples


@pytest.fixture(scope="module")
def network() -> Network:
    return four_classes.make_network()


@pytest.fixture(scope="module")
def data(network: Network) -> tuple[Samples, Samples]:
    return four_classes.make_data(network)
