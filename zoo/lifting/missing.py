"""Missing and uncertain joints in the lift, exactly, from the bank of complete poses.

A joint of weight w < 1 is a complete joint plus a free 2D offset n with the penalty h |n|^2,
h = w^2 / (1 - w^2) (0 when missing). Minimising the complete cost (y - n)^T Q (y - n) over n gives

    n = (Q_mm + H)^-1 (Q y)_m,   cost = y^T Q y - (Q y)_m^T n

over the rows m of these joints: a Schur complement, the same cost as weighted least squares with
a weighted 2D translation. The pose is then the complete solution for the imputed ``y - n``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoo.lifting.bank import Bank

__all__ = ["chunk_size", "free_rows", "groups_by_count", "impute", "marginal_costs"]

_CHUNK_FLOATS = 2**18


def groups_by_count(weights: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Splits rows by their number of joints of weight below one: (number, rows).

    Few rows are kept together under their largest number, which saves calls; padding is exact.
    """
    counts = (weights < 1).sum(1)
    if len(weights) <= 16:
        yield int(counts.max()), torch.arange(len(weights), device=weights.device)
        return
    order = counts.argsort(stable=True)
    values, sizes = torch.unique_consecutive(counts[order], return_counts=True)
    start = 0
    for value, size in zip(values.tolist(), sizes.tolist(), strict=True):
        yield value, order[start : start + size]
        start += size


def free_rows(weights: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image-vector rows of the joints of weight below one.

    Args:
        weights: (B, J) in [0, 1].
        count: joints a pose, at least the largest number below one.

    Returns:
        rows (B, 2 count); their penalty h (B, 2 count); and which rows are real (B, 2 count): the
        others pad poses with fewer such joints.
    """
    below = weights < 1
    joints = (~below).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    real = below.gather(1, joints)
    squared = weights.gather(1, joints).square()
    penalty = torch.where(real, squared / (1 - squared).clamp_min(1e-12), 0.0)
    rows = (2 * joints[:, :, None] + torch.arange(2, device=weights.device)).flatten(1)
    return rows, penalty.repeat_interleave(2, 1), real.repeat_interleave(2, 1)


def chunk_size(bank: Bank, count: int) -> int:
    """Poses whose systems of ``count`` joints fit in the cache."""
    size = 4 * max(count, 1) ** 2 * bank.components * bank.angles
    return max(4, min(bank.chunk, _CHUNK_FLOATS // size))


def marginal_costs(
    bank: Bank, y: Tensor, weights: Tensor, count: int, least: Tensor
) -> tuple[Tensor, Tensor]:
    """Costs (with the cap ``scale >= least`` (B, 1)) and uncapped scales (B, K)."""
    cost, scale = bank.costs(y)
    variance = bank.scale_var.expand_as(cost)
    if count:
        rows, penalty, real = free_rows(weights, count)
        gradient = (y @ bank.cost_matrix.flatten(1)).view(len(y), y.shape[1], -1)
        g = gradient.gather(1, rows[:, :, None].expand(-1, -1, gradient.shape[2]))
        s = bank.cost_matrix[rows[:, :, None], rows[:, None, :]]  # (b, m, m, K)
        h = bank.solve[:, 0].T[rows]
        if not bool(real.all()):  # rows that pad become the identity and a zero right-hand side
            keep = real.to(y.dtype)
            s *= (keep[:, :, None] * keep[:, None, :])[..., None]
            g *= keep[..., None]
            h *= keep[..., None]
        s.diagonal(dim1=1, dim2=2).add_(torch.where(real, penalty, 1.0)[:, None, :])
        cost, scale, variance = _eliminate(s, g, h, cost, scale, variance)
    deficit = (least - scale).clamp_min(0.0)
    return cost + deficit.square() / variance, scale


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


def impute(bank: Bank, y: Tensor, weights: Tensor, index: Tensor) -> Tensor:
    """The complete image vectors (B, 2J) that candidate ``index`` (B,) implies.

    Differentiable in ``y``; solved in float64, for few visible joints condition the system badly.
    """
    count = int((weights < 1).sum(1).max()) if len(y) else 0
    if count == 0:
        return y
    rows, penalty, real = free_rows(weights, count)
    every = torch.arange(y.shape[1], device=y.device)
    of, wide = index[:, None, None], torch.float64
    keep = real.to(wide)
    q = bank.cost_matrix[rows[:, :, None], every, of].to(wide)  # (B, m, 2J)
    g = (q * y.to(wide)[:, None]).sum(2) * keep
    s = bank.cost_matrix[rows[:, :, None], rows[:, None, :], of].to(wide)
    s = s * (keep[:, :, None] * keep[:, None, :])
    s = s + torch.diag_embed(torch.where(real, penalty.to(wide), 1.0))
    n = torch.cholesky_solve(g[:, :, None], torch.linalg.cholesky(s))[:, :, 0]
    return y - torch.zeros_like(y, dtype=wide).scatter_add(1, rows, n * keep).to(y.dtype)
