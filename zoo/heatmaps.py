"""Belief maps: Gaussians around joints, and the ways to read joints out of maps.

Points here are in **cells**: (x, y), cell centres at integers; ``zoo.geometry.px_to_cell`` and
``cell_to_px`` convert (cell k has its centre at (k + 1/2) * stride - 1/2 px). Belief maps follow
Wei et al. 2016 and Tome et al. 2017: one map a joint with a Gaussian of peak 1, and one more for
the background, ``max(0, 1 - max over joints)``.

Shape letters: N samples (batch and frames folded), J joints, H/W cells.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoo.geometry import cell_to_px, px_to_cell
from zoo.layers import masked_sample_mean

__all__ = [
    "ReadOut",
    "append_background",
    "argmax_points",
    "belief_loss",
    "belief_targets",
    "gaussian_maps",
    "inside_map",
    "quarter_offset",
    "read_points",
    "soft_argmax",
]

ReadOut = Literal["argmax", "quarter", "soft"]


# ---- making maps ---------------------------------------------------------------------------------


def inside_map(points: Tensor, height: int, width: int) -> Tensor:
    """(..., 2) cells -> (...) bool: the point lies on the map, edges of its cells included."""
    x, y = points.unbind(-1)
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


def gaussian_maps(points: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """Gaussians of peak 1 at sub-cell positions, differentiable in the positions.

    Args:
        points: (..., J, 2) cells.
        height: H.
        width: W.
        sigma: standard deviation in cells.

    Returns:
        (..., J, H, W). A map whose point lies outside is empty.
    """
    x, y = points.unbind(-1)
    columns = torch.arange(width, device=points.device, dtype=points.dtype)
    rows = torch.arange(height, device=points.device, dtype=points.dtype)
    # A Gaussian is the product of two; the mask keeps a far point's own map empty.
    across = torch.exp(-0.5 * ((columns - x[..., None]) / sigma).square())
    down = torch.exp(-0.5 * ((rows - y[..., None]) / sigma).square())
    down = down * inside_map(points, height, width)[..., None]
    return down[..., :, None] * across[..., None, :]


def append_background(maps: Tensor) -> Tensor:
    """(..., J, H, W) joint maps -> (..., J + 1, H, W): what no joint claims comes last."""
    background = (1.0 - maps.amax(-3, keepdim=True)).clamp(min=0.0)
    return torch.cat((maps, background), dim=-3)


def belief_targets(
    joints_2d: Tensor, valid: Tensor, height: int, width: int, stride: float, sigma: float
) -> tuple[Tensor, Tensor]:
    """Ideal belief maps of annotated joints and which of them carry loss.

    A joint that is not annotated, or lies outside the picture, has an empty map and no loss in its
    channel. The background's map is known only if every joint is (one outside is: it covers
    nothing), so the background has loss only in samples whose joints are all annotated.

    Args:
        joints_2d: (N, J, 2) px; anything where not valid.
        valid: (N, J) bool.
        height: H.
        width: W.
        stride: px a cell.
        sigma: standard deviation in cells.

    Returns:
        (N, J + 1, H, W) maps, and (N, J + 1) bool.
    """
    points = torch.where(valid[..., None], px_to_cell(joints_2d, stride), -2.0)  # off the map
    maps = append_background(gaussian_maps(points, height, width, sigma))
    counted = valid & inside_map(points, height, width)
    return maps, torch.cat((counted, valid.all(dim=1, keepdim=True)), dim=1)


def belief_loss(maps: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Half the sum of squares over channels and cells, a mean over samples.

    It is the loss of a stage of Wei et al. 2016, and Eq. 8 of Tome et al. 2017 for one stage.

    Args:
        maps: (N, J + 1, H, W).
        target: the same shape, ideal maps.
        counted: (N, J + 1) bool, channels with loss. A sample without any does not dilute it.
    """
    squares = (maps - target).square().sum(dim=(-1, -2))
    return 0.5 * masked_sample_mean(squares, counted)


# ---- reading maps --------------------------------------------------------------------------------


def argmax_points(maps: Tensor) -> Tensor:
    """(..., H, W) -> (..., 2): the cell of the largest value; no gradient."""
    index = maps.flatten(-2).argmax(-1)
    width = maps.shape[-1]
    return torch.stack((index % width, index // width), dim=-1).to(maps.dtype)


def quarter_offset(maps: Tensor, cells: Tensor) -> Tensor:
    """Moves cells a quarter of a cell towards the higher of their two neighbours on each axis.

    Args:
        maps: (..., H, W).
        cells: (..., 2) of :func:`argmax_points`.

    Returns:
        (..., 2). Beyond the edge the map counts as its own border value, and nothing moves where
        both neighbours are equal.
    """
    height, width = maps.shape[-2:]
    flat = maps.detach().flatten(-2)
    x, y = cells.long().unbind(-1)

    def at(column: Tensor, row: Tensor) -> Tensor:
        index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        return flat.gather(-1, index[..., None])[..., 0]

    step = torch.stack((at(x + 1, y) - at(x - 1, y), at(x, y + 1) - at(x, y - 1)), dim=-1)
    return cells + 0.25 * step.sign()


def soft_argmax(maps: Tensor, sharpness: float = 6.0, radius: float | None = 3.0) -> Tensor:
    """Expected position under a softmax of the map: a differentiable read-out.

    Args:
        maps: (..., H, W) belief maps, peaks about 1.
        sharpness: factor of the values inside the softmax; 6 errs least on Gaussians of about one
            cell (0.11 cells at most), larger ones pull towards the maximum's own cell.
        radius: cells farther than this from the maximum, on either axis, do not count; without a
            limit the many cells of a large map pull the result to its middle.

    Returns:
        (..., 2) cells, differentiable in the values.
    """
    height, width = maps.shape[-2:]
    columns = torch.arange(width, device=maps.device, dtype=maps.dtype)
    rows = torch.arange(height, device=maps.device, dtype=maps.dtype)
    logits = maps * sharpness
    if radius is not None:
        peak = argmax_points(maps.detach())
        far_x = (columns - peak[..., :1]).abs() > radius  # (..., W)
        far_y = (rows - peak[..., 1:]).abs() > radius  # (..., H)
        logits = logits.masked_fill(far_y[..., :, None] | far_x[..., None, :], -torch.inf)
    weights = logits.flatten(-2).softmax(-1).view(maps.shape)
    return torch.stack(
        ((weights.sum(-2) * columns).sum(-1), (weights.sum(-1) * rows).sum(-1)), dim=-1
    )


def read_points(maps: Tensor, stride: float, mode: ReadOut = "quarter") -> Tensor:
    """(..., H, W) maps -> (..., 2) px of the picture.

    Args:
        maps: joint maps, without the background.
        stride: px a cell.
        mode: ``argmax``, ``quarter`` (argmax and :func:`quarter_offset`) or ``soft``
            (:func:`soft_argmax`, the only one with a gradient).
    """
    if mode == "soft":
        return cell_to_px(soft_argmax(maps), stride)
    cells = argmax_points(maps)
    return cell_to_px(quarter_offset(maps, cells) if mode == "quarter" else cells, stride)
