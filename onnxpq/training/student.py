"""What is trained: the quantized layers with the float weights behind them, and the vectors around them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from onnxpq.graph import Layer
from onnxpq.network import Network
from onnxpq.pq import codec
from onnxpq.pq.matrix import from_matrix, to_matrix
from onnxpq.pq.quantized import Quantized
from onnxpq.training.course import Kept
from onnxpq.training.regularizers import BINARY_TERMS, binary_term, codebook_term

COMPARED = 32
"""Codewords that a sub-vector is compared with per step, on average. With more of them only some rows are re-assigned
in a step, all in turn: codes that are a few steps old train as well, and comparing all took half of the time."""

REGULARIZED, TUNED = "regularized", "tuned"


class Student:
    """The trained tensors, and the initializers that they stand for.

    Attributes:
        quantized: the layers by weight name; the codebooks are trained, the codes re-assigned in place.
        log_scales: logarithms of their row scales [out].
        latent: their float weights in units of the scales, [out, in].
        distances: squared errors of the quantized weights that all begins with, relative to the weights' squares.
        vectors: initializers that are trained as they are, by name.
        kept: what `keep` kept last.
    """

    def __init__(
        self, network: Network, layers: Sequence[Layer], quantized: Mapping[str, Quantized], vectors: Sequence[str]
    ) -> None:
        """Start from quantized layers.

        Args:
            network: holds the initializers; it is not changed.
            layers: those that use the quantized weights.
            quantized: by weight name.
            vectors: names of other initializers to train.
        """
        self.layers = {layer.weight: layer for layer in layers}
        self.quantized = dict(quantized)
        self.log_scales: dict[str, Tensor] = {}
        self.latent: dict[str, Tensor] = {}
        self.distances: dict[str, float] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.kept: Kept = ({}, {})
        names = dict(network.named_initializers())
        self.vectors = {name: names[name].detach().clone().requires_grad_() for name in sorted(vectors)}
        for name, part in self.quantized.items():
            layer, weight = self.layers[name], names[name].detach()
            self.shapes[name] = weight.shape
            exact = to_matrix(weight, layer.in_features, is_in_out=layer.weight_is_in_out)
            scales = part.scales.to(weight.device)
            codes = part.codes.to(weight.device, copy=True)  # they change in place
            self.log_scales[name] = scales.log().requires_grad_()
            codebooks = part.codebooks.to(weight.device, copy=True).requires_grad_()
            self.quantized[name] = replace(part, codebooks=codebooks, codes=codes, scales=scales)
            # Not the original weights: for the layers' outputs 40 % of the codes are not the nearest ones
            # (`onnxpq.pq.calibrated`), and those would be lost in the first step.
            self.latent[name] = self.units(name).detach().contiguous().requires_grad_()
            self.distances[name] = float(codebook_term(self.latent[name].detach() * scales.unsqueeze(1), exact))

    def stored(self) -> list[Tensor]:
        """What the file will hold: codebooks, scales, vectors."""
        return [*(q.codebooks for q in self.quantized.values()), *self.log_scales.values(), *self.vectors.values()]

    def units(self, name: str) -> Tensor:
        """The quantized matrix [out, in] with rows of unit size."""
        part = self.quantized[name]
        return codec.decode(part.rounded, part.codes, torch.ones_like(part.scales), part.layout)

    def weights(self, phase: str) -> dict[str, Tensor]:
        """The network's initializers in their quantized form; regularized, gradients pass to the latent weights."""
        tensors: dict[str, Tensor] = dict(self.vectors)
        for name in self.quantized:
            unit = self.units(name)
            if phase == REGULARIZED:
                latent = self.latent[name]
                unit = unit + (latent - latent.detach())
            matrix = unit * self.log_scales[name].exp().unsqueeze(1)
            tensors[name] = from_matrix(matrix, self.shapes[name], is_in_out=self.layers[name].weight_is_in_out)
        return tensors

    def reassign(self, step: int) -> None:
        """Give sub-vectors of the latent weights their nearest codewords: those of every n-th row, from `step` on."""
        for name, (rows, codes) in self.nearest(step).items():
            self.quantized[name].codes[rows] = codes

    @torch.no_grad()
    def nearest(self, step: int) -> dict[str, tuple[slice, Tensor]]:
        """The rows that `reassign` is about to change, and their codes."""
        found = {}
        for name, part in self.quantized.items():
            turns = max(1, min(part.layout.codewords // COMPARED, part.layout.out_features))
            rows = slice(step % turns, None, turns)
            latent = self.latent[name][rows]
            found[name] = rows, codec.assign(latent, part.rounded, replace(part.layout, out_features=len(latent)))
        return found

    def terms(self, regularizer: str) -> Iterator[Tensor]:
        """The regularization term of each layer, computed when it is asked for."""
        for name, latent in self.latent.items():
            if regularizer in BINARY_TERMS:
                yield binary_term(regularizer, latent)
            else:
                with torch.no_grad():
                    target = self.units(name)
                yield codebook_term(latent, target)

    @torch.no_grad()
    def keep(self) -> None:
        """Keep a copy, on the CPU, of the present state of all that the file will hold."""
        quantized = {}
        for name, part in self.quantized.items():
            codebooks = part.codebooks.detach().to("cpu", copy=True)
            codes, scales = part.codes.to("cpu", copy=True), self.log_scales[name].detach().exp().cpu()
            quantized[name] = replace(part, codebooks=codebooks, codes=codes, scales=scales)
        self.kept = quantized, {name: value.detach().cpu().numpy().copy() for name, value in self.vectors.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the state that was kept last."""
        quantized, vectors = self.kept
        for name, part in quantized.items():
            self.quantized[name].codebooks.copy_(part.codebooks)
            self.quantized[name].codes = part.codes.to(self.quantized[name].codes.device, copy=True)
            self.log_scales[name].copy_(part.scales.log())
        for name, value in vectors.items():
            self.vectors[name].copy_(torch.from_numpy(value))
