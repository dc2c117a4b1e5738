"""A quantized weight while it is worked on: torch tensors, differentiable."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onnxpq.pq import codec
from onnxpq.pq.layout import Layout
from onnxpq.pq.tensor import PQTensor


@dataclass
class Quantized:
    """A quantized weight while it is worked on.

    Attributes:
        layout: how the matrix is cut.
        codebooks: [G, K, d] float32.
        codes: [out, M] uint8: all layers of a model are held at once.
        scales: [out] float32.
    """

    layout: Layout
    codebooks: Tensor
    codes: Tensor
    scales: Tensor

    def matrix(self) -> Tensor:
        """The weight [out, in] that it stands for; differentiable in codebooks and scales."""
        return codec.decode(self.codebooks, self.codes, self.scales, self.layout)

    def freeze(self) -> PQTensor:
        """The weight as it is stored: float16 codewords.

        The scales are made to absorb the codewords' size first, so that float16's range is never met: codebooks are
        stored with unit root mean square.
        """
        size = float(self.codebooks.detach().square().mean().sqrt())
        unit = size if size > 0 else 1.0
        columns = (self.codebooks.detach() / unit).transpose(1, 2).unsqueeze(0)
        return PQTensor(
            codebooks=columns.to(torch.float16).cpu().numpy(),
            codes=self.codes.unsqueeze(1).cpu().numpy(),
            scales=(self.scales.detach() * unit).to(torch.float32).cpu().numpy(),
            in_features=self.layout.in_features,
        )
