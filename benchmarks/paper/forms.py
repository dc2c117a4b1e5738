"""What a file can hold instead of a weight matrix [out, in], differentiable so that it can be fine-tuned.

A form has `parameters` (what training changes; of about unit size, so that one learning rate fits all), `matrix()` (the
weight that they stand for), `nbytes` (what the file spends on it) and `write` (constants and nodes).
"""

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.paper.graph import Builder, packed_bytes
from onnxpq.graph.layers import Layer

FLOAT_BYTES: Final = 2
"""All numbers are stored as float16."""

HASH_PRIME: Final = 2**31 - 1
"""The products of two residues stay below 2^62, in the range of ONNX's int64."""


class Form(Protocol):
    """See the module's description."""

    parameters: list[Tensor]

    def matrix(self) -> Tensor:
        """The weight [out, in]; differentiable in the parameters."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of codes and numbers in the file."""
        ...

    def write(self, builder: Builder, layer: Layer) -> None:
        """Put it in the place of a layer's weight."""
        ...


class Dense:
    """The weight itself in float16."""

    def __init__(self, matrix: Tensor) -> None:
        self.size = _rms(matrix)
        self.parameters = [(matrix / self.size).clone().requires_grad_()]

    def matrix(self) -> Tensor:
        """The weight [out, in]."""
        return self.parameters[0] * self.size

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return FLOAT_BYTES * self.parameters[0].numel()

    def write(self, builder: Builder, layer: Layer) -> None:
        """Put it in the place of a layer's weight."""
        builder.redefine(layer, builder.floats(_array(self.matrix())))


