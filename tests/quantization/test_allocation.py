import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.config.settings import GENTLE_SUB_VECTOR, SUB_VECTOR, Config, LayerConfig, PQConfig
from onnxpq.errors import ConfigError
from onnxpq.graph.layers import Layer
from onnxpq.pq.layout import Layout
from onnxpq.pq.tensor import packed_bytes
from onnxpq.quantization.allocation import layout_of, layouts


def layer(out: int, columns: int) -> Layer:
    return Layer("fc", "Gemm", "W", out, columns, weight_is_in_out=False, bias=None)


@pytest.mark.parametrize(
    ("out", "columns", "groups"),
    [
        (512, 64, 8),  # 16 blocks x 8 sub-vectors x 16 bytes = 2048; half of it holds 8 codebooks of 128 bytes
        (256, 512, 32),  # 8 x 64 x 16 = 8192
        (10, 256, 2),  # 1 x 32 x 16 = 512
        (10, 8, 1),
        (100_000, 64, 8),  # all positions
    ],
)
def test_automatic_codebooks_take_at_most_half_the_bytes_of_the_codes(out: int, columns: int, groups: int) -> None:
    assert layout_of(layer(out, columns), PQConfig()) == Layout(out, columns, 8, 16, groups)


def test_codebooks_by_name_and_number() -> None:
    assert layout_of(layer(32, 40), PQConfig(codebooks="layer")).groups == 1
    assert layout_of(layer(32, 40), PQConfig(codebooks="position")).groups == 5
    assert layout_of(layer(32, 40), PQConfig(codebooks=2)).groups == 2


def test_no_codebook_is_idle() -> None:
    # 5 positions by 4 codebooks are 2 to a codebook: the fourth would serve none
    assert layout_of(layer(32, 40), PQConfig(codebooks=4)).groups == 3


def test_layers_narrower_than_a_sub_vector() -> None:
    assert layout_of(layer(100, 3), PQConfig()) == Layout(100, 3, 3, 16, 1)


def test_more_codebooks_than_sub_vectors() -> None:
    message = (
        "Layer 'fc' has 5 sub-vectors of length 8, so it can have at most that many codebooks; 6 were asked for. "
        "Lower --codebooks or exclude the layer."
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        layout_of(layer(32, 40), PQConfig(codebooks=6))


@given(
    out=st.integers(1, 3000),
    columns=st.integers(1, 3000),
    d=st.integers(1, 64),
    codewords=st.integers(2, 256),
    codebooks=st.sampled_from(["auto", "layer", "position"]) | st.integers(1, 40),
)
def test_every_layout_is_sound(out: int, columns: int, d: int, codewords: int, codebooks: str | int) -> None:
    sub_vectors = int(np.ceil(columns / min(d, columns)))
    if isinstance(codebooks, int) and codebooks > sub_vectors:
        codebooks = sub_vectors
    layout = layout_of(layer(out, columns), PQConfig(sub_vector=d, codewords=codewords, codebooks=codebooks))
    used = {position // layout.per_group for position in range(layout.sub_vectors)}
    assert used == set(range(layout.groups))
    codes = packed_bytes(out, 1, sub_vectors, codewords)
    # int8, but float16 where 8 bits a weight deserve finer codewords
    books = layout.groups * codewords * layout.sub_vector * (2 if codewords > 16 and layout.sub_vector == 1 else 1)
    assert layout.nbytes == codes + books + 4 * out
    if codebooks == "auto":
        assert layout.groups == 1 or 2 * books <= codes
    if isinstance(codebooks, int):
        assert layout.groups <= codebooks


@pytest.mark.parametrize(("has_data", "d"), [(True, SUB_VECTOR), (False, GENTLE_SUB_VECTOR)])
def test_without_data_what_is_left_open_is_cut_gently(has_data: bool, d: int) -> None:
    found = layouts([layer(512, 64)], Config(), has_data=has_data)
    assert found["W"].sub_vector == d


@pytest.mark.parametrize("config", [Config(pq=PQConfig(4)), Config(layer=(LayerConfig("fc", sub_vector=4),))])
@pytest.mark.parametrize("has_data", [True, False])
def test_what_is_asked_for_is_what_one_gets(config: Config, has_data: bool) -> None:
    assert layouts([layer(512, 64)], config, has_data=has_data)["W"].sub_vector == 4
