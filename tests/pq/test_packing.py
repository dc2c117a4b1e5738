import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.errors import ModelError
from onnxpq.pq.packing import pack_codes, packed_shape, unpack_codes


def test_nibbles_by_hand() -> None:
    codes = np.zeros((40, 1, 2), np.uint8)
    codes[3, 0, 0] = 5  # block 0, low nibble of byte 3
    codes[19, 0, 0] = 9  # block 0, high nibble of byte 3
    codes[33, 0, 1] = 15  # block 1, low nibble of byte 1, second unit
    packed = pack_codes(codes, 16)
    expected = np.zeros((2, 2, 16), np.uint8)
    expected[0, 0, 3] = 0x95
    expected[1, 1, 1] = 0x0F
    np.testing.assert_array_equal(packed, expected)


def test_bytes_by_hand() -> None:
    codes = np.zeros((17, 2, 3), np.uint8)
    codes[16, 1, 2] = 200  # block 1, byte 0, unit r*M + m = 5
    packed = pack_codes(codes, 256)
    expected = np.zeros((2, 6, 16), np.uint8)
    expected[1, 5, 0] = 200
    np.testing.assert_array_equal(packed, expected)


@given(st.integers(1, 70), st.integers(1, 3), st.integers(1, 9), st.integers(2, 256), st.integers(0, 2**32 - 1))
def test_unpack_is_the_inverse(out: int, stages: int, sub_vectors: int, codewords: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, codewords, (out, stages, sub_vectors)).astype(np.uint8)
    packed = pack_codes(codes, codewords)
    assert packed.shape == packed_shape(out, stages, sub_vectors, codewords)
    assert packed.dtype == np.uint8
    assert packed.flags.c_contiguous
    np.testing.assert_array_equal(unpack_codes(packed, out, stages, codewords), codes)


def test_padding_is_zero() -> None:
    assert pack_codes(np.full((1, 1, 1), 15, np.uint8), 16).sum() == 15


@pytest.mark.parametrize(
    ("codes", "codewords", "message"),
    [
        (np.zeros((2, 2), np.uint8), 16, "Codes to pack are uint8 of shape [2, 2]; expected uint8 [out, R, M]"),
        (np.zeros((2, 1, 2), np.int64), 16, "Codes to pack are int64"),
        (np.zeros((0, 1, 2), np.uint8), 16, "of shape [0, 1, 2]"),
        (np.full((2, 1, 2), 4, np.uint8), 4, "Code 4 at [output, stage, sub-vector] [0, 0, 0] points past a codebook"),
        (np.zeros((2, 1, 2), np.uint8), 1, "A codebook has 1 codewords; expected 2 to 256."),
        (np.zeros((2, 1, 2), np.uint8), 257, "A codebook has 257 codewords; expected 2 to 256."),
    ],
)
def test_unusable_codes_are_refused(codes: np.ndarray, codewords: int, message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        pack_codes(codes, codewords)


@pytest.mark.parametrize(
    ("packed", "out", "stages", "message"),
    [
        (np.zeros((1, 4, 16), np.uint8), 33, 1, "have shape [1, 4, 16]; expected [2, a positive multiple of 1, 16]"),
        (
            np.zeros((1, 4, 16), np.uint8),
            32,
            3,
            "expected [1, a positive multiple of 3, 16] for 32 outputs, R=3 and K=3",
        ),
        (np.zeros((1, 4, 8), np.uint8), 32, 1, "have shape [1, 4, 8]"),
        (np.zeros((4, 16), np.uint8), 32, 1, "have shape [4, 16]"),
        (np.zeros((1, 4, 16), np.int8), 32, 1, "Packed codes are int8; expected uint8."),
        (np.full((1, 4, 16), 0x30, np.uint8), 32, 1, "Code 3 at [output, stage, sub-vector] [16, 0, 0] points past"),
    ],
)
def test_unusable_packed_codes_are_refused(packed: np.ndarray, out: int, stages: int, message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        unpack_codes(packed, out, stages, 3)
