"""Recurrent layers: RNN, GRU and LSTM in all directions, with initial states and sequence lengths.

Letters: T steps, N batch, I inputs, H hidden units, D directions (1 or 2), G gates (RNN 1, GRU 3, LSTM 4).
"""
# ruff: noqa: ARG001, PLR0913, PLR0917 - parameters are ONNX's inputs and attributes: their number is given

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register

_States = tuple[Tensor, ...]
_Step = Callable[[Tensor, _States], _States]
_Activation = Callable[[Tensor], Tensor]


@register("RNN", 7, 14, 22)
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] = ("Tanh", "Tanh"),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, Tensor]:
    """One layer of the plain recurrence; x [T, N, I], w [D, H, I], r [D, H, H], b [D, 2H].

    Returns:
        All states [T, D, N, H] and the last one [D, N, H] (`layout` 1 puts N first everywhere).
    """
    functions = _activations(activations, activation_alpha, activation_beta, clip)
    layer = _Layer(w, r, b, sequence_lens, direction, layout)

    def step(d: int) -> _Step:
        (f,) = functions[d : d + 1]
        _, rb = layer.biases(d)
        return lambda gates, states: (f(gates + functional.linear(states[0], r[d], rb)),)

    y, (h,) = layer.run(x, (initial_h,), step)
    return y, h


@register("GRU", 7, 14, 22)
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent units; gates in the order update, reset, hidden: w [D, 3H, I], r [D, 3H, H], b [D, 6H].

    Returns:
        All states [T, D, N, H] and the last one [D, N, H] (`layout` 1 puts N first everywhere).
    """
    names = activations or ("Sigmoid", "Tanh") * w.shape[0]
    functions = _activations(names, activation_alpha, activation_beta, clip)
    layer = _Layer(w, r, b, sequence_lens, direction, layout)
    hidden = r.shape[-1]

    def step(d: int) -> _Step:
        f, g = functions[2 * d : 2 * d + 2]
        _, rb = layer.biases(d)
        r_gates, r_hidden = torch.split_with_sizes(r[d], [2 * hidden, hidden])
        b_gates, b_hidden = (None, None) if rb is None else torch.split_with_sizes(rb, [2 * hidden, hidden])

        def advance(gates: Tensor, states: _States) -> _States:
            (h,) = states
            x_gates, x_hidden = torch.split_with_sizes(gates, [2 * hidden, hidden], -1)
            update, reset = f(x_gates + functional.linear(h, r_gates, b_gates)).chunk(2, -1)
            if linear_before_reset:
                recurrent = reset * functional.linear(h, r_hidden, b_hidden)
            else:
                recurrent = functional.linear(reset * h, r_hidden, b_hidden)
            return ((1 - update) * g(x_hidden + recurrent) + update * h,)

        return advance

    y, (h,) = layer.run(x, (initial_h,), step)
    return y, h


@register("LSTM", 7, 14, 22)
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory; gates in the order input, output, forget, cell: w [D, 4H, I], r [D, 4H, H], b [D, 8H].

    The peepholes p [D, 3H] are those of input, output and forget gate.

    Returns:
        All states [T, D, N, H], the last one and the last cell [D, N, H] (`layout` 1 puts N first everywhere).
    """
    names = activations or ("Sigmoid", "Tanh", "Tanh") * w.shape[0]
    functions = _activations(names, activation_alpha, activation_beta, clip)
    unclipped = _activations(names, activation_alpha, activation_beta, None)
    layer = _Layer(w, r, b, sequence_lens, direction, layout)
    peepholes = w.new_zeros(w.shape[0], 3 * r.shape[-1]) if p is None else p

    def step(d: int) -> _Step:
        f, g, _ = functions[3 * d : 3 * d + 3]
        # onnxruntime does not clip the cell.
        h_function = unclipped[3 * d + 2]
        _, rb = layer.biases(d)
        p_input, p_output, p_forget = peepholes[d].chunk(3)

        def advance(gates: Tensor, states: _States) -> _States:
            h, c = states
            i, o, forget, cell = (gates + functional.linear(h, r[d], rb)).chunk(4, -1)
            i = f(i + p_input * c)
            forget = 1 - i if input_forget else f(forget + p_forget * c)
            c = forget * c + i * g(cell)
            return f(o + p_output * c) * h_function(c), c

        return advance

    y, (h, c) = layer.run(x, (initial_h, initial_c), step)
    return y, h, c


