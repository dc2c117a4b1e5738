"""The extra terms of the cost function that pull weights to values that quantize well.

The method is that of "Compression of Deep Neural Networks on the Fly" (Soulié, Gripon, Robert; arXiv 1509.08745): the
cost is ``task + alpha * R(W)`` with alpha growing while the network is trained. The paper's full text was not at hand,
so which R it uses is not stated here: the first four are the family of binarising penalties after Murray and Ng (2010),
its reference [27], as we read it; `codebook` is ours, the same idea without forcing the weights to be binary.

Every term takes ``u = W / s``, [out, in], where s is a scale per row (its mean absolute value, not differentiated), and
gives the mean over all weights, so that alpha means the same for layers of every size. s keeps weights of trained
networks, around 0.05, from being dragged to +-1.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor


def murray_ng(u: Tensor) -> Tensor:
    """``1 - u^2`` with u clipped to [-1, 1]: concave, no force at 0 nor beyond +-1.

    Four times Murray and Ng's x (1 - x) with x = (u + 1) / 2.
    """
    return (1 - u.clamp(-1, 1).square()).mean()


def l1(u: Tensor) -> Tensor:
    """``| |u| - 1 |``: a constant pull."""
    return (u.abs() - 1).abs().mean()


def l2(u: Tensor) -> Tensor:
    """``(|u| - 1)^2``: a pull in proportion to the distance."""
    return (u.abs() - 1).square().mean()


def quartic(u: Tensor) -> Tensor:
    """``(u^2 - 1)^2``: a smooth double well, no pull at 0."""
    return (u.square() - 1).square().mean()


BINARY_TERMS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "murray-ng": murray_ng,
    "l1": l1,
    "l2": l2,
    "quartic": quartic,
}
"""Terms of the weights alone, by the name that the user gives."""


def binary_term(name: str, matrix: Tensor) -> Tensor:
    """The term `name` of BINARY_TERMS for a weight matrix [out, in], its rows scaled to unit mean absolute value.

    Returns:
        A scalar; differentiable in `matrix`, with the scale held fixed.
    """
    scale = matrix.detach().abs().mean(1, keepdim=True)
    return BINARY_TERMS[name](matrix / torch.where(scale > 0, scale, torch.ones_like(scale)))


def codebook_term(matrix: Tensor, target: Tensor) -> Tensor:
    """Squared distance of a weight matrix [out, in] to its quantized form `target`.

    It is relative to the mean square of `target`, which is refreshed by re-assignment while training goes on and is not
    differentiated.
    """
    power = target.square().mean()
    return (matrix - target).square().mean() / torch.where(power > 0, power, torch.ones_like(power))
