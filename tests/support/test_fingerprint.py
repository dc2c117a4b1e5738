"""Hashes tell apart what differs, and nothing else."""

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_models import mlp

from onnxpq.support import fingerprint
from onnxpq.support.fingerprint import array_parts, digest, model_parts


def test_where_a_part_ends_matters() -> None:
    assert digest([b"ab", b"c"]) != digest([b"a", b"bc"])
    assert digest([b"ab"]) != digest([b"ab", b""])
    assert digest([b"ab", b"c"]) == digest(iter([b"ab", b"c"]))


def test_a_file_has_the_hash_that_sha256sum_gives(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc" * 1000)
    assert fingerprint.of_file(path) == hashlib.sha256(b"abc" * 1000).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        ("y", np.arange(6, dtype=np.float32)),
        ("x", np.arange(6, dtype=np.float64)),
        ("x", np.arange(6, dtype=np.float32).reshape(2, 3)),
        ("x", np.array([0, 1, 2, 3, 4, 6], np.float32)),
        ("x", np.array(0, np.float32)),
    ],
)
def test_arrays(other: tuple[str, np.ndarray]) -> None:
    array = np.arange(6, dtype=np.float32)
    assert digest(array_parts("x", array)) == digest(array_parts("x", np.arange(12, dtype=np.float32)[:6].copy()))
    assert digest(array_parts("x", array)) != digest(array_parts(*other))


def test_the_last_rows_of_a_long_array_and_strings_count() -> None:
    array = np.zeros((5000, 2), np.float32)
    other = array.copy()
    other[-1, 1] = 1
    assert digest(array_parts("x", array)) != digest(array_parts("x", other))
    texts = np.array(["a", "b"], object)
    assert digest(array_parts("x", texts)) == digest(array_parts("x", np.array(["a", "b"], object)))
    assert digest(array_parts("x", texts)) != digest(array_parts("x", np.array(["a", "c"], object)))


def test_models() -> None:
    found = {digest(model_parts(ir.from_proto(mlp(**change)))) for change in ({}, {"seed": 1}, {"activation": "Tanh"})}
    assert len(found) == 3
    assert digest(model_parts(ir.from_proto(mlp()))) in found
