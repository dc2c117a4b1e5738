import numpy as np
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, ints, normal
from torch.nn import functional

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops import attention as family
from onnxpq.network.ops.attention import attention, linear_attention, rotary_embedding

pytestmark = pytest.mark.rounding

TOLERANCE = 1e-5
Q, K, V = normal(2, 4, 3, 8), normal(2, 2, 5, 8), normal(2, 2, 5, 6)
MASK = np.array([[True, False, True, True, True]] * 3)
COS, SIN = np.cos(normal(7, 4)), np.sin(normal(7, 4))
PACKED = [normal(2, 3, 16), normal(2, 3, 8), normal(2, 3, 6)]
STATE, DECAY, RATE = normal(2, 2, 4, 3), -np.abs(normal(2, 3, 2)), np.abs(normal(2, 3, 2))
POSITIONS = np.array([[0, 1, 2], [4, 5, 6]], dtype=np.int64)

CASES = [
    Case("Attention", [Q, K, V]),
    Case("Attention", [normal(2, 3, 8), normal(2, 5, 8), normal(2, 5, 8)], {"q_num_heads": 4, "kv_num_heads": 4}),
    Case("Attention", [Q, K, V, normal(3, 5)], {"scale": 0.2}),
    Case("Attention", [Q, K, V, MASK]),
    Case("Attention", [Q[:, :, :, :], Q, Q], {"is_causal": 1}),
    Case("Attention", [Q, K, V, None, normal(2, 2, 4, 8), normal(2, 2, 4, 6)], outputs=3),
    Case("Attention", [Q, K, V], {"softcap": 2.0}, versions=(24, 25)),
    Case("Attention", [Q, K, V, None, None, None, ints(3, 5)], versions=(24, 25)),
    Case("Attention", [Q, Q, Q], {"left_window_size": 1, "right_window_size": 0}, versions=(25,)),
    *[
        Case(
            "LinearAttention", [*PACKED, *inputs], {"q_num_heads": 4, "kv_num_heads": 2, "update_rule": rule}, outputs=2
        )
        for rule, inputs in (
            ("linear", [STATE]),
            ("gated", [None, DECAY]),
            ("delta", [STATE, None, RATE]),
            ("gated_delta", [STATE, DECAY, RATE]),
        )
    ],
    Case("RotaryEmbedding", [Q, COS, SIN, POSITIONS]),
    Case("RotaryEmbedding", [Q, COS, SIN, POSITIONS], {"interleaved": 1}),
    Case("RotaryEmbedding", [Q, COS[:, :2], SIN[:, :2], POSITIONS], {"rotary_embedding_dim": 4}),
    Case("RotaryEmbedding", [normal(2, 3, 16), COS, SIN, POSITIONS], {"num_heads": 2}),
    Case("RotaryEmbedding", [Q, normal(2, 3, 4), normal(2, 3, 4)]),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_attention(case, version):
    check(case, version)


def test_every_operator_and_version_has_a_case():
    assert_all_covered(family, CASES)


def test_as_in_torch():
    q = torch.from_numpy(Q)
    found = attention(q, q, q, is_causal=1)[0]
    expected = functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert torch.allclose(found, expected, atol=TOLERANCE)
    assert not torch.allclose(1.02 * found, expected, atol=TOLERANCE)


def test_a_query_without_keys_gives_zero_and_finite_gradients():
    q = torch.from_numpy(Q).requires_grad_()
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[1:] = True
    y = attention(q, q, q, mask)[0]
    y.sum().backward()
    assert torch.equal(y[:, :, 0], torch.zeros_like(y[:, :, 0]))
    assert bool(torch.isfinite(q.grad).all())


def test_a_rotation_keeps_lengths():
    angles = torch.from_numpy(normal(7, 4))
    x = torch.from_numpy(Q)
    y = rotary_embedding(x, torch.cos(angles), torch.sin(angles), torch.from_numpy(POSITIONS))
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), atol=TOLERANCE)


def test_the_number_of_heads_must_be_known():
    x = torch.ones(1, 2, 8)
    with pytest.raises(UnsupportedOperatorError, match=r"shape \[1, 2, 8\] needs the number of heads"):
        attention(x, x, x)


def test_a_rule_without_its_inputs_is_refused():
    x = torch.ones(1, 2, 4)
    with pytest.raises(UnsupportedOperatorError, match="by the rule 'gated' with other inputs than it takes"):
        linear_attention(x, x, x, q_num_heads=2, kv_num_heads=2, update_rule="gated")
