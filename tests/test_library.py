"""Single steps for other tools: codes of others in, dense weights out, and nothing changes its argument."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from sklearn.cluster import KMeans

import onnxpq
from onnxpq import PQTensor
from onnxpq.errors import ConfigError, ModelError

OUT, IN, D, K = 40, 32, 4, 16
SAME = 1e-5


def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((OUT, IN)).astype(np.float32)


def network() -> onnx.ModelProto:
    nodes = [helper.make_node("Gemm", ["x", "W", "b"], ["y"], name="fc", transB=1)]
    tensors = [numpy_helper.from_array(weight(), "W"), numpy_helper.from_array(np.ones(OUT, np.float32), "b")]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", IN])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", OUT])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def by_kmeans() -> tuple[PQTensor, np.ndarray]:
    """A codebook for each position, as faiss has them, and the matrix that scikit-learn's own codes stand for."""
    books, codes, decoded = [], [], []
    for m in range(IN // D):
        found = KMeans(K, n_init=1, random_state=0).fit(weight()[:, m * D : (m + 1) * D])
        books.append(found.cluster_centers_)
        codes.append(found.labels_)
        decoded.append(found.cluster_centers_[found.labels_])
    return PQTensor.from_codes(np.array(books), np.array(codes).T), np.concatenate(decoded, 1)


def test_codes_of_another_library_compute_what_they_stand_for() -> None:
    tensor, decoded = by_kmeans()
    np.testing.assert_array_equal(tensor.decode(), decoded.astype(np.float32))
    x = np.random.default_rng(1).standard_normal((3, IN)).astype(np.float32)
    expected = x @ decoded.T + 1
    for name in ("W", "fc"):
        model = onnxpq.rewrite(network(), {name: tensor})
        assert isinstance(model, onnx.ModelProto)
        (y,) = onnxpq.session(model, use_library=False).run(None, {"x": x})
        assert np.abs(y - expected).max() < SAME * np.abs(expected).max()
        assert np.abs(1.02 * y - expected).max() > SAME * np.abs(expected).max()


def test_and_back_again_bit_for_bit() -> None:
    tensor, _ = by_kmeans()
    compressed = onnxpq.rewrite(network(), {"W": tensor})
    dense = onnxpq.decompress(compressed)
    assert isinstance(dense, onnx.ModelProto)
    matrices = [numpy_helper.to_array(t) for t in dense.graph.initializer if len(t.dims) == 2]
    np.testing.assert_array_equal(matrices[0].T, tensor.decode())
    plain = onnxpq.inline(compressed)
    assert not plain.functions
    assert plain.ByteSize() < dense.ByteSize()


@pytest.mark.parametrize("kind", ["proto", "ir", "path", "bytes"])
def test_every_form_of_a_model_is_taken_and_none_is_changed(kind: str, tmp_path: Path) -> None:
    proto = network()
    onnx.save(proto, tmp_path / "m.onnx")
    forms = {
        "proto": proto,
        "ir": ir.from_proto(proto),
        "path": tmp_path / "m.onnx",
        "bytes": proto.SerializeToString(),
    }
    before = proto.SerializeToString()
    tensor, _ = by_kmeans()
    changed = onnxpq.update_weights(forms[kind], {"b": np.zeros(OUT)})
    result = onnxpq.rewrite(changed, {"W": tensor})
    assert isinstance(result, onnx.ModelProto) == (kind == "proto")
    assert proto.SerializeToString() == before
    assert (tmp_path / "m.onnx").read_bytes() == before
    if kind == "ir":
        assert ir.to_proto(forms[kind]).SerializeToString() == ir.to_proto(ir.from_proto(proto)).SerializeToString()


def test_names_that_are_none_are_told_with_those_that_there_are() -> None:
    tensor, _ = by_kmeans()
    with pytest.raises(ConfigError, match=r"'w' is no weight .* Weights are: 'W' \(node 'fc'\)"):
        onnxpq.rewrite(network(), {"w": tensor})


BOOKS, CODES = np.zeros((2, K, D), np.float32), np.zeros((OUT, 8), np.uint8)


@pytest.mark.parametrize(
    ("books", "codes", "more", "message"),
    [
        (np.full((K, D), np.nan), CODES, {}, "codebooks with NaN or infinity"),
        (BOOKS, CODES, {"scales": np.full(OUT, np.inf)}, "scales with NaN or infinity"),
        (BOOKS, CODES + K, {}, "the code 16; expected codes below 16"),
        (BOOKS, CODES.astype(np.float32), {}, "Codes are float32; expected integers from 0 to 255"),
        (BOOKS, CODES, {"in_features": 28}, "in_features 28; expected 29 to 32"),
        (np.zeros((9, K, D)), CODES, {}, "9 groups of codebooks for 8 sub-vectors"),
        (BOOKS, CODES, {"scales": np.ones(3)}, "3 scales for 40 rows"),
        (np.zeros((1, D)), CODES, {}, "1 codewords; expected 2 to 256"),
        (BOOKS.astype(np.int32), CODES, {}, "codebooks of int32; expected one of int8, float16, float32"),
        (BOOKS, CODES.reshape(OUT, 2, 4), {}, "2 stages of codes and 1 of codebooks"),
    ],
)
def test_contradictions_are_refused(books: np.ndarray, codes: np.ndarray, more: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        PQTensor.from_codes(books, codes, **more)


def test_a_tensor_survives_its_file(tmp_path: Path) -> None:
    tensor, _ = by_kmeans()
    tensor.save(tmp_path / "w.npz")
    again = PQTensor.load(tmp_path / "w.npz")
    np.testing.assert_array_equal(again.decode(), tensor.decode())
    assert (again.in_features, again.fast, again.nbytes) == (tensor.in_features, tensor.fast, tensor.nbytes)
    np.savez(tmp_path / "other.npz", codes=tensor.codes)
    with pytest.raises(ModelError, match="has the arrays"):
        PQTensor.load(tmp_path / "other.npz")
