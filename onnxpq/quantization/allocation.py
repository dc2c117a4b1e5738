"""Which layout each layer gets by the settings, and which it could have."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from onnxpq.config import GENTLE_SUB_VECTOR, SUB_VECTOR, Config, LayerConfig, PQConfig
from onnxpq.errors import ConfigError
from onnxpq.graph import Layer
from onnxpq.pq import CODEBOOK_BYTES, Layout, packed_bytes

LONGEST: Final = 32
"""Longest sub-vector that a target chooses."""

CODEWORDS: Final = ((16, "layer"), (16, "auto"), (256, "layer"))
"""Codewords and codebooks that a target chooses from. Fewer codewords would take as many bytes a code; several
codebooks of 256 codewords take more bytes than the next shorter sub-vector, which is more accurate."""


def layouts(layers: Sequence[Layer], config: Config, *, has_data: bool = True) -> dict[str, Layout]:
    """How each weight is cut where no target chooses, by weight name.

    Args:
        layers: of the model.
        config: the settings.
        has_data: whether samples tell what an error costs; without any, what the settings leave open is cut gently.

    Raises:
        ConfigError: see `pinned`.
    """
    if not has_data and config.pq.sub_vector is None:
        config = replace(config, pq=replace(config.pq, sub_vector=GENTLE_SUB_VECTOR))
    chosen = pinned(layers, config)
    return {layer.weight: chosen.get(layer.weight) or layout_of(layer, config.pq) for layer in layers}


def pinned(layers: Sequence[Layer], config: Config) -> dict[str, Layout]:
    """The layouts that tables of single layers prescribe, by weight name; layers that share a weight go by the first.

    Raises:
        ConfigError: a table matches no layer; or more codebooks are asked for than a layer has sub-vectors.
    """
    for table in config.layer:
        if not any(_matches(layer.node, table.match) for layer in layers):
            names = ", ".join(f"'{layer.node}'" for layer in layers)
            raise ConfigError(f"The layer table with match = '{table.match}' matches no layer. Layers are: {names}.")
    found: dict[str, Layout] = {}
    for layer in layers:
        given = next((table for table in config.layer if _matches(layer.node, table.match)), None)
        if given is not None and layer.weight not in found:
            found[layer.weight] = layout_of(layer, _merged(config.pq, given))
    return found


def options(layer: Layer, most_codewords: int) -> list[list[Layout]]:
    """The layouts that a target may give a layer: for each number of codewords and codebooks, by growing length.

    Left out are those that would not make it smaller, and those that take no fewer bytes than shorter sub-vectors with
    as many codewords: the codebooks of long ones may weigh more than the codes that they save.
    """
    families = []
    for codewords, codebooks in CODEWORDS:
        found: list[Layout] = []
        fewest = layer.weight_bytes
        for d in range(1, min(LONGEST, layer.in_features) + 1):
            layout = layout_of(layer, PQConfig(d, codewords, codebooks))
            is_new = codebooks == "layer" or layout.groups > 1
            if codewords <= most_codewords and is_new and layout.nbytes < fewest:
                fewest = layout.nbytes
                found.append(layout)
        families.append(found)
    return [found for found in families if found] or [[layout_of(layer, PQConfig())]]


def layout_of(layer: Layer, settings: PQConfig) -> Layout:
    """How a layer is cut: the settings, fitted to its size.

    Raises:
        ConfigError: more codebooks are asked for than the layer has sub-vectors.
    """
    d = min(settings.sub_vector or SUB_VECTOR, layer.in_features)
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


def _merged(settings: PQConfig, table: LayerConfig) -> PQConfig:
    return PQConfig(
        settings.sub_vector if table.sub_vector is None else table.sub_vector,
        settings.codewords if table.codewords is None else table.codewords,
        settings.codebooks if table.codebooks is None else table.codebooks,
        settings.fast,
    )


def _matches(name: str, glob: str) -> bool:
    # Names that exporters write hold brackets, which a glob reads as a set of characters.
    return name == glob or fnmatchcase(name, glob)
