"""Tensors in pieces: what comes back is what was kept, and nothing that runs."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from onnxpq.pq.layout import Layout
from onnxpq.pq.quantized import Quantized
from onnxpq.workspace import checkpoints
from onnxpq.workspace.pieces import Piece, opened

LAYOUT = Layout(5, 6, 2, 16, 3)


@pytest.fixture
def piece(tmp_path: Path) -> Iterator[Piece]:
    with opened(tmp_path / "w") as space:
        space.bind({})
        yield space.piece("layer", [])


def part(seed: int = 0) -> Quantized:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(16, (5, 3), generator=random, dtype=torch.uint8)
    return Quantized(LAYOUT, torch.randn(3, 16, 2, generator=random), codes, torch.rand(5, generator=random))


def test_quantized_layers(piece: Piece) -> None:
    assert checkpoints.load_quantized(piece) is None
    checkpoints.save_quantized(piece, part())
    found, kept = checkpoints.load_quantized(piece), part()
    assert found is not None
    assert found.layout == LAYOUT
    for field in ("codebooks", "codes", "scales"):
        assert torch.equal(getattr(found, field), getattr(kept, field))
        assert getattr(found, field).dtype == getattr(kept, field).dtype


def test_what_would_run_code_is_refused(piece: Piece) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("echo run",)

    piece.save(lambda file: torch.save({"a": Evil()}, file))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        checkpoints.load(piece)


def test_what_a_piece_depends_on() -> None:
    def parts(**quantized: Quantized) -> list[bytes]:
        return list(checkpoints.parts(quantized))

    assert parts(a=part()) == parts(a=part())
    other = part()
    other.codes[0, 0] ^= 1
    finer = part()
    finer.layout = Layout(5, 6, 2, 16, 1)
    for changed in (parts(b=part()), parts(a=part(1)), parts(a=other), parts(a=finer), parts(a=part(), b=part())):
        assert changed != parts(a=part())
