import numpy as np
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, normal

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops import signal
from onnxpq.network.ops.signal import dft, hann_window, stft

TOLERANCE = 1e-5
WINDOWS = ("HannWindow", "HammingWindow", "BlackmanWindow")

CASES = [
    Case("DFT", [normal(2, 6, 1)], {"axis": 1}, versions=(17,)),
    Case("DFT", [normal(2, 6, 2), np.int64(4)], {"axis": 1}, versions=(17,)),
    Case("DFT", [normal(2, 6, 1)], {"onesided": 1}),
    Case("DFT", [normal(2, 6, 2)], {"inverse": 1}),
    Case("DFT", [normal(2, 6, 2), np.int64(8), np.int64(0)], versions=(20,)),
    Case("STFT", [normal(2, 20, 1), np.int64(4), normal(8)]),
    Case("STFT", [normal(2, 20, 1), np.int64(3), None, np.int64(8)]),
    Case("STFT", [normal(2, 20, 2), np.int64(5), normal(8), np.int64(8)], {"onesided": 0}),
    *[
        Case(
            "MelWeightMatrix",
            [np.int64(bins), np.int64(size), np.int64(8000), np.float32(low), np.float32(high)],
            differentiable=False,
        )
        for bins, size, low, high in ((8, 16, 0, 4000), (20, 16, 100, 3000), (5, 256, 60, 3800))
    ],
    *[Case(op, [np.int64(8)], {"periodic": p}) for op in WINDOWS for p in (0, 1)],
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_signal(case, version):
    check(case, version)


def test_every_operator_and_version_has_a_case():
    assert_all_covered(signal, CASES)


def test_there_and_back():
    x = torch.from_numpy(normal(2, 6, 2))
    assert torch.allclose(dft(dft(x), inverse=1), x, atol=TOLERANCE)
    half = dft(x[..., :1], onesided=1)
    assert torch.allclose(dft(half, torch.tensor(6), inverse=1, onesided=1), x[..., :1], atol=TOLERANCE)


def test_a_window_by_hand():
    assert hann_window(torch.tensor(4)).tolist() == pytest.approx([0, 0.5, 1, 0.5])


def test_a_transform_of_no_known_length_is_refused():
    with pytest.raises(UnsupportedOperatorError, match="neither a window nor a frame length"):
        stft(torch.zeros(1, 8, 1), torch.tensor(2))