class Coded:
    """Codes into codebooks: product quantization, scalar k-means and residual vector quantization alike.

    ``W[o, m*d : (m+1)*d] = sum over stages r of codebooks[r][m // ceil(M/G), codes[r][o, m]]``
    """

    def __init__(self, codes: Sequence[Tensor], codebooks: Sequence[Tensor], in_features: int) -> None:
        """Take codes R x [out, M] int64 and codebooks R x [G, K, d]."""
        self.codes = list(codes)
        self._in = in_features
        self.size = _rms(torch.cat([book.reshape(-1) for book in codebooks]))
        self.parameters = [(book / self.size).clone().requires_grad_() for book in codebooks]

    def matrix(self) -> Tensor:
        """The weight [out, in]."""
        total = torch.zeros(())
        for codes, book in zip(self.codes, self.parameters, strict=True):
            rows = _looked_up(book.reshape(-1, book.shape[2]), codes + self._offsets(book))
            total = total + rows.reshape(len(codes), -1)[:, : self._in]
        return total * self.size

    def _offsets(self, book: Tensor) -> Tensor:
        """Where the codebook of each sub-vector begins, [M], in the codebooks laid end to end."""
        sub_vectors = self.codes[0].shape[1]
        return torch.arange(sub_vectors) // -(-sub_vectors // book.shape[0]) * book.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        pairs = zip(self.codes, self.parameters, strict=True)
        return sum(packed_bytes(codes.numel(), book.shape[1]) + FLOAT_BYTES * book.numel() for codes, book in pairs)

    def write(self, builder: Builder, layer: Layer) -> None:
        """Put it in the place of a layer's weight."""
        total = None
        for codes, book in zip(self.codes, self.parameters, strict=True):
            part = self._decoded(builder, codes, book)
            total = part if total is None else builder.node("Add", total, part)
        if total is not None:
            builder.redefine(layer, total)

    def _decoded(self, builder: Builder, codes: Tensor, book: Tensor) -> str:
        groups, codewords, d = book.shape
        index = builder.codes(codes.numpy(), codewords)
        if groups > 1:
            position = builder.range_of(codes.shape[1])
            group = builder.node("Div", position, builder.integers(-(-codes.shape[1] // groups)))
            index = builder.node("Add", index, builder.node("Mul", group, builder.integers(codewords)))
        words = builder.floats(_array(book * self.size).reshape(-1, d))
        rows = builder.node("Reshape", builder.node("Gather", words, index), builder.integers(len(codes), -1))
        if codes.shape[1] * d == self._in:
            return rows
        return builder.node("Slice", rows, *(builder.integers(number) for number in (0, self._in, 1)))


class Sign:
    """The sign of each weight, and a scale per row: the mean absolute value, which is the least squares scale.

    Trained, gradients pass straight through the sign to the weight behind it.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.size = _rms(matrix)
        scales = matrix.abs().mean(1, keepdim=True) / self.size
        self.parameters = [(matrix / self.size).clone().requires_grad_(), scales.clone().requires_grad_()]

    def matrix(self) -> Tensor:
        """The weight [out, in]."""
        latent, scales = self.parameters
        signs = torch.where(latent.detach() > 0, 1.0, -1.0) + (latent - latent.detach())
        return signs * scales * self.size

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        latent, scales = self.parameters
        return packed_bytes(latent.numel(), 2) + FLOAT_BYTES * scales.numel()

    def write(self, builder: Builder, layer: Layer) -> None:
        """Put it in the place of a layer's weight."""
        latent, scales = self.parameters
        table = builder.floats(np.array([-1.0, 1.0]))
        signs = builder.node("Gather", table, builder.codes((latent.detach() > 0).numpy().astype(np.uint8), 2))
        builder.redefine(layer, builder.node("Mul", signs, builder.floats(_array(scales * self.size))))


class LowRank:
    """A product of two factors, [out, rank] and [rank, in]; the file multiplies by one after the other."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.sizes = (_rms(left), _rms(right))
        pairs = zip((left, right), self.sizes, strict=True)
        self.parameters = [(factor / size).clone().requires_grad_() for factor, size in pairs]

    @classmethod
    def truncated(cls, matrix: Tensor, rank: int) -> "LowRank":
        """The best approximation of that rank (Eckart and Young 1936), singular values shared by both factors."""
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        root = s[:rank].sqrt()
        return cls((u[:, :rank] * root).float(), (root[:, None] * vh[:rank]).float())

    def factors(self) -> tuple[Tensor, Tensor]:
        """[out, rank] and [rank, in]."""
        left, right = (factor * size for factor, size in zip(self.parameters, self.sizes, strict=True))
        return left, right

    def matrix(self) -> Tensor:
        """The weight [out, in]."""
        left, right = self.factors()
        return left @ right

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return FLOAT_BYTES * sum(factor.numel() for factor in self.parameters)

    def write(self, builder: Builder, layer: Layer) -> None:
        """Put it in the place of a layer's weight."""
        left, right = self.factors()
        builder.factorize(layer, builder.floats(_array(right).T), _array(left))


class Hashed:
    """HashedNets (Chen et al. 2015): weight number x is ``sign(x) * buckets[bucket(x)]``, both given by hashes.

    The file holds the buckets alone: it has nodes that compute the hashes of 0, 1, ..., out * in - 1. A hash is a
    polynomial of the third degree over the integers modulo 2^31 - 1 with random coefficients, which makes any four
    positions independent (Wegman and Carter 1981).
    """

    def __init__(self, buckets: Tensor, shape: tuple[int, int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._shape, self._count = shape, buckets.numel()
        self._places, self._signs = rng.integers(1, HASH_PRIME, (2, 4)).tolist()
        x = np.arange(shape[0] * shape[1], dtype=np.int64)
        self.index = torch.from_numpy(_polynomial(x, self._places) % self._count).reshape(shape)
        self.signs = torch.from_numpy(_polynomial(x, self._signs) % 2 * 2 - 1).reshape(shape).float()
        self.size = _rms(buckets)
        self.parameters = [(buckets / self.size).clone().requires_grad_()]

    @classmethod
    def random(cls, shape: tuple[int, int], count: int, seed: int) -> "Hashed":
        """Fresh buckets, normal with variance 2 / in, which keeps the size of values (He et al. 2015)."""
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randn(count, generator=generator) * (2 / shape[1]) ** 0.5, shape, seed)

    def matrix(self) -> Tensor:
        """The weight [out, in]."""
        return _looked_up(self.parameters[0], self.index) * self.signs * self.size

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return FLOAT_BYTES * self._count

    def write(self, builder: Builder, layer: Layer) -> None:
        """Put it in the place of a layer's weight."""
        x = builder.range_of(self._shape[0] * self._shape[1])
        index = builder.node("Mod", _polynomial_nodes(builder, x, self._places), builder.integers(self._count))
        odd = builder.node("Mod", _polynomial_nodes(builder, x, self._signs), builder.integers(2))
        signs = builder.node("Gather", builder.floats(np.array([-1.0, 1.0])), odd)
        weights = builder.node("Gather", builder.floats(_array(self.parameters[0] * self.size)), index)
        flat = builder.node("Mul", weights, signs)
        builder.redefine(layer, builder.node("Reshape", flat, builder.integers(*self._shape)))


def _polynomial(x: NDArray[np.int64], coefficients: Sequence[int]) -> NDArray[np.int64]:
    """Values at x of the polynomial with these coefficients, highest power first, modulo `HASH_PRIME`."""
    value = np.zeros_like(x)
    for coefficient in coefficients:
        value = (value * x + coefficient) % HASH_PRIME
    return value


def _polynomial_nodes(builder: Builder, x: str, coefficients: Sequence[int]) -> str:
    """The same as nodes."""
    prime = builder.integers(HASH_PRIME)
    value = builder.node("Mul", x, builder.integers(0))
    for coefficient in coefficients:
        value = builder.node("Add", builder.node("Mul", value, x), builder.integers(coefficient))
        value = builder.node("Mod", value, prime)
    return value


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    """Entries of a table [n, ...] at indices [...]. The gradient of an embedding takes 3 to 30 times as long."""
    return table.index_select(0, index.reshape(-1)).reshape(*index.shape, *table.shape[1:])


def _rms(values: Tensor) -> float:
    size = float(values.square().mean().sqrt())
    return size if size > 0 else 1.0


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.detach().numpy()
