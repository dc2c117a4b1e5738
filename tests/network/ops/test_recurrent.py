import numpy as np
import onnx_ir as ir
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, normal, single_node_model

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.module import Network
from onnxpq.network.ops import recurrent
from onnxpq.network.ops.recurrent import lstm

pytestmark = pytest.mark.rounding

T, N, F, H = 5, 3, 4, 2
LENGTHS = np.array([5, 2, 4], dtype=np.int32)
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
TWO_STATES = ("LSTM",)


def case(op_type, direction="forward", *, bias=True, lengths=None, initial=False, peepholes=False, **attributes):
    d, g = (2 if direction == "bidirectional" else 1), GATES[op_type]
    states = [normal(d, N, H) if initial else None for _ in range(1 + (op_type in TWO_STATES))]
    inputs = [normal(T, N, F), normal(d, g * H, F), normal(d, g * H, H)]
    inputs += [normal(d, 2 * g * H) if bias else None, lengths, *states]
    inputs += [normal(d, 3 * H)] if peepholes else []
    while inputs[-1] is None:
        inputs.pop()
    outputs = 3 if op_type in TWO_STATES else 2
    return Case(op_type, inputs, {"hidden_size": H, "direction": direction, **attributes}, outputs=outputs)


ALL = [
    case(op_type, direction, lengths=lengths, initial=initial)
    for op_type in GATES
    for direction in ("forward", "reverse", "bidirectional")
    for lengths, initial in ((None, False), (LENGTHS, True))
    if not (op_type == "RNN" and direction == "bidirectional" and lengths is None)
]
CASES = [
    *ALL,
    *[case(op_type, bias=False) for op_type in GATES],
    *[case(op_type, initial=True, clip=0.3) for op_type in GATES],
    case("RNN", "bidirectional", activations=["Relu", "Tanh"]),
    case(
        "RNN", "bidirectional", activations=["LeakyRelu", "Affine"], activation_alpha=[0.3, 0.7], activation_beta=[0.1]
    ),
    case("GRU", "bidirectional", initial=True, linear_before_reset=1),
    case("GRU", activations=["HardSigmoid", "Softsign"], activation_alpha=[0.3], activation_beta=[0.4]),
    case("LSTM", "bidirectional", peepholes=True, initial=True),
    case("LSTM", activations=["Sigmoid", "Elu", "ScaledTanh"], activation_alpha=[0.5, 0.6], activation_beta=[0.7]),
    case("LSTM", activations=["HardSigmoid", "Softplus", "Relu"]),
    case("LSTM", activations=["Sigmoid", "ThresholdedRelu", "Tanh"], activation_alpha=[0.4]),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=lambda v: str(v)[:60])
def test_recurrent_layer(case, version):
    check(case, version)


def test_every_operator_and_version_has_a_case():
    assert_all_covered(recurrent, CASES)


@pytest.mark.parametrize("op_type", GATES)
def test_gradients_reach_every_weight(op_type):
    model, feeds = single_node_model(case(op_type, "bidirectional", initial=True), 22)
    tensors = {n: torch.from_numpy(np.array(a)).requires_grad_(a.dtype == np.float32) for n, a in feeds.items()}
    Network(ir.from_proto(model))(tensors)["y0"].square().sum().backward()
    for name, tensor in tensors.items():
        assert tensor.grad is not None, name
        assert tensor.grad.abs().sum() > 0


def test_the_batch_may_come_first():
    x, w, r = (torch.from_numpy(a) for a in (normal(T, N, F), normal(1, 4 * H, F), normal(1, 4 * H, H)))
    expected = lstm(x, w, r)
    y, h, c = lstm(x.transpose(0, 1), w, r, layout=1)
    # Not the same bits: a product may be summed in another order where its factors lie in another order in memory.
    torch.testing.assert_close(y, expected[0].permute(2, 0, 1, 3))
    torch.testing.assert_close(h, expected[1].transpose(0, 1))
    torch.testing.assert_close(c, expected[2].transpose(0, 1))


def test_unknown_directions_and_activations_are_refused():
    x, w, r = torch.zeros(T, N, F), torch.zeros(1, 4 * H, F), torch.zeros(1, 4 * H, H)
    with pytest.raises(UnsupportedOperatorError, match="Direction 'up'; expected one of forward, reverse"):
        lstm(x, w, r, direction="up")
    with pytest.raises(UnsupportedOperatorError, match="Activation 'Sine' of a recurrent layer is not known"):
        lstm(x, w, r, activations=["Sine", "Tanh", "Tanh"])
