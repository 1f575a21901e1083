"""Missing and uncertain joints in the lift, exactly, from the bank of complete poses.

A joint of weight w < 1 is a complete joint plus a free 2D offset n with the penalty h |n|^2,
h = w^2 / (1 - w^2) (0 when missing). Minimising the complete cost (y - n)^T Q (y - n) over n gives

    n = (Q_mm + H)^-1 (Q y)_m,   cost = y^T Q y - (Q y)_m^T n

over the rows m of these joints: a Schur complement, the same cost as weighted least squares with
a weighted 2D translation. The pose is then the complete solution for the imputed ``y - n``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.lifting.bank import Bank

__all__ = ["Group", "group_poses", "impute", "marginal_costs"]

_CHUNK_FLOATS = 2**18
_SMALL_BATCH = 16


@dataclass(frozen=True)
class Group:
    """Poses of a batch with the same number of joints of weight below one.

    Attributes:
        poses: (b,) rows of the batch.
        rows: (b, m) the image-vector rows of those joints; m is twice their number.
        penalty: (b, m) their h.
        real: (b, m) false where a row only pads; ``None`` if none does.
    """

    poses: Tensor
    rows: Tensor
    penalty: Tensor
    real: Tensor | None


def group_poses(weights: Tensor) -> list[Group]:
    """Groups poses by their weights (B, J) in [0, 1].

    A handful of poses stays together under its largest number: padding is exact and saves calls.
    """
    below = weights < 1
    counts = below.sum(1)
    # The joints below one come first, in order.
    joints = (~below).to(torch.uint8).argsort(dim=1, stable=True)
    squared = weights.square()
    penalties = torch.where(below, squared / (1 - squared).clamp_min(1e-12), 1.0)
    two = torch.arange(2, device=weights.device)
    order = counts.argsort(stable=True)
    if len(weights) <= _SMALL_BATCH:
        sizes, values = [len(weights)], [int(counts.max())]
    else:
        unique, lengths = torch.unique_consecutive(counts[order], return_counts=True)
        sizes, values = lengths.tolist(), unique.tolist()
    groups = []
    for poses, count in zip(torch.split(order, sizes), values, strict=True):
        mine = joints[poses, :count]
        real = below[poses].gather(1, mine)
        penalty = penalties[poses].gather(1, mine).repeat_interleave(2, 1)
        rows = (2 * mine[:, :, None] + two).flatten(1)
        exact = len(sizes) > 1 or bool(real.all())
        groups.append(Group(poses, rows, penalty, None if exact else real.repeat_interleave(2, 1)))
    return groups


def marginal_costs(bank: Bank, y: Tensor, group: Group, least: Tensor) -> tuple[Tensor, Tensor]:
    """Costs with the cap ``scale >= least`` (b, 1) and uncapped scales (b, K) of a group.

    Args:
        bank: the tables.
        y: (b, 2J) image vectors of the group's poses, anything finite where joints are missing.
        group: the group.
        least: (b, 1).
    """
    size = group.rows.shape[1]
    step = max(4, min(bank.chunk, _CHUNK_FLOATS // (max(size, 1) ** 2 * len(bank.scale_var))))
    costs, scales = [], []
    for start in range(0, len(y), step):
        part = slice(start, start + step)
        cost, scale = bank.costs(y[part])
        variance = bank.scale_var.expand_as(cost)
        if size:
            real = None if group.real is None else group.real[part]
            system = _system(bank, y[part], group.rows[part], group.penalty[part], real)
            cost, scale, variance = _eliminate(*system, cost, scale, variance)
        deficit = (least[part] - scale).clamp_min_(0.0)
        costs.append(cost + deficit.square_() / variance)
        scales.append(scale)
    return torch.cat(costs), torch.cat(scales)


def _system(
    bank: Bank, y: Tensor, rows: Tensor, penalty: Tensor, real: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(Q_mm + H) (b, m, m, K), (Q y)_m and the scale's row at m, (b, m, K)."""
    # Whole rows of candidates are copied: index_select is several times faster than indexing.
    (count, size), width = rows.shape, y.shape[1]
    gradient = (y @ bank.cost_matrix.flatten(1)).view(count * width, -1)
    own = torch.arange(count, device=y.device)[:, None] * width + rows
    g = gradient.index_select(0, own.flatten()).view(count, size, -1)
    pairs = rows[:, :, None] * width + rows[:, None, :]
    s = bank.cost_matrix.flatten(0, 1).index_select(0, pairs.flatten()).view(count, size, size, -1)
    h = bank.scale_column.index_select(0, rows.flatten()).view(count, size, -1)
    if real is not None:  # rows that pad become the identity and a zero right-hand side
        keep = real.to(y.dtype)
        s *= (keep[:, :, None] * keep[:, None, :])[..., None]
        g *= keep[..., None]
        h *= keep[..., None]
    s.diagonal(dim1=1, dim2=2).add_(penalty[:, None, :])
    return s, g, h


def _eliminate(
    s: Tensor, g: Tensor, h: Tensor, cost: Tensor, scale: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian elimination of all (pose, candidate) systems at once, candidates innermost.

    ``s`` (b, m, m, K), ``g`` and ``h`` (b, m, K) are overwritten. Returns cost - g^T s^-1 g,
    scale - h^T s^-1 g and variance + h^T s^-1 h, each (b, K).
    """
    spread = variance.expand_as(cost).clone()
    size = s.shape[1]
    for j in range(size):
        pivot = s[:, j, j].reciprocal()
        gj, hj = g[:, j] * pivot, h[:, j] * pivot
        cost = cost.addcmul(gj, g[:, j], value=-1.0)
        scale = scale.addcmul(gj, h[:, j], value=-1.0)
        spread.addcmul_(hj, h[:, j])
        if j + 1 < size:
            column = s[:, j + 1 :, j]
            g[:, j + 1 :].addcmul_(column, gj[:, None], value=-1.0)
            h[:, j + 1 :].addcmul_(column, hj[:, None], value=-1.0)
            scaled = column * pivot[:, None]
            s[:, j + 1 :, j + 1 :].addcmul_(scaled[:, :, None], column[:, None], value=-1.0)
    return cost, scale, spread


def impute(bank: Bank, y: Tensor, groups: list[Group], index: Tensor) -> Tensor:
    """The complete image vectors (B, 2J) that candidate ``index`` (B,) implies.

    Differentiable in ``y``; solved in float64, for few visible joints condition the system badly.
    """
    wide = torch.float64
    offset = torch.zeros_like(y)
    for group in groups:
        if not group.rows.shape[1]:
            continue
        at, part = index[group.poses], y[group.poses]
        own = at[:, None] * y.shape[1] + group.rows
        q = bank.cost_rows.flatten(0, 1).index_select(0, own.flatten())
        q = q.view(*group.rows.shape, y.shape[1])  # (b, m, 2J)
        g = (q @ part[:, :, None])[:, :, 0].to(wide)
        s = q.gather(2, group.rows[:, None, :].expand(-1, q.shape[1], -1)).to(wide)
        if group.real is not None:
            keep = group.real.to(wide)
            g, s = g * keep, s * (keep[:, :, None] * keep[:, None, :])
        s = s + torch.diag_embed(group.penalty.to(wide))
        n = torch.cholesky_solve(g[:, :, None], torch.linalg.cholesky(s))[:, :, 0]
        if group.real is not None:
            n = n * keep
        moved = torch.zeros_like(part).scatter_add(1, group.rows, n.to(y.dtype))
        offset = offset.index_copy(0, group.poses, moved)
    return y - offset
