"""Product quantization for the smallest error of a layer's outputs.

With H = E[x x^T] of the layer's inputs the mean squared error of its outputs is ``tr(E H E^T)``, E = W - Ŵ. Three
parts, each of which `python -m benchmarks quantizer` measures:

1. `feedback`: the sub-vectors are coded from left to right, and those still to come make up for the error of those that
   are done (GPTQ, Frantar et al. 2022; with codebooks GPTVQ, van Baalen et al. 2024).
2. `fit_codebooks`, `fit_scales`: least squares under H with the codes in place.
3. `descend`: each code again, given all others (coordinate descent).

Letters: see `onnxpq.graph.layers`. Everything here takes layers without padding (``in = M*d``) but `encode`, which
    fills up.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onnxpq.pq import codec, kmeans
from onnxpq.pq.layout import Layout

ROUNDS = 8
"""Limit of the rounds of least squares and coordinate descent."""

SETTLED = 5e-3
"""Rounds end once one gains less than this share of the error."""

CG_STEPS = 4
"""Conjugate-gradient steps per fit of the codebooks; the next round goes on where one ends."""

MOST_SCALE = 64.0
"""Largest scale of a row, in units of its root mean square. Usual are 1 to 3.

Near-zero codewords under a huge scale may fit as well. But the operator's tables have 15 bits of the largest codeword:
times that scale, their rounding is more than what the row gives."""

_BLOCK_COLUMNS = 128
"""Columns whose changes are gathered before they are passed on to all other columns, in one product."""

_FED_ELEMENTS = 2**23
"""Numbers in the rows that errors are fed back in at a time: 32 MiB."""

_LARGE = 30
"""Weights whose largest is beyond 2 to this power, or below its inverse, are scaled."""


@dataclass(frozen=True)
class Problem:
    """What to approximate, and how errors count.

    Attributes:
        matrix: [out, M*d].
        moment: H [M*d, M*d], positive definite.
        layout: how the matrix is cut.
    """

    matrix: Tensor
    moment: Tensor
    layout: Layout

    def error(self, state: "State") -> float:
        """``tr(E H E^T)``."""
        # Some rows at a time, here and below: each matrix more would be as large as the layer.
        return sum(float(torch.einsum("oi,oi->", pulled, missed)) for missed, pulled in self.pulled(self.matrix, state))

    def pulled(self, matrix: Tensor, state: "State") -> Iterator[tuple[Tensor, Tensor]]:
        """E = matrix - Ŵ and E H, some rows [n, M*d] of both at a time."""
        for rows, codes, scales in codec.parts(matrix, state.codes, state.scales):
            missed = rows - codec.decode(state.codebooks, codes, scales, self.layout)
            yield missed, missed @ self.moment

    def blocks(self) -> list[slice]:
        """The sub-vectors in runs of about `_BLOCK_COLUMNS` columns."""
        size = max(1, _BLOCK_COLUMNS // self.layout.sub_vector)
        last = self.layout.sub_vectors
        return [slice(start, min(start + size, last)) for start in range(0, last, size)]

    def columns(self, sub_vectors: slice) -> slice:
        """The columns of a run of sub-vectors."""
        return slice(sub_vectors.start * self.layout.sub_vector, sub_vectors.stop * self.layout.sub_vector)


@dataclass(frozen=True)
class State:
    """An approximation.

    Attributes:
        codebooks: [G, K, d].
        codes: [out, M] uint8.
        scales: [out], positive.
    """

    codebooks: Tensor
    codes: Tensor
    scales: Tensor

    def matrix(self, layout: Layout) -> Tensor:
        """Ŵ [out, M*d]."""
        return codec.decode(self.codebooks, self.codes, self.scales, layout)


def encode(
    matrix: Tensor,
    layout: Layout,
    moment: Tensor,
    *,
    generator: torch.Generator,
    rounds: int = ROUNDS,
    upper: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Product-quantize a matrix so that ``tr((W - Ŵ) H (W - Ŵ)^T)`` is small.

    Args:
        matrix: W [out, in] float32.
        layout: how to cut it.
        moment: H [in, in] float32, positive definite; while it is factored its rows and columns are in reverse.
        generator: source of randomness.
        rounds: limit of the rounds of coordinate descent; 0 is several times faster, for an error up to twice as large.
        upper: `factor_of_inverse` of the moment, for those who have it.

    Returns:
        Codebooks [G, K, d] float32, codes [out, M] uint8, scales [out] float32.
    """
    # Squares of very large or small weights would leave float32; a power of two changes no digit.
    _, exponent = torch.frexp(matrix.abs().max())
    exponent = torch.where(exponent.abs() > _LARGE, exponent, 0)
    problem = _padded(matrix if exponent == 0 else torch.ldexp(matrix, -exponent), layout, moment)
    del matrix, moment  # as large as the layer each, and of no use where they were filled up
    state, error = _fed_back(problem, start(problem, generator), upper)
    for _ in range(rounds):
        state = descend(problem, fit_scales(problem, fit_codebooks(problem, state)))
        before, error = error, problem.error(state)
        if before - error <= SETTLED * before:
            break
    state = fit_scales(problem, fit_codebooks(problem, state))
    return state.codebooks, state.codes, torch.ldexp(state.scales, exponent)