@dataclass(frozen=True)
class _Layer:
    """What the three kinds have in common.

    Attributes:
        w: input weights [D, G*H, I].
        r: recurrent weights [D, G*H, H].
        b: biases of both [D, 2*G*H].
        lengths: number of steps of each sequence [N], all T where None.
        direction: forward, reverse or bidirectional.
        layout: 1 where the batch is the first axis of x and the states.
    """

    w: Tensor
    r: Tensor
    b: Tensor | None
    lengths: Tensor | None
    direction: str
    layout: int

    def biases(self, d: int) -> tuple[Tensor | None, Tensor | None]:
        """Those of the input weights and of the recurrent weights, [G*H] each."""
        if self.b is None:
            return None, None
        of_input, of_state = self.b[d].chunk(2)
        return of_input, of_state

    def run(self, x: Tensor, initial: Sequence[Tensor | None], step: Callable[[int], _Step]) -> tuple[Tensor, _States]:
        """All states, and the last ones: of every kind of state its initial value is in `initial`."""
        x = x.transpose(0, 1) if self.layout else x
        size = (len(self.w), x.shape[1], self.r.shape[-1])
        starts = [x.new_zeros(size) if s is None else s.transpose(0, 1) if self.layout else s for s in initial]
        outputs, finals = [], []
        for d, backwards in enumerate(_backwards(self.direction)):
            order = self._reversed_steps(x) if backwards else None
            inputs = _reorder(functional.linear(x, self.w[d], self.biases(d)[0]), order)
            y, states = self._recur(inputs, tuple(start[d] for start in starts), step(d))
            outputs.append(_reorder(y, order))
            finals.append(states)
        last = tuple(torch.stack(states, 1 if self.layout else 0) for states in zip(*finals, strict=True))
        # [T, N, H] for each direction -> [T, D, N, H] or [N, T, D, H]
        return (torch.stack([y.transpose(0, 1) for y in outputs], 2) if self.layout else torch.stack(outputs, 1)), last

    def _recur(self, inputs: Tensor, states: _States, step: _Step) -> tuple[Tensor, _States]:
        outputs = []
        for t, gates in enumerate(inputs.unbind(0)):
            new = step(gates, states)
            if self.lengths is None:
                states = new
                outputs.append(new[0])
                continue
            # After the end of a sequence its state stays, and its output is zero.
            runs = (t < self.lengths).unsqueeze(-1)
            states = tuple(torch.where(runs, after, before) for after, before in zip(new, states, strict=True))
            outputs.append(torch.where(runs, new[0], torch.zeros_like(new[0])))
        return torch.stack(outputs), states

    def _reversed_steps(self, x: Tensor) -> Tensor:
        """[T, N]: which step is read at each step; every sequence is reversed within its own length."""
        steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        if self.lengths is None:
            return (x.shape[0] - 1 - steps).expand(x.shape[:2])
        lengths = self.lengths.to(torch.int64)
        return torch.where(steps < lengths, lengths - 1 - steps, steps)


def _reorder(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else x.gather(0, order.unsqueeze(-1).expand_as(x))


def _backwards(direction: str) -> tuple[bool, ...]:
    known = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    if direction not in known:
        raise UnsupportedOperatorError(f"Direction '{direction}'; expected one of {', '.join(known)}.")
    return known[direction]


# Name -> function, default alpha, default beta; None: the function has no such parameter.
_FUNCTIONS: dict[str, tuple[Callable[..., Tensor], float | None, float | None]] = {
    "affine": (lambda x, alpha, beta: alpha * x + beta, 1.0, 0.0),
    "elu": (lambda x, alpha, _: functional.elu(x, alpha), 1.0, None),
    "hardsigmoid": (lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1), 0.2, 0.5),
    "leakyrelu": (lambda x, alpha, _: functional.leaky_relu(x, alpha), 0.01, None),
    "relu": (lambda x, *_: torch.relu(x), None, None),
    "scaledtanh": (lambda x, alpha, beta: alpha * torch.tanh(beta * x), 1.0, 1.0),
    "sigmoid": (lambda x, *_: torch.sigmoid(x), None, None),
    "softplus": (lambda x, *_: functional.softplus(x), None, None),
    "softsign": (lambda x, *_: functional.softsign(x), None, None),
    "tanh": (lambda x, *_: torch.tanh(x), None, None),
    "thresholdedrelu": (lambda x, alpha, _: torch.where(x > alpha, x, torch.zeros_like(x)), 1.0, None),
}


def _activations(
    names: Sequence[str], alphas: Sequence[float] | None, betas: Sequence[float] | None, clip: float | None
) -> list[_Activation]:
    """The functions, each after the clipping; `alphas` and `betas` serve those that take them, in order."""
    alpha_values, beta_values = iter(alphas or ()), iter(betas or ())
    found = []
    for name in names:
        if name.lower() not in _FUNCTIONS:
            raise UnsupportedOperatorError(f"Activation '{name}' of a recurrent layer is not known.")
        fn, alpha, beta = _FUNCTIONS[name.lower()]
        alpha = alpha if alpha is None else next(alpha_values, alpha)
        beta = beta if beta is None else next(beta_values, beta)
        found.append(_bound(fn, alpha, beta, clip))
    return found


def _bound(fn: Callable[..., Tensor], alpha: Any, beta: Any, clip: float | None) -> _Activation:
    def apply(x: Tensor) -> Tensor:
        return fn(x if clip is None else torch.clamp(x, -clip, clip), alpha, beta)

    return apply
