"""Tensors in the pieces of a workspace: what is kept of quantized layers and of a training under way.

Files are written by `torch.save` and read with ``weights_only=True``: tensors and plain values, no code.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from onnxpq.pq import Layout
from onnxpq.pq.quantized import Quantized
from onnxpq.support import fingerprint
from onnxpq.workspace.pieces import Piece


def load(piece: Piece) -> dict[str, Any] | None:
    """What `save` kept, on the CPU; None where there is nothing or it is damaged."""
    found: dict[str, Any] | None = piece.load(partial(torch.load, map_location="cpu", weights_only=True))
    return found


def save(piece: Piece, state: Mapping[str, Any]) -> None:
    """Keep a dictionary of tensors and plain values, nested in dictionaries and lists as may be."""
    piece.save(partial(torch.save, dict(state)))


def load_quantized(piece: Piece) -> Quantized | None:
    """A quantized layer that `save_quantized` kept."""
    found = load(piece)
    return None if found is None else unpack(found)


def save_quantized(piece: Piece, part: Quantized) -> None:
    """Keep a quantized layer."""
    save(piece, pack(part))


def pack(part: Quantized) -> dict[str, Any]:
    """A quantized layer as plain values and tensors."""
    return {
        "layout": asdict(part.layout),
        "codebooks": part.codebooks.detach(),
        "codes": part.codes,
        "scales": part.scales.detach(),
        "magnitude": part.magnitude,
        "input_error": part.input_error,
    }


def unpack(state: Mapping[str, Any]) -> Quantized:
    """The layer that `pack` was given."""
    # Copies: what is read from a file may lie at any address, which matters to the speed of what computes with it.
    codebooks, scales = state["codebooks"].clone(), state["scales"].clone()
    known = {name: state[name] for name in ("magnitude", "input_error")}
    return Quantized(Layout(**state["layout"]), codebooks, state["codes"].clone(), scales, **known)


def parts(quantized: Mapping[str, Quantized]) -> Iterator[bytes]:
    """All that quantized layers are, for the name of a piece that depends on them."""
    for name, part in quantized.items():
        yield f"{part.layout} {part.magnitude}".encode()
        for field in ("codebooks", "codes", "scales"):
            yield from fingerprint.array_parts(f"{name} {field}", getattr(part, field).detach().cpu().numpy())