def coded(
    matrix: Tensor, layout: Layout, moment: Tensor, codebooks: Tensor, *, upper: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes [out, M] and scales [out] of rows [out, in] for given codebooks [G, K, d]; see `encode`."""
    problem = _padded(matrix, layout, moment)
    scales = codec.row_scales(problem.matrix)
    codes = codec.assign(problem.matrix / scales.unsqueeze(1), codebooks, problem.layout)
    state, _ = _fed_back(problem, fit_scales(problem, State(codebooks, codes, scales)), upper)
    state = fit_scales(problem, state)
    return state.codes, state.scales


def _fed_back(problem: Problem, state: State, upper: Tensor | None) -> tuple[State, float]:
    """The better one of a state and what `feedback` makes of it, and its error."""
    fed = feedback(problem, state, upper)
    error, fed_error = problem.error(state), problem.error(fed)
    return (fed, fed_error) if fed_error < error else (state, error)


def _padded(matrix: Tensor, layout: Layout, moment: Tensor) -> Problem:
    """Filled up to whole sub-vectors; what the last codewords hold there counts for next to nothing."""
    missing = layout.sub_vectors * layout.sub_vector - layout.in_features
    if missing == 0:
        return Problem(matrix, moment, layout)
    moment = torch.nn.functional.pad(moment, (0, missing, 0, missing))
    moment.diagonal()[layout.in_features :] = 1e-4 * moment.diagonal().mean()
    matrix = torch.nn.functional.pad(matrix, (0, missing))
    return Problem(matrix, moment, replace(layout, in_features=matrix.shape[1]))


def start(problem: Problem, generator: torch.Generator) -> State:
    """k-means, each point weighted by the squared scale of its row and the mean H of its position's inputs."""
    layout = problem.layout
    scales = codec.row_scales(problem.matrix)
    inputs = problem.moment.diagonal().reshape(layout.sub_vectors, -1).mean(1)
    codebooks, codes = codec.cluster(problem.matrix, scales, layout, positions=inputs, generator=generator)
    return fit_scales(problem, State(codebooks, codes, scales))


def feedback(problem: Problem, state: State, upper: Tensor | None = None) -> State:
    """New codes for given codebooks and scales, with the error of each passed on to the columns after it.

    With U upper triangular and ``U^T U = H^-1``, the best reaction of the later columns to an error e of sub-vector m
    is ``-e U_mm^-1 U_m,later``, and then e costs ``|e U_mm^-1|^2``.

    Args:
        problem: what to approximate.
        state: with the codebooks and the scales.
        upper: U, without what was filled up, for those who have it.
    """
    d = problem.layout.sub_vector
    upper = factor_of_inverse(problem.moment) if upper is None else _filled_up(upper, problem.moment)
    identity = torch.eye(d, dtype=upper.dtype, device=upper.device)
    whiteners = torch.linalg.solve_triangular(_diagonal_blocks(upper, d), identity, upper=True)
    # Rows do not depend on each other.
    count = max(1, _FED_ELEMENTS // problem.matrix.shape[1])
    rows = zip(*(torch.split(each, count) for each in (problem.matrix, state.scales.unsqueeze(1))), strict=True)
    codes = [_fed(problem, state.codebooks, part / scales, upper, whiteners) for part, scales in rows]
    return replace(state, codes=torch.cat(codes))


def _fed(problem: Problem, codebooks: Tensor, wanted: Tensor, upper: Tensor, whiteners: Tensor) -> Tensor:
    """The codes [n, M] of n rows of unit size, which are overwritten: see `feedback`."""
    layout, d = problem.layout, problem.layout.sub_vector
    codes = torch.empty(len(wanted), layout.sub_vectors, dtype=torch.uint8, device=wanted.device)
    for block in problem.blocks():
        columns = problem.columns(block)
        inside, coupling = wanted[:, columns], upper[columns, columns]
        errors = torch.empty_like(inside)
        for m in range(block.start, block.stop):
            at = slice((m - block.start) * d, (m - block.start + 1) * d)
            targets = inside[:, at] @ whiteners[m]
            codewords = codebooks[m // layout.per_group] @ whiteners[m]
            nearest = _nearest(targets, codewords)
            codes[:, m] = nearest
            errors[:, at] = targets - codewords[nearest]
            inside[:, at.stop :] -= errors[:, at] @ coupling[at, at.stop :]
        wanted[:, columns.stop :].addmm_(errors, upper[columns, columns.stop :], alpha=-1)
    return codes


def _filled_up(upper: Tensor, moment: Tensor) -> Tensor:
    """The factor for a moment that was filled up (`_padded`), from that before."""
    size, missing = len(upper), len(moment) - len(upper)
    if missing == 0:
        return upper
    filled = torch.nn.functional.pad(upper, (0, missing, 0, missing))
    filled.diagonal()[size:] = moment.diagonal()[size:].rsqrt()
    return filled


def factor_of_inverse(moment: Tensor) -> Tensor:
    """U, upper triangular, with ``U^T U = H^-1``.

    With the order of the inputs reversed it is the inverse of the Cholesky factor of H; so neither H^-1 is computed,
    whose own factorization would need twice the digits, nor any matrix beyond those two: H itself is reversed for the
    time of that.
    """
    _reverse(moment)
    try:
        lower: Tensor = torch.linalg.cholesky(moment)
    finally:
        _reverse(moment)
    _invert(lower)
    _reverse(lower)
    return lower


def _reverse(matrix: Tensor) -> None:
    """Reverse the order of rows and columns in place."""
    size = len(matrix)
    for start in range(0, (size + 1) // 2, _BLOCK_COLUMNS):
        stop = min(start + _BLOCK_COLUMNS, (size + 1) // 2)
        first, last = matrix[start:stop], matrix[size - stop : size - start]
        turned = first.flip(0, 1)
        first.copy_(last.flip(0, 1))
        last.copy_(turned)


def _invert(lower: Tensor) -> None:
    """Invert a lower triangular matrix in place: its halves, and ``-C^-1 B A^-1`` for what is left of B."""
    size = len(lower)
    if size <= _BLOCK_COLUMNS:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, last, coupling = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert(first)
    _invert(last)
    coupling.addmm_(last @ coupling, first, beta=0, alpha=-1)


def descend(problem: Problem, state: State) -> State:
    """One sweep of coordinate descent over the codes: each sub-vector's best codewords given all other sub-vectors.

    With P = E H, sub-vector m of unit rows would best be ``c_m + P_m H_mm^-1 / s``, and an error e of it costs
    ``s^2 e H_mm e^T``.
    """
    layout, d = problem.layout, problem.layout.sub_vector
    scales = state.scales.unsqueeze(1)
    lower = torch.linalg.cholesky(_diagonal_blocks(problem.moment, d))
    pull = torch.empty_like(problem.matrix)
    for into, (_, pulled) in zip(codec.parts(pull), problem.pulled(problem.matrix, state), strict=True):
        into[0].copy_(pulled)
    codes = state.codes.clone()
    for block in problem.blocks():
        columns = problem.columns(block)
        inside, coupling = pull[:, columns].clone(), problem.moment[columns, columns]
        changes = torch.empty_like(inside)
        for m in range(block.start, block.stop):
            at = slice((m - block.start) * d, (m - block.start + 1) * d)
            codebook = state.codebooks[m // layout.per_group]
            now = codebook[codes[:, m].long()]
            step = torch.linalg.solve_triangular(lower[m].T, inside[:, at] / scales, upper=True, left=False)
            # X L^T = P/s, so X = P H^-1 L / s: the step, seen through L as the codewords are.
            nearest = _nearest(now @ lower[m] + step, codebook @ lower[m])
            codes[:, m] = nearest
            changes[:, at] = scales * (now - codebook[nearest])
            inside += changes[:, at] @ coupling[at]
        pull.addmm_(changes, problem.moment[columns])
    return replace(state, codes=codes)


def fit_codebooks(problem: Problem, state: State) -> State:
    """Codebooks by least squares under H, codes and scales in place: a few preconditioned conjugate-gradient steps."""
    layout, nothing = problem.layout, torch.zeros((), device=problem.matrix.device)

    def gather(parts: Iterable[Tensor]) -> Tensor:
        """Transpose of decoding: sums [G, K, d] of the sub-vectors of [out, in], given by parts, by codeword."""
        sums = torch.zeros_like(state.codebooks).reshape(-1, layout.sub_vector)
        for rows, (codes, scales) in zip(parts, codec.parts(state.codes, state.scales), strict=True):
            scaled = (rows * scales.unsqueeze(1)).reshape(-1, layout.sub_vector)
            sums.index_add_(0, codec.flat_index(codes, layout).reshape(-1), scaled)
        return sums.reshape(state.codebooks.shape)

    def pulled(matrix: Tensor, codebooks: Tensor) -> Tensor:
        parts = problem.pulled(matrix, replace(state, codebooks=codebooks))
        return gather(rows for _, rows in parts)

    codebooks = state.codebooks
    residual = pulled(problem.matrix, codebooks)
    diagonal = problem.moment.diagonal()
    curvature = gather(scales.unsqueeze(1) * diagonal for (scales,) in codec.parts(state.scales))
    scaling = torch.where(curvature > 0, 1 / curvature.clamp_min(torch.finfo(curvature.dtype).tiny), 0)
    ahead = scaling * residual
    power = torch.sum(residual * ahead)
    for _ in range(CG_STEPS):
        bent = -pulled(nothing.expand_as(problem.matrix), ahead)
        curve = torch.sum(ahead * bent)
        if float(power) <= 0 or float(curve) <= 0:  # there, as far as float32 can tell
            break
        length = power / curve
        codebooks = codebooks + length * ahead
        residual = residual - length * bent
        before, power = power, torch.sum(residual * scaling * residual)
        ahead = scaling * residual + (power / before) * ahead
    return replace(state, codebooks=codebooks)


def fit_scales(problem: Problem, state: State) -> State:
    """Row scales by least squares under H, up to `MOST_SCALE`; a row keeps its own where one would not be positive."""
    products = []
    for rows, codes, own in codec.parts(problem.matrix, state.codes, state.scales):
        unit = codec.decode(state.codebooks, codes, torch.ones_like(own), problem.layout)
        pulled = unit @ problem.moment
        products.append(torch.stack([torch.einsum("oi,oi->o", pulled, part) for part in (rows, unit)]))
    wanted, power = torch.cat(products, 1)
    scales = wanted / power.clamp_min(torch.finfo(power.dtype).tiny)
    scales = torch.minimum(scales, torch.maximum(MOST_SCALE * codec.row_scales(problem.matrix), state.scales))
    return replace(state, scales=torch.where((power > 0) & (scales > 0), scales, state.scales))


def _diagonal_blocks(matrix: Tensor, size: int) -> Tensor:
    """The blocks [M, d, d] on the diagonal of [M*d, M*d]."""
    count = len(matrix) // size
    grid = matrix.reshape(count, size, count, size)
    return grid.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def _nearest(points: Tensor, codewords: Tensor) -> Tensor:
    """Index [N] of the codeword [K, d] nearest to each point [N, d]."""
    return kmeans.nearest(points.unsqueeze(0), codewords.unsqueeze(0))[0].long()
