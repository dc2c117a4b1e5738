"""A quantized weight while it is worked on: torch tensors, differentiable."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onnxpq.pq import codec
from onnxpq.pq.layout import Layout
from onnxpq.pq.tensor import PQTensor

MAX_INT8 = 127


@dataclass
class Quantized:
    """A quantized weight while it is worked on.

    Attributes:
        layout: how the matrix is cut.
        codebooks: [G, K, d] float32.
        codes: [out, M] uint8: all layers of a model are held at once.
        scales: [out] float32.
        magnitude: the largest of int8 codewords, where they are stored so.
        input_error: what rounding its inputs to 8 bits, call by call, adds to a layer's outputs, relative to them; None
            where that is not known.
    """

    layout: Layout
    codebooks: Tensor
    codes: Tensor
    scales: Tensor
    magnitude: int = MAX_INT8
    input_error: float | None = None

    @property
    def rounded(self) -> Tensor:
        """The codebooks [G, K, d] as they are stored; gradients pass to `codebooks` as if nothing was rounded."""
        if self.layout.codebook_bytes > 1:
            return self.codebooks
        unit = self._unit()
        return self.codebooks + (self._whole(unit) * unit - self.codebooks).detach()

    def matrix(self) -> Tensor:
        """The weight [out, in] that it stands for; differentiable in codebooks and scales."""
        return codec.decode(self.rounded, self.codes, self.scales, self.layout)

    def freeze(self) -> PQTensor:
        """The weight as it is stored: codewords of int8, or of float16 (`Layout.codebook_bytes`).

        The scales absorb the codewords' size: that of one step of int8, or in float16, whose range is never met so,
        their root mean square.
        """
        if self.layout.codebook_bytes > 1:
            size = float(self.codebooks.detach().square().mean().sqrt())
            unit = size if size > 0 else 1.0
            books = (self.codebooks.detach() / unit).to(torch.float16)
        else:
            step = self._unit()
            unit, books = float(step), self._whole(step).to(torch.int8)
        return PQTensor(
            codebooks=books.unsqueeze(0).cpu().numpy(),
            codes=self.codes.unsqueeze(1).cpu().numpy(),
            scales=(self.scales.detach() * unit).to(torch.float32).cpu().numpy(),
            in_features=self.layout.in_features,
        )

    def _unit(self) -> Tensor:
        """The codewords' size that one step of int8 stands for."""
        largest = self.codebooks.detach().abs().max()
        return torch.where(largest > 0, largest, torch.ones_like(largest)) / self.magnitude

    def _whole(self, unit: Tensor) -> Tensor:
        """The codebooks [G, K, d] in steps of `unit`, whole numbers."""
        return (self.codebooks.detach() / unit).round()
