"""Which layout each layer gets by the settings, and which it could have."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from onnxpq.config import GENTLE_SUB_VECTOR, SUB_VECTOR, Config, LayerConfig, PQConfig
from onnxpq.errors import ConfigError
from onnxpq.graph import Layer
from onnxpq.operators import MAX_NIBBLE_CODEWORDS
from onnxpq.pq import Layout, codebook_bytes, packed_bytes

LONGEST: Final = 32
"""Longest sub-vector that a target chooses."""

CODEWORDS: Final = (16, 32, 64, 128, 256)
"""Codewords that a target chooses from. Fewer than 16 would take as many bytes a code; the others above 16 take as many
as 256, so that they only pay where the codebook weighs much."""

SHARES: Final = (1, 4, 16)
"""A target chooses from one codebook and from those that take half of the bytes of the codes, or this times fewer."""

TELLING: Final = 0.01
"""Layouts of fewer than 256 codewords a byte save at least this share of the bytes."""


FEW_POSITIONS: Final = 3
ALIGNED_POSITIONS: Final = 4
"""From three positions to a codebook on, codebooks of one byte a code are for a multiple of four positions: what
decodes four neighbouring codes by one codebook is 1.2 to 2.7 times as fast."""


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
    """The layouts that a target may give a layer: by growing length for each number of codewords and of codebooks.

    Left out are those that would not make it smaller, and those that take no fewer bytes than shorter sub-vectors with
    as many codewords: the codebooks of long ones may weigh more than the codes that they save.
    """
    families = [_family(layer, codewords, None) for codewords in CODEWORDS if codewords <= most_codewords]
    ends = [codewords for codewords in (CODEWORDS[0], CODEWORDS[-1]) if codewords <= most_codewords]
    families += [_family(layer, codewords, share) for codewords in ends for share in SHARES]
    return [found for found in families if found] or [[layout_of(layer, PQConfig())]]


def _family(layer: Layer, codewords: int, share: int | None) -> list[Layout]:
    """The layouts with so many codewords, by growing length.

    Args:
        layer: the layer.
        codewords: K.
        share: the codebooks take at most the bytes of half the codes over this; None for one codebook.
    """
    found: list[Layout] = []
    fewest = layer.weight_bytes
    for d in range(1, min(LONGEST, layer.in_features) + 1):
        layout = layout_of(layer, PQConfig(d, codewords, "layer" if share is None else "auto"))
        if share is not None:
            groups = layout.groups // share
            layout = layout_of(layer, PQConfig(d, codewords, max(1, groups)))
        is_new = _saves(layer, layout) if share is None else layout.groups > 1
        if is_new and layout.nbytes < fewest:
            fewest = layout.nbytes
            found.append(layout)
    return found


def _saves(layer: Layer, layout: Layout) -> bool:
    """Whether a layout is much smaller than what is as small but for the codebook."""
    if layout.codewords in (CODEWORDS[0], CODEWORDS[-1]):
        return True
    more = layout_of(layer, PQConfig(layout.sub_vector, 2 * layout.codewords, "layer"))
    return layout.nbytes < (1 - TELLING) * more.nbytes


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
        size = settings.codewords * d * codebook_bytes(d, settings.codewords)
        groups = max(1, min(sub_vectors, codes // (2 * size)))
    else:
        groups = 1 if settings.codebooks == "layer" else sub_vectors
    # With p = ceil(M/G) positions to a codebook only ceil(M/p) of them are used: store no idle ones.
    width = -(-sub_vectors // groups)
    if settings.codebooks == "auto" and settings.codewords > MAX_NIBBLE_CODEWORDS and width >= FEW_POSITIONS:
        width = ALIGNED_POSITIONS * -(-width // ALIGNED_POSITIONS)
    groups = -(-sub_vectors // width)
    return Layout(layer.out_features, layer.in_features, d, settings.codewords, groups)


def _merged(settings: PQConfig, table: LayerConfig) -> PQConfig:
    return PQConfig(
        settings.sub_vector if table.sub_vector is None else table.sub_vector,
        settings.codewords if table.codewords is None else table.codewords,
        settings.codebooks if table.codebooks is None else table.codebooks,
        settings.fast,
        body=settings.body,
    )


def _matches(name: str, glob: str) -> bool:
    # Names that exporters write hold brackets, which a glob reads as a set of characters.
    return name == glob or fnmatchcase(name, glob)
