"""Which layout each layer gets."""

from onnxpq.config import PQConfig
from onnxpq.errors import ConfigError
from onnxpq.layers import Layer
from onnxpq.pq.layout import CODEBOOK_BYTES, Layout
from onnxpq.pq.tensor import packed_bytes


def layout_of(layer: Layer, settings: PQConfig) -> Layout:
    """How a layer is cut: the settings, fitted to its size.

    Raises:
        ConfigError: more codebooks are asked for than the layer has sub-vectors.
    """
    d = min(settings.sub_vector, layer.in_features)
    sub_vectors = -(-layer.in_features // d)
    if isinstance(settings.codebooks, int):
        if settings.codebooks > sub_vectors:
            raise ConfigError(
                f"Layer '{layer.node}' has {sub_vectors} sub-vectors of length {d}, so it can have at most that many "
                f"codebooks; {settings.codebooks} were asked for. Lower --codebooks or exclude the layer."
            )
        groups = settings.codebooks
    elif settings.codebooks == "auto":
        codes = packed_bytes(layer.out_features, 1, sub_vectors, settings.codewords)
        groups = max(1, min(sub_vectors, codes // (2 * settings.codewords * d * CODEBOOK_BYTES)))
    else:
        groups = 1 if settings.codebooks == "layer" else sub_vectors
    # With p = ceil(M/G) positions to a codebook only ceil(M/p) of them are used: store no idle ones.
    groups = -(-sub_vectors // -(-sub_vectors // groups))
    return Layout(layer.out_features, layer.in_features, d, settings.codewords, groups)
