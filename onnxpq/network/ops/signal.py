"""Fourier transforms, and the windows and weights that go with them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register
from onnxpq.network.ops.tensors import ints, torch_dtype


@register("DFT", 17)
def dft_17(
    x: Tensor, dft_length: Tensor | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """DFT before opset 20: the axis is an attribute."""
    return _dft(x, dft_length, axis, inverse, onesided)


@register("DFT", 20)
def dft(
    x: Tensor,
    dft_length: Tensor | None = None,
    axis: Tensor | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """The discrete Fourier transform along one axis; the last axis holds real and imaginary part, or the real one."""
    return _dft(x, dft_length, -2 if axis is None else ints(axis)[0], inverse, onesided)


def _dft(x: Tensor, dft_length: Tensor | None, axis: int, inverse: int, onesided: int) -> Tensor:
    axis = axis % x.ndim
    # Half of a spectrum stands for twice as many samples.
    whole = 2 * (x.shape[axis] - 1) if inverse and onesided else x.shape[axis]
    length = whole if dft_length is None else ints(dft_length)[0]
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1).to(torch.complex64)
    if inverse and onesided:
        samples: Tensor = torch.fft.irfft(values, length, axis)
        return samples.unsqueeze(-1)
    y: Tensor = torch.fft.ifft(values, length, axis) if inverse else torch.fft.fft(values, length, axis)
    return torch.view_as_real(y.narrow(axis, 0, length // 2 + 1) if onesided else y)


@register("STFT", 17)
def stft(
    signal: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """DFT of each frame of signals [N, length, 1 or 2], times the window: [N, frames, bins, 2]."""
    (step,) = ints(frame_step)
    length = ints(frame_length)[0] if frame_length is not None else 0 if window is None else len(window)
    if length == 0:
        raise UnsupportedOperatorError("STFT has neither a window nor a frame length.")
    frames = signal.unsqueeze(-1) if signal.ndim == 2 else signal
    frames = frames.unfold(1, length, step).movedim(-1, 2)  # [N, frames, length, 1 or 2]
    if window is not None:
        frames = frames * window.unsqueeze(-1)
    return _dft(frames, None, 2, 0, onesided)


@register("MelWeightMatrix", 17)
def mel_weight_matrix(
    num_mel_bins: Tensor,
    dft_length: Tensor,
    sample_rate: Tensor,
    lower_edge_hertz: Tensor,
    upper_edge_hertz: Tensor,
    *,
    output_datatype: int = 1,
) -> Tensor:
    """[dft_length // 2 + 1, num_mel_bins]: triangles between frequencies that are equally far apart in mel."""
    (count,), (length,), (rate,) = ints(num_mel_bins), ints(dft_length), ints(sample_rate)
    low, high = (2595 * math.log10(1 + float(hertz.detach()) / 700) for hertz in (lower_edge_hertz, upper_edge_hertz))
    mel = low + torch.arange(count + 2, dtype=torch.float64) * ((high - low) / (count + 2))
    hertz = 700 * (10 ** (mel / 2595) - 1)
    edges = torch.div((length + 1) * hertz, rate, rounding_mode="floor")
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(length // 2 + 1, dtype=torch.float64).unsqueeze(1)
    rising = torch.where(centre > left, (bins - left) / (centre - left).clamp(min=1), (bins == centre).to(bins.dtype))
    falling = (right - bins) / (right - centre).clamp(min=1)
    triangles = torch.where((bins > centre) & (right > centre), falling, rising)
    inside = (bins >= left) & ((bins < right) | (bins == centre))
    return (triangles * inside).to(torch_dtype(output_datatype))


@register("HannWindow", 17)
def hann_window(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """1/2 - 1/2 cos."""
    return _cosines(size, (0.5, -0.5), output_datatype, periodic)


@register("HammingWindow", 17)
def hamming_window(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """25/46 - 21/46 cos."""
    return _cosines(size, (25 / 46, -21 / 46), output_datatype, periodic)


@register("BlackmanWindow", 17)
def blackman_window(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    """0.42 - 0.5 cos + 0.08 cos of twice the angle."""
    return _cosines(size, (0.42, -0.5, 0.08), output_datatype, periodic)


def _cosines(size: Tensor, factors: Sequence[float], dtype: int, periodic: int) -> Tensor:
    count = ints(size)[0]
    angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / (count if periodic else count - 1))
    total = torch.stack([factor * torch.cos(i * angle) for i, factor in enumerate(factors)]).sum(0)
    return total.to(torch_dtype(dtype))
