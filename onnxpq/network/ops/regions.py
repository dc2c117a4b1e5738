"""Images taken apart and put together: blocks, regions, boxes, and convolutions that look elsewhere."""
# ruff: noqa: ARG001, PLR0913, PLR0917 - parameters are ONNX's inputs and attributes: their number is given

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register
from onnxpq.network.ops.tensors import ints


@register("Col2Im", 18)
def col2im(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Blocks [N, C * prod(block), L] summed where they overlap in an image [N, C, *image]."""
    image, block = ints(image_shape), ints(block_shape)
    rank = len(image)
    along, apart, edges = strides or [1] * rank, dilations or [1] * rank, list(pads or [0] * 2 * rank)
    padded = [size + edges[i] + edges[rank + i] for i, size in enumerate(image)]
    # For each entry of a block and each block: where it goes in the padded image.
    entries = torch.zeros([1] * 2 * rank, dtype=torch.int64)
    for i, size in enumerate(padded):
        first = torch.arange(0, size - apart[i] * (block[i] - 1), along[i])
        places = (torch.arange(block[i]) * apart[i]).unsqueeze(1) + first
        shape = [1] * 2 * rank
        shape[i], shape[rank + i] = places.shape
        entries = entries * size + places.reshape(shape)
    channels = x.shape[1] // math.prod(block)
    values = x.reshape(len(x), channels, -1)
    empty = values.new_zeros(len(x), channels, math.prod(padded))
    y = empty.index_add(2, entries.reshape(-1).to(x.device), values).reshape(len(x), channels, *padded)
    for i, size in enumerate(image):
        y = y.narrow(2 + i, edges[i], size)
    return y


@register("MaxUnpool", 9, 11, 22)
def max_unpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Zeros with the values of x where a MaxPool found them: indices count the entries of the pooled tensor."""
    rank = x.ndim - 2
    along, edges = strides or [1] * rank, pads or [0] * 2 * rank
    sizes = [(x.shape[2 + i] - 1) * along[i] + kernel_shape[i] - edges[i] - edges[rank + i] for i in range(rank)]
    shape = [*x.shape[:2], *sizes]
    y = x.new_zeros(math.prod(shape)).scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(shape)
    if output_shape is None:
        return y
    # The indices are those of the smallest tensor that was pooled; what a larger one has more lies behind.
    wanted = ints(output_shape)
    behind = [(0, large - small) for large, small in zip(wanted, shape, strict=True)]
    return functional.pad(y, [edge for pair in reversed(behind) for edge in pair])


@register("RoiAlign", 10)
def roi_align_10(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """RoiAlign whose regions count from the middle of the first pixel, and are at least a pixel large."""
    return _roi_align(
        x, rois, batch_indices, mode, (output_height, output_width), sampling_ratio, spatial_scale, half_pixel=False
    )


@register("RoiAlign", 16, 22)
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Regions (x1, y1, x2, y2) [R, 4] of images [N, C, H, W], each sampled to [C, height, width]."""
    half_pixel = coordinate_transformation_mode == "half_pixel"
    return _roi_align(
        x, rois, batch_indices, mode, (output_height, output_width), sampling_ratio, spatial_scale, half_pixel
    )


def _roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    mode: str,
    size: tuple[int, int],
    sampling_ratio: int,
    spatial_scale: float,
    half_pixel: bool,
) -> Tensor:
    if mode not in ("avg", "max"):
        raise UnsupportedOperatorError(f"RoiAlign in mode '{mode}'; expected avg or max.")
    corners = rois * spatial_scale - (0.5 if half_pixel else 0.0)
    regions = [x.new_zeros(0, x.shape[1], *size)]
    for (x1, y1, x2, y2), image in zip(corners.unbind(0), ints(batch_indices), strict=True):
        extent = [y2 - y1, x2 - x1] if half_pixel else [(y2 - y1).clamp(min=1), (x2 - x1).clamp(min=1)]
        # In each bin a grid of points: of the number asked for, or else one for each pixel.
        counts = [sampling_ratio or math.ceil(float(e.detach()) / n) for e, n in zip(extent, size, strict=True)]
        ys, xs = (
            start + (torch.arange(n * count, device=x.device) + 0.5) * (e / (n * max(1, count)))
            for start, e, n, count in zip((y1, x1), extent, size, counts, strict=True)
        )
        parts = _bilinear_parts(x[image], ys, xs)
        points = parts.sum(0) if mode == "avg" else parts.amax(0)  # ONNX's maximum is over the weighted neighbours
        bins = points.reshape(-1, size[0], counts[0], size[1], counts[1])
        regions.append((bins.mean((2, 4)) if mode == "avg" else bins.amax((2, 4))).unsqueeze(0))
    return torch.cat(regions)


def _bilinear_parts(image: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """The four neighbours of each point, times their weights [4, C, len(ys), len(xs)]; zero off the image."""
    along = []
    for places, size in ((ys, image.shape[1]), (xs, image.shape[2])):
        inside = ((places >= -1) & (places <= size)).to(image.dtype)
        at = places.clamp(0, size - 1)
        low = at.floor().to(torch.int64)
        weight = at - low
        along.append(((low, (1 - weight) * inside), ((low + 1).clamp(max=size - 1), weight * inside)))
    return torch.stack(
        [
            image[:, row][:, :, column] * (row_weight.unsqueeze(1) * column_weight)
            for (row, row_weight), (column, column_weight) in itertools.product(*along)
        ]
    )


@register("NonMaxSuppression", 10, 11)
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """(image, class, box) of the best of boxes [N, B, 4], by scores [N, classes, B], that overlap no better ones."""
    most = 0 if max_output_boxes_per_class is None else ints(max_output_boxes_per_class)[0]
    overlap = 0.0 if iou_threshold is None else float(iou_threshold.detach())
    corners = _corners(boxes, center_point_box)
    chosen: list[list[int]] = []
    for image, class_ in itertools.product(range(scores.shape[0]), range(scores.shape[1])):
        row = scores[image, class_]
        order = torch.argsort(row, descending=True, stable=True)
        if score_threshold is not None:
            order = order[row[order] > float(score_threshold.detach())]
        kept: list[int] = []
        for box in order.tolist():
            if len(kept) == most:
                break
            if not kept or not bool((_overlaps(corners[image, kept], corners[image, box]) > overlap).any()):
                kept.append(box)
        chosen.extend([image, class_, box] for box in kept)
    return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, is_centre: int) -> Tensor:
    """[..., (low, low, high, high)], of boxes given by two opposite corners or by centre and size."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if is_centre:
        return torch.cat([first - second / 2, first + second / 2], -1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union of boxes [B, 4] and one [4]."""
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    common = (high - low).clamp(min=0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1) + (box[2:] - box[:2]).prod(-1)
    return torch.where(common > 0, common / (areas - common), common)


@register("DeformConv", 19, 22)
def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Convolution of images whose kernel's points are moved by `offset` and weighted by `mask` at each place.

    x [N, C, H, W], w [O, C / group, kh, kw], offset [N, offset_group * kh * kw * 2, h, w], mask without the 2.
    """
    if x.ndim != 4:
        raise UnsupportedOperatorError(f"DeformConv of an input of {x.ndim} axes; only images (4 axes) are supported.")
    (n, c, *sizes), (kh, kw), (h, width) = x.shape, w.shape[2:], offset.shape[2:]
    along, apart, edges = strides or [1, 1], dilations or [1, 1], pads or [0] * 4
    moved = offset.reshape(n * offset_group, kh, kw, 2, h, width)
    coordinates = []
    for axis, (size, points, results) in enumerate(zip(sizes, (kh, kw), (h, width), strict=True)):
        shape = [1] * 5
        shape[1 + axis], shape[3 + axis] = points, results
        kernel = torch.arange(points, device=x.device) * apart[axis]
        places = torch.arange(results, device=x.device) * along[axis] - edges[axis]
        at = moved[:, :, :, axis] + (kernel.unsqueeze(1) + places).reshape(shape)
        coordinates.append((2 * at + 1) / size - 1)
    grid = torch.stack(coordinates[::-1], -1).reshape(n * offset_group, kh * kw * h, width, 2)
    images = x.reshape(n * offset_group, c // offset_group, *sizes)
    sampled = functional.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)
    columns = sampled.reshape(n * offset_group, c // offset_group, kh * kw, h * width)
    if mask is not None:
        columns = columns * mask.reshape(n * offset_group, 1, kh * kw, h * width)
    columns = columns.reshape(n, group, c // group * kh * kw, h * width)
    y = (w.reshape(group, len(w) // group, -1) @ columns).reshape(n, len(w), h, width)
    return y if b is None else y + b.reshape(-1, 1, 1)
