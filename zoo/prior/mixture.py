"""Mixture of PPCA on aligned poses (Tome et al., sec. 4.2): exemplars (Eq. 2), then EM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.prior.alignment import Gaussian, PoseSet, _Moments, closed_form_ppca, turn

__all__ = ["fit_mixture", "greedy_exemplars", "mixture_log_prob"]


def greedy_exemplars(distances: Tensor, count: int, nearest: float | None = None) -> list[int]:
    """Greedy minimiser of Eq. 2: sum over poses of the distance to the nearest exemplar.

    Args:
        distances: (N, N), symmetric.
        count: most exemplars.
        nearest: stop when the next one lies closer than this to a chosen one; ``None`` takes half
            the median distance of all pairs.

    Returns:
        Rows of the exemplars in the order of choice; at least one.
    """
    if nearest is None:
        off = ~torch.eye(len(distances), dtype=torch.bool)
        nearest = float(distances[off].median()) / 2 if len(distances) > 1 else 0.0
    best = torch.full((len(distances),), torch.inf, dtype=distances.dtype)
    chosen: list[int] = []
    while len(chosen) < min(count, len(distances)):
        pick = int(torch.minimum(best[None], distances).sum(1).argmin())
        if chosen and float(distances[pick, chosen].min()) < nearest:
            break
        chosen.append(pick)
        best = torch.minimum(best, distances[pick])
    return chosen


def mixture_log_prob(x: Tensor, models: list[Gaussian], weights: Tensor) -> Tensor:
    """Joint log density ln pi_k + ln N(x; m_k, C_k) of aligned vectors (N, 3J), shape (N, M)."""
    columns = [-model.constant - model.mahalanobis(x) / 2 for model in models]
    return torch.stack(columns, 1) + weights.log()


def fit_mixture(
    poses: PoseSet,
    angles: Tensor,
    size: int,
    count: int,
    *,
    start: tuple[list[Gaussian], Tensor] | None = None,
    sample: int = 2000,
    nearest: float | None = None,
    rounds: int = 200,
    tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
    chunk: int = 8192,
    progress: Callable[[float], None] | None = None,
) -> tuple[list[Gaussian], Tensor]:
    """EM for a mixture of PPCA with the poses' angles frozen (Tipping & Bishop 1999, app. C).

    Args:
        poses: the training set.
        angles: (N,) of :func:`zoo.prior.alignment.align`.
        size: D of every component.
        count: most components; the stop rule of :func:`greedy_exemplars` may leave fewer.
        start: components and weights to continue from, instead of exemplars.
        sample: poses on which the exemplars are searched.
        nearest: stop distance of the exemplars.
        rounds: most EM rounds.
        tolerance: stop at this relative change of the log-likelihood.
        generator: of the sample.
        chunk: poses a chunk.
        progress: called with the NLL (nat a pose) after every round; it never rises.

    Returns:
        Components and weights (M,), heaviest first.
    """
    dims, centre = 3 * (poses.joints - 1), None
    if start is None:
        rows = torch.randperm(len(poses), generator=generator)[:sample]
        picked = torch.empty(len(rows), 3 * poses.joints, dtype=torch.float64)
        place = torch.full((len(poses),), -1)
        place[rows] = torch.arange(len(rows))
        for part, x in poses.chunks(chunk):
            here = place[part]
            picked[here[here >= 0]] = turn(x, angles[part])[here >= 0]
        centre = picked[greedy_exemplars(torch.cdist(picked, picked), count, nearest)]
        models: list[Gaussian] = []
        weights = torch.ones(0)
    else:
        models, weights = start
    last = torch.inf
    for step in range(rounds + 1):
        shifts = centre if centre is not None else torch.stack([m.mean for m in models])
        moments = [_Moments(shift) for shift in shifts]
        total = 0.0
        for part, x in poses.chunks(chunk):
            aligned_x = turn(x, angles[part])
            if centre is not None:  # hard assignment to the nearest exemplar starts EM
                label = torch.cdist(aligned_x, centre).argmin(1)
                share = torch.nn.functional.one_hot(label, len(centre)).to(x.dtype)
            else:
                joint = mixture_log_prob(aligned_x, models, weights)
                evidence = joint.logsumexp(1)
                total += float(evidence.sum())
                share = (joint - evidence[:, None]).exp()
            for k, moment in enumerate(moments):
                moment.add(aligned_x, share[:, k])
        if centre is None:
            nll = -total / len(poses)
            if progress is not None:
                progress(nll)
            if step == rounds or abs(last - nll) < tolerance * abs(nll):
                break
            last = nll
        centre = None
        kept = [m for m in moments if m.count >= size + 2]  # too few poses to hold a basis
        models = [closed_form_ppca(*m.mean_covariance(), size, dims) for m in kept]
        counts = torch.tensor([m.count for m in kept], dtype=torch.float64)
        weights = counts / counts.sum()
    order = weights.argsort(descending=True)
    return [models[int(k)] for k in order], weights[order]
